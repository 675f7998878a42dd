"""Errors and length of each utterance of a split, from the files that tasks leave in a run's folder.

Ours write transcripts or predictions; s3prl's KS, SID and IC write labels, its ASR and PR texts. Each evaluation
replaces them, so they may be of a later one than the result next to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isclose
from pathlib import Path

import editdistance

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.predictions import read_predictions
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.metrics import factor, metric
from s3prl_ext.reading import lines_of
from s3prl_ext.tasks import OTHER, Task, Utterances, utterances_of

# Errors and length of each utterance, by its name and reference.
Counts = dict[tuple[str, str], tuple[float, float]]


class OtherEvaluation(DataError):
    """The file of utterances is sound, but of another evaluation than the result next to it."""


def _lines(path: Path, between: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each line."""
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate the split again.") from error
    for line in lines:
        name, _, text = line.partition(between)
        yield name, text


def _paired(
    hypotheses: Path, references: Path, between: str, count: Callable[[str, str], tuple[float, float]]
) -> Counts | None:
    """Read two files with a line per utterance; None where an utterance is there twice (KS draws its dev)."""
    found, truth = list(_lines(hypotheses, between)), list(_lines(references, between))
    if [name for name, _ in found] != [name for name, _ in truth]:
        raise DataError(f"{hypotheses} and {references.name} name different clips: evaluate the split again.")
    counts = {(name, r): count(r, h) for (name, h), (_, r) in zip(found, truth, strict=True)}
    return counts if len(counts) == len(found) else None


def _label(reference: str, hypothesis: str) -> tuple[float, float]:
    return float(reference != hypothesis), 1.0


def _tokens(reference: str, hypothesis: str) -> tuple[float, float]:
    r, h = reference.split(), hypothesis.split()
    return float(editdistance.eval(h, r)), float(len(r))


def utterance_counts(
    folder: Path, split: str, values: Mapping[str, float], source: Path, task: Task = OTHER
) -> Counts | None:
    """Return errors and length of each utterance of a split, or None where the folder has no such file.

    Args:
        folder: of the run.
        split: its name.
        values: the metrics that the run reports; the counts must give one of them.
        source: the file that reports them, for messages.
        task: says which files there may be.

    Raises:
        OtherEvaluation: a file is of another evaluation.
        DataError: a file is corrupt.
    """
    found = _files(folder, split, values, task)
    if found is None:
        return None
    files, paths = found
    counts, reported = _read(files, *paths), _error_rate(files.metric, values[files.metric])
    if counts is not None and not isclose(_rate(counts), reported, abs_tol=1e-4):
        raise OtherEvaluation(
            f"{paths[0]} gives an error of {_rate(counts):.4g} %, but {source} reports {reported:.4g} %: it is of "
            "another evaluation."
        )
    return counts


def counted_metric(folder: Path, split: str, values: Mapping[str, float], task: Task = OTHER) -> str | None:
    """Return the metric that :func:`utterance_counts` counts in, or None where the folder has no such file."""
    found = _files(folder, split, values, task)
    return found and found[0].metric


def _files(
    folder: Path, split: str, values: Mapping[str, float], task: Task
) -> tuple[Utterances, tuple[Path, Path]] | None:
    for files in utterances_of(task):
        hypotheses, references = (_only(folder, name.format(split)) for name in files[:2])
        if files.metric in values and hypotheses is not None and references is not None:
            return files, (hypotheses, references)
    return None


def _only(folder: Path, pattern: str) -> Path | None:
    """Return the only file of a folder that fits a pattern, or None."""
    found = [path for path in folder.glob(pattern) if path.is_file()]
    return found[0] if len(found) == 1 else None


def _read(files: Utterances, hypotheses: Path, references: Path) -> Counts | None:
    if files.kind == "transcripts":
        return {(t.id, t.reference): (float(t.errors), float(t.words)) for t in read_transcripts(hypotheses)}
    if files.kind == "predictions":
        return {(p.clip, p.label): (float(not p.right), 1.0) for p in read_predictions(hypotheses)}
    return _paired(hypotheses, references, files.between, _label if files.kind == "labels" else _tokens)


def _error_rate(name: str, value: float) -> float:
    """Return an error rate in per cent for a metric, whichever its direction and unit are."""
    shown = factor(name) * value
    return 100.0 - shown if metric(name).higher_is_better else shown


def _rate(counts: Counts) -> float:
    total = sum(length for _, length in counts.values())
    return 100 * sum(errors for errors, _ in counts.values()) / total if total else 100.0
