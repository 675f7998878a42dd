"""The part of ``torchaudio.sox_effects`` that s3prl's tasks use: effect chains of channels, rate, gain and silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ext.corpora.audio import resample
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
    """Cut silence out, see :func:`sounds`."""
    import torch

    kept = [samples[:, first:after] for first, after in sounds(samples, rate, effect)]
    return torch.cat(kept, dim=1) if kept else samples[:, :0]


def sounds(samples: torch.Tensor, rate: int, effect: Sequence[str]) -> list[tuple[int, int]]:
    """Return first sample, and sample after the last, of each sound that is left where silence is cut out.

    It is cut out as sox does: before the first sound, and every stretch of it that is as long as given.

    A sound begins where the level, the root mean square of the last 20 ms, stays above its threshold for the first
    duration; it is kept from there. It ends where the level stays below the second one for the second duration, which
    is cut out together with what follows up to the next sound. Levels count from silence after each end.

    Args:
        samples: [1, time].
        rate: in Hz.
        effect: of the form :data:`SILENCE`.

    Raises:
        UsageError: another form, or samples of several channels.
    """
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
    level, kept, position = _Level(samples[0], rate), list[tuple[int, int]](), 0
    while (begun := level.first_run(position, position, on, round(start * rate), louder=True)) is not None:
        ended = level.first_run(begun + 1, position, off, round(stop * rate), louder=False)
        last = samples.shape[1] if ended is None else ended - round(stop * rate) + 1
        kept.append((begun - round(start * rate) + 1, last))
        position = samples.shape[1] if ended is None else ended + 1
    return kept


def _percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(text)
    return float(text[:-1]) / 100


class _Level:
    """The root mean square of the last 20 ms at each sample of a signal, in parts as they are asked for.

    Args:
        samples: [time].
        rate: in Hz.
    """

    def __init__(self, samples: torch.Tensor, rate: int) -> None:
        import torch

        self.window, self.part = rate // WINDOWS, 4 * rate
        self.sums = torch.nn.functional.pad((samples.double() ** 2).cumsum(0), (1, 0))

    def between(self, first: int, last: int, silent_before: int) -> torch.Tensor:
        """Return the level at the samples from `first` to before `last`, as if there was silence before a sample."""
        import torch

        ends = torch.arange(first + 1, last + 1)
        energy = self.sums[ends] - self.sums[(ends - self.window).clamp(min=silent_before)]
        return (energy.clamp(min=0) / self.window).sqrt()

    def first_run(self, first: int, silent_before: int, threshold: float, length: int, louder: bool) -> int | None:
        """Return the sample from `first` on where the level was louder, or not, for `length` samples, or None."""
        size, end = self.part, len(self.sums) - 1
        while first < end:
            last = min(end, first + size)
            found = _first_run((self.between(first, last, silent_before) > threshold) == louder, length)
            if found is not None or last == end:
                return None if found is None else first + found
            size *= 2
        return None


def _first_run(holds: torch.Tensor, length: int) -> int | None:
    """Return where the first `length` successive true values end, or None."""
    import torch

    places = torch.arange(len(holds))
    since = places - torch.where(holds, -1, places).cummax(0).values
    found = torch.nonzero(since >= length)
    return int(found[0]) if len(found) else None


def _mix(samples: torch.Tensor, channels: int) -> torch.Tensor:
    """Average to one channel or repeat one channel, as sox does."""
    if samples.shape[0] == channels:
        return samples
    return samples.mean(dim=0, keepdim=True).expand(channels, -1).contiguous()


def _resample(samples: torch.Tensor, sample_rate: int, new_rate: int) -> torch.Tensor:
    """Resample as predictions do, so that both hear the same."""
    import torch

    return samples if sample_rate == new_rate else torch.from_numpy(resample(samples.numpy(), sample_rate, new_rate))
