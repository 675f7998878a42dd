"""Rows of a table of results: runs that differ in nothing but the seed, their mean and spread, and a name for them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any

from s3prl_ext.child_tuning.names import PAPER
from s3prl_ext.errors import DataError, unknown_name
from s3prl_ext.evaluation import tuning_facts
from s3prl_ext.evaluation.merge_facts import HASHES, MERGE, deviations
from s3prl_ext.evaluation.scored_runs import CHECKPOINT, Facts, RowKey, ScoredRun
from s3prl_ext.evaluation.significance import Interval
from s3prl_ext.tasks import named
from s3prl_ext.tasks.record import scored_part

logger = logging.getLogger(__name__)

# Facts that are hashes: they name a row only where nothing else tells it apart.
HASHED = ("data", "splits", "upstream_sha256", "upstream_settings", "sweep", "unmerged", *HASHES)


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
    def facts(self) -> Facts:
        """What the runs share."""
        return _shared(self.runs)

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return [run.values[self.metric] for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean over the runs, of cross-validation over the means of its folds; NaN where one of them is NaN."""
        return fsum(map(_mean, self._of_folds())) / len(self._of_folds())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the runs, of cross-validation over its folds; None for a single one.

        Of several runs of one fold it is over these.
        """
        folds = self._of_folds()
        values = folds[0] if len(folds) == 1 else [_mean(fold) for fold in folds]
        if len(values) < 2 or not all(map(isfinite, values)):
            return None
        return statistics.stdev(values)

    def _of_folds(self) -> list[list[float]]:
        """Return the metric of the runs of each fold; without folds each run by itself."""
        folds: dict[object, list[float]] = {}
        for number, run in enumerate(self.runs):
            folds.setdefault(run.fold if run.fold is not None else number, []).append(run.values[self.metric])
        return list(folds.values())

    @property
    def missing_folds(self) -> list[str]:
        """The folds of the task's cross-validation without a run; empty for a task that has none."""
        folds = named(self.task).folds
        return [name for name in folds.names if all(run.fold != name for run in self.runs)] if folds else []

    @property
    def interval(self) -> Interval | None:
        """The interval that a single run's task gives; None for several runs."""
        found = self.runs[0].intervals.get(self.metric)
        return (found[0], found[1]) if found and len(self.runs) == 1 else None


def part_of_a_split(row: Row) -> str | None:
    """Return the sentence for a row with scores of a part of the split; None for others."""
    found = (scored_part(named(run.task), run.split, run.facts.get) for run in row.runs)
    shown = " and ".join(sorted({one for one in found if one}))
    return f"{row.label}: scored on a part of {row.split}, {shown}." if shown else None


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def without_duplicates(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], list[str]]:
    """Return each run once, and a sentence for each that is left out.

    Of one configuration, seed and split an evaluation (of a chosen checkpoint) counts before the last evaluation of the
    training, whichever checkpoint it is of. Two equal evaluations count once.

    Raises:
        DataError: two evaluations of one configuration, seed and split differ.
    """
    kept: dict[tuple[str, RowKey, str, str], ScoredRun] = {}
    evaluated = {
        (run.task, run.trained_key, run.seed, run.split): run for run in reversed(runs) if run.mode == "evaluate"
    }
    notes = []
    for run in sorted(runs, key=lambda run: (run.mode == "train", not run.facts.get("chosen", True))):  # stable
        first = evaluated.get((run.task, run.trained_key, run.seed, run.split)) if run.mode == "train" else None
        first = first or kept.setdefault((run.task, run.key(), run.seed, run.split), run)
        if first is run:
            continue
        if first.mode != run.mode:
            notes.append(f"{run.source}: its {run.split} is left out, {first.source} scores a chosen checkpoint there.")
            continue
        names = [n for n in run.values if run.values[n] != first.values.get(n) and run.values[n] == run.values[n]]
        if names:
            raise DataError(
                f"{first.source} and {run.source} have the same configuration, seed {run.seed} and split "
                f"'{run.split}', but {names[0]} {first.values.get(names[0])} (step {first.step}) and "
                f"{run.values[names[0]]} (step {run.step}): give one of them."
            )
        arm = f"its {described([run])} is " if run.mode == "sweep" else ""
        notes.append(f"{run.source}: {arm}left out, it repeats {first.source} (same configuration, seed and split).")
    return [run for run in runs if any(run is one for one in kept.values())], notes


def without_last_steps(runs: Sequence[ScoredRun]) -> tuple[list[ScoredRun], list[str]]:
    """Return the runs without those that score another model than the others of their row, and a sentence for each.

    The result of a training is that of its last step. Where other runs of its row are evaluations of a chosen
    checkpoint, it would be averaged with them.
    """
    evaluated = {
        (run.task, run.trained_key, run.split)
        for run in runs
        if run.mode == "evaluate" and run.facts.get(CHECKPOINT) != "last"
    }
    kept, notes = [], []
    for run in runs:
        if run.mode == "train" and (run.task, run.trained_key, run.split) in evaluated:
            notes.append(
                f"{run.source}: its {run.split} is of the last step and is left out, since other runs of this "
                "configuration were scored with a chosen checkpoint: evaluate that of this run too."
            )
        else:
            kept.append(run)
    return kept, notes


def rows_of(runs: Sequence[ScoredRun], metric: str, group_by: Sequence[str] | None = None) -> list[Row]:
    """Return a row for each group of runs, in the order in which they come.

    Args:
        runs: of one task and split.
        metric: what is reported; runs without it are left out.
        group_by: facts (or sections) that make a row; None = all, so that rows hold runs of several seeds.
    """
    groups: dict[RowKey, list[ScoredRun]] = {}
    for run in runs:
        if metric in run.values:
            groups.setdefault(run.key(group_by), []).append(run)
    labels = name_rows(list(groups.values()), group_by)
    return [Row(label, metric, tuple(group)) for label, group in zip(labels, groups.values(), strict=True)]


