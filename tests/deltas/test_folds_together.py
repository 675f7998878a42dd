"""Folds of one corpus are not merged: each has trained on what another one tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas.merging import check_one_division
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import UsageError


def trained(name: str, fold: str | None = None, variant: str | None = None, downstream: str = "emotion") -> TrainedTask:
    info = {
        "upstream": "fbank", "downstream": downstream, "downstream_variant": variant,
        "config": {"downstream_expert": {"datarc": {"test_fold": fold, "valid_ratio": 0.2}}},
    }  # fmt: skip
    return TrainedTask(Path(name), info, Delta("", info=info))


def test_two_folds_are_not_merged():
    with pytest.raises(UsageError, match="one was trained with .*test_fold fold1 and two with fold2, so that"):
        check_one_division(
            [trained("one"), trained("ks", "fold3", downstream="speech_commands"), trained("two", variant="fold2")]
        )


def test_seeds_of_one_fold_and_other_tasks_are_merged():
    check_one_division(
        [trained("one", "fold2"), trained("two", variant="fold2"), trained("ks", "fold3", downstream="ks")]
    )
