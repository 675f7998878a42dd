"""The part of ``torchaudio.sox_effects`` that s3prl's tasks use: effect chains of channels, rate, gain and silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import UsageError

if TYPE_CHECKING:
    import torch

EFFECTS = ("channels", "rate", "gain", "silence")
SILENCE = "silence 1 SECONDS PERCENT% -1 SECONDS PERCENT%"  # the form of that effect that is known
WINDOWS = 50  # in a second, of the level that silence is judged by


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
        UsageError: an effect other than these, or one with other arguments.
    """
    samples = tensor if channels_first else tensor.t()
    for effect in effects:
        if effect[0] == "silence":
            samples = _without_silence(samples, sample_rate, effect)
            continue
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
            f"known are {', '.join(EFFECTS[:-1])}, each with one number, and {SILENCE}."
        )
    return name, value


def _without_silence(samples: torch.Tensor, rate: int, effect: Sequence[str]) -> torch.Tensor:
    """Cut silence out as sox does: before the first sound, and every stretch of it that is as long as given.

    A sound begins where the level, the root mean square of the last 20 ms, stays above its threshold for the first
    duration; it is kept from there. It ends where the level stays below the second one for the second duration, which
    is cut out together with what follows up to the next sound. Levels count from silence after each end.

    Args:
        samples: [1, time].
        rate: in Hz.
        effect: of the form :data:`SILENCE`.
    """
    import torch

    try:
        _, above, begins, louder, below, ends, softer = effect
        (start, stop), (on, off) = [[float(text) for text in (begins, ends)], [_percent(louder), _percent(softer)]]
        known = (above, below) == ("1", "-1") and min(start, stop) > 0 and samples.shape[0] == 1
    except ValueError:
        known = False
    if not known:
        raise UsageError(
            f"the sox effect {' '.join(map(str, effect))!r} is not available: known is {SILENCE}, of mono."
        )
    window = rate // WINDOWS
    squares = samples[0].double() ** 2
    kept, position = [], 0
    while position < len(squares):
        level = _levels(squares[position:], window)
        begun = _first_run(level > on, round(start * rate))
        if begun is None:
            break
        ended = _first_run(level[begun + 1 :] <= off, round(stop * rate))
        last = len(level) if ended is None else begun + 1 + ended - round(stop * rate) + 1
        kept.append(samples[:, position + begun - round(start * rate) + 1 : position + last])
        position += len(level) if ended is None else begun + 1 + ended + 1
    return torch.cat(kept, dim=1) if kept else samples[:, :0]


def _percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(text)
    return float(text[:-1]) / 100


def _levels(squares: torch.Tensor, window: int) -> torch.Tensor:
    """Return the root mean square of the last `window` samples at each one, with zeros before the first."""
    import torch

    sums = torch.nn.functional.pad(squares.cumsum(0), (window, 0))
    return ((sums[window:] - sums[:-window]).clamp(min=0) / window).sqrt()


def _first_run(holds: torch.Tensor, length: int) -> int | None:
    """Return where the first `length` successive true values end, or None."""
    import torch

    places = torch.arange(len(holds))
    since = places - torch.where(holds, -1, places).cummax(0).values if len(holds) else places
    found = torch.nonzero(since >= length)
    return int(found[0]) if len(found) else None


def _mix(samples: torch.Tensor, channels: int) -> torch.Tensor:
    """Average to one channel or repeat one channel, as sox does."""
    if samples.shape[0] == channels:
        return samples
    return samples.mean(dim=0, keepdim=True).expand(channels, -1).contiguous()


def _resample(samples: torch.Tensor, sample_rate: int, new_rate: int) -> torch.Tensor:
    from torchaudio.functional import resample

    return samples if sample_rate == new_rate else resample(samples, sample_rate, new_rate)
