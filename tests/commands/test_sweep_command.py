"""``s3prl-ext sweep`` from the command line, with a model's own CTC head and with a trained one."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from tqdm import tqdm

from s3prl_ext.cli import main
from s3prl_ext.commands.flags.sweep import parser
from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.merging.names import SHARE
from s3prl_ext.mini_superb import ALL, LAYOUTS, variables
from s3prl_ext.studies.driver import Ended
from s3prl_ext.sweeps import parts, pipeline
from s3prl_ext.sweeps.experiment import experiment_args
from s3prl_ext.sweeps.store import RECORDED_LATER
from s3prl_ext.sweeps.stored import read_sweep
from s3prl_ext.tasks import named
from s3prl_ext.training.results import provenance
from tests.support import factories
from tests.support.experiments import make_args, task_config

HEAD = "config.downstream_expert.head.init='target'"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder in LJ Speech's layout with ten clips of noise."""
    root = tmp_path_factory.mktemp("corpus") / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    ids = [f"LJ001-{number:04d}" for number in range(10)]
    for index, name in enumerate(ids):
        soundfile.write(root / "wavs" / f"{name}.wav", 0.1 * rng.standard_normal(8000 + 800 * index), 16000)
    lines = [f"{name}|a sea of tea {index}|a sea of tea and rest" for index, name in enumerate(ids)]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    (root / "splits.json").write_text(json.dumps({"train": ids[:4], "dev": ids[4:7], "test": ids[7:]}))
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """The folders of a target with a CTC head, and of a source."""
    folder = tmp_path_factory.mktemp("pair")
    return factories.hubert_folder(folder / "hubert", ctc=True), factories.bert_folder(folder / "bert")


@pytest.fixture
def sweep(corpus, pair, tmp_path, monkeypatch):
    """Run the command on the corpus; returns the folder of its results."""
    monkeypatch.setenv("LJSPEECH", str(corpus))
    config = tmp_path / "my.yaml"
    config.write_text(f"target:\n  model: {pair[0]}\nsource:\n  model: {pair[1]}\nlambda: 0.5\n")

    def run(
        *flags: str,
        expdir: str = "sweep",
        task: tuple[str, ...] = ("-d", "ljspeech", "-c", "ljspeech/mini", "-o", HEAD),
    ):
        folder = tmp_path / expdir
        assert main(["sweep", "-g", str(config), *task, "-p", str(folder), "--device", "cpu", *flags]) == 0
        return folder

    return run


def results(folder: Path) -> dict:
    return json.loads((folder / "sweep.json").read_text())


def metrics_by_arm(folder: Path) -> dict:
    rows = results(folder)["results"].values()
    return {
        (row["split"], tuple(row["arm"]["layers"]), row["arm"]["noise"], row["arm"]["lambda"]): row["metrics"]
        for row in rows
    }


def test_zero_shot_with_the_targets_own_head(sweep, pair, capsys):
    folder = sweep(
        "--lambda", "0,0.5,1", "--layers", "all,1", "--noise", "none,standard", "--draws", "2", "--metric", "cer"
    )
    content = results(folder)
    assert {row["split"] for row in content["results"].values()} == {"dev", "test"}
    assert sum(row["split"] == "dev" for row in content["results"].values()) == 1 + 2 * 2 + 2 * 2 * 2
    assert content["metric"] == {"name": "cer", "unit": "%", "higher_is_better": False}
    assert [row["group"] for row in content["summary"]] == ["all", "all", "1", "1"]
    assert content["target"]["name"] == str(pair[0]) and len(content["source"]["attention_sha256"]) == 64
    shown = capsys.readouterr().out
    assert shown == (folder / "sweep.md").read_text() and "± " in shown
    assert (folder / "sweep.png").stat().st_size > 1000
    assert (folder / "arms" / "target" / "transcripts-dev.jsonl").is_file()


