"""Rows of a table of results: runs that differ in nothing but the seed, their mean and spread, and a name for them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.scored_runs import ScoredRun
from s3prl_ext.evaluation.significance import Interval

logger = logging.getLogger(__name__)

# Facts that are hashes: they name a row only where nothing else tells it apart.
_HASHES = ("data", "splits", "upstream_sha256", "source_sha256", "sweep")


@dataclass(frozen=True)
class Row:
    """Runs of one task and split that are reported as one.

    Attributes:
        label: what the row is called.
        metric: which metric of the runs counts.
        runs: at least one.
    """

    label: str
    metric: str
    runs: tuple[ScoredRun, ...]

    @property
    def task(self) -> str:
        """Short name of the task."""
        return self.runs[0].task

    @property
    def split(self) -> str:
        """Where the runs were scored."""
        return self.runs[0].split

    @property
    def facts(self) -> dict[str, Any]:
        """What the runs share."""
        first, *others = (run.facts for run in self.runs)
        return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return [run.values[self.metric] for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean over the runs; NaN where one of them is NaN."""
        return fsum(self.values) / len(self.runs)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the runs; None for a single one."""
        if len(self.runs) < 2 or not all(map(isfinite, self.values)):
            return None
        return statistics.stdev(self.values)

    @property
    def interval(self) -> Interval | None:
        """The interval that a single run's task gives; None for several runs."""
        found = self.runs[0].intervals.get(self.metric)
        return (found[0], found[1]) if found and len(self.runs) == 1 else None


def without_duplicates(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], list[str]]:
    """Return each run once, and a sentence for each that is left out.

    Of one configuration, seed and split an evaluation (of a chosen checkpoint) counts before the last evaluation of the
    training. Two equal evaluations count once.

    Raises:
        DataError: two evaluations of one configuration, seed and split differ.
    """
    kept: dict[Any, ScoredRun] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.mode == "train", not run.facts.get("chosen", True))):  # stable
        first = kept.setdefault((run.task, run.key(), run.seed, run.split), run)
        if first is run:
            continue
        if first.mode != run.mode:
            notes.append(f"{run.source}: its {run.split} is left out, {first.source} scores a chosen checkpoint there.")
            continue
        names = [n for n in run.values if run.values[n] != first.values.get(n) and run.values[n] == run.values[n]]
        if names:
            raise DataError(
                f"{first.source} and {run.source} have the same configuration, seed {run.seed} and split '{run.split}', "
                f"but {names[0]} {first.values.get(names[0])} (step {first.step}) and {run.values[names[0]]} (step "
                f"{run.step}): give one of them."
            )
        arm = f"its {_described(run.facts)} is " if run.mode == "sweep" else ""
        notes.append(f"{run.source}: {arm}left out, it repeats {first.source} (same configuration, seed and split).")
    return [run for run in runs if any(run is one for one in kept.values())], notes


def rows_of(runs: Sequence[ScoredRun], metric: str, group_by: Sequence[str] | None = None) -> list[Row]:
    """Return a row for each group of runs, in the order in which they come.

    Args:
        runs: of one task and split.
        metric: what is reported; runs without it are left out.
        group_by: facts (or sections) that make a row; None = all, so that rows hold runs of several seeds.
    """
    groups: dict[Any, list[ScoredRun]] = {}
    for run in runs:
        if metric in run.values:
            groups.setdefault(run.key(group_by), []).append(run)
    labels = name_rows([group[0] for group in groups.values()], group_by)
    return [Row(label, metric, tuple(group)) for label, group in zip(labels, groups.values(), strict=True)]


def averaged_over(row: Row) -> dict[str, list[Any]]:
    """Return the facts in which the runs of a row differ, with their values; seeds are none."""
    names = sorted({name for run in row.runs for name in run.facts})
    values = {name: [run.facts.get(name) for run in row.runs] for name in names}
    return {name: _distinct(found) for name, found in values.items() if len(_distinct(found)) > 1}


def name_rows(firsts: Sequence[ScoredRun], group_by: Sequence[str] | None = None) -> list[str]:
    """Return a name for each row: model, method, merge, and as many settings as it takes to tell rows apart.

    Args:
        firsts: a run of each row.
        group_by: what the rows differ in, see :func:`rows_of`.
    """
    labels = [_described(run.facts) for run in firsts]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [number for number, other in enumerate(labels) if other == label]
        keys = [dict(firsts[number].key(group_by)) for number in alike]
        names = sorted({n for key in keys for n in key if len({other.get(n) for other in keys}) > 1})
        names = [n for n in names if n not in _HASHES] or names  # a hash only where nothing else differs
        for number in alike:
            facts = firsts[number].facts
            labels[number] += "".join(f", {_short(n)} {_shown(n, facts.get(n))}" for n in names[:4])
    return [f"{label} (#{labels[:i].count(label) + 1})" if labels.count(label) > 1 else label
            for i, label in enumerate(labels)]  # fmt: skip


def _described(facts: Any) -> str:
    parts = [str(facts.get("upstream"))]
    if facts.get("upstream_ckpt"):
        parts[0] += f" {facts['upstream_ckpt']}"
    lambda_ = facts.get("lambda")
    if facts.get("learnable"):
        parts.append(f"learnable λ from {lambda_}" + _layers(facts))
    elif lambda_:
        noise = "" if facts.get("noise", "none") == "none" else f" noise {facts['noise']}"
        parts.append(f"λ {lambda_}{_layers(facts)}{noise}")
    elif lambda_ is not None:
        parts.append("λ 0")
    if facts.get("race"):
        parts.append("race")
    elif facts.get("method") not in (None, "weighted_sum") or "tuning.method" in facts:
        parts.append(str(facts["method"]))
        if facts["method"] == "child":
            parts[-1] += f" {facts.get('tuning.mask', 'fisher')} P {facts.get('tuning.density')}"
    return ", ".join(parts)


def _layers(facts: Any) -> str:
    return "" if facts.get("layers") == "all" else f" layers {facts.get('layers')}"


def _short(name: str) -> str:
    return name.removeprefix("downstream_expert.").removeprefix("optimizer.").removeprefix("runner.")


def _shown(name: str, value: Any) -> str:
    return str(value)[:8] if name in _HASHES and value is not None else "-" if value is None else str(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]
