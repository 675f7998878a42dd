"""What a metric's 95 % interval is made of: errors and lengths of each utterance, or which clips were right.

Each function here returns a :data:`Count`: it takes the records of an evaluation, by the names that the task gives
them, and returns None where they lack what it needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Records = Mapping[str, Any]

DRAWS = 10_000  # of a bootstrap: from seed to seed the ends of an interval then move by about a fiftieth of its width


class Sums(NamedTuple):
    """Errors (or successes) and totals of each utterance; the metric is the ratio of their sums."""

    errors: list[float]
    totals: list[float]

    @property
    def value(self) -> float:
        """The ratio of the sums."""
        return sum(self.errors) / max(1.0, sum(self.totals))


class Share(NamedTuple):
    """A share of right clips, and how many independent clips it is worth."""

    value: float
    clips: float


class Ends(NamedTuple):
    """A metric of all utterances together, with the ends of its interval, in the unit of a ratio."""

    value: float
    low: float
    high: float


Count = Callable[[Records], Sums | Share | Ends | None]


def words(text: str) -> list[str]:
    """Return what counts as one error each in a text: its words."""
    return text.split()


def characters(text: str) -> str:
    """Return a text with single blanks, whose characters count."""
    return " ".join(text.split())


def edits(references: str, hypotheses: str, units: Callable[[Any], Sequence[Any]] = list) -> Count:
    """Count the edits between two records, and the length of the references.

    Args:
        references: name of the record.
        hypotheses: name of the record.
        units: splits an entry into what is aligned; by default it is a list already.
    """

    def count(records: Records) -> Sums | None:
        import editdistance

        if not records.get(references) or not records.get(hypotheses):
            return None
        pairs = [(units(r), units(h)) for r, h in zip(records[references], records[hypotheses], strict=True)]
        return Sums([float(editdistance.eval(h, r)) for r, h in pairs], [float(len(r)) for r, _ in pairs])

    return count


def equal_labels(predictions: str, targets: str) -> Count:
    """Count the clips whose prediction equals the target; each clip is there once."""

    def count(records: Records) -> Share | None:
        if not records.get(predictions) or not records.get(targets):
            return None
        right = [a == b for a, b in zip(records[predictions], records[targets], strict=True)]
        return Share(math.fsum(right) / len(right), len(right))

    return count


def right_clips(*names: str, right: str = "acc") -> Count:
    """Count the clips that a record calls right (1) or wrong (0).

    Where clips were drawn several times (KS draws its dev batches), they are worth as many as Kish's effective sample
    size, which is at most the number of different ones.

    Args:
        names: records that say which clip it was.
        right: the record.
    """

    def count(records: Records) -> Share | None:
        values, columns = list(records.get(right) or ()), [records.get(name) or () for name in names]
        if not values or any(len(column) != len(values) for column in columns):
            return None
        draws = Counter(map(str, zip(*columns, strict=True))).values()
        return Share(sum(values) / len(values), sum(draws) ** 2 / sum(times**2 for times in draws))

    return count


def means(values: str, names: str) -> Count:
    """Count the values of a record, whose mean is the metric, where another record names each of them."""

    def count(records: Records) -> Sums | None:
        if not records.get(values) or not records.get(names):
            return None
        return Sums(list(records[values]), [1.0] * len(records[values]))

    return count
