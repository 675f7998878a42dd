"""Is the difference of two rows more than chance? From the transcripts or predictions of single utterances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.clusters import sums
from s3prl_ext.evaluation.result_rows import Row
from s3prl_ext.evaluation.scored_runs import ScoredRun
from s3prl_ext.evaluation.significance import bootstrap_difference, bootstrap_ratio, mcnemar_exact
from s3prl_ext.evaluation.utterance_counts import Counts, counted_metric, utterance_counts
from s3prl_ext.metrics import metric
from s3prl_ext.tasks import Task, named


@dataclass(frozen=True)
class Difference:
    """What changes from one row to another on the same utterances; all in per cent of words, phones or clips.

    Attributes:
        low, high: paired 95 % bootstrap interval of the second row's error rate minus the first's.
        utterances: how many both have scored.
        drawn: how many clusters the bootstrap draws from: the utterances themselves, or their speakers.
        metric: what was counted: an error rate, or an accuracy whose errors these are.
        p: of McNemar's exact test; None for texts, and for several runs.
    """

    low: float
    high: float
    utterances: int
    drawn: int
    metric: str
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def of_metric(self) -> Difference:
        """The same in the metric itself: of an accuracy in right clips, what is not wrong is right."""
        return replace(self, low=-self.high, high=-self.low) if metric(self.metric).higher_is_better else self


def compare_rows(first: Row, second: Row) -> Difference | None:
    """Compare two rows of one split; of several runs the errors of an utterance are averaged over the runs.

    Returns:
        None where a run has no file of utterances.

    Raises:
        DataError: the rows hold other utterances, or a file is not of the evaluation that the row reports.
    """
    a, b = _counts_of(first), _counts_of(second)
    if a is None or b is None:
        return None
    if a.keys() != b.keys():
        raise DataError(
            f"{first.label} and {second.label} were scored on different utterances or references: not compared."
        )
    names = sorted(a)
    totals = [a[name][1] for name in names]
    errors = [a[name][0] for name in names], [b[name][0] for name in names]
    one, other, of = sums([name for name, _ in names], (*errors, totals), first.runs[0].intervals_over)
    low, high = bootstrap_difference(one, other, of)
    p = None
    if set(totals) == {1.0} and {*errors[0], *errors[1]} <= {0.0, 1.0}:
        gained = sum(x > y for x, y in zip(*errors, strict=True))
        lost = sum(x < y for x, y in zip(*errors, strict=True))
        p = mcnemar_exact(lost, gained)
    counted = _metric(first.runs[0])
    assert counted is not None
    return Difference(100 * low, 100 * high, len(names), len(of), counted, p)


def with_intervals_over(kind: str, run: ScoredRun) -> ScoredRun:
    """Return a run whose error rate has its interval over clusters: from the file of its utterances.

    Args:
        kind: of :data:`s3prl_ext.evaluation.clusters.CLUSTERS`.

    Raises:
        DataError: there is no such file, or the names in it do not say the cluster.
    """
    counts = _counts(run)
    if counts is None:
        raise DataError(
            f"{run.source}: no transcripts or predictions of its {run.split}, so there is no interval over {kind}s."
        )
    errors, totals = sums([name for name, _ in counts], list(zip(*counts.values(), strict=True)), kind)
    ends = sorted(100 * end for end in bootstrap_ratio(errors, totals))
    name = _metric(run)
    assert name is not None
    if metric(name).unit == "ratio":
        ends = [end / 100 for end in ends]
    if metric(name).higher_is_better:  # an accuracy: what is not wrong is right
        ends = [1 - end for end in reversed(ends)]
    return replace(run, intervals={name: ends}, intervals_over=kind, drawn=len(errors))


def check_utterances(run: ScoredRun) -> None:
    """Read the file of a run's utterances, where there is one, and compare it with the result.

    Raises:
        OtherEvaluation: it gives another error rate than the result.
        DataError: it is corrupt.
    """
    _counts(run)


def utterance_file(run: ScoredRun) -> Path | None:
    """Return the file with the transcripts or predictions of a run's split, or None."""
    if run.utterances is None:
        return None
    names = (f"transcripts-{run.split}.jsonl", f"predictions-{run.split}.jsonl")
    return next((run.utterances / name for name in names if (run.utterances / name).is_file()), None)


def _counts_of(row: Row) -> Counts | None:
    counts = [_counts(run) for run in row.runs]
    if any(one is None for one in counts):
        return None
    found = [one for one in counts if one is not None]
    if any(run.fold for run in row.runs):  # each fold scores utterances of its own
        names = dict.fromkeys(name for one in found for name in one)
        of = {name: [one[name] for one in found if name in one] for name in names}
        return {name: (fmean(errors for errors, _ in rows), rows[0][1]) for name, rows in of.items()}
    if any(one.keys() != found[0].keys() for one in found):
        raise DataError(f"the runs of {row.label} were scored on different utterances: not compared.")
    return {name: (fmean(one[name][0] for one in found), total) for name, (_, total) in found[0].items()}


def _counts(run: ScoredRun) -> Counts | None:
    """Return the counts of a run; they must give the error rate that the run reports."""
    return (
        None
        if run.utterances is None
        else utterance_counts(run.utterances, run.split, run.values, run.source, _task(run))
    )


def _metric(run: ScoredRun) -> str | None:
    """Return the metric that the counts of a run are of; None without any."""
    return None if run.utterances is None else counted_metric(run.utterances, run.split, run.values, _task(run))


def _task(run: ScoredRun) -> Task:
    return named(run.task).of_set(run.part)
