"""Word and character error rates of a corpus: counts from jiwer's alignment, summed before they are divided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer

UNITS = ("words", "characters")


@dataclass(frozen=True)
class ErrorCounts:
    """Counts of one or more aligned pairs of reference and hypothesis."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """Levenshtein distance of hypothesis and reference."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Units of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per unit of the reference in per cent; 100 where the references are empty (as s3prl's asr)."""
        return 100.0 * self.errors / self.length if self.length else 100.0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class Edit:
    """A stretch of an alignment: `kind` is ``equal``, ``substitute``, ``delete`` or ``insert``.

    Deletions are units of the first sequence alone, insertions of the second.
    """

    kind: str
    first: tuple[int, int]
    second: tuple[int, int]


def units(text: str, unit: str = "words") -> list[str]:
    """Return the words of `text`, or its characters including single spaces between words."""
    words = text.split()
    return words if unit == "words" else list(" ".join(words))


def align(first: str, second: str, unit: str = "words") -> list[Edit]:
    """Return the edits that turn `first` into `second`, in order, with as few changes as possible.

    Args:
        unit: ``words`` or ``characters``, see :func:`units`.
    """
    a, b = units(first, unit), units(second, unit)
    if not a or not b:  # jiwer refuses an empty reference
        kind = "insert" if b else "delete"
        return [Edit(kind, (0, len(a)), (0, len(b)))] if a or b else []
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    chunks = process(" ".join(units(first)), " ".join(units(second))).alignments[0]
    return [
        Edit(c.type, (c.ref_start_idx, c.ref_end_idx), (c.hyp_start_idx, c.hyp_end_idx))
        for c in chunks
        if c.ref_end_idx > c.ref_start_idx or c.hyp_end_idx > c.hyp_start_idx
    ]


def count_errors(reference: str, hypothesis: str, unit: str = "words") -> ErrorCounts:
    """Count the errors of `hypothesis`.

    The texts are compared as they are (see :mod:`s3prl_ext.evaluation.text_rules`).
    """
    counts = dict.fromkeys(("equal", "substitute", "delete", "insert"), 0)
    for edit in align(reference, hypothesis, unit):
        counts[edit.kind] += max(edit.first[1] - edit.first[0], edit.second[1] - edit.second[0])
    return ErrorCounts(counts["equal"], counts["substitute"], counts["delete"], counts["insert"])


def corpus_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str = "words") -> ErrorCounts:
    """Return the summed counts of a corpus, whose ``rate`` is its WER (words) or CER (characters) in per cent."""
    return total(count_errors(r, h, unit) for r, h in zip(references, hypotheses, strict=True))


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the sum of several counts."""
    return sum(counts, ErrorCounts())