def test_arms_share_what_the_extractor_gives(sweep, corpus, tmp_path, monkeypatch, capsys, caplog):
    """In batches of one the scores are those without files; a sweep is not resumed with another setting."""
    alone = f"{HEAD},,config.downstream_expert.datarc.eval_batch_size=1"
    cached = f"{alone},,config.runner.cache='extractor',,config.runner.cache_folder='{tmp_path / 'cache'}'"
    flags = ("--lambda", "0,0.25,0.5,0.75,1", "--metric", "cer", "--test-all")

    def task(override: str) -> tuple[str, ...]:
        return ("-d", "ljspeech", "-c", "ljspeech/mini", "-o", override)

    from transformers.models.hubert.modeling_hubert import HubertFeatureEncoder

    computed: list[int] = []
    forward = HubertFeatureEncoder.forward
    monkeypatch.setattr(
        HubertFeatureEncoder, "forward", lambda self, wavs: computed.append(len(wavs)) or forward(self, wavs)
    )
    plain = sweep(*flags, expdir="plain", task=task(alone))
    without = sum(computed)
    computed.clear()
    with caplog.at_level("INFO"):
        kept = sweep(*flags, expdir="kept", task=task(cached))
    assert metrics_by_arm(plain) == metrics_by_arm(kept) and len(metrics_by_arm(kept)) == 10
    assert "the extractor outputs of about 6 clips take about" in caplog.text
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6
    assert without - sum(computed) > 2 * 6 and results(kept)["settings"]["runner.cache"] == "extractor in float32"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        sweep(*flags, expdir="kept", task=task(alone))
    assert 'was made with another runner.cache ("extractor in float32", now null)' in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        sweep(*flags, expdir="nowhere", task=task(cached.replace("/cache'", "/file/x'")))
    assert "/file/x cannot be created" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
    # pairs that decide layers are no clips of the task, and their vectors are kept for sweeps without files too
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    rows = [f"{path}\ta sea of tea" for path in sorted((corpus / "wavs").iterdir())[:4]]
    (tmp_path / "pairs.tsv").write_text("\n".join(["path\ttext", *rows * 5]) + "\n")
    similar = ("--by", "swd", "--top-k", "1", "--similarity", str(tmp_path / "pairs.tsv"))
    half = f"{cached.replace('/cache', '/half')},,config.runner.cache_dtype='float16'"
    sweep("--lambda", "0.5", "--metric", "cer", *similar, expdir="half", task=task(half))
    assert len(list((tmp_path / "half").rglob("*.safetensors"))) == 6
    # the features of a merged upstream are those of its arm
    other = sweep(*flags, expdir="features", task=task(cached.replace("extractor", "features")))
    assert metrics_by_arm(other) == metrics_by_arm(plain) and "features is ignored" in caplog.text
    assert results(other)["settings"] == results(plain)["settings"], "reports know them as sweeps of one model"


def test_what_the_configuration_merges_is_swept(sweep, tmp_path, caplog):
    config = tmp_path / "my.yaml"
    text = config.read_text().replace("lambda: 0.5", "lambda: {default: 0.1, k_proj: 0.2, v_proj: 0}\nlayers: 1")
    config.write_text(text + "noise: target\n")
    folder = sweep("--lambda", "0.5", "--draws", "2", "--metric", "cer", "--test", "none")
    assert [(row["noise"], row["draws"]) for row in results(folder)["summary"]] == [("target", 2)]
    assert results(folder)["settings"]["projections"] == ["q_proj", "k_proj"]
    assert "one lambda for all layers and projections: those of the configuration are ignored" in caplog.text
    assert "takes its layers from --layers or --grid: those of the configuration are ignored" in caplog.text


def test_task_vectors_of_aligned_heads_are_swept_and_noise_for_them_is_refused(sweep, tmp_path, capsys):
    base = factories.bert_folder(tmp_path / "base", seed=8)
    config = tmp_path / "my.yaml"
    config.write_text(config.read_text() + f"base:\n  model: {base}\nmethod: ties\nalign: heads\n")
    folder = sweep("--lambda", "0.5", "--metric", "cer")
    settings = results(folder)["settings"]
    assert settings["method"]["name"] == "ties" and settings["align"] == {"kind": "heads", "heads": 2}
    assert len(settings["base"]) == 64
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        sweep("--lambda", "0.5", "--noise", "none,target", expdir="noisy")
    assert ended.value.code == 2
    assert "noise target replaces a source's matrices, but ties merges what training changed" in capsys.readouterr().err
    assert not (tmp_path / "noisy").exists()


