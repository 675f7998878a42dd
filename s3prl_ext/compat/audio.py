"""Read, write and describe audio files with soundfile, with the arguments and results of torchaudio's functions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import DataError

if TYPE_CHECKING:
    import torch

SUBTYPES = {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24", 32: "PCM_32", 64: "DOUBLE"}
"""Bits per sample -> soundfile's name of the sample format."""

SAMPLE_FORMATS = {
    "PCM_U8": (8, "PCM_U"),
    "PCM_S8": (8, "PCM_S"),
    "PCM_16": (16, "PCM_S"),
    "PCM_24": (24, "PCM_S"),
    "PCM_32": (32, "PCM_S"),
    "FLOAT": (32, "PCM_F"),
    "DOUBLE": (64, "PCM_F"),
}
"""soundfile's sample format -> bits per sample and torchaudio's name of the encoding."""

INTEGER_DTYPES = {"PCM_16": "int16", "PCM_24": "int32", "PCM_32": "int32"}
"""soundfile's sample format -> dtype in which ``normalize=False`` returns the samples."""


@dataclass(frozen=True)
class AudioMetaData:
    """What :func:`info` tells about a file; the field names are torchaudio's."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def load(
    uri: Any,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
) -> tuple[torch.Tensor, int]:
    """Read an audio file.

    Args:
        uri: path or binary file object; wav, flac, ogg, mp3 and whatever else libsndfile reads.
        frame_offset: samples per channel to skip.
        num_frames: samples per channel to read at most; -1 reads to the end.
        normalize: return float32 in [-1, 1]; otherwise integer files keep int16 or int32.
        channels_first: return (channels, time) instead of (time, channels).
        format: ignored, as the file says it itself.
        buffer_size: ignored.
        backend: ignored.

    Returns:
        The samples and the sample rate in Hz.

    Raises:
        DataError: the file is missing or unreadable.
    """
    import torch

    with _opened(uri) as file:
        dtype = "float32" if normalize else INTEGER_DTYPES.get(file.subtype, "float32")
        try:
            file.seek(min(frame_offset, file.frames))
            samples = file.read(frames=num_frames, dtype=dtype, always_2d=True)
        except RuntimeError as error:
            raise DataError(unreadable(uri, error)) from error
        rate = file.samplerate
    tensor = torch.from_numpy(samples)
    return (tensor.t().contiguous() if channels_first else tensor), rate


def save(
    uri: Any,
    src: torch.Tensor,
    sample_rate: int,
    channels_first: bool = True,
    format: str | None = None,
    encoding: str | None = None,
    bits_per_sample: int | None = None,
    buffer_size: int = 4096,
    backend: str | None = None,
    compression: float | None = None,
) -> None:
    """Write an audio file; the extension of the path, or `format`, decides its type.

    Args:
        uri: path or binary file object.
        src: samples in [-1, 1], shape (channels, time), (time, channels) or (time,).
        sample_rate: in Hz.
        channels_first: whether a two-dimensional `src` is (channels, time).
        format: name of the file type such as ``"wav"`` or ``"flac"``.
        encoding: ``"PCM_F"`` writes 32-bit floats; otherwise ignored.
        bits_per_sample: 8, 16, 24, 32 or 64; float tensors are written with 16 by default.
        buffer_size: ignored.
        backend: ignored.
        compression: ignored.

    Raises:
        DataError: the file cannot be written.
    """
    import soundfile

    samples = src.detach().cpu()
    if samples.dim() == 2 and channels_first:
        samples = samples.t()
    subtype = "FLOAT" if encoding == "PCM_F" else SUBTYPES.get(bits_per_sample or 0)
    path = os.fspath(uri) if isinstance(uri, (str, os.PathLike)) else uri
    try:
        soundfile.write(path, samples.numpy(), sample_rate, subtype=subtype, format=format and format.upper())
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise DataError(f"cannot write the audio file {uri}: {' '.join(str(error).split())}") from error


def info(uri: Any, format: str | None = None, buffer_size: int = 4096, backend: str | None = None) -> AudioMetaData:
    """Describe an audio file without reading its samples.

    Raises:
        DataError: the file is missing or unreadable.
    """
    with _opened(uri) as file:
        bits, encoding = SAMPLE_FORMATS.get(file.subtype, (0, file.subtype))
        return AudioMetaData(file.samplerate, file.frames, file.channels, bits, encoding)


def _opened(uri: Any):
    import soundfile

    try:
        return soundfile.SoundFile(os.fspath(uri) if isinstance(uri, (str, os.PathLike)) else uri)
    except (RuntimeError, OSError, TypeError) as error:
        if isinstance(uri, (str, os.PathLike)) and not os.path.exists(uri):
            raise DataError(f"no such audio file: {uri}; check the corpus path in the task's configuration.") from error
        raise DataError(unreadable(uri, error)) from error


def unreadable(uri: Any, error: Exception) -> str:
    """Return the sentence for a file that soundfile cannot read."""
    cause = " ".join(str(error).split())
    return f"the audio file {uri} cannot be read ({cause}): replace it or remove it from the corpus."
