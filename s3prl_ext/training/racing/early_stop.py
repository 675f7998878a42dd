"""Section ``early_stop`` of a task file: when the candidates of a race are compared, and how many go on.

Two rules, both without a clock or a scheduler, so that a race has the same outcome wherever its candidates train:

- one comparison (AD-TUNING, section 2.3 and Algorithm 1): train n candidates for k = max(1, round(r T)) steps, continue
  the c best to T: n k + c (T - k) steps in all;
- successive halving (Jamieson & Talwalkar 2016; with η the inner loop of Hyperband, Li et al. 2017, Algorithm 1, which
  rounds down): at the rungs r_1 < ... < r_m < T compare the n_j candidates that are left, and continue the n_{j+1} =
  ceil(n_j / η) best: Σ n_j (r_j - r_{j-1}) + n_{m+1} (T - r_m) steps in all, with r_0 = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from s3prl_ext import settings
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.metrics import METRICS, metric
from s3prl_ext.settings import choice, count, load, raise_all

OF_ONE_COMPARISON = ("ratio", "keep", "evaluations", "patience")
OF_RUNGS = ("rungs", "eta")


@dataclass(frozen=True)
class Comparison:
    """Candidates that are compared at a step.

    Attributes:
        who: their numbers, in the order in which they train.
        points: steps at which they are scored, the comparison last; what counts is the mean.
        keep: how many go on.
        name: what the log and the progress bars call it.
        by_density: of equal scores the smaller density wins; otherwise the candidate that comes first in the file.
    """

    who: tuple[int, ...]
    points: tuple[int, ...]
    keep: int
    name: str
    by_density: bool = False

    @property
    def step(self) -> int:
        """The step of the comparison."""
        return self.points[-1]


# yields what is to be compared next, is sent the numbers of those that go on, the best first, and returns the winner's
Comparisons = Generator[Comparison, list[int], int]


@dataclass(frozen=True)
class EarlyStopConfig:
    """Section ``early_stop`` of a task file.

    Attributes:
        ratio: r, share of the run's steps after which candidates are compared, in (0, 1].
        keep: c, how many candidates continue.
        metric: what they are compared by; None = the task's own, see :mod:`s3prl_ext.tasks`.
        split: where it is measured; None = the dev split of the task, or the first of ``runner.eval_dataloaders``.
        evaluations: a candidate's score is the mean of this many evaluations, evenly spaced up to the comparison.
        patience: compare again every k steps until the same candidates have led for this many consecutive comparisons.
        rungs: steps of the comparisons of successive halving, in place of `ratio`, `keep`, `evaluations` and
            `patience`.
        eta: η, of n candidates that are compared at a rung ceil(n / η) continue.
    """

    ratio: Annotated[float, settings.number(above=0, most=1)] = 0.1
    keep: Annotated[int, count()] = 1
    metric: Annotated[str | None, choice(METRICS)] = None
    split: Annotated[str | None, settings.name()] = None
    evaluations: Annotated[int, count()] = 1
    patience: Annotated[int, count()] = 1
    rungs: Annotated[tuple[int, ...] | None, settings.rising()] = None
    eta: Annotated[float, settings.number(above=1)] = 3.0

    @classmethod
    def read(cls, section: Any, where: str, candidates: int | None = None) -> EarlyStopConfig:
        """Check a section.

        Args:
            section: it.
            where: its place, such as ``early_stop``.
            candidates: how many race; None where that is not known yet.

        Raises:
            UsageError: with all problems.
        """
        problems: list[str] = []
        config = load(cls, section or {}, where, example="{ratio: 0.1, keep: 1}", problems=problems)
        given = section if isinstance(section, Mapping) else {}
        one, several = ([key for key in keys if given.get(key) is not None] for keys in (OF_ONE_COMPARISON, OF_RUNGS))
        if one and several:
            problems.append(
                f"{where} has {' and '.join(one)}, of one comparison, next to {' and '.join(several)}, of successive "
                "halving: keep one of the two."
            )
        elif several == ["eta"]:
            problems.append(f"{where}.eta belongs to successive halving: add {where}.rungs, such as [1000, 3000].")
        if candidates is not None and config.keep > candidates > 1:
            problems.append(f"{where}.keep is {config.keep}, but there are only {candidates} candidates.")
        raise_all(problems)
        return config

    @classmethod
    def from_config(cls, config: Section, candidates: int) -> EarlyStopConfig | None:
        """Check section ``early_stop``; None where there is nothing to race.

        Args:
            config: the whole task file.
            candidates: number of candidates that its section ``tuning`` makes.

        Raises:
            UsageError: with all problems; also where there are candidates but no section, and the reverse.
        """
        if "early_stop" not in config:
            if candidates > 1:
                raise UsageError(
                    f"tuning makes {candidates} candidates, but there is no section early_stop to race them by: add "
                    "early_stop: {ratio: 0.1, keep: 1}, or give one value instead of a list."
                )
            return None
        race = cls.read(config["early_stop"], "early_stop", candidates)
        if candidates == 1:
            return None  # plain child-tuning
        if race.split is None and not (config.get("runner") or {}).get("eval_dataloaders", ["dev"]):
            raise UsageError(
                "a race compares candidates on a split: name it in early_stop.split or runner.eval_dataloaders."
            )
        return race

    def check_length(self, total_steps: int, where: str = "early_stop") -> None:
        """Raise UsageError where a rung is not below the end of the run."""
        if self.rungs and self.rungs[-1] >= total_steps:
            raise UsageError(
                f"{where}.rungs ends with {self.rungs[-1]}, but a run has {total_steps} steps: "
                "rungs must be below its end."
            )

    def without_effect(self, candidates: int) -> list[int]:
        """Return the rungs at which no candidate would drop out."""
        sizes = self._sizes(candidates)
        return [step for step, before, after in zip(self.rungs or (), sizes, sizes[1:]) if before == after]

    def steps_before_cut(self, total_steps: int) -> int:
        """Return k = max(1, round(r T)), at most T."""
        return min(total_steps, max(1, round(self.ratio * total_steps)))

    def stored(self, total_steps: int, split: str) -> Record:
        """Return what a race may not change while it runs."""
        if self.rungs:
            return {"rungs": list(self.rungs), "eta": self.eta, "split": split}
        return {
            "steps_before_cut": self.steps_before_cut(total_steps), "split": split, "keep": self.keep,
            "evaluations": self.evaluations, "patience": self.patience,
        }  # fmt: skip

    # -- who trains how far ------------------------------------------------------------------------------------------

    def comparisons(self, candidates: int, total_steps: int) -> Comparisons:
        """Return the comparisons of a race, each of them known once those before it are decided."""
        return self._halving(candidates, total_steps) if self.rungs else self._one(candidates, total_steps)

    def _one(self, candidates: int, total_steps: int) -> Comparisons:
        """Compare all candidates until the same ones have led often enough; those that are kept run to T."""
        k, everyone = self.steps_before_cut(total_steps), tuple(range(candidates))
        led, cut, leaders = 0, 0, list(everyone)
        while led < self.patience and cut < total_steps:
            start, cut = cut, min(total_steps, cut + k)
            points = {start + max(1, (cut - start) * (j + 1) // self.evaluations) for j in range(self.evaluations)}
            previous = set(leaders)
            leaders = yield Comparison(everyone, tuple(sorted(points)), self.keep, "race", by_density=True)
            led = led + 1 if led and set(leaders) == previous else 1
        if self.keep > 1:
            leaders = yield Comparison(tuple(leaders), (total_steps,), 1, "kept", by_density=True)
        return leaders[0]

    def _halving(self, candidates: int, total_steps: int) -> Comparisons:
        """Compare those that are left at each rung; where several are left after the last one, they run to T."""
        left = list(range(candidates))
        rungs = self.rungs or ()
        for place, step in enumerate(rungs):
            if len(left) == 1:
                break
            compared = Comparison(tuple(left), (step,), self.survivors(len(left)), f"rung {place + 1} of {len(rungs)}")
            left = sorted((yield compared))
        if len(left) > 1:
            left = yield Comparison(tuple(left), (total_steps,), 1, "end")
        return left[0]

    def survivors(self, compared: int) -> int:
        """Return ceil(n / η), exact for every η as it is written."""
        return math.ceil(compared / Fraction(str(self.eta)))

    def _sizes(self, candidates: int) -> list[int]:
        """Return how many candidates train up to each rung, and how many after the last one."""
        sizes = [candidates]
        for _ in self.rungs or ():
            sizes.append(self.survivors(sizes[-1]))
        return sizes

    # -- what it costs -----------------------------------------------------------------------------------------------

    def budget(self, candidates: int, total_steps: int) -> int:
        """Return the optimizer steps of all candidates together.

        With `patience` p the comparison is the p-th at the earliest, so that k stands for p k and this is the least
        number.
        """
        if self.rungs:
            spans = zip(self._sizes(candidates), (0, *self.rungs), (*self.rungs, total_steps), strict=True)
            return sum(n * (end - start) for n, start, end in spans)
        k = min(total_steps, self.patience * self.steps_before_cut(total_steps))
        return candidates * k + min(self.keep, candidates) * (total_steps - k)

    def announcement(self, candidates: int, total_steps: int) -> str:
        """Say how far the candidates train and what it costs."""
        least = self.budget(candidates, total_steps)
        if self.rungs:
            sizes = zip(self._sizes(candidates), [*self.rungs, total_steps], strict=True)
            plan = ", ".join(f"{n} to step {step}" for n, step in sizes)
            return f"{plan}; {least} optimizer steps in all"
        most = candidates * total_steps  # the leaders change to the end
        steps = f"{least}" if self.patience == 1 or least == most else f"{least} to {most}"
        k = self.steps_before_cut(total_steps)
        return f"{k} steps each, then the best {self.keep} to step {total_steps}; {steps} optimizer steps in all"


def winner_of(comparisons: Comparisons, judge: Callable[[Comparison], list[int] | None]) -> int | None:
    """Run through comparisons to their end; return the number of the winner.

    Args:
        comparisons: of a race.
        judge: returns the numbers of those that go on, the best first, or None where scores are still missing: the race
            is then left there, and None returned.
    """
    try:
        comparison = next(comparisons)
        while (leaders := judge(comparison)) is not None:
            comparison = comparisons.send(leaders)
    except StopIteration as end:
        return int(end.value)
    return None


def best_of(
    scores: Sequence[float], metric_name: str, keep: int, densities: Sequence[float] | None = None
) -> list[int]:
    """Return the places of the `keep` best scores, best first.

    NaN, of a candidate that diverged, never wins; of equal scores the smaller density wins where densities are given,
    then the first.

    Raises:
        DataError: every score is NaN.
    """
    if all(math.isnan(score) for score in scores):
        raise DataError(f"every candidate's {metric_name} is NaN at the comparison; lower the learning rate.")
    sign = -1.0 if metric(metric_name).higher_is_better else 1.0
    sound = [place for place, score in enumerate(scores) if not math.isnan(score)]
    ties = densities or [0.0] * len(scores)
    return sorted(sound, key=lambda place: (sign * scores[place], ties[place], place))[:keep]
