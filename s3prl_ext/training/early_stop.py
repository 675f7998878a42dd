"""AD-TUNING's early stop as configuration and arithmetic: candidates, their budget, and which of them go on.

Train n candidates for k = max(1, round(r T)) steps, score each on dev with the task's own metric, continue the c best
to T (AD-TUNING, section 2.3 and Algorithm 1): n k + c (T - k) steps in all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.metrics import METRICS, metric
from s3prl_ext.settings import choice, count, load, name, number, raise_all
from s3prl_ext.tasks import task_of
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.tuning_config import MASK_OPTIONS, keys_of

# Keys of `tuning` whose own value is a list: one list inside a list makes candidates of them.
LIST_KEYS = ("eligible", "projections", "train_layers", "layers")


@dataclass(frozen=True)
class EarlyStopConfig:
    """Section ``early_stop`` of a task file.

    Attributes:
        ratio: r, share of the run's steps after which candidates are compared, in (0, 1].
        keep: c, how many candidates go on.
        metric: what they are compared by; None = the task's own, see :mod:`s3prl_ext.tasks`.
        split: where it is measured; None = the first of ``runner.eval_dataloaders``.
        evaluations: a candidate's score is the mean of this many evaluations, evenly spaced up to the comparison.
        patience: compare again every k steps until the same candidates have led this many times in a row.
    """

    ratio: Annotated[float, number(above=0, most=1)] = 0.1
    keep: Annotated[int, count()] = 1
    metric: Annotated[str | None, choice(METRICS)] = None
    split: Annotated[str | None, name()] = None
    evaluations: Annotated[int, count()] = 1
    patience: Annotated[int, count()] = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any], candidates: int) -> EarlyStopConfig | None:
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
        problems: list[str] = []
        example = "{ratio: 0.1, keep: 1}"
        race = load(cls, config["early_stop"] or {}, "early_stop", example=example, problems=problems)
        if race.keep > candidates > 1:
            problems.append(f"early_stop.keep is {race.keep}, but there are only {candidates} candidates.")
        raise_all(problems)
        if candidates == 1:
            return None  # plain child-tuning
        if race.split is None and not (config.get("runner") or {}).get("eval_dataloaders", ["dev"]):
            raise UsageError(
                "a race compares candidates on a split: name it in early_stop.split or runner.eval_dataloaders."
            )
        return race

    def steps_before_cut(self, total_steps: int) -> int:
        """Return k = max(1, round(r T)), at most T."""
        return min(total_steps, max(1, round(self.ratio * total_steps)))


@dataclass(frozen=True)
class Candidate:
    """One of the runs that are raced.

    Attributes:
        name: what sets it apart, such as ``density=0.01``; also the name of its folder.
        tuning: its section ``tuning``, without lists.
    """

    name: str
    tuning: dict[str, Any]

    @property
    def density(self) -> float:
        """Its density; 1 where the method has none."""
        return float(self.tuning.get("density", 1.0))


def candidates(section: Mapping[str, Any]) -> list[Candidate]:
    """Return one candidate for each combination of the lists in a section ``tuning``, in the order given.

    Where methods or masks race, a candidate has the keys that its own reads: ``{method: [child, lora], density: [0.1,
    0.01]}`` makes three.

    Raises:
        UsageError: a list is empty or names a value twice.
    """
    lists: dict[str, list[Any]] = {}
    for key, value in section.items():
        native = key in LIST_KEYS and not (isinstance(value, list) and any(isinstance(v, list) for v in value))
        if isinstance(value, (list, tuple)) and not native:
            if not value:
                raise UsageError(f"tuning.{key} is an empty list: give one value, or several to race.")
            named = [_shown(item) for item in value]
            if len(set(named)) < len(named):
                raise UsageError(f"tuning.{key} names a candidate twice: {', '.join(named)}.")
            lists[key] = list(value)
    if not lists:
        return [Candidate("", dict(section))]
    made: dict[str, Candidate] = {}
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values))
        tuning = _without_keys_of_others({**section, **chosen}, lists)
        name = ",".join(f"{key}={_shown(value)}" for key, value in chosen.items() if key in tuning)
        made.setdefault(name, Candidate(name, tuning))
    return list(made.values())


def _without_keys_of_others(tuning: dict[str, Any], lists: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return a candidate's section without the keys that only others of the raced methods or masks read."""
    methods = [method for method in lists.get("method", []) if method in METHODS]
    elsewhere = {key for method in methods for key in keys_of(method, METHODS)}
    known = tuning.get("method") in METHODS  # else it is refused later
    elsewhere -= set(keys_of(tuning["method"], METHODS)) if known else elsewhere
    masks = [mask for mask in lists.get("mask", []) if mask != tuning.get("mask")]
    elsewhere |= {MASK_OPTIONS[mask] for mask in masks if mask in MASK_OPTIONS}
    return {key: value for key, value in tuning.items() if key not in elsewhere}


def _shown(value: Any) -> str:
    """Return a value as it stands in a candidate's name: 1.0e-3 and 0.001 are the same."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_shown, value))
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in str(value))


def budget(config: EarlyStopConfig, count: int, total_steps: int) -> int:
    """Return the optimizer steps of all candidates together: n k + c (T - k).

    With `patience` p the comparison is the p-th at the earliest, so that k stands for p k and this is the least number.
    """
    k = min(total_steps, config.patience * config.steps_before_cut(total_steps))
    return count * k + min(config.keep, count) * (total_steps - k)


def judged_by(wanted: str | None, task: str, reported: Sequence[str]) -> str:
    """Return the metric to compare candidates by.

    Args:
        wanted: ``early_stop.metric``, or None for the task's own.
        task: name for ``-d``.
        reported: metrics that the task has reported for the split.

    Raises:
        UsageError: the task does not report it; the message names those it does.
    """
    options = (wanted,) if wanted else task_of(task).metrics
    name = next((name for name in options if name in reported), None)
    if name is not None:
        return name
    known = ", ".join(name for name in reported if name in METRICS) or "none that is known"
    raise UsageError(
        f"the task {task} does not report {' or '.join(options)} on this split; set early_stop.metric to one of: {known}."
    )


def select(scores: Sequence[float], entrants: Sequence[Candidate], metric_name: str, keep: int) -> list[int]:
    """Return the numbers of the `keep` best candidates, best first.

    NaN never wins; of equal scores the smaller density wins, then the earlier candidate.

    Raises:
        DataError: every score is NaN.
    """
    if all(math.isnan(score) for score in scores):
        raise DataError(f"every candidate's {metric_name} is NaN at the comparison; lower the learning rate.")
    sign = -1.0 if metric(metric_name).higher_is_better else 1.0

    def rank(number: int) -> tuple[bool, float, float, int]:
        score = scores[number]
        return math.isnan(score), sign * score if not math.isnan(score) else 0.0, entrants[number].density, number

    ranked = sorted(range(len(scores)), key=rank)
    return [number for number in ranked[:keep] if not math.isnan(scores[number])]
