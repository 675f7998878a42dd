"""The same commands on recordings of people: spoken digits, read sentences, orders of drinks, two-speaker mixes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from s3prl_ext.mini_superb import LAYOUTS, variables
from tests.support.corpora import RECORDED

pytestmark = pytest.mark.data

KS_CLASSES = 12


@pytest.fixture
def train(recorded_superb, cache_home, succeed, monkeypatch, tmp_path):
    """Train a task on recordings with log-mel features; return the folder of the experiment."""
    for name, value in variables(RECORDED, recorded_superb).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))

    def run(task: str, steps: int) -> Path:
        layout, exp = LAYOUTS[task], tmp_path / "exp"
        override = f"config.runner.total_steps={steps},,config.runner.eval_step={steps}"
        preset = ("-d", layout.task.downstream, "-c", f"{task}/mini")
        succeed("-m", "train", "-u", layout.upstream, *preset, "-p", exp, "-o", override)
        return exp

    return run


def test_no_speech_of_the_corpora_is_synthesised(recorded_superb):
    origin = (recorded_superb / "README.md").read_text().partition("## Where the speech comes from")[2]
    assert origin and "synthesised" not in origin.partition("\n## ")[0]


def score(exp: Path, split: str, metric: str) -> float:
    """Return a metric that ``-m evaluate`` wrote."""
    return json.loads((exp / f"result-{split}.json").read_text())["metrics"][split][metric]["value"]


@pytest.mark.slow
def test_keyword_spotting_learns_spoken_digits(train, succeed):
    """400 steps of a linear model give about 0.48 on the 324 test clips; chance is 1/12, its standard error 0.015."""
    exp = train("ks", steps=400)
    succeed("-m", "evaluate", "-e", exp / "dev-best.ckpt")
    truth = (exp / "test_truth.txt").read_text().split()
    assert len(truth) == 2 * 324
    assert score(exp, "test", "acc") > 3 / KS_CLASSES


@pytest.mark.slow
def test_speaker_identification_learns_the_speakers_of_digits(train, succeed):
    """200 steps give about 0.9 on takes of the six speakers that are in no other split; chance is 1/6."""
    exp = train("sid", steps=200)
    succeed("-m", "evaluate", "-e", exp / "dev-best.ckpt")
    assert score(exp, "test", "acc") > 3 / 6


@pytest.mark.parametrize(("task", "split", "metric"), [
    ("ic", "test", "acc"), ("asr", "test-clean", "wer"), ("pr", "test", "per"), ("sd", "test", "der"),
    ("esc50", "test", "error"), pytest.param("ljspeech", "test", "wer", marks=pytest.mark.slow),
    pytest.param("vctk", "test", "wer", marks=pytest.mark.slow),
])  # fmt: skip
def test_task_runs_on_recordings(train, succeed, task, split, metric):
    exp = train(task, steps=5)
    succeed("-m", "evaluate", "-e", exp)
    assert math.isfinite(score(exp, split, metric))
