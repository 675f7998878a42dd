"""The tables of a Kaldi data folder (diarization), checked before s3prl reads them: it names neither file nor line."""

from __future__ import annotations

import functools
import logging
import math
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim
from s3prl_ext.errors import DataError
from s3prl_ext.reading import lines_of

logger = logging.getLogger(__name__)

# table -> what a line holds
TABLES = {
    "segments": "UTTERANCE RECORDING START END",
    "utt2spk": "UTTERANCE SPEAKER",
    "reco2dur": "RECORDING SECONDS",
    "wav.scp": "RECORDING FILE",
}
NUMBERS = ("START", "END", "SECONDS")


def check_tables(folder: str | Path) -> None:
    """Check the tables of a data folder, each line and how they refer to each other.

    Args:
        folder: with ``segments``, ``utt2spk``, ``reco2dur``, and ``wav.scp`` or a folder ``wav``.

    Raises:
        DataError: a table is missing or a line of it is malformed, or it names what another one lacks.
    """
    folder = Path(folder)
    rows = {name: _rows(folder / name) for name in TABLES if name != "wav.scp" or (folder / name).is_file()}
    for line, (utterance, _, start, end) in enumerate(rows["segments"], 1):
        if not 0 <= float(start) <= float(end):
            raise DataError(f"{folder / 'segments'}, line {line}: {utterance} runs from {start} to {end} s.")
    recordings = {row[0] for row in rows["wav.scp"]} if "wav.scp" in rows else None
    segmented = {row[1] for row in rows["segments"]}
    _refers(folder, "segments", {row[0] for row in rows["segments"]}, "utt2spk", {row[0] for row in rows["utt2spk"]})
    if recordings is not None:
        _refers(folder, "wav.scp", recordings, "reco2dur", {row[0] for row in rows["reco2dur"]})
        _refers(folder, "wav.scp", recordings, "segments", segmented)
        unheard = sorted(segmented - recordings)
        if unheard:
            logger.warning(
                "%s lacks %d of the %d recordings in segments, such as %s: they are left out",
                folder / "wav.scp", len(unheard), len(segmented), unheard[0],
            )  # fmt: skip


def _rows(path: Path) -> list[list[str]]:
    """Return the fields of each line of a table."""
    names = TABLES[path.name].split()
    if not path.is_file():
        raise DataError(f"no such table: {path}; diarization needs {', '.join(TABLES)} in each of its data folders.")
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file: restore it from the corpus.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        row = line.split() if len(names) == 4 else line.split(None, 1)
        if len(row) != len(names) or not all(_is_number(v) for n, v in zip(names, row, strict=True) if n in NUMBERS):
            raise DataError(f"{path}, line {number}: '{line[:60]}' must read {TABLES[path.name]}; correct the line.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty: restore it from the corpus.")
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _refers(folder: Path, table: str, named: set[str], other: str, known: set[str]) -> None:
    missing = sorted(named - known)
    if missing:
        raise DataError(
            f"{folder / table} names {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, which "
            f"{folder / other} lacks; complete the tables."
        )


def check_speakers(data: Any, folder: str | Path, speakers: int | None) -> None:
    """Check that no recording has more speakers than the task has places for.

    Args:
        data: s3prl's ``KaldiData`` of the folder.
        folder: named in the message.
        speakers: ``num_speakers`` of the task; None takes any number.

    Raises:
        DataError: a recording has more.
    """
    if speakers is None:
        return
    for recording, segments in sorted(data.segments.items()):
        if recording not in data.wavs:
            continue  # left out
        names = sorted({data.utt2spk[segment["utt"]] for segment in segments})
        if len(names) > speakers:
            raise DataError(
                f"{Path(folder) / 'utt2spk'} gives {recording} {len(names)} speakers ({', '.join(names[:4])}), but the "
                f"task has num_speakers: {speakers}; correct the table, or set datarc.num_speakers."
            )


def _check_before_reading(module: ModuleType) -> None:
    initialise = module.KaldiData.__init__

    @functools.wraps(initialise)
    def initialise_checked(self, data_dir) -> None:
        check_tables(data_dir)
        initialise(self, data_dir)

    module.KaldiData.__init__ = initialise_checked
    build = module.DiarizationDataset.__init__

    @functools.wraps(build)
    def build_checked(self: Any, mode: str, data_dir: str, *args: Any, **kwargs: Any) -> None:
        build(self, mode, data_dir, *args, **kwargs)
        check_speakers(self.data, data_dir, self.n_speakers)

    module.DiarizationDataset.__init__ = build_checked


SHIMS = (
    Shim(
        name="kaldi-tables",
        module="s3prl.downstream.diarization.dataset",
        needed=lambda module: not hasattr(module.KaldiData.__init__, "__wrapped__"),
        apply=_check_before_reading,
        reason="s3prl stops at a KeyError or ValueError for a wrong line of its tables, without its file",
        remove_when="s3prl names file and line",
    ),
)
