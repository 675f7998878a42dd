"""Choose lambda on the development split, and gather what each group scored."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_ext.metrics import Metric
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group

# Return the value of the metric of an arm on a split and its bootstrap interval; None where it was not scored.
Lookup = Callable[[Arm, str], tuple[float, tuple[float, float] | None] | None]


@dataclass(frozen=True)
class Point:
    """What one lambda of a group scored on one split.

    Attributes:
        mean: over the draws.
        std: sample standard deviation over the draws; None for a single one.
        interval: bootstrap interval over utterances; None with several draws, or where the task gives no counts.
        draws: how many.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    draws: int


def point(arms: Sequence[Arm], split: str, lookup: Lookup) -> Point | None:
    """Return mean and deviation of arms that differ in their draw; None where one of them was not scored."""
    found = [lookup(arm, split) for arm in arms]
    if not found or any(item is None for item in found):
        return None
    values = [item[0] for item in found if item is not None]
    several = len(values) > 1
    std = statistics.stdev(values) if several and all(map(math.isfinite, values)) else None
    return Point(math.fsum(values) / len(values), std, None if several else found[0][1], len(values))  # type: ignore[index]


def choose_lambda(group: Group, split: str, metric: Metric, lookup: Lookup) -> float:
    """Return the lambda with the best mean over draws on `split`; of equal ones the smallest, NaN never."""
    best = group.lambdas[0]
    for lambda_ in group.lambdas[1:]:
        rival, present = point(group.arms(lambda_), split, lookup), point(group.arms(best), split, lookup)
        assert rival is not None and present is not None
        if metric.better(rival.mean, present.mean):
            best = lambda_
    return best


def summarize(
    groups: Sequence[Group], dev: str, test: str | None, metric: Metric, lookup: Lookup
) -> list[dict[str, Any]]:
    """Return a row per group as plain values: the lambda that dev chooses, and its scores.

    ``better_than_target_on_dev`` is false where dev would rather leave the target unmerged (lambda 0).
    """
    baseline = point([BASELINE], dev, lookup)
    assert baseline is not None
    rows = []
    for group in groups:
        chosen = choose_lambda(group, dev, metric, lookup)
        on_dev = point(group.arms(chosen), dev, lookup)
        on_test = point(group.arms(chosen), test, lookup) if test else None
        assert on_dev is not None
        rows.append(
            {
                "group": group.name,
                "layers": list(group.layers),
                "noise": group.noise,
                "draws": group.draws,
                "lambdas": list(group.lambdas),
                "lambda": chosen,
                "better_than_target_on_dev": metric.better(on_dev.mean, baseline.mean),
                "dev": vars(on_dev),
                "test": vars(on_test) if on_test else None,
            }
        )
    return rows
