"""Every tuning method trains, resumes and evaluates on KS, ASR and SD through the command line, from small files."""

from __future__ import annotations

import json

import pytest
import torch

from s3prl_ext import adapters
from s3prl_ext.child_tuning import delta
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.training.methods import METHODS
from tests.end_to_end.test_tasks import SCORES

TASKS = ("ks", "asr", "sd")
PRODUCT = [(method, task) for method in METHODS for task in TASKS]
# one task for each adapter in the default suite, each task at least twice
DEFAULT = [(method, TASKS[number % len(TASKS)]) for number, method in enumerate(adapters.ADAPTERS)]
OPTIONS = {"child": {"mask": "random", "density": 0.05}}


@pytest.mark.parametrize(
    ("method", "task"),
    [pytest.param(*pair, marks=() if pair in DEFAULT else pytest.mark.slow, id="-".join(pair)) for pair in PRODUCT],
)
def test_train_resume_evaluate(method, task, corpora, upstreams, succeed, tmp_path):
    exp = tmp_path / "exp"
    dev, test, metric = SCORES[task]
    tuning = {"method": method} | OPTIONS.get(method, {})
    override = f"config.runner.evaluate_ratio=0.3,,config.tuning={tuning},,config.runner.eval_step=2"
    flags = [
        "-m",
        "train",
        *upstreams["hubert_local"],
        "-d",
        LAYOUTS[task].task.downstream,
        "-c",
        f"{task}/mini",
        "-p",
        exp,
    ]
    succeed(*flags, "-o", f"{override},,config.runner.total_steps=2")
    succeed("-m", "train", "-e", exp, "-o", "config.runner.total_steps=3")
    states = torch.load(exp / "states-3.ckpt", weights_only=True)
    result = json.loads((exp / "result.json").read_text())
    assert states["Step"] == 3
    if METHODS[method].trains_upstream and method != "full":
        changes = states["UpstreamDelta"]
        assert "Upstream" not in states and (changes["added"] or changes["values"])
        stored = {**changes["added"], **changes["values"]}
        assert result["trainable"]["Upstream"] == sum(tensor.numel() for tensor in stored.values())
        if task != "asr":  # whose first error rates are 100 %, which s3prl counts as no improvement
            found = delta.load(exp / "delta.safetensors")
            assert {*found.added, *found.indices} == set(stored)
    else:
        assert ("Upstream" in states) == (method == "full") == (result["trainable"]["Upstream"] > 0)
    succeed("-m", "evaluate", "-e", exp / "states-3.ckpt", "-t", test)
    scored = json.loads((exp / f"result-{test}.json").read_text())
    assert metric in scored["metrics"][test] and metric in result["metrics"][dev]