def test_a_turned_source_is_swept_with_noise_that_is_turned_as_it_is(sweep, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "my.yaml"
    plain = config.read_text()
    config.write_text(
        f"{plain}align:\n  kind: basis\n  pairs: {corpus}\n  split: {corpus / 'splits.json'}\n  share: 1\n"
    )
    folder = sweep("--lambda", "0,1", "--noise", "none,standard", "--draws", "1", "--metric", "cer")
    settings = results(folder)["settings"]
    assert settings["basis"]["pairs"]["used"] == 4 and len(settings["basis"]["pairs"]["sha256"]) == 64
    assert settings["basis"]["pairs"]["file"] is None  # it may move
    turned = metrics_by_arm(folder)
    config.write_text(plain)
    as_it_is = metrics_by_arm(
        sweep("--lambda", "0,1", "--noise", "none,standard", "--draws", "1", "--metric", "cer", expdir="b")
    )
    assert turned.keys() == as_it_is.keys()
    unmerged = [key for key in turned if not key[1]]
    assert unmerged and all(turned[key] == as_it_is[key] for key in unmerged)
    assert any(turned[key] != as_it_is[key] for key in turned if key[2] == "none")


def test_the_papers_lambda_is_scored_on_test_only_where_the_paper_prints_something(sweep, tmp_path, capsys):
    grid = tmp_path / "grid.yaml"
    grid.write_text('arms: {"12-19": {layers: 1, lambda: [0.25, 0.5]}}\n')
    folder = sweep("--grid", str(grid), "--paper", "ljspeech", "--test-paper")
    assert ("test", (1,), "none", 0.25) in metrics_by_arm(folder)
    assert "## The paper's λ" in (folder / "sweep.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        sweep("--lambda", "0.5", "--test-paper", expdir="other")
    assert "--test-paper: MAM prints no figure for an arm of this grid" in capsys.readouterr().err


def test_a_merge_that_is_not_mams_is_named_and_shown_without_its_figures(sweep, tmp_path, caplog):
    folder = sweep("-g", f"{tmp_path / 'my.yaml'},,method=slerp", "--lambda", "0.25", "--paper", "ljspeech")
    text = (folder / "sweep.md").read_text()
    assert text.startswith("# bert into hubert: ljspeech (slerp)\n") and "paper" not in text.lower()
    assert "MAM's figures are left out, which are of other merges than this one (slerp)" in caplog.text


def test_a_sweep_resumed_with_another_torch_says_so_of_each_result(sweep, monkeypatch, caplog):
    flags = ("--test", "none", "--lambda")
    sweep(*flags, "0.25")
    assert "holds results made with" not in caplog.text
    now = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: now | {"torch": "9.9.9"})
    folder = sweep(*flags, "0.25,0.5")
    assert f"holds results made with torch {now['torch']}, what is missing is scored with 9.9.9" in caplog.text
    content = results(folder)
    made = {
        r["arm"]["lambda"]: content["origins"][r["origin"]]["versions"]["torch"] for r in content["results"].values()
    }
    assert made == {0.0: now["torch"], 0.25: now["torch"], 0.5: "9.9.9"}
    assert [one["versions"]["torch"] for one in read_sweep(folder / "sweep.json").origins] == [now["torch"], "9.9.9"]


def test_an_arm_scores_as_the_merged_upstream_does(sweep, corpus, pair, tmp_path):
    """The same numbers as the Runner with ``-u merged_attention``, for the target and for a merge."""
    from s3prl_ext.training.results.evaluation import evaluate
    from s3prl_ext.training.runner import Runner

    scored = metrics_by_arm(sweep("--lambda", "0.5", "--layers", "1", "--test", "none"))
    config = load_yaml("downstream_configs/ljspeech/mini.yaml")
    config["downstream_expert"]["head"]["init"] = "target"
    for arm, overrides in (((), "lambda=0"), ((1,), "layers=1")):
        args = make_args(
            tmp_path / f"run{len(arm)}", mode="evaluate", downstream="ljspeech", upstream="merged_attention"
        )
        args.upstream_model_config = f"{tmp_path / 'my.yaml'},,{overrides}"
        runner = Runner(args, config)
        values = evaluate(runner.models, "dev", args.seed).metrics
        assert scored["dev", arm, "none", 0.5 if arm else 0.0] == {
            name: value for name, value in values.items() if not name.endswith(("_low", "_high"))
        }


def train_head(folder: Path, upstream: str, **changes) -> Path:
    """Train a new head for two steps and return its checkpoint."""
    from s3prl_ext.training.runner import Runner

    torch.manual_seed(0)
    args = make_args(folder, downstream="ljspeech", upstream=upstream, **changes)
    Runner(args, task_config("ljspeech", total_steps=2, log_step=1)).train()
    return next(folder.glob("states-2.ckpt"))


def test_head_trained_on_the_unmerged_target(sweep, corpus, pair, tmp_path, monkeypatch):
    monkeypatch.setenv("LJSPEECH", str(corpus))
    config = tmp_path / "my.yaml"
    config.write_text(f"target:\n  model: {pair[0]}\nsource:\n  model: {pair[1]}\nlambda: 0.5\n")
    unmerged = f"{config},,lambda=0"
    head = train_head(tmp_path / "head", "merged_attention", upstream_model_config=unmerged)
    folder = sweep("--lambda", "0.5", "--test", "none", task=("-e", str(head)))
    assert results(folder)["settings"]["task"] == "ljspeech"

    stock = train_head(tmp_path / "stock", "hf_hubert_custom", upstream_ckpt=str(pair[0]))
    other = sweep("--lambda", "0.5", "--test", "none", expdir="other", task=("-e", str(stock)))
    assert metrics_by_arm(other) == metrics_by_arm(folder)

    task = ("-d", "ljspeech", "-c", "ljspeech/mini", "-i", str(head))
    assert metrics_by_arm(sweep("--lambda", "0.5", "--test", "none", expdir="init", task=task)) == metrics_by_arm(
        folder
    )

    merged = train_head(tmp_path / "merged", "merged_attention", upstream_model_config=str(config))
    with pytest.raises(SystemExit):
        sweep("--lambda", "0.5", expdir="refused", task=("-e", str(merged)))
    assert not (tmp_path / "refused").exists()


def test_flags_that_say_something_else_than_the_checkpoint_are_refused(corpus, pair, tmp_path, monkeypatch):
    monkeypatch.setenv("LJSPEECH", str(corpus))
    head = str(train_head(tmp_path / "head", "hf_hubert_custom", upstream_ckpt=str(pair[0])))
    config = task_config("ljspeech", total_steps=2, log_step=1)
    same, other = tmp_path / "same.yaml", tmp_path / "other.yaml"
    same.write_text(yaml.safe_dump(config))
    config["downstream_expert"]["datarc"]["text_rule"] = "identity"
    other.write_text(yaml.safe_dump(config))

    def given(*flags: str) -> tuple[Namespace, dict]:
        merge = ["-g", "my.yaml", "-k", "another/target"]
        return experiment_args(parser().parse_args([*merge, "-e", head, *flags, "-p", "x", "--device", "cpu"]))

    args, task = given("-d", "ljspeech", "-c", str(same), "--seed", str(given()[0].seed))
    assert args.upstream_ckpt == str(pair[0]) and task == given()[1]
    for flags, difference in (
        (["-d", "vctk"], "-d: ljspeech in the checkpoint, vctk here"),
        (["--seed", "7"], "--seed: 1337 in the checkpoint, 7 here"),
        (["-l", "1"], "-l: -1 in the checkpoint, 1 here"),
        (["-c", str(other)], "datarc.text_rule: "),
    ):
        with pytest.raises(UsageError, match="states-2.ckpt was trained with different settings .*" + difference):
            given(*flags)
    changed, task = given("-c", str(same), "-o", "args.seed=7,,config.downstream_expert.datarc.text_rule='identity'")
    assert changed.seed == 7 and task["downstream_expert"]["datarc"]["text_rule"] == "identity"
    with pytest.raises(UsageError, match="give one of the two"):
        given("-i", head)


def test_a_sweep_is_not_gone_on_with_on_other_preprocessing_or_another_vocabulary(sweep, pair, tmp_path, capsys):
    target = tmp_path / "hubert"
    shutil.copytree(pair[0], target)
    config = tmp_path / "my.yaml"
    config.write_text(config.read_text().replace(str(pair[0]), str(target)))
    flags = ("--lambda", "0.5", "--metric", "loss", "--test", "none")
    folder = sweep(*flags)
    before = (folder / "sweep.json").read_bytes()

    def changed(name: str, change: Callable[[dict], None], message: str) -> None:
        text = (target / name).read_text()
        content = json.loads(text)
        change(content)
        (target / name).write_text(json.dumps(content))
        capsys.readouterr()
        with pytest.raises(SystemExit):
            sweep(*flags)
        assert f"sweep.json was made with another {message} (" in capsys.readouterr().err
        assert (folder / "sweep.json").read_bytes() == before
        (target / name).write_text(text)

    def swap(content: dict) -> None:
        content["A"], content["B"] = content["B"], content["A"]

    changed("preprocessor_config.json", lambda c: c.update(do_normalize=not c["do_normalize"]), "target's settings")
    changed("config.json", lambda c: c.update(num_attention_heads=1), "target's settings")
    changed("vocab.json", swap, "head's settings")
    sweep(*flags)  # as it was

    older = json.loads(before)
    for key in RECORDED_LATER:
        del older["settings"][key]
    (folder / "sweep.json").write_text(json.dumps(older))
    with pytest.raises(SystemExit):
        sweep(*flags)
    assert "is of a version that did not record the head's settings" in capsys.readouterr().err
    assert read_sweep(folder / "sweep.json").runs()


HEADS_THAT_MUST_TRAIN = [name for name in LAYOUTS if not named(name).own_head]


@pytest.mark.parametrize("task", HEADS_THAT_MUST_TRAIN)
def test_a_head_that_was_never_trained_is_refused_for_every_task(task, sweep, tmp_path, capsys):
    flags = ("-d", LAYOUTS[task].task.downstream, "-c", f"{task}/mini")
    with pytest.raises(SystemExit) as ended:
        sweep("--lambda", "0.1", task=flags)
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "is untrained" in shown and "give its checkpoint with -e" in shown
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            ("-d", "ljspeech", "-c", "ljspeech/mini", "-o", "config.downstream_expert.head.init='fresh'"),
            "untrained head",
        ),
        (("-d", "esc50", "-c", "esc50/mini"), "the head of -d esc50 is untrained"),
        (("-d", "speech_comands", "-c", "ks/mini"), "did you mean 'speech_commands'"),
    ],
)
def test_tasks_with_a_head_of_their_own_look_at_it(task, message, sweep, mini_superb, monkeypatch, capsys):
    for name, value in variables(ALL, mini_superb).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        sweep("--lambda", "0.1", task=task)
    assert ended.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("task", ["ks", "sd", *(pytest.param(t, marks=pytest.mark.slow) for t in ("ic", "sid", "asr"))])
