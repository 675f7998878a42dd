"""A task is scored from its delta alone, as it is from the checkpoint of the same step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s3prl_ext import adapters
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.commands import merge
from s3prl_ext.prediction import load as predict
from tests.support import factories
from tests.training.test_race_runs import same

CHILD = {"method": "child", "mask": "magnitude", "density": 0.05}
TUNINGS = {name: {"method": name} for name in adapters.ADAPTERS} | {"weighted_sum": {"method": "weighted_sum"}}
TUNINGS |= {"child": CHILD, "race": {"method": ["lora", "prefix"], "rank": [2, 4]}}
QUICK = ("prefix", "bitfit", "child", "race")


@pytest.fixture
def trained(corpora, succeed, upstreams, tmp_path):
    """Train keyword spotting for two steps; return the run's folder."""

    def train(tuning: dict, upstream: str = "hubert_local") -> Path:
        exp = tmp_path / "exp"
        override = f"config.runner.total_steps=2,,config.runner.eval_step=2,,config.tuning={tuning}"
        if isinstance(tuning["method"], list):
            override += ",,config.early_stop={'ratio':0.5}"
        flags = [*upstreams[upstream], "-d", "speech_commands", "-c", "ks/mini", "-p", exp, "-o", override]
        succeed("-m", "train", *flags)
        assert (exp / "delta.safetensors").is_file() and (exp / "dev-best.ckpt").is_file()
        return exp

    return train


@pytest.mark.parametrize(
    ("name", "upstream"),
    [
        pytest.param(name, upstream, id=f"{name}-{upstream}", marks=() if quick else pytest.mark.slow)
        for upstream in ("hubert_local", "hf_hubert_custom", "merged")
        for name in TUNINGS
        for quick in [(name in QUICK and upstream == "hubert_local") or (name == "child" and upstream == "merged")]
    ],
)
def test_a_delta_scores_as_its_checkpoint(trained, succeed, tmp_path, name, upstream):
    exp = trained(TUNINGS[name], upstream)
    succeed("-m", "evaluate", "-e", exp / "dev-best.ckpt", "-t", "test")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(exp / "delta.safetensors", alone)
    succeed("-m", "evaluate", "-e", alone if name == "lora" else alone / "delta.safetensors", "-t", "test")
    results = [json.loads((folder / "result-test.json").read_text()) for folder in (exp, alone)]
    for key in ("metrics", "step", "candidate", "upstream_sha256", "config", "trainable"):
        assert results[0][key] == results[1][key], key
    assert (exp / "test_predict.txt").read_text() == (alone / "test_predict.txt").read_text()
    assert results[1]["args"]["init_ckpt"] == str(alone / "delta.safetensors")


def test_a_merged_task_with_lambda_one_scores_as_the_run_it_came_from(trained, succeed, tmp_path):
    exp, out = trained(CHILD), tmp_path / "merged"
    succeed("-m", "evaluate", "-e", exp / "delta.safetensors", "-t", "test", "-p", tmp_path / "alone")
    assert merge.main(["--deltas", str(exp), "--lambda", "1", "--out", str(out)]) == 0
    succeed("-m", "evaluate", "-e", out / exp.name / "delta.safetensors", "-t", "test")
    results = [json.loads((f / "result-test.json").read_text()) for f in (tmp_path / "alone", out / exp.name)]
    assert results[0]["metrics"] == results[1]["metrics"]


def test_what_a_delta_cannot_do(trained, command, upstreams, tmp_path):
    delta = trained({"method": "lora"}) / "delta.safetensors"
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=3)
    outcome = command("-m", "evaluate", "-e", delta, "-k", other, "-p", tmp_path / "check")
    assert outcome.code == 1 and "was made from another upstream" in outcome.sentence
    outcome = command("-m", "train", "-e", delta)
    assert outcome.code == 2 and "has no optimizer state" in outcome.sentence
    flags = [*upstreams["hubert_local"], "-d", "speech_commands", "-c", "ks/mini", "-p", tmp_path / "new", "-i", delta]
    outcome = command("-m", "train", *flags, "-o", "config.tuning={'method':'houlsby'}")
    assert (
        outcome.code == 2
        and "trained with tuning {method: lora}, the task file says {method: houlsby}" in outcome.sentence
    )
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(delta.read_bytes()[:-7])
    outcome = command("-m", "evaluate", "-e", damaged)
    assert outcome.code == 1 and "is not a delta, or is truncated" in outcome.sentence
    assert not (tmp_path / "check").exists() and not (tmp_path / "new").exists()


def test_training_goes_on_from_the_weights_of_a_delta(trained, succeed, upstreams, tmp_path):
    exp = trained({"method": "houlsby"})
    flags = [*upstreams["hubert_local"], "-d", "speech_commands", "-c", "ks/mini", "-o"]
    flags += ["config.runner.total_steps=2,,config.tuning={'method':'houlsby'}"]
    states = torch.load(exp / "dev-best.ckpt", weights_only=True)
    weights = {key: states[key] for key in ("UpstreamDelta", "Featurizer", "Downstream", "Args", "Config")}
    torch.save(weights | {"S3prlExt": {}}, tmp_path / "weights.ckpt")
    ends = []
    for name, source in (("delta", exp / "delta.safetensors"), ("checkpoint", tmp_path / "weights.ckpt")):
        succeed("-m", "train", *flags, "-i", source, "-p", tmp_path / name)
        ends.append(torch.load(tmp_path / name / "states-2.ckpt", weights_only=True))
    before = states["UpstreamDelta"]["added"]
    assert ends[0]["Step"] == 2 and same(ends[0]["UpstreamDelta"], ends[1]["UpstreamDelta"])
    assert same(ends[0]["Downstream"], ends[1]["Downstream"]) and not same(ends[0]["UpstreamDelta"]["added"], before)


