"""A task is scored from its delta alone, as it is from the checkpoint of the same step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from s3prl_ext import adapters
from tests import factories
from tests.training.test_race_runs import same

CHILD = {"method": "child", "mask": "magnitude", "density": 0.05}
TUNINGS = {name: {"method": name} for name in adapters.METHODS} | {"weighted_sum": {"method": "weighted_sum"}}
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
        for upstream in ("hubert_local", "hf_hubert_custom")
        for name in TUNINGS
        for quick in [name in QUICK and upstream == "hubert_local"]
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


def test_what_a_delta_cannot_do(trained, command, upstreams, tmp_path):
    delta = trained({"method": "lora"}) / "delta.safetensors"
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=3)
    outcome = command("-m", "evaluate", "-e", delta, "-k", other, "-p", tmp_path / "check")
    assert outcome.code == 1 and "was made from another upstream" in outcome.sentence
    outcome = command("-m", "train", "-e", delta)
    assert outcome.code == 2 and "holds no state of the optimizer" in outcome.sentence
    flags = [*upstreams["hubert_local"], "-d", "speech_commands", "-c", "ks/mini", "-p", tmp_path / "new", "-i", delta]
    outcome = command("-m", "train", *flags, "-o", "config.tuning={'method':'houlsby'}")
    assert outcome.code == 2 and "tuned with {method: lora}, but now it is {method: houlsby}" in outcome.sentence
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(delta.read_bytes()[:-7])
    outcome = command("-m", "evaluate", "-e", damaged)
    assert outcome.code == 1 and "is no delta, or truncated" in outcome.sentence
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
