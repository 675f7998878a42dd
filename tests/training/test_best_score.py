"""A task's memory of its best score, wherever it keeps it, and the one delta that dev chooses."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s3prl_ext import tasks
from s3prl_ext.child_tuning import delta
from s3prl_ext.errors import UsageError
from s3prl_ext.training import best_scores, checkpoint
from s3prl_ext.training.racing.candidate_runs import CandidateRuns
from s3prl_ext.training.trainer import Trainer
from s3prl_ext.training.upstream_checks import check_choosing_split
from tests.support.experiments import make_args, task_config

SCORES = {"dev": (0.6, 0.5), "test": (0.1, 0.9)}  # by split, at steps 1 and 2: the best on dev is step 1


def loop_of(expert):
    return SimpleNamespace(state=SimpleNamespace(models=SimpleNamespace(downstream=expert)))


@pytest.mark.parametrize("task", ["pr", "sf", "ood"])
def test_one_best_score_chooses_on_one_split(task):
    row = tasks.named(task)
    for splits in ("dev", ["dev"], ["test"], None):
        check_choosing_split(row, {"save_best_on": splits})
    with pytest.raises(
        UsageError, match=r"save_best_on lists dev and test, but -d ctc has one best score .* list dev alone"
    ):
        check_choosing_split(row, {"save_best_on": ["dev", "test"]})
    check_choosing_split(tasks.named("ks"), {"save_best_on": ["dev", "test"]})  # not a key of this task


def test_best_score_stays_on_its_device():
    expert = torch.nn.Module()
    expert.register_buffer("best_score", torch.zeros(1, device="meta"))
    with Trainer._best_scores_kept(loop_of(expert)):
        expert.best_score = torch.ones(1) * 0.5
    assert expert.best_score.device.type == "meta"
    assert dict(expert.named_buffers())["best_score"] is expert.best_score


def test_plain_attributes_are_put_back_as_buffers_are():
    expert = torch.nn.Module()
    expert.register_buffer("best_score", torch.zeros(1))
    expert.best, expert.best_scores = defaultdict(lambda: 0), {"dev_loss": np.inf}

    def score() -> None:
        expert.best_score = torch.ones(1)
        expert.best["task/dev-"], expert.best_scores["dev_loss"] = 0.5, np.float64(0.25)

    with Trainer._best_scores_kept(loop_of(expert), always=True):
        score()
    assert expert.best_score == 0 and expert.best == {} and expert.best_scores == {"dev_loss": np.inf}
    with Trainer._best_scores_kept(loop_of(expert)):
        score()
    assert expert.best_score == 1 and expert.best == {"task/dev-": 0.5} and expert.best["unseen"] == 0
    kept = best_scores.stored(expert)
    assert kept == {"best": {"task/dev-": 0.5, "unseen": 0}, "best_scores": {"dev_loss": 0.25}}
    assert type(kept["best_scores"]["dev_loss"]) is float, "a checkpoint is read without numpy's classes"


@pytest.mark.parametrize(
    ("task", "splits", "best", "others"),
    [
        ("speech_commands", ["dev", "test"], "dev-best.ckpt", ["test-best.ckpt"]),
        ("diarization", ["test", "dev"], "best-states-dev.ckpt", ["best-states-test.ckpt"]),
        ("asr", ["dev-other", "dev-clean"], "dev-clean-best.ckpt", ["dev-other-best.ckpt"]),
        ("asr", ["dev-other", "test-clean"], "dev-other-best.ckpt", ["test-clean-best.ckpt"]),
        ("mosei", ["dev", "test"], "dev-best.ckpt", ["test-best.ckpt"]),
        ("phone_linear", ["test", "dev"], "best-states-dev.ckpt", ["best-states-test.ckpt"]),
        ("mos_prediction", ["dev"], "dev-best.ckpt", ["dev-LCC-best.ckpt", "vcc2016_test-SRCC-best.ckpt"]),
        ("unknown", ["valid", "test"], "valid_best.ckpt", ["test_best.ckpt"]),
        ("unknown", ["valid", "test"], "best.ckpt", []),
    ],
)
def test_one_name_is_the_best_on_dev(task, splits, best, others):
    record = tasks.task_of(task, None)
    assert [name for name in (best, *others) if tasks.is_best(record, name, splits)] == [best]


@pytest.fixture
def keeping(build, tmp_path):
    """Make a run whose task keeps its best scores in an attribute, one per split, as s3prl's mosei does."""

    def made(folder, total_steps=2, **arguments):
        config = task_config(total_steps=total_steps, eval_step=1, save_step=1, eval_dataloaders=["dev", "test"])
        runner = build(make_args(tmp_path / folder, **arguments), config)
        expert = runner.downstream.model
        expert.best = defaultdict(lambda: 0)

        def log_records(split, records, logger, global_step, **kwargs):
            if split == "train":
                return []
            score = SCORES[split][min(global_step, 2) - 1]
            logger.add_scalar(f"task/{split}-acc", score, global_step=global_step)
            if score <= expert.best[f"task/{split}-"]:
                return []
            expert.best[f"task/{split}-"] = score
            return [f"{split}-best.ckpt"]

        expert.log_records = log_records
        return runner

    return made


def test_the_delta_is_of_the_best_model_on_dev_also_after_a_resume(keeping, tmp_path):
    keeping("exp").train()
    found = delta.load(tmp_path / "exp" / "delta.safetensors").info
    assert checkpoint.load(tmp_path / "exp" / "test-best.ckpt")["Step"] == 2
    assert (found["checkpoint"], found["step"]) == ("dev-best.ckpt", 1)
    newest = str(tmp_path / "exp" / "states-2.ckpt")
    resumed = keeping("exp", 3, past_exp=newest, init_ckpt=newest)
    resumed.train()
    assert resumed.downstream.model.best["task/dev-"] == 0.6, "a score from before the resume"
    assert checkpoint.load(tmp_path / "exp" / "dev-best.ckpt")["Step"] == 1
    begun = keeping("begun", 2, init_ckpt=str(tmp_path / "exp" / "states-3.ckpt"))
    begun.train()
    assert checkpoint.load(tmp_path / "begun" / "dev-best.ckpt")["Step"] == 1, "a new training begins without"


def test_candidates_of_a_race_begin_without_the_scores_of_others(keeping):
    runner = keeping("race")
    runner.total_steps = 2
    runs = CandidateRuns(runner._experiment(), None, lambda candidate: None, lambda tuning: None)
    runner.downstream.model.best["task/dev-"] = 0.9
    runs._reset()
    assert runner.downstream.model.best == {}
