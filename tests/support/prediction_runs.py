"""Runs of every task trained for a moment on miniature corpora, what an evaluation counts, and the files it counts on."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.training import checkpoint
from tests.support.experiments import make_args, task_config

TEST_SPLIT = {"asr": "test-clean"}  # others: test
# Heads with a blank need long to say anything but that: theirs start from weights that say something.
DRAWN_HEAD = ("asr", "pr", "sf", "ood", "ljspeech", "vctk", "sd")
STEPS = {"ks": 20, "ic": 20, "sid": 10, "er": 20, "esc50": 20}  # others: 2


def train(build: Callable, task: str, expdir: Path, tuning: dict | None = None, **args: Any) -> Path:
    """Train a task for some steps, so that it does not say the same of every clip; return the last checkpoint."""
    steps = STEPS.get(task, 2)
    given = {"upstream": "fbank_no_cmvn"} | args
    config = task_config(task, tuning, total_steps=steps)
    if task in ("ljspeech", "vctk") and tuning is None and given["upstream"] == "fbank_no_cmvn":
        del config["tuning"]  # log-mel features have one state only
    runner = build(make_args(expdir, downstream=LAYOUTS[task].task.downstream, **given), config)
    if task in DRAWN_HEAD:
        generator = torch.Generator().manual_seed(0)
        for parameter in runner.downstream.model.parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.1
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    runner.train()
    return expdir / f"states-{steps}.ckpt"


def evaluate(build: Callable, ckpt: Path, task: str) -> tuple[dict[str, float], Any]:
    """Score the test split as ``-m evaluate -e`` does, one clip at a time; return the metrics and the Runner."""
    states = checkpoint.load(ckpt)
    split = TEST_SPLIT.get(task, "test")
    args = Namespace(**vars(states["Args"]) | {"mode": "evaluate", "evaluate_split": split, "init_ckpt": str(ckpt)})
    config = states["Config"]
    data = config["downstream_expert"].get("datarc", {})
    data |= {key: 1 for key in ("batch_size", "eval_batch_size") if key in data}
    runner = build(args, config)
    runner.evaluate()
    rows = json.loads((Path(args.expdir) / f"result-{split}.json").read_text())["metrics"][split]
    return {name: row["value"] for name, row in rows.items()}, runner


def lines(path: Path) -> dict[str, str]:
    """Return a file of lines ``NAME TEXT`` as a mapping."""
    pairs = (line.rstrip("\n").partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: text for name, _, text in pairs}


def slot_rows(path: Path) -> dict[str, tuple[str, ...]]:
    """Return a file of lines ``NAME,ACTION,OBJECT,LOCATION`` as a mapping."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row[0]: tuple(row[1:]) for row in csv.reader(file)}
