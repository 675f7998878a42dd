"""Errors and length of each utterance of a split, from the files that tasks leave in a run's folder.

Ours write transcripts or predictions; s3prl's KS, SID and IC write labels, its ASR and PR texts. Each evaluation replaces
them, so they may be of a later one than the result next to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import NamedTuple

import editdistance

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.predictions import read_predictions
from s3prl_ext.evaluation.transcripts import read_transcripts

# Errors and length of each utterance, by its name and reference.
Counts = dict[tuple[str, str], tuple[float, float]]


class OtherEvaluation(DataError):
    """The file of utterances is sound, but of another evaluation than the result next to it."""


class _Kind(NamedTuple):
    """One way in which a task writes what it said of each utterance.

    Attributes:
        hypotheses, references: names of the files of a split; one file where both are the same.
        errors: error rate in per cent by the metrics that a run may report.
        read: returns the counts of the two files.
    """

    hypotheses: str
    references: str
    errors: Mapping[str, Callable[[float], float]]
    read: Callable[[Path, Path], Counts | None]


def _as_reported(value: float) -> float:
    return value


def _lines(path: Path, between: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate the split again.") from error
    for line in lines:
        name, _, text = line.partition(between)
        yield name, text


def _paired(between: str, count: Callable[[str, str], tuple[float, float]]) -> Callable[[Path, Path], Counts | None]:
    """Return a reader of two files with a line per utterance; None where an utterance is there twice (KS draws its dev)."""

    def read(hypotheses: Path, references: Path) -> Counts | None:
        found, truth = list(_lines(hypotheses, between)), list(_lines(references, between))
        if [name for name, _ in found] != [name for name, _ in truth]:
            raise DataError(f"{hypotheses} and {references.name} name different clips: evaluate the split again.")
        counts = {(name, r): count(r, h) for (name, h), (_, r) in zip(found, truth, strict=True)}
        return counts if len(counts) == len(found) else None

    return read


def _label(reference: str, hypothesis: str) -> tuple[float, float]:
    return float(reference != hypothesis), 1.0


def _tokens(reference: str, hypothesis: str) -> tuple[float, float]:
    r, h = reference.split(), hypothesis.split()
    return float(editdistance.eval(h, r)), float(len(r))


def _transcripts(path: Path, _: Path) -> Counts:
    return {(t.id, t.reference): (float(t.errors), float(t.words)) for t in read_transcripts(path)}


def _predictions(path: Path, _: Path) -> Counts:
    return {(p.clip, p.label): (float(not p.right), 1.0) for p in read_predictions(path)}


_WRONG_OF_RIGHT = {"acc": lambda value: 100 * (1 - value)}
_KINDS = (
    _Kind("transcripts-{}.jsonl", "transcripts-{}.jsonl", {"wer": _as_reported}, _transcripts),
    _Kind("predictions-{}.jsonl", "predictions-{}.jsonl", {"error": _as_reported}, _predictions),
    _Kind("{}_predict.txt", "{}_truth.txt", _WRONG_OF_RIGHT, _paired(" ", _label)),
    _Kind("{}_predict.csv", "{}_truth.csv", _WRONG_OF_RIGHT, _paired(",", _label)),
    _Kind("{}-noLM-hyp.ark", "{}-noLM-ref.ark", {"wer": _as_reported}, _paired(" ", _tokens)),
    _Kind("{}-hyp.ark", "{}-ref.ark", {"per": lambda value: 100 * value}, _paired(" ", _tokens)),
)


def utterance_counts(folder: Path, split: str, values: Mapping[str, float], source: Path) -> Counts | None:
    """Return errors and length of each utterance of a split, or None where the folder has no such file.

    Args:
        folder: of the run.
        split: its name.
        values: the metrics that the run reports; the counts must give one of them.
        source: the file that reports them, for messages.

    Raises:
        OtherEvaluation: a file is of another evaluation.
        DataError: a file is damaged.
    """
    for kind in _KINDS:
        files = folder / kind.hypotheses.format(split), folder / kind.references.format(split)
        reported = next((error(values[name]) for name, error in kind.errors.items() if name in values), None)
        if reported is None or not all(path.is_file() for path in files):
            continue
        counts = kind.read(*files)
        if counts is not None and not isclose(_rate(counts), reported, abs_tol=1e-4):
            raise OtherEvaluation(
                f"{files[0]} gives an error of {_rate(counts):.4g} %, but {source} reports {reported:.4g} %: it is of "
                "another evaluation."
            )
        return counts
    return None


def _rate(counts: Counts) -> float:
    total = sum(length for _, length in counts.values())
    return 100 * sum(errors for errors, _ in counts.values()) / total if total else 100.0
