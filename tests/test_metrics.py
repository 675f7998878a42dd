"""Metric directions, NaN, unknown names."""

from __future__ import annotations

import math

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.metrics import METRICS, metric


def test_directions():
    assert {name for name, row in METRICS.items() if row.higher_is_better} == {
        "acc", "slot_type_f1", "slot_edit_f1_full", "slot_edit_f1_part", "mtwv", "pesq", "stoi", "si_sdr"
    }  # fmt: skip
    assert metric("acc").better(0.9, 0.8) and not metric("acc").better(0.8, 0.9)
    assert metric("wer").better(5.0, 6.0) and not metric("wer").better(6.0, 5.0)


@pytest.mark.parametrize("name", ["acc", "per"])
def test_nan_never_wins_and_ties_do_not_count(name):
    row = metric(name)
    assert not row.better(math.nan, 0.5)
    assert row.better(0.5, math.nan)
    assert not row.better(0.5, 0.5)


def test_unknown_metric_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown metric 'werr'; did you mean 'wer'\?.*slot_type_f1"):
        metric("werr")
