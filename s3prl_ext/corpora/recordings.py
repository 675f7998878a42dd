"""Read a folder of real recordings: one ``<corpus>/<corpus>.tsv`` audio next to it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import check_closed, read_text

# Corpus -> columns its table must have; further columns are kept.
COLUMNS: dict[str, tuple[str, ...]] = {
    "asterisk_en": ("path", "duration_s", "text"),
    "esc50": ("path", "filename", "fold", "target", "category"),
    "fsdd": ("path", "speaker", "text"),
    "librispeech": ("path", "duration_s", "speaker", "text"),
    "libri2mix_svoice_debug": ("path", "speaker", "role"),
    "ljspeech": ("path", "duration_s", "text"),
    "misc_read": ("path", "duration_s", "speaker", "text"),
    "picovoice_barista": ("path", "duration_s", "slots"),
    "vctk": ("path", "duration_s", "speaker", "text"),
}


@dataclass(frozen=True)
class Clip:
    """One line of a corpus table."""

    path: Path
    fields: dict[str, str]

    @property
    def name(self) -> str:
        """File name without folder and suffix."""
        return self.path.stem

    @property
    def speaker(self) -> str:
        """Speaker label of the table, empty where unknown."""
        return self.fields.get("speaker", "")

    @property
    def text(self) -> str:
        """Transcript or label of the table, empty where unknown."""
        return self.fields.get("text", "").strip()

    @property
    def duration(self) -> float:
        """Length in seconds as the table gives it."""
        return float(self.fields["duration_s"])


class DigitTake(NamedTuple):
    """What the file name of a spoken digit says: the digit, who says it, and the number of the take."""

    digit: int
    speaker: str
    take: int


def digit_take(clip: Clip) -> DigitTake:
    """Return what the name of a recording of fsdd says, which is ``DIGIT_SPEAKER_TAKE``, such as ``7_jackson_0``.

    Raises:
        DataError: it is named otherwise.
    """
    match = re.fullmatch("([0-9])_(.+)_([0-9]+)", clip.name)
    if match is None:
        raise DataError(
            f"the spoken digit {clip.path} is not named DIGIT_SPEAKER_TAKE, as 7_jackson_0.wav is: rename it so, in "
            "fsdd.tsv too."
        )
    return DigitTake(int(match[1]), match[2], int(match[3]))


def without_repeats(clips: Iterable[Clip]) -> list[Clip]:
    """Return the first clip of each file name: a recording gathered twice must not be in two splits."""
    return list({clip.name: clip for clip in reversed(list(clips))}.values())[::-1]


class Recordings:
    """The corpora of one folder; tables are read and checked when first asked for.

    Raises:
        UsageError: the folder does not exist or contains none of the known corpora.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UsageError(f"the folder of recordings {root} does not exist: give an existing one or leave it out.")
        self.names = [name for name in sorted(COLUMNS) if self._table(name).is_file()]
        if not self.names:
            raise UsageError(
                f"{root} contains no known corpus: expected a table such as {self._table('fsdd')}; "
                f"known corpora are {', '.join(sorted(COLUMNS))}."
            )
        self._clips: dict[str, list[Clip]] = {}

    def _table(self, name: str) -> Path:
        return self.root / name / f"{name}.tsv"

    def has(self, name: str) -> bool:
        """Tell whether the folder holds the corpus `name`."""
        return name in self.names

    def clips(self, name: str) -> list[Clip]:
        """Return all clips of the corpus `name`, sorted by path.

        Raises:
            DataError: the table lacks a column, a row is cut short, or a clip's file is missing.
        """
        if name not in self._clips:
            self._clips[name] = self._read(name)
        return self._clips[name]

    def _read(self, name: str) -> list[Clip]:
        table = self._table(name)
        reader = csv.DictReader(io.StringIO(read_text(table), newline=""), delimiter="\t")
        try:
            missing = [column for column in COLUMNS[name] if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{table} lacks the column '{missing[0]}': its first line must name {COLUMNS[name]}.")
            clips = [self._clip(row, table, reader.line_num) for row in reader]
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: {error}; correct the line.") from error
        if not clips:
            raise DataError(f"{table} lists no clip: fill it or remove the folder {table.parent}.")
        return sorted(clips, key=lambda clip: str(clip.path))

    def _clip(self, row: dict[str, Any], table: Path, line: int) -> Clip:
        fields = {key: value or "" for key, value in row.items() if key is not None}
        check_closed(fields.values(), f"{table}, line {line}")
        path = self.root / fields["path"]
        if not fields["path"] or not path.is_file():
            raise DataError(f"line {line} of {table} names the clip '{fields['path']}', which is not in {self.root}.")
        if "duration_s" in COLUMNS[table.stem]:
            try:
                float(fields["duration_s"])
            except ValueError:
                raise DataError(f"line {line} of {table}: duration_s is '{fields['duration_s']}', no number.") from None
        return Clip(path, fields)
