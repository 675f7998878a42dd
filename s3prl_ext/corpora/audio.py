"""Read, resample, shape and write mono audio at 16 kHz, the rate of s3prl's tasks."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np
import soundfile

from s3prl_ext.errors import DataError

SAMPLE_RATE = 16000  # Hz


def length_of(path: Path) -> int:
    """Return about how many samples :func:`read_audio` gives of a file, by its header.

    Raises:
        DataError: the file is missing or no audio.
    """
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    return -(-header.frames * SAMPLE_RATE // header.samplerate)


def read_audio(path: Path) -> np.ndarray:
    """Read an audio file as float32 samples at 16 kHz, shape [samples]; channels are averaged.

    Raises:
        DataError: the file is missing, empty or no audio.
    """
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    if not len(samples):
        raise DataError(f"the audio file {path} contains no samples: replace it or remove its line.")
    return resample(samples.mean(axis=1), rate)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"cannot read the audio file {path} ({error}): replace it or remove its line.")


def resample(samples: np.ndarray, rate: int, to: int = SAMPLE_RATE) -> np.ndarray:
    """Convert float32 samples from `rate` to another one (Hz) with a polyphase filter: that of corpora and predictions.

    Args:
        samples: [samples], or [channels, samples].
        rate: that they have.
        to: that the result has.
    """
    if rate == to:
        return samples
    from scipy.signal import resample_poly  # half a second, which no --help waits for

    divisor = gcd(rate, to)
    return resample_poly(samples, to // divisor, rate // divisor, axis=-1).astype(np.float32)


def pad_to(samples: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Centre `samples` in `length` samples of faint noise (-60 dBFS), or cut its middle where it is longer.

    Digital silence would put outliers into log-mel features, so the margins are not zero.
    """
    if len(samples) >= length:
        start = (len(samples) - length) // 2
        return samples[start : start + length]
    padded = rng.normal(0.0, 1e-3, length).astype(np.float32)
    start = (length - len(samples)) // 2
    padded[start : start + len(samples)] += samples
    return padded


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write float samples [samples] at 16 kHz as 16-bit mono; the suffix (.wav or .flac) decides the format.

    Samples beyond full scale are scaled down, not clipped. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > 0.99:
        samples = samples * (0.99 / peak)
    try:
        soundfile.write(str(path), samples, SAMPLE_RATE, subtype="PCM_16")
    except soundfile.SoundFileError as error:  # libsndfile says "System error." to a full disk
        raise DataError(f"cannot write {path} ({error}): is the disk full, or the folder read-only?") from error
