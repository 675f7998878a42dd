"""Masks of child networks, as sorted flat indices per tensor: True = trainable (AD-TUNING, Eq. 2, 4 and section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from s3prl_ext.errors import DataError, UsageError

Mask = dict[str, torch.Tensor]


def child_size(total: int, density: float) -> int:
    """Return k = round(density x total), the number of weights in the child network (0 < density <= 1)."""
    if not 0 < density <= 1:
        raise UsageError(f"the density of a child network must lie in (0, 1], but is {density}.")
    return round(density * total)


def top_k(scores: Mapping[str, torch.Tensor], density: float) -> Mask:
    """Select the k = round(density x N) largest scores over all tensors together.

    Exactly k entries are chosen also among ties: the lowest flat index first, in the order of `scores`. A smaller
    density therefore gives a subset of the mask of a larger one.

    Args:
        scores: non-negative importance per weight, by tensor name, any shapes, float32.
        density: fraction of all N entries, in (0, 1].

    Returns:
        Sorted flat indices (int64, CPU) of the chosen entries per tensor; tensors without any are left out.

    Raises:
        DataError: a score is negative, NaN or infinite, or all scores are zero.
    """
    k = child_size(sum(score.numel() for score in scores.values()), density)
    if k == 0:
        return {}
    return _select(scores, *_threshold(scores, k))


# A non-negative float32 orders like its bits read as an integer; the search goes by the high and then the low 16 bits,
# in pieces, so that it needs a few MB beside the scores, whatever the model's size.
_PIECE = 1 << 18
_LOW_BITS = 16
_INFINITY = 0x7F800000  # bits of +inf; those of NaN lie above


def _pieces(score: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = score.detach().reshape(-1).float().contiguous()
    for start in range(0, flat.numel(), _PIECE):
        yield flat[start : start + _PIECE].view(torch.int32).cpu()


def _threshold(scores: Mapping[str, torch.Tensor], k: int) -> tuple[int, int]:
    """Return the bits of the k-th largest score, and how many of the entries equal to it belong to the k largest."""
    high = torch.zeros(1 << 15, dtype=torch.int64)
    for name, score in scores.items():
        for bits in _pieces(score):
            if int(bits.min()) < 0 or int(bits.max()) >= _INFINITY:
                raise DataError(
                    f"the scores of '{name}' hold negative, NaN or infinite values; no child network can be chosen."
                )
            high += torch.bincount(bits >> _LOW_BITS, minlength=high.numel())
    if int(high[0]) == int(high.sum()) and not any(bool(score.any()) for score in scores.values()):
        raise DataError("all scores are zero: no gradient has reached the upstream; no child network can be chosen.")
    upper, remaining = _bin_of(high, k)
    low = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
    for score in scores.values():
        for bits in _pieces(score):
            inside = bits[bits >> _LOW_BITS == upper]
            low += torch.bincount(inside & ((1 << _LOW_BITS) - 1), minlength=low.numel())
    lower, ties = _bin_of(low, remaining)
    return upper << _LOW_BITS | lower, ties


def _bin_of(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top, and which of that bin's entries it is (from 1)."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return histogram.numel() - 1 - position, k - above


def _select(scores: Mapping[str, torch.Tensor], threshold: int, ties: int) -> Mask:
    mask: Mask = {}
    for name, score in scores.items():
        found = []
        for start, bits in zip(range(0, score.numel(), _PIECE), _pieces(score)):
            chosen = bits > threshold
            equal = torch.nonzero(bits == threshold).squeeze(1)[:ties]
            chosen[equal] = True
            ties -= equal.numel()
            found.append(torch.nonzero(chosen).squeeze(1) + start)
        indices = torch.cat(found)
        if indices.numel():
            mask[name] = indices
    return mask


def bernoulli(sizes: Mapping[str, int], density: float, seed: int) -> Mask:
    """Draw each of the entries with probability `density` (CHILD-TUNING_F, Eq. 4), from a generator of its own.

    Args:
        sizes: number of entries per tensor name.
        density: probability of an entry, in (0, 1].
        seed: seed of the draw; the same seed gives the same mask on every device and rank.
    """
    if not 0 < density <= 1:
        raise UsageError(f"the density of a child network must lie in (0, 1], but is {density}.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(sum(sizes.values()), generator=generator) < density
    return _split(drawn, sizes)


def _split(chosen: torch.Tensor, sizes: Mapping[str, int]) -> Mask:
    mask: Mask = {}
    for (name, _), part in zip(sizes.items(), chosen.split(list(sizes.values()))):
        indices = torch.nonzero(part).squeeze(1)
        if indices.numel():
            mask[name] = indices
    return mask


def count(mask: Mask) -> int:
    """Return the number of trainable entries."""
    return sum(indices.numel() for indices in mask.values())
