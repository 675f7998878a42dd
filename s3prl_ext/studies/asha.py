"""Asynchronous successive halving (ASHA, Li et al. 2020, https://arxiv.org/abs/1810.05934), by Ray Tune's scheduler.

No run waits for others: as soon as it is scored at a rung, it stops there or trains on, by the scores that are known by
then. No place idles, but who goes on depends on who is first, so that the same study may end differently another time.
What is here keeps the order of arrival and asks Ray Tune; the jobs are those of any race.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.metrics import metric
from s3prl_ext.studies.race import Standing
from s3prl_ext.training.racing.early_stop import Comparison, EarlyStopConfig, best_of


class Arrival(NamedTuple):
    """A run that was scored at a step."""

    number: int
    step: int
    score: float


def check_ray_tune() -> None:
    """Raise UsageError where Ray Tune is not installed."""
    try:
        import ray.tune.schedulers  # noqa: F401
    except ImportError as error:
        raise UsageError("race.scheduler asha needs Ray Tune: pip install 's3prl_ext[ray]'.") from error


class _Scheduler:
    """Ray Tune's scheduler for one cell; the j-th rung is its milestone η^(j-1), whatever step it is at."""

    def __init__(self, config: EarlyStopConfig, metric_name: str, runs: int) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self.rungs, self.eta = config.rungs or (), config.eta
        scheduler = AsyncHyperBandScheduler(
            time_attr="milestone", metric="score", mode="max" if metric(metric_name).higher_is_better else "min",
            grace_period=1, reduction_factor=self.eta, max_t=self.eta ** (len(self.rungs) - 0.5),
        )  # fmt: skip
        self.tune = cast(Any, scheduler)  # it is given neither the controller nor the trials of a Tuner
        self.trials = [SimpleNamespace(trial_id=str(number)) for number in range(runs)]
        for trial in self.trials:
            self.tune.on_trial_add(None, trial)

    def goes_on(self, one: Arrival) -> bool:
        """Return whether a run trains on from a rung; one that diverged never does."""
        if math.isnan(one.score):
            return False
        result: dict[str, Any] = {"milestone": self.eta ** self.rungs.index(one.step), "score": one.score}
        return bool(self.tune.on_trial_result(None, self.trials[one.number], result) == "CONTINUE")


def asha_standing(
    config: EarlyStopConfig,
    total_steps: int,
    metric_name: str,
    runs: int,
    arrivals: Sequence[Arrival],
    diverged: Collection[int],
) -> Standing:
    """Return how a race stands.

    Args:
        config: its rungs and η.
        total_steps: T, of each run.
        metric_name: that they are compared by.
        runs: how many race.
        arrivals: in the order in which they came; those elsewhere than at a rung or at T do not count.
        diverged: numbers of runs that will arrive nowhere any more.
    """
    steps = (*(config.rungs or ()), total_steps)
    arrivals = [one for one in arrivals if one.step in steps]
    scheduler, done, stopped = _Scheduler(config, metric_name, runs), [0] * runs, set(diverged)
    at: dict[int, list[int]] = {}
    for one in sorted(arrivals, key=lambda arrival: arrival.step == total_steps):  # the end decides nothing before it
        at.setdefault(one.step, []).append(one.number)
        done[one.number] += 1
        if one.step < total_steps and not scheduler.goes_on(one):
            stopped.add(one.number)
    found = Standing([
        (Comparison(tuple(sorted(numbers)), (step,), 0, "asha"), [n for n in numbers if n not in stopped])
        for step, numbers in sorted(at.items())
    ])  # fmt: skip
    found.due = [(n, steps[done[n]]) for n in range(runs) if n not in stopped and done[n] < len(steps)]
    finals = {one.number: one.score for one in arrivals if one.step == total_steps}
    if found.due:
        found.said = f"{len(found.due)} train on, {len(stopped)} stopped, {len(finals)} at the end"
    else:
        try:
            order = sorted(finals)
            best = best_of([finals[n] for n in order] or [math.nan], metric_name, 1)
            found.winner = order[best[0]]
        except DataError as error:
            found.failure = str(error)
    return found
