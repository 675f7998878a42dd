"""Scores of a model or of audio that is not a number: said, never best, null in JSON, never chosen."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch

from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.results.evaluation import evaluate
from s3prl_ext.writing import write_json
from tests.support.experiments import make_args, task_config


def _strict(path):
    """Read JSON as a strict reader does."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def upstream(hubert_ckpt):
    return {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}


@pytest.mark.parametrize("task, downstream", [("ks", "speech_commands"), ("asr", "asr"), ("pr", "ctc"), ("sd", "diarization")])  # fmt: skip
def test_a_model_of_nan_is_never_best_and_scores_null(build, tmp_path, upstream, caplog, task, downstream):
    config = task_config(task, tuning={"method": "frozen"}, total_steps=1)
    config["optimizer"] |= {"lr": 1.0e-3}
    runner = build(make_args(tmp_path, downstream=downstream, **upstream), config)
    split = config["runner"]["eval_dataloaders"][0]
    before = {name: value.clone() for name, value in runner.downstream.model.named_buffers(recurse=False)}
    with torch.no_grad():
        next(runner.downstream.model.parameters()).fill_(math.nan)
    with caplog.at_level(logging.WARNING):
        scores = evaluate(runner.models, split, seed=0)
    assert scores.save_names == [] and scores.intervals == {}
    assert scores.metrics and all(math.isnan(value) for value in scores.metrics.values())
    after = dict(runner.downstream.model.named_buffers(recurse=False))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert f"split '{split}': the features or the loss of" in caplog.text and "are not numbers" in caplog.text


def test_a_run_that_diverges_in_its_last_step_keeps_no_best_checkpoint(build, tmp_path, upstream):
    config = task_config(tuning={"method": "frozen"}, total_steps=1)
    config["optimizer"] |= {"lr": 1.0e30}
    build(make_args(tmp_path, **upstream), config).train()
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["states-1.ckpt"]
    content = _strict(tmp_path / "result.json")
    assert {row["value"] for row in content["metrics"]["dev"].values()} == {None}
    read = read_record(tmp_path / "result.json")
    assert read["metrics"]["dev"]["acc"]["value"] is None


def test_audio_of_nan_is_named(build, tmp_path, upstream, caplog, monkeypatch):
    runner = build(make_args(tmp_path, **upstream), task_config(tuning={"method": "frozen"}, total_steps=1))
    dataset = "s3prl.downstream.speech_commands.dataset"
    monkeypatch.setattr(f"{dataset}.apply_effects_file", lambda *_, **__: (torch.full((1, 16000), math.nan), 16000))
    with caplog.at_level(logging.WARNING):
        scores = evaluate(runner.models, "dev", seed=0)
    assert math.isnan(scores.metrics["acc"])
    assert "the audio holds such samples" in caplog.text and "the first holds" in caplog.text


def test_numbers_that_json_lacks_are_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": [math.nan, 1.0, (math.inf, {"y": -math.inf})]})
    assert _strict(tmp_path / "a.json") == {"x": [None, 1.0, [None, {"y": None}]]}


def test_a_race_of_candidates_that_diverged_is_read_again(build, tmp_path, upstream):
    """One candidate diverges: its scores are null in race.json, it loses, and the finished race is read back."""
    section = {"method": "child", "mask": "random", "density": 0.1, "lr": [1.0e30, 1.0e-3]}
    config = task_config(tuning=section) | {"early_stop": {"ratio": 0.5, "keep": 1}}
    build(make_args(tmp_path, **upstream), config).train()
    record = _strict(tmp_path / "race" / "race.json")
    assert record["chosen"] == "lr=0.001"
    assert record["scores"]["lr=1e+30"]["2"]["acc"] is None
    args = make_args(tmp_path, **upstream)
    args.init_ckpt, args.past_exp = str(RunFolder(tmp_path).numbered()[-1]), str(tmp_path)
    longer = config | {"runner": config["runner"] | {"total_steps": 4}}
    build(args, longer).train()
