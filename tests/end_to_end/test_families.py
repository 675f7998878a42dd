"""Every task trains and evaluates on every family, with every method in turn, through the command line; qbe only evaluates.

The runs hold every pair of (task, family), (task, method) and (method, family) that the page docs/coverage.md allows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.models.architectures import ARCHITECTURES
from s3prl_ext.training.methods import METHODS
from tests.end_to_end.test_tasks import SCORES, WHOLE
from tests.support import factories
from tests.support.coverage_table import refusal

# family -> row of its architecture, upstream, what writes its model
FAMILIES: dict[str, tuple[str, str, Callable[..., Path]]] = {
    "hubert": ("fairseq", "hubert_local", factories.hubert_local_ckpt),
    "wavlm": ("transformers-speech", "hf_speech_custom", factories.wavlm_folder),
    "whisper": ("whisper", "whisper_local", factories.whisper_folder),
    "beats": ("beats", "beats_local", factories.beats_ckpt),
    **{
        name: (row, "hf_speech_custom", factories.SPEECH_FAMILIES[name])
        for name, row in {
            "unispeech": "transformers-speech", "mms": "transformers-speech", "conformer": "conformer", "sew": "sew", "sew-d": "sew-d",
            "w2v-bert": "w2v-bert", "ast": "vit-memory", "moonshine": "moonshine",
        }.items()
    },
}  # fmt: skip
ROWS = {row.name: row for row in ARCHITECTURES}
QUICK = {("ks", "w2v-bert"), ("sd", "sew"), ("er", "ast")}
OPTIONS = {"child": {"mask": "random", "density": 0.05}, "lora": {"rank": 2}}


# Pairs that are refused: XVector needs 16 frames, which the miniature clips lack; a spectrum's window covers its frame.
REFUSED = {("asv", "beats"): "is too short for XVector: 12 frames, at least 16 are needed"} | {
    (task, family): "samples, which its window of 512 (downstream_expert.datarc.win_length) does not cover"
    for task in ("se", "ss")
    for family in ("ast", "beats")
}


def fitting(family: str) -> list[str]:
    """Return the methods that fit a family."""
    return [method for method in METHODS if refusal(method, ROWS[FAMILIES[family][0]]) is None]


def runs() -> list[tuple[str, str, str]]:
    """Return task, family and method of each run: every task on every family, the methods in turn."""
    found = []
    for shift, task in enumerate(TRAINED):
        for step, family in enumerate(FAMILIES):
            methods = fitting(family)
            found.append((task, family, methods[(shift + step) % len(methods)]))
    missing = {(task, method) for task in TRAINED for method in METHODS} - {(task, method) for task, _, method in found}
    return found + [(task, "wavlm", method) for task, method in sorted(missing)]


def test_every_pair_is_in_a_run():
    all_runs = runs()
    assert {(t, f) for t, f, _ in all_runs} == {(t, f) for t in TRAINED for f in FAMILIES}
    assert {(t, m) for t, _, m in all_runs} == {(t, m) for t in TRAINED for m in METHODS}
    assert {(f, m) for _, f, m in all_runs} == {(f, m) for f in FAMILIES for m in fitting(f)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Callable[[str], Path]:
    """Return the model of a family, written when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def model(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family][2](folder / family)
        return made[family]

    return model


@pytest.mark.parametrize(
    ("task", "family", "method"),
    [
        pytest.param(*run, marks=() if run[:2] in QUICK else pytest.mark.slow, id="-".join(run))
        for run in dict.fromkeys(runs())
    ],
)
def test_train_and_evaluate(task, family, method, models, corpora, command, succeed, tmp_path):
    exp = tmp_path / "exp"
    dev, test, metric = SCORES[task]
    tuning = {"method": method} | OPTIONS.get(method, {})
    override = f"config.tuning={tuning},,config.runner.total_steps=2,,config.runner.eval_step=2"
    if task not in WHOLE:
        override += ",,config.runner.evaluate_ratio=0.3"
    upstream = ["-u", FAMILIES[family][1], "-k", models(family)]
    flags = ["-d", TRAINED[task].task.downstream, "-c", f"{task}/mini", "-p", exp, "-o", override]
    if (task, family) in REFUSED:
        outcome = command("-m", "train", *upstream, *flags)
        assert outcome.code and REFUSED[task, family] in outcome.err.splitlines()[-1]
        return
    succeed("-m", "train", *upstream, *flags)
    result = json.loads((exp / "result.json").read_text())
    assert metric in result["metrics"][dev]
    assert (result["trainable"]["Upstream"] > 0) == METHODS[method].trains_upstream
    states = torch.load(exp / "states-2.ckpt", weights_only=True)
    assert states["Step"] == 2 and ("UpstreamDelta" in states) == (METHODS[method].trains_upstream and method != "full")
    succeed("-m", "evaluate", "-e", exp / "states-2.ckpt", "-t", test)
    value = json.loads((exp / f"result-{test}.json").read_text())["metrics"][test][metric]["value"]
    assert value is not None and math.isfinite(value)


@pytest.mark.parametrize(
    ("task", "family"),
    [
        pytest.param("qbe", family, marks=() if family == "whisper" else pytest.mark.slow, id=f"qbe-{family}")
        for family in FAMILIES
    ],
)
def test_search(task, family, models, corpora, succeed, tmp_path):
    flags = ["-u", FAMILIES[family][1], "-k", models(family), "-d", "quesst14_dtw", "-c", f"{task}/mini"]
    succeed("-m", "evaluate", *flags, "-l", "1", "-t", "dev", "-p", tmp_path / "exp")
    result = json.loads((tmp_path / "exp" / "result-dev.json").read_text())
    assert 0 <= result["metrics"]["dev"]["mtwv"]["value"] <= 1 and result["items"]["dev"] > 24