def test_a_larger_grid_is_added_to_a_finished_sweep(task, sweep, pair, mini_superb, tmp_path, monkeypatch):
    from s3prl_ext.training.runner import Runner

    for name, value in {**variables(ALL, mini_superb), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    args = make_args(
        tmp_path / "head",
        downstream=LAYOUTS[task].task.downstream,
        upstream="hf_hubert_custom",
        upstream_ckpt=str(pair[0]),
    )
    config = task_config(task, total_steps=1, log_step=1)
    config["runner"]["eval_dataloaders"] = []
    if task == "sd":
        config["downstream_expert"]["scorerc"]["save_predictions"] = True
    Runner(args, config).train()
    head = str(tmp_path / "head" / "states-1.ckpt")
    folder = sweep("--lambda", "0.1", task=("-e", head))
    first = results(folder)
    sweep("--lambda", "0.1,0.9", "--test-all", task=("-e", head))
    second = results(folder)
    assert second["data"] == first["data"] and list(second["data"]) == [named(task).dev, named(task).test]
    assert {key: second["results"][key] for key in first["results"]} == first[
        "results"
    ]  # seconds too: kept, not redone
    assert len(first["results"]) == 4 and len(second["results"]) == 6
    if task == "sd":
        arms = [folder / "arms" / name for name in ("target", "all_lambda_0.1", "all_lambda_0.9")]
        files = [sorted((arm / "scoring" / "predictions").glob("*.h5")) for arm in arms]
        assert files[0] and len({tuple(path.name for path in paths) for paths in files}) == 1
        assert len({paths[0].read_bytes() for paths in files}) == 3, "each arm has its own predictions"
        assert not list((folder / "scoring").glob("*/*")) and all((arm / "frame_shift").is_file() for arm in arms)


def test_most_similar_layers_from_a_file(sweep, pair, tmp_path, corpus):
    pairs = tmp_path / "pairs.tsv"
    rows = [f"{path}\ta sea of tea" for path in sorted((corpus / "wavs").glob("*.wav"))]
    pairs.write_text("\n".join(["path\ttext", *rows]) + "\n")
    flags = ["--target", str(pair[0]), "--source", str(pair[1]), "--pairs", str(pairs), "--share", "1", "--top-k", "1"]
    assert main(["layers", *flags, "--metric", "swd,euclidean", "--out", str(tmp_path / "layers")]) == 0
    similarity = json.loads((tmp_path / "layers" / "layers.json").read_text())
    folder = sweep(
        "--lambda", "0.5", "--by", "swd,euclidean", "--top-k", "1,2", "--similarity", str(tmp_path / "layers" / "layers.json"),
        "--test", "none",
    )  # fmt: skip
    chosen = {row["group"]: row["layers"] for row in results(folder)["summary"]}
    assert chosen["swd top-1"] == similarity["metrics"]["swd"]["layers"]
    assert chosen["euclidean top-2"] == [0, 1]


def test_no_merge_is_decided_with_clips_that_the_task_scores(sweep, corpus, tmp_path, capsys):
    """The lists of the task name four clips of training; by chapter, the rule of the corpus, all ten would be."""
    from s3prl_ext.training.runner import Runner

    by_similarity = ("--lambda", "0.5", "--by", "swd", "--top-k", "1", "--test", "none")
    with pytest.raises(SystemExit):
        sweep(*by_similarity, "--similarity", str(corpus))
    assert f"too few pairs: {SHARE:g} of 4 is 0" in capsys.readouterr().err  # the task's lists, without asking
    config, text = tmp_path / "my.yaml", (tmp_path / "my.yaml").read_text()
    message = (
        f"the merge is decided by pairs of {corpus} that split chapter calls train, of which the task scores 6 in dev or "
        f"test: give the pairs split: {corpus}/splits.json"
    )
    for found in ("layers: {by: swd, top_k: 1, ", "layer_map: {match: swd, ", "method: {name: regmean, "):
        config.write_text(f"{text}{found}pairs: {corpus}, share: 1}}\n")
        with pytest.raises(UsageError, match=re.escape(message)):
            Runner(evaluated(tmp_path / "run"), zero_shot("ljspeech/mini"))
        if not found.startswith("layers"):  # which a sweep ignores
            with pytest.raises(SystemExit):
                sweep("--lambda", "0.5", "--test", "none")
            assert message in capsys.readouterr().err
    config.write_text(f"{text}layers: {{by: swd, top_k: 1, pairs: {corpus}, split: {corpus}/splits.json, share: 1}}\n")
    upstream = Runner(evaluated(tmp_path / "run"), zero_shot("ljspeech/mini")).upstream.model
    assert upstream.merge_record["sources"][0]["layer_selection"]["pairs"]["used"] == 4
    flags = [
        "-g",
        str(config),
        "--pairs",
        str(corpus),
        "--share",
        "1",
        "--top-k",
        "1",
        "--out",
        str(tmp_path / "found"),
    ]
    config.write_text(text)
    assert main(["layers", *flags]) == 0
    with pytest.raises(SystemExit):
        sweep(*by_similarity, "--similarity", str(tmp_path / "found" / "layers.json"))
    assert message in capsys.readouterr().err


def evaluated(folder: Path):
    args = make_args(folder, mode="evaluate", downstream="ljspeech", upstream="merged_attention")
    args.upstream_model_config = str(folder.parent / "my.yaml")
    return args


def zero_shot(preset: str) -> dict:
    config = load_yaml(f"downstream_configs/{preset}.yaml")
    config["downstream_expert"]["head"]["init"] = "target"
    return config


def test_named_arms_and_joined_layers(sweep, tmp_path):
    (tmp_path / "grid.yaml").write_text("arms:\n  strong: {lambda: 0.9, layers: 1}\n")
    folder = sweep("--grid", str(tmp_path / "grid.yaml"), "--lambda", "0.1", "--layers", "0+1", "--test", "none")
    assert [row["group"] for row in results(folder)["summary"]] == ["0,1", "strong"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the grid is an empty grid"),
        (["--lambda", "0.1,2"], "must be between 0"),
        (["--lambda", "0.1", "--layers", "1-4"], "layer 4 is out of range"),
        (["--lambda", "0.1", "--noise", "pink"], "unknown noise 'pink'"),
        (["--lambda", "0.1", "--metric", "beauty"], "unknown metric 'beauty'"),
        (["--lambda", "0.1", "--metric", "der"], "does not report the metric 'der'"),
        (["--lambda", "0.1", "--dev", "valid"], "no split 'valid'"),
        (["--lambda", "0.1", "--by", "swd", "--top-k", "1"], "--by needs --similarity"),
        (["--grid", "table9"], "no such configuration file"),
        (["--lambda", "0.1", "-e", "/nothing"], "no such checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(flags, message, sweep, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep(*flags)
    assert ended.value.code in (1, 2)
    shown = capsys.readouterr().err
    assert message in shown.strip().splitlines()[-1] and "Traceback" not in shown
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_target_without_attention_is_named(sweep, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep("--lambda", "0.1", "-k", str(tmp_path))
    assert "holds" in capsys.readouterr().err.strip().splitlines()[-1]


class InThisProcess:
    """An engine that runs each part at once, in this process; `fails` names one that ends with an error instead."""

    stopped = False

    def __init__(self, fails: str = "") -> None:
        self.fails, self.parts, self.running = fails, [], []

    def start(self, part, log: Path) -> None:
        self.parts.append(part.name)
        if part.name == self.fails:
            log.write_text("\ns3prl-ext: the disk is full.\n")
            self.running.append(Ended(part, 1, log))
        else:
            self.running.append(Ended(part, main(part.flags()), log))

    def ended(self, seconds: float) -> list[Ended]:
        ended, self.running = self.running, []
        return ended

    def stop(self) -> None:
        self.stopped = True


def scores(folder: Path) -> dict:
    """Return all results by arm and split, without their times."""
    return {key: {k: v for k, v in row.items() if k != "seconds"} for key, row in results(folder)["results"].items()}


DIVIDED = ("--lambda", "0,0.2,0.4", "--noise", "none,target", "--draws", "2")


def test_a_divided_sweep_gives_what_one_process_gives(sweep, monkeypatch, capsys):
    whole = sweep(*DIVIDED, expdir="whole")
    shown = capsys.readouterr().out
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: InThisProcess())
    bars = []
    monkeypatch.setattr(parts, "bar", lambda **options: bars.append(tqdm(file=io.StringIO(), **options)) or bars[-1])
    divided = sweep(*DIVIDED, "--jobs", "3", expdir="divided")
    assert [(each.n, each.total, each.desc) for each in bars] == [(6, 6, "3 processes")]
    assert capsys.readouterr().out.endswith(shown), "the same table"
    ours, theirs = results(divided), results(whole)
    assert scores(divided) == scores(whole) and ours["summary"] == theirs["summary"] and ours["data"] == theirs["data"]
    arms = {folder: sorted(path.name for path in (folder / "arms").iterdir()) for folder in (whole, divided)}
    assert arms[divided] == arms[whole] and not (divided / "parts").exists()


@pytest.mark.parametrize(("anew", "again"), [((), "again to go on"), (("--overwrite",), "again without --overwrite")])
def test_a_part_that_fails_is_named_and_the_others_are_kept(sweep, tmp_path, monkeypatch, capsys, anew, again):
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: InThisProcess(fails="part 2 of 2"))
    with pytest.raises((SystemExit, DataError)):
        sweep(*DIVIDED, "--jobs", "2", *anew)
    assert f"part 2 of 2: the disk is full. Give the same command {again}" in capsys.readouterr().err
    kept = json.loads((tmp_path / "sweep" / "parts" / "0-of-2" / "sweep.json").read_text())["results"]
    assert len(kept) == 4, "the unmerged target and every second of six arms"
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: InThisProcess())
    folder = sweep(*DIVIDED, "--jobs", "2")
    assert not (folder / "parts").exists()
    assert all(results(folder)["results"][key] == row for key, row in kept.items()), "not scored again"


def test_ctrl_c_ends_the_parts_and_their_results_are_merged_by_any_number_of_parts(
    sweep, tmp_path, monkeypatch, capsys
):
    class Waits(InThisProcess):
        def ended(self, seconds: float) -> list[Ended]:
            os.kill(os.getpid(), signal.SIGINT)
            return []

    engine = Waits()
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: engine)
    with pytest.raises((SystemExit, StoppedByUser)):
        sweep(*DIVIDED, "--jobs", "2")
    sentence = f"stopped: what was scored is kept in {tmp_path / 'sweep'}; give the same command again to go on."
    assert engine.stopped and sentence in capsys.readouterr().err
    kept = [json.loads(path.read_text())["results"] for path in tmp_path.glob("sweep/parts/*/sweep.json")]
    assert len(kept) == 2 and len(kept[0] | kept[1]) == 7
    files = list(tmp_path.glob("sweep/parts/*/arms/*/*"))
    written = {tmp_path / "sweep" / "arms" / file.parent.name / file.name: file.read_bytes() for file in files}
    for place in written:  # as an arm that is stopped in one process leaves it
        place.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: InThisProcess())
    found = results(sweep(*DIVIDED, "--jobs", "3"))["results"]
    assert all(found[key] == row for key, row in (kept[0] | kept[1]).items()), "not scored again"
    assert len(written) == 12 and all(place.read_bytes() == content for place, content in written.items())


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_overwriting_removes_what_the_arms_before_have_written(jobs, sweep, monkeypatch):
    monkeypatch.setattr(pipeline, "open_engine", lambda *given: InThisProcess())
    folder = sweep("--lambda", "0.2,0.4")
    before = sorted((folder / "arms").glob("*/*"))
    assert folder / "arms" / "all_lambda_0.2" / "transcripts-dev.jsonl" in before
    with pytest.raises(SystemExit):
        sweep("--lambda", "0.4", "--overwrite", "--jobs", jobs, "--metric", "der")
    assert sorted((folder / "arms").glob("*/*")) == before, "nothing was scored"
    sweep("--lambda", "0.4", "--test", "none", "--overwrite", "--jobs", jobs)
    left = sorted(str(path.relative_to(folder / "arms")) for path in (folder / "arms").glob("*/tr*"))
    assert left == ["all_lambda_0.4/transcripts-dev.jsonl", "target/transcripts-dev.jsonl"]


@pytest.mark.slow
def test_a_sweep_in_two_processes(sweep):
    whole, divided = sweep(*DIVIDED, expdir="whole"), sweep(*DIVIDED, "--jobs", "2", expdir="divided")
    assert scores(divided) == scores(whole)
