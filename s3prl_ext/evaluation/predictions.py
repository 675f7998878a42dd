"""Predictions of single clips: one JSON object a line, and the comparison of two systems on the same clips."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.clusters import UTTERANCE, sums
from s3prl_ext.evaluation.significance import DRAWS, Interval, bootstrap_difference, mcnemar_exact
from s3prl_ext.reading import parse_json
from s3prl_ext.writing import write_text


@dataclass(frozen=True)
class Prediction:
    """What a classifier said about a clip.

    Attributes:
        clip: name of the clip.
        label: the true class.
        prediction: the class it was given.
    """

    clip: str
    label: str
    prediction: str

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.label == self.prediction


@dataclass(frozen=True)
class ClassifierComparison:
    """Two systems on the same clips; differences are the second's error minus the first's, so below 0 is better.

    Attributes:
        clips: number of clips.
        first_errors, second_errors: clips that each system has wrong.
        only_first_right, only_second_right: clips on which they differ in being right.
        p: of McNemar's exact test.
        interval: paired bootstrap interval of the difference, as a ratio.
    """

    clips: int
    first_errors: int
    second_errors: int
    only_first_right: int
    only_second_right: int
    p: float
    interval: Interval

    @property
    def difference(self) -> float:
        """Error of the second system minus that of the first, as a ratio."""
        return (self.second_errors - self.first_errors) / self.clips

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        changed = self.second_errors - self.first_errors
        return (
            f"error {100 * self.first_errors / self.clips:.2f} % -> {100 * self.second_errors / self.clips:.2f} %: "
            f"{100 * self.difference:+z.2f} % [{low:+z.2f}, {high:+z.2f}] = {changed:+d} of {self.clips} clips "
            f"({100 / self.clips:.2f} % is one clip); {self.only_second_right} clips gained, {self.only_first_right} "
            f"lost, McNemar p = {self.p:.3g}"
        )


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line ``{"clip", "label", "prediction", "right"}`` per clip; the file appears when it is complete."""
    rows = (
        {"clip": one.clip, "label": one.label, "prediction": one.prediction, "right": one.right} for one in predictions
    )
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of :func:`write_predictions`.

    Raises:
        DataError: it is missing, a line is not a prediction, or a clip occurs twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"no predictions at {path}: evaluate the split first (s3prl-ext run -m evaluate).") from error
    except UnicodeError as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate the split again.") from error
    predictions = [_parse(line, path, number) for number, line in enumerate(lines, 1)]
    if not predictions or len({one.clip for one in predictions}) < len(predictions):
        raise DataError(f"{path} holds {'a clip twice' if predictions else 'no clip'}: evaluate the split again.")
    return predictions


def compare(
    first: Path, second: Path, draws: int = DRAWS, seed: int = 0, over: str = UTTERANCE
) -> ClassifierComparison:
    """Compare two files of predictions of the same clips.

    Args:
        first, second: as :func:`write_predictions` writes them; order of lines does not matter.
        draws, seed: of the bootstrap.
        over: what it draws: clips, or ``source``, the recordings that clips of ESC-50 are cut from.

    Raises:
        DataError: a file is unreadable, or the two hold other clips or labels.
    """
    a, b = ({one.clip: one for one in read_predictions(path)} for path in (first, second))
    if {clip: one.label for clip, one in a.items()} != {clip: one.label for clip, one in b.items()}:
        raise DataError(
            f"{first} ({len(a)} clips) and {second} ({len(b)} clips) hold different clips or labels: "
            "compare evaluations of one split and fold."
        )
    clips = sorted(a)
    wrong, others = ([not system[clip].right for clip in clips] for system in (a, b))
    only_first = sum(y and not x for x, y in zip(wrong, others))
    only_second = sum(x and not y for x, y in zip(wrong, others))
    wrong_of, others_of, clips_of = sums(clips, (wrong, others, [1.0] * len(clips)), over)
    interval = bootstrap_difference(wrong_of, others_of, clips_of, draws, seed)
    p = mcnemar_exact(only_first, only_second)
    return ClassifierComparison(len(clips), sum(wrong), sum(others), only_first, only_second, p, interval)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it is missing or corrupt.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): do the stages before this one.") from error
    except ValueError as error:
        raise DataError(f"{path} is corrupt ({error}): remove it and run the recipe again.") from error


def _parse(line: str, path: Path, number: int) -> Prediction:
    try:
        row = parse_json(line)
        found = Prediction(row["clip"], row["label"], row["prediction"])
        if not all(isinstance(value, str) for value in (found.clip, found.label, found.prediction)):
            raise TypeError("a value that is not text")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"line {number} of {path} is not a prediction ({error}): evaluate the split again.") from error
