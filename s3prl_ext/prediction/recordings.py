"""Recordings of any sample rate and channel count, and the audio files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from s3prl_ext.corpora.audio import SAMPLE_RATE, resample
from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError

# Files of these suffixes are taken from a folder. Those of the second row cannot be read, and are named in an error.
READABLE = {name.lower() for name in soundfile.available_formats()} - {"raw"} | {"aif", "oga", "opus", "sph", "wave"}
CUT_SECONDS = 0.01  # a file that lacks less than this is taken as whole
NEAR_LIMIT = 2**16  # bytes
UNREADABLE = {"m4a", "mp4", "aac", "wma", "webm", "amr", "ac3"}
INTEGERS = {"uint8": 2**7, "int16": 2**15, "int32": 2**31}  # types of samples in WAV files -> full scale


@dataclass(frozen=True)
class Recording:
    """Audio as the models take it.

    Attributes:
        name: the path as given, or a name for samples that came from no file.
        samples: float32 [samples] at 16 kHz, one channel.
        notes: what was done to make it so, one sentence each.
    """

    name: str
    samples: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE


def find(inputs: Iterable[str | os.PathLike]) -> tuple[list[Path], list[tuple[Path, str]], list[Path]]:
    """Return audio files, what is wrong with an input that gives none, and the other files of the folders.

    A file is taken whatever its suffix is. A folder gives its audio files and those of its folders, sorted, without
    hidden ones.
    """
    files: list[Path] = []
    problems: list[tuple[Path, str]] = []
    others: list[Path] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files.append(path)
            continue
        inside = [p for p in listed(path, "**/*") if p.is_file()]
        audio = [p for p in inside if is_audio(p)]
        others += [p for p in inside if not is_audio(p)]
        files += audio
        if not audio:
            held = f"only {len(inside)} other files" if inside else "no file"
            problems.append(
                (path, f"the folder {path} contains no audio file ({held}): name a folder of WAV, FLAC or MP3.")
            )
    return list(dict.fromkeys(files)), problems, others


def read(path: str | os.PathLike) -> Recording:
    """Read an audio file of any format, sample rate and channel count that soundfile knows.

    Raises:
        DataError: it is missing, not audio, empty, or holds samples that are not numbers.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        kind = "is a folder: name the files in it" if path.is_dir() else "does not exist: check the path"
        raise DataError(f"{path} {kind}.")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a file of suffix .raw has no header
        reason = str(error).split("': ")[-1].rstrip(". ")
        raise DataError(
            f"{path} cannot be read as audio ({reason}): give WAV, FLAC, OGG, MP3 or AIFF, or convert it, for example "
            "with `ffmpeg -i IN OUT.wav`."
        ) from error
    recording = from_samples(samples, rate, str(path))
    promised = _promised_seconds(path)
    if promised is not None and promised - len(samples) / rate > CUT_SECONDS:
        note = f"cut short: its header promises {promised:.2f} s, the file holds {len(samples) / rate:.2f} s"
        recording = replace(recording, notes=(note, *recording.notes))
    return recording


def from_samples(samples: np.ndarray, rate: int, name: str = "samples") -> Recording:
    """Return samples as a recording: channels are averaged, then resampled to 16 kHz.

    Args:
        samples: [samples] or [samples, channels]: floats with a full scale of 1, or integers as WAV files hold them
            and scipy reads them, uint8 (silence is 128), int16 or int32, which are divided by 128, 2^15 or 2^31.
        rate: in Hz.
        name: for errors and results.

    Raises:
        DataError: there are none, some are not numbers, or it is not known what their full scale is.
    """
    samples, notes = _floats(np.asarray(samples), name)
    if samples.ndim not in (1, 2) or not samples.size:
        raise DataError(f"{name} contains no samples (shape {samples.shape}): give [samples] or [samples, channels].")
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0]:
        raise DataError(f"{name} has the shape {samples.shape}, more channels than samples: give [samples, channels].")
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds samples that are not finite: write it again.")
    if samples.ndim == 2:
        if samples.shape[1] > 1:
            notes.append(f"{samples.shape[1]} channels averaged")
        samples = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        notes.append(f"resampled from {rate} Hz to {SAMPLE_RATE} Hz")
    return Recording(name, resample(samples, int(rate)), tuple(notes))


def _floats(samples: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    """Return samples as float32 with a full scale of 1, and what was done to make them so."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False), []
    full_scale = INTEGERS.get(samples.dtype.name)
    if full_scale is None:
        raise DataError(
            f"{name} holds {samples.dtype.name}, whose full scale is not known: give floats between -1 and 1, or "
            f"{', '.join(INTEGERS)} as in a WAV file."
        )
    silence = full_scale if samples.dtype.kind == "u" else 0
    scaled = (samples.astype(np.float64) - silence) / full_scale
    return scaled.astype(np.float32), [f"{samples.dtype.name} divided by {full_scale}, its full scale"]


def _promised_seconds(path: Path) -> float | None:
    """Return the duration that the header of a WAV file states; None for another format, or where it is not known."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        bytes_per_second = 0
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if name == b"data":
                return None if _is_unknown(size) or not bytes_per_second else size / bytes_per_second
            start = file.tell()
            if name == b"fmt ":
                bytes_per_second = int.from_bytes(file.read(16)[8:12], "little")
            file.seek(start + size + size % 2)
    return None


def _is_unknown(size: int) -> bool:
    """Return whether the size of the samples was written before it was known, as programs do into a pipe.

    It is 0, or about the largest that 31 or 32 bits hold: sox writes 0x7FFFF000, others leave room for the header.
    """
    return size == 0 or any(abs(limit - size) <= NEAR_LIMIT for limit in (2**31, 2**32))


def is_audio(path: Path) -> bool:
    """Return whether a file has the suffix of audio, of formats that cannot be read too."""
    return path.suffix.lower().lstrip(".") in READABLE | UNREADABLE
