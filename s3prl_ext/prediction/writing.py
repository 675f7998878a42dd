"""Results as text, JSON lines, a CSV table or RTTM, and as audio."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction.decoder import Decoder
from s3prl_ext.prediction.results import AudioResult, Failure, Result, SpeakerTurns, rttm_name
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
        self._names = distinct_names(names, rttm_name)

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
        text = result.rttm(self._names.get(result.file)) if isinstance(result, SpeakerTurns) else str(result)
        return f"{text}\n" if text else ""

    def _row(self, row: dict[str, object]) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([row.get(name, "") for name in self._columns])
        return line.getvalue()


class AudioFolder:
    """Write what was estimated from recordings as WAV files: 16 kHz, mono, 32-bit float, so that nothing is clipped.

    Args:
        folder: is made where it is missing, for ``NAME.wav``, or of several sources ``NAME_SOURCE.wav``.
        recordings: all that are read; none of them is replaced.
        sources: name of each estimate of a recording.
        overwrite: whether files that are there already are replaced.

    Raises:
        UsageError: `folder` is a file, or a file would be replaced that is a recording or must not be.
    """

    def __init__(
        self, folder: Path, recordings: Sequence[Path], sources: Sequence[str], overwrite: bool = False
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--write-audio {folder}: this is a file, name a folder.")
        ends = [f"_{source}.wav" for source in sources] if len(sources) > 1 else [".wav"]
        self._folder = folder
        self._files = {
            file: [folder / f"{name}{end}" for end in ends] for file, name in distinct_names(recordings).items()
        }
        read = {path.resolve() for path in recordings}
        replaced = next((path for paths in self._files.values() for path in paths if path.resolve() in read), None)
        if replaced is not None:
            raise UsageError(f"--write-audio {folder} would replace the recording {replaced}: name another folder.")
        there = next((path for paths in self._files.values() for path in paths if path.exists()), None)
        if there is not None and not overwrite:
            raise UsageError(
                f"--write-audio {folder} would replace {there}: name another folder, or replace what is there with "
                "--overwrite."
            )

    def __call__(self, result: AudioResult) -> AudioResult:
        """Write the files of a result; return it with their paths.

        Raises:
            DataError: they cannot be written.
        """
        from scipy.io import wavfile

        files = self._files[result.file]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path, samples in zip(files, result.audio, strict=True):
                with written(path) as temporary:
                    wavfile.write(temporary, SAMPLE_RATE, samples)
        except OSError as error:
            raise DataError(f"cannot write into {self._folder}: {os.strerror(error.errno or 0)}.") from error
        return replace(result, written=tuple(map(str, files)))


def distinct_names(paths: Sequence[Path], spelt: Callable[[str], str] = str) -> dict[str, str]:
    """Return a name for each path: its stem; where several have it, with the folders, and then with the suffix.

    Args:
        paths: of all recordings.
        spelt: makes a name one that the format can hold; names that it makes equal are told apart too.
    """

    def alone(path: Path) -> str:
        return spelt(path.stem)

    def with_folders(path: Path) -> str:
        return spelt("_".join(part for part in path.with_suffix("").parts if part not in ("/", "..")))

    stems, places = (Counter(map(name, paths)) for name in (alone, with_folders))
    names: dict[str, str] = {}
    for path in paths:
        name = alone(path) if stems[alone(path)] == 1 else with_folders(path)
        if stems[alone(path)] > 1 and places[with_folders(path)] > 1:
            name += path.suffix.replace(".", "_")
        while name in names.values():
            name += "_"
        names[str(path)] = name
    return names


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[str], object]]:
    """Give a function that writes text to a file, which takes its name when the body has ended without an error.

    Raises:
        DataError: the file cannot be written.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(stack.enter_context(written(path)).open("w", encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot write {path}: {os.strerror(error.errno or 0)}.") from error
        yield file.write
