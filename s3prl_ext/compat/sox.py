"""The part of ``torchaudio.sox_effects`` that s3prl's tasks use: effect chains of channels, rate and gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import UsageError

if TYPE_CHECKING:
    import torch

EFFECTS = ("channels", "rate", "gain")


def apply_effects_tensor(
    tensor: torch.Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """Apply a chain of effects to samples.

    Args:
        tensor: float samples in [-1, 1], shape (channels, time), or (time, channels).
        sample_rate: in Hz.
        effects: such as ``[["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]`` (gain in dB).
        channels_first: layout of `tensor` and of the result.

    Returns:
        The new samples, clipped to [-1, 1], and their sample rate in Hz.

    Raises:
        UsageError: an effect other than channels, rate and gain, or one with other arguments than a number.
    """
    samples = tensor if channels_first else tensor.t()
    for effect in effects:
        name, value = _parse(effect)
        if name == "channels":
            samples = _mix(samples, int(value))
        elif name == "rate":
            samples, sample_rate = _resample(samples, sample_rate, int(value)), int(value)
        else:
            samples = (samples * 10 ** (value / 20)).clamp(-1.0, 1.0)
    return (samples if channels_first else samples.t()), sample_rate


def apply_effects_file(
    path: Any,
    effects: Sequence[Sequence[str]],
    normalize: bool = True,
    channels_first: bool = True,
    format: str | None = None,
) -> tuple[torch.Tensor, int]:
    """Read an audio file and apply a chain of effects; see :func:`apply_effects_tensor`.

    The result is always float32; `normalize` and `format` are accepted and ignored.
    """
    import torchaudio

    samples, sample_rate = torchaudio.load(path, channels_first=channels_first)
    return apply_effects_tensor(samples, sample_rate, effects, channels_first)


def effect_names() -> list[str]:
    """List the known effects."""
    return list(EFFECTS)


def _parse(effect: Sequence[str]) -> tuple[str, float]:
    name, *arguments = effect
    try:
        (value,) = (float(argument) for argument in arguments)
    except ValueError:
        value = None
    if name not in EFFECTS or value is None:
        raise UsageError(
            f"the sox effect {' '.join(map(str, effect))!r} is not available without torchaudio.sox_effects: "
            f"known are {', '.join(EFFECTS)}, each with one number."
        )
    return name, value


def _mix(samples: torch.Tensor, channels: int) -> torch.Tensor:
    """Average to one channel or repeat one channel, as sox does."""
    if samples.shape[0] == channels:
        return samples
    return samples.mean(dim=0, keepdim=True).expand(channels, -1).contiguous()


def _resample(samples: torch.Tensor, sample_rate: int, new_rate: int) -> torch.Tensor:
    from torchaudio.functional import resample

    return samples if sample_rate == new_rate else resample(samples, sample_rate, new_rate)