def averaged_over(row: Row) -> dict[str, list[Any]]:
    """Return the facts in which the runs of a row differ, with their values; seeds are none."""
    names = sorted({name for run in row.runs for name in run.facts})
    values = {name: [run.facts.get(name) for run in row.runs] for name in names}
    return {name: _distinct(found) for name, found in values.items() if len(_distinct(found)) > 1}


def name_rows(groups: Sequence[Sequence[ScoredRun]], group_by: Sequence[str] | None = None) -> list[str]:
    """Return a name for each row: model, method, merge, and as many settings as it takes to tell rows apart.

    Args:
        groups: the runs of each row.
        group_by: what the rows differ in, see :func:`rows_of`.
    """
    labels = [described(group) for group in groups]
    firsts = [group[0] for group in groups]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [number for number, other in enumerate(labels) if other == label]
        keys = [dict(firsts[number].key(group_by)) for number in alike]
        names = sorted({n for key in keys for n in key if len({other.get(n) for other in keys}) > 1})
        names = [n for n in names if n not in HASHED] or names  # a hash only where nothing else differs
        for number in alike:
            facts = firsts[number].facts
            labels[number] += "".join(f", {without_section(n)} {shown(n, facts.get(n))}" for n in names[:4])
    return [f"{label} (#{labels[:i].count(label) + 1})" if labels.count(label) > 1 else label
            for i, label in enumerate(labels)]  # fmt: skip


def check_facts(names: Sequence[str], runs: Sequence[ScoredRun]) -> None:
    """Raise UsageError where `--group-by` names a fact (or a group of facts) that none of the runs has."""
    facts = {name for run in runs for name in run.facts} - {"chosen"}
    parts = {".".join(name.split(".")[:depth]) for name in facts for depth in range(1, name.count(".") + 1)}
    for name in names:
        if name not in facts | parts:
            raise unknown_name("fact of these results (--group-by)", name, sorted(facts | parts))


def described(runs: Sequence[ScoredRun]) -> str:
    """Return model, merge and method of the runs of a row; where they differ, how many there are."""

    def count(*names: str) -> int:
        return len(_distinct([[run.facts.get(name) for name in names] for run in runs]))

    facts = _shared(runs)
    parts = [_count_or(count("upstream", "upstream_ckpt"), "upstreams", _model(facts))]
    parts.append(_count_or(len({run.key(MERGE) for run in runs}), "merges", _merge(facts)))
    tuned = _count_or(count("method", "tuning.method", "race"), "methods", _method(facts))
    children = count("tuning.mask", "tuning.density", *(f"tuning.{key}" for key in PAPER))
    parts.append(
        f"{facts['method']} ({children} settings)" if facts.get("method") == "child" and children > 1 else tuned
    )
    return ", ".join(part for part in parts if part)


def _count_or(number: int, what: str, text: str) -> str:
    return f"{number} {what}" if number > 1 else text


def _shared(runs: Sequence[ScoredRun]) -> Facts:
    first, *others = (run.facts for run in runs)
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in others)}


def _model(facts: Facts) -> str:
    name, ckpt = str(facts.get("upstream")), facts.get("upstream_ckpt")
    return f"{name} {ckpt}" if ckpt and ckpt != name else name


def _merge(facts: Facts) -> str:
    """Return what is merged: first lambda, layers and noise, then all in which it differs from MAM's merge."""
    otherwise = deviations(facts)
    lambda_ = otherwise.pop("lambda", f"λ {facts.get('lambda')}") if facts.get("lambda") is not None else None
    kind = f" ({facts['learnable']})" if isinstance(facts.get("learnable"), str) else ""
    noise = f" noise {facts['noise']}" if facts.get("noise", "none") != "none" else ""
    also = "".join(f" {words}" for name, words in otherwise.items() if name != "sources")
    if facts.get("learnable"):
        return f"learnable λ{kind} from {str(lambda_).removeprefix('λ ')}{_layers(facts)}{noise}{also}"
    if facts.get("lambda"):
        return f"{lambda_}{_layers(facts)}{noise}{also}"
    return "λ 0" if lambda_ is not None else ""


def _method(facts: Facts) -> str:
    if facts.get("race"):
        rungs = facts.get("early_stop.rungs")
        return f"race over rungs {', '.join(map(str, rungs))}" if isinstance(rungs, list) else "race"
    if facts.get("method") in (None, "weighted_sum") and "tuning.method" not in facts:
        return ""
    child = f" {facts.get('tuning.mask', 'fisher')} P {facts.get('tuning.density')}"
    child += "".join(f" {key} {value}" for key, value in tuning_facts.deviations(facts).items())
    return str(facts.get("method")) + (child if facts.get("method") == "child" else "")


def _layers(facts: Facts) -> str:
    return "" if facts.get("layers") == "all" else f" layers {facts.get('layers')}"


def without_section(name: str) -> str:
    """Return the name of a fact without that of the section that it stands in."""
    return name.removeprefix("downstream_expert.").removeprefix("optimizer.").removeprefix("runner.")


def shown(name: str, value: Any) -> str:
    """Return the value of a fact as tables show it: ``-`` where there is none, of a hash the beginning."""
    if value is None:
        return "1" if name == "processes" else "-"
    return str(value)[:8] if name in HASHED else str(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]
