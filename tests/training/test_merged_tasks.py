"""Scores of deltas that hold several tasks merged: rows of their own, also at other lambdas of the same tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s3prl_ext.commands import export, merge, report
from s3prl_ext.configs import load_yaml
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.evaluation.result_records import ResultRecord, problems
from s3prl_ext.evaluation.result_rows import rows_of, without_duplicates
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.training.checkpoint import Checkpoint
from tests.support import factories
from tests.support.experiments import make_args, task_config

CHILD = {"method": "child", "mask": "random", "density": 0.1}


def test_each_lambda_is_a_row(build, tmp_path, hubert_ckpt):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    for name, seed in (("one", 1), ("two", 2)):
        build(make_args(tmp_path / "exp" / name, **upstream, seed=seed), task_config(tuning=CHILD)).train()
    deltas = [str(tmp_path / "exp" / name) for name in ("one", "two")]
    records = []
    for method, lambdas in (("linear", "0.5"), ("linear", "1,0.25"), ("ties", "0.5")):
        out = tmp_path / "merged" / f"{method}_{lambdas}"
        merge.main(["--deltas", *deltas, "--lambda", lambdas, "--method", method, "--out", str(out)])
        args = make_args(out / "one", **upstream, mode="evaluate", evaluate_split="dev", seed=1)
        args.init_ckpt = str(out / "one" / "delta.safetensors")
        build(args, task_config()).evaluate()
        path = out / "one" / "result-dev.json"
        records.append(ResultRecord(path, json.loads(path.read_text())))
    runs = [run for record in records for run in runs_of(record)]
    assert without_duplicates(runs)[0] == runs
    labels = [row.label for row in rows_of(runs, "acc")]
    for label in ("linear of one λ 0.5, two λ 0.5", "linear of one λ 1, two λ 0.25",
                  "ties (density 0.2) of one λ 0.5, two λ 0.5"):  # fmt: skip
        assert sum(label in found for found in labels) == 1, labels
    assert report.main([str(tmp_path / "merged"), "--split", "dev", "--out", str(tmp_path / "report")]) == 0
    written = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "report").rglob("*.md"))
    assert "linear of one λ 1, two λ 0.25" in written


def test_whole_upstreams_with_a_batch_norm_are_scored_and_trained_further_as_merged(build, tmp_path):
    folder = str(factories.SPEECH_FAMILIES["conformer"](tmp_path / "conformer"))
    upstream = {"upstream": "hf_speech_custom", "upstream_ckpt": folder}
    upstream |= {"upstream_feature_selection": "last_hidden_state"}
    short = {"total_steps": 1, "eval_step": 1, "save_step": 1}
    for name, seed in (("one", 1), ("two", 2)):
        build(
            make_args(tmp_path / name, **upstream, seed=seed), task_config(tuning={"method": "full"}, **short)
        ).train()
    merge.main(
        ["--deltas", str(tmp_path / "one"), str(tmp_path / "two"), "--lambda", "1", "--out", str(tmp_path / "m")]
    )
    merged = tmp_path / "m" / "one" / "delta.safetensors"
    expected = TrainedTask.read(merged).build().state_dict()
    for mode in ("evaluate", "train"):
        args = make_args(tmp_path / mode, **upstream, mode=mode, evaluate_split="dev")
        args.init_ckpt = str(merged)
        runner = build(args, task_config(**short))
        getattr(runner, mode)()
        assert all(torch.equal(runner.tuned.model.state_dict()[name], tensor) for name, tensor in expected.items())
    again = TrainedTask.read(tmp_path / "train" / "delta.safetensors").build().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert any("running_var" in name for name in TrainedTask.read(merged).delta.indices)


def test_what_was_trained_with_a_cache_of_the_extractor_is_scored_merged_and_exported(build, tmp_path, hubert_ckpt):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    cache = {"cache": "extractor", "cache_folder": str(tmp_path / "cache"), "cache_dtype": "float16"}
    cached = task_config(tuning=CHILD, total_steps=1, eval_step=1, save_step=1, **cache)
    build(make_args(tmp_path / "one", **upstream), cached).train()
    merge.main(["--deltas", str(tmp_path / "one"), "--lambda", "0.5", "--out", str(tmp_path / "merged")])
    export.main(["--delta", str(tmp_path / "one"), "--out", str(tmp_path / "exported")])
    merged = tmp_path / "merged" / "one" / "delta.safetensors"
    exported = {"upstream": "hubert_local", "upstream_ckpt": str(tmp_path / "exported" / Path(hubert_ckpt).name)}
    written = Checkpoint.read(merged).config, load_yaml(tmp_path / "exported" / "task.yaml")
    for config in written:
        assert not {"tuning", "early_stop"} & set(config) and config["runner"]["total_steps"] == 1
        assert not set(cache) & set(config["runner"])
    assert load_yaml(tmp_path / "exported" / "training.yaml")["runner"]["cache"] == "extractor"
    scored = []
    for config in (written[0], {**written[0], "runner": cached["runner"]}):  # the second as it was written once
        for ckpt, flags in ((merged, upstream), (tmp_path / "exported" / "head.ckpt", exported)):
            args = make_args(tmp_path / str(len(scored)), **flags, mode="evaluate", evaluate_split="dev")
            args.init_ckpt = str(ckpt)
            build(args, config).evaluate()
            path = tmp_path / str(len(scored)) / "result-dev.json"
            scored.append(json.loads(path.read_text())["metrics"]["dev"]["loss"]["value"])
    assert scored[:2] == scored[2:] and scored[0] != scored[1]


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_what_was_trained_with_a_cache_of_features_keeps_it(build, tmp_path, dtype):
    """A clip of a conformer has other features next to longer ones than alone, as the cache computes them."""
    folder = factories.SPEECH_FAMILIES["conformer"](tmp_path / "conformer")
    upstream = {"upstream": "hf_speech_custom", "upstream_ckpt": str(folder)}
    cache = {"cache": "features", "cache_folder": str(tmp_path / "cache")} | ({"cache_dtype": dtype} if dtype else {})
    config = task_config(tuning={"method": "frozen"}, total_steps=1, eval_step=1, save_step=1, **cache)
    build(make_args(tmp_path / "one", **upstream), config).train()
    trained = json.loads((tmp_path / "one" / "result.json").read_text())["metrics"]["dev"]
    merge.main(["--deltas", str(tmp_path / "one"), "--lambda", "1", "--out", str(tmp_path / "merged")])
    export.main(["--delta", str(tmp_path / "one"), "--out", str(tmp_path / "exported")])
    merged = tmp_path / "merged" / "one" / "delta.safetensors"
    for number, (ckpt, model, written) in enumerate((
        (merged, folder, Checkpoint.read(merged).config),
        (tmp_path / "exported" / "head.ckpt", tmp_path / "exported", load_yaml(tmp_path / "exported" / "task.yaml")),
    )):  # fmt: skip
        assert "cache_folder" not in written["runner"], "a path of the machine that trained"
        upstream |= {"upstream_ckpt": str(model), "upstream_feature_selection": "last_hidden_state"}
        args = make_args(tmp_path / str(number), **upstream, mode="evaluate", evaluate_split="dev", init_ckpt=str(ckpt))
        written["runner"]["cache_folder"] = str(tmp_path / "again")
        build(args, written).evaluate()
        scored = json.loads((tmp_path / str(number) / "result-dev.json").read_text())["metrics"]["dev"]
        assert scored == trained


@pytest.mark.parametrize(
    "merged", [3, {}, {"method": "ties", "merged": []}, {"method": {"name": "ties"}, "merged": [{"lambda": "much"}]}]
)
def test_a_record_that_tables_cannot_read_is_named(merged):
    from tests.support.result_files import content

    whole = content({"wer": 0.5})
    assert problems(whole) == []
    assert "as merged tasks" in problems(whole | {"merged_tasks": merged})[0]