def with_info(delta: Path, change: Callable[[dict], dict], out: Path) -> Path:
    """Write a delta again with another info."""
    found = delta_files.load(delta)
    delta_files.save(replace(found, info=change(dict(found.info))), out)
    return out


def test_a_delta_of_a_merged_upstream_says_how_it_was_merged(trained, command, succeed, upstreams, tmp_path):
    delta = trained(CHILD, "merged") / "delta.safetensors"
    stored = torch.load(delta.parent / "dev-best.ckpt", weights_only=True)["S3prlExt"]["merge"]
    assert delta_files.load(delta).info["merge"] == json.loads(json.dumps(stored))
    outcome = command("-m", "evaluate", "-e", delta, "-t", "dev", "-g", upstreams["merged"][-1] + ",,lambda=0.3")
    assert outcome.code == 1 and "made with another lambda: 0.2 in layer 0" in outcome.sentence
    outcome = command("-m", "evaluate", "-e", delta, "-t", "dev", *upstreams["hubert_local"])
    assert outcome.code == 1 and "made with a merged upstream, but this one is not merged" in outcome.sentence
    assert not (delta.parent / "result-dev.json").exists()


def test_a_delta_that_does_not_say_how_its_upstream_was_merged_is_judged_by_the_hash(
    trained, command, succeed, upstreams, tmp_path
):
    def forget(info: dict) -> dict:
        return {key: value for key, value in info.items() if key != "merge"}  # as version 0.1.0 wrote it

    delta = trained(CHILD, "merged") / "delta.safetensors"
    (tmp_path / "old").mkdir()
    old = with_info(delta, forget, tmp_path / "old" / "delta.safetensors")
    succeed("-m", "evaluate", "-e", delta, "-t", "dev")
    succeed("-m", "evaluate", "-e", old, "-t", "dev")
    first, second = (json.loads((d.parent / "result-dev.json").read_text())["metrics"] for d in (delta, old))
    assert first == second
    outcome = command("-m", "evaluate", "-e", old, "-t", "dev", "-g", upstreams["merged"][-1] + ",,lambda=0.3")
    assert outcome.code == 1 and "was made from another upstream" in outcome.sentence


def test_training_and_prediction_from_a_delta_of_a_merged_upstream(trained, succeed, upstreams, corpora, tmp_path):
    exp = trained(CHILD, "merged")
    clip = next((corpora / "speech_commands").rglob("*.wav"))
    answers = [predict(path).predict(clip).record() for path in (exp / "delta.safetensors", exp / "dev-best.ckpt")]
    assert answers[0] == answers[1]
    flags = [
        *upstreams["merged"],
        "-d",
        "speech_commands",
        "-c",
        "ks/mini",
        "-p",
        tmp_path / "more",
        "-i",
        exp / "delta.safetensors",
    ]
    succeed("-m", "train", *flags, "-o", f"config.runner.total_steps=1,,config.tuning={CHILD}")
    before, after = (
        torch.load(path, weights_only=True)["UpstreamDelta"]
        for path in (exp / "dev-best.ckpt", tmp_path / "more" / "states-1.ckpt")
    )
    assert same(before["indices"], after["indices"]) and before["base_sha256"] == after["base_sha256"]


@pytest.mark.parametrize("name", ["delta.safetensors", "dev-best.ckpt"])
def test_models_of_a_merge_that_have_moved(trained, command, succeed, upstreams, tmp_path, name):
    exp = trained(CHILD, "merged")
    merge = Path(upstreams["merged"][-1])
    moved = tmp_path / "bert"
    shutil.copytree(merge.parent / "bert", moved)
    (tmp_path / "merge.yaml").write_text(merge.read_text().replace(str(merge.parent / "bert"), str(moved)))
    succeed("-m", "evaluate", "-e", exp / name, "-t", "dev")
    first = json.loads((exp / "result-dev.json").read_text())["metrics"]
    (exp / "result-dev.json").unlink()
    succeed("-m", "evaluate", "-e", exp / name, "-t", "dev", "-g", f"{tmp_path}/merge.yaml")
    assert json.loads((exp / "result-dev.json").read_text())["metrics"] == first
    (exp / "result-dev.json").unlink()
    elsewhere = f"{merge},,source.model={tmp_path}/nowhere"
    outcome = command("-m", "evaluate", "-e", exp / name, "-t", "dev", "-g", elsewhere)
    assert outcome.code == 1 and f"The upstream of {exp / name} is merged again from its models" in outcome.sentence
    assert '-g "FILE,,source.model=PATH", and for the target -k PATH.' in outcome.sentence
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=3)
    outcome = command("-m", "evaluate", "-e", exp / name, "-t", "dev", "-k", other)
    assert outcome.code == 1 and "made with another target" in outcome.sentence
    outcome = command("-m", "evaluate", "-e", exp / name, "-t", "dev", "-k", other, "-d", "asr")
    assert outcome.code == 2 and "was made with -d speech_commands, not -d asr" in outcome.sentence
    assert not (exp / "result-dev.json").exists()
