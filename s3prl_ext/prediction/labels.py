"""The labels of a head where they are the corpus's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.corpora.iemocap import EMOTIONS
from s3prl_ext.errors import DataError
from s3prl_ext.tasks.ic import SLOTS
from s3prl_ext.tasks.record import LABELS


def intents(section: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the values of each slot of an intent, in the order of the head's outputs.

    Args:
        section: ``downstream_expert`` of a run on Fluent Speech Commands.

    Raises:
        DataError: neither the run nor the corpus has them.
    """
    if LABELS in section:
        return {slot: [str(value) for value in section[LABELS][slot]] for slot in SLOTS}
    path = Path(str(section["datarc"]["file_path"])) / "data" / "train_data.csv"
    if not path.is_file():
        raise _missing("intents", path)
    import pandas

    try:
        table = pandas.read_csv(path)
        return {slot: [str(value) for value in dict.fromkeys(table[slot])] for slot in SLOTS}
    except (ValueError, KeyError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{path} is not a table of intents with {', '.join(SLOTS)} ({error}).") from error


def emotions(section: Mapping[str, Any]) -> list[str]:
    """Return the emotions in the order of the head's outputs: those of the run, or of s3prl's lists of IEMOCAP.

    Args:
        section: ``downstream_expert`` of a run on IEMOCAP.
    """
    return [str(name) for name in section[LABELS]["emotions"]] if LABELS in section else list(EMOTIONS)


def slots(section: Mapping[str, Any]) -> list[str]:
    """Return the names of the slots of slot filling, in the order of the head's outputs.

    Args:
        section: ``downstream_expert`` of a run on Audio SNIPS.

    Raises:
        DataError: neither the run nor the corpus has them.
    """
    if LABELS in section:
        return [str(slot) for slot in section[LABELS]["slots"]]
    path = Path(str(section["text"]["slots_file"]))
    if not path.is_file():
        raise _missing("slots", path)
    try:
        return path.read_text(encoding="utf-8").split("\n")[1:]  # the first line is not a slot
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): unpack the corpus again.") from error


def _missing(what: str, path: Path) -> DataError:
    variable = re.search(r"\$\{(\w+)", str(path))
    if variable is None:
        return DataError(f"{what} are not stored in this run and {path} was not found; restore the corpus.")
    return DataError(
        f"{what} are not stored in this run: set {variable[1]} to the folder of the corpus, of which only {path.name} "
        "is read."
    )
