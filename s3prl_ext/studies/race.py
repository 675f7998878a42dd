"""The race of a cell: its search runs train to a step as jobs of their own, and are compared when all are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from s3prl_ext.errors import DataError
from s3prl_ext.training.racing.early_stop import Comparison, EarlyStopConfig, best_of, winner_of


@dataclass
class Standing:
    """How a race stands.

    Attributes:
        compared: each comparison that is decided, with the numbers of those that lead, the best first.
        now: the comparison that waits for scores, or None.
        due: number and step of each run that has to train on for it.
        winner: number of the run that has won, or None.
        failure: why there will be none: all runs of a comparison diverged.
        said: what it waits for, in words.
    """

    compared: list[tuple[Comparison, list[int]]] = field(default_factory=list)
    now: Comparison | None = None
    due: list[tuple[int, int]] = field(default_factory=list)
    winner: int | None = None
    failure: str | None = None
    said: str = ""


def standing(
    config: EarlyStopConfig,
    total_steps: int,
    densities: Sequence[float],
    metric: str,
    score: Callable[[int, int], float | None],
) -> Standing:
    """Return how far a race is decided by the scores that are known.

    Args:
        config: when runs are compared, and how many go on.
        total_steps: T, of each run.
        densities: one for each run, for equal scores.
        metric: that they are compared by.
        score: returns the score of a run at a step on dev, NaN where it diverged, None where it is not known.
    """
    found = Standing()

    def judge(comparison: Comparison) -> list[int] | None:
        rows = [[score(number, step) for step in comparison.points] for number in comparison.who]
        waiting = [(n, row.index(None)) for n, row in zip(comparison.who, rows, strict=True) if None in row]
        if waiting:
            found.now, found.due = comparison, [(number, comparison.points[place]) for number, place in waiting]
            found.said = f"{comparison.name}, {len(comparison.who)} to step {comparison.step}"
            return None
        means = [fmean(value for value in row if value is not None) for row in rows]
        ties = [densities[number] for number in comparison.who] if comparison.by_density else None
        try:
            leaders = [comparison.who[place] for place in best_of(means, metric, comparison.keep, ties)]
        except DataError as error:
            found.now, found.failure = comparison, str(error)
            return None
        found.compared.append((comparison, leaders))
        return leaders

    found.winner = winner_of(config.comparisons(len(densities), total_steps), judge)
    return found


def jobs_of(config: EarlyStopConfig, runs: int, total_steps: int) -> int:
    """Return how many jobs decide a race and train the winner to its end, at the least."""
    compared: list[Comparison] = []

    def judge(comparison: Comparison) -> list[int]:
        compared.append(comparison)
        return list(comparison.who[: comparison.keep])

    winner_of(config.comparisons(runs, total_steps), judge)
    return sum(len(one.who) * len(one.points) for one in compared) + (compared[-1].step < total_steps)
