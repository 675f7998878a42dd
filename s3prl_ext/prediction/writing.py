"""Results as text, JSON lines, a CSV table or RTTM."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction.decoder import Decoder
from s3prl_ext.prediction.results import Failure, Result, SpeakerTurns
from s3prl_ext.writing import written


class Formatter:
    """Turn results into the lines of one format.

    Args:
        kind: one of :data:`s3prl_ext.prediction.formats.FORMATS`.
        decoder: of the task.
        names: all recordings; those of one file name in several folders get their folders into RTTM.

    Raises:
        UsageError: RTTM for another task than diarization.
    """

    def __init__(self, kind: str, decoder: Decoder, names: Sequence[Path]) -> None:
        if kind == "rttm" and not issubclass(decoder.RESULT, SpeakerTurns):
            raise UsageError("--format rttm is for speaker diarization: use text, jsonl or csv.")
        self.kind = kind
        self._columns = ("file", *decoder.columns, "error")
        stems = [path.stem for path in names]
        self._twice = {stem for stem in stems if stems.count(stem) > 1}

    def header(self) -> str:
        """Return the text before the first result."""
        return self._row({name: name for name in self._columns}) if self.kind == "csv" else ""

    def __call__(self, result: Result | Failure) -> str:
        """Return the lines of one result, each with its end; text and RTTM leave failures out."""
        if self.kind == "jsonl":
            return json.dumps(result.record(), ensure_ascii=False) + "\n"
        if self.kind == "csv":
            rows = [result.record()] if isinstance(result, Failure) else result.rows()
            return "".join(map(self._row, rows))
        if isinstance(result, Failure):
            return ""
        text = result.rttm(self._name(result)) if isinstance(result, SpeakerTurns) else str(result)
        return f"{text}\n" if text else ""

    def _name(self, result: Result) -> str | None:
        path = Path(result.file)
        parts = [part for part in path.with_suffix("").parts if part not in ("/", "..")]
        return "_".join(parts) if path.stem in self._twice else None

    def _row(self, row: dict[str, object]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        return line.getvalue()


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[str], object]]:
    """Give a function that writes text to a file, which takes its name when the body has ended without an error.

    Raises:
        UsageError: there is no such folder, or `path` is one.
        DataError: the file cannot be written.
    """
    path = path.absolute()
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--out {path}: {'this is a folder' if path.is_dir() else f'no such folder: {path.parent}'}.")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(stack.enter_context(written(path)).open("w", encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot write {path}: {os.strerror(error.errno or 0)}.") from error
        yield file.write
