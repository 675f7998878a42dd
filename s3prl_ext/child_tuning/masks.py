"""Masks of child networks, as sorted flat indices per tensor.

True = trainable (AD-TUNING, Eq. 2, 4 and section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from s3prl_ext.errors import DataError, UsageError

Mask = dict[str, torch.Tensor]  # sorted flat indices (int32, CPU) by tensor name; tensors without any are left out


@dataclass(frozen=True)
class NestedMask:
    """The masks of several densities, each a subset of the next larger one, as one list of entries.

    Attributes:
        densities: fractions of the entries, largest first.
        indices: sorted flat indices (int32, CPU) of the largest mask, by tensor name.
        levels: for each of these entries the number of densities that hold it (uint8): ``densities[:level]``.
    """

    densities: tuple[float, ...]
    indices: dict[str, torch.Tensor]
    levels: dict[str, torch.Tensor]

    def at(self, density: float) -> Mask:
        """Return the mask of one of the densities."""
        rank = self.densities.index(density)
        if rank == 0:
            return dict(self.indices)
        chosen = {name: indices[self.levels[name] > rank] for name, indices in self.indices.items()}
        return {name: indices for name, indices in chosen.items() if indices.numel()}


def child_size(total: int, density: float) -> int:
    """Return k = round(density x total), the number of weights in the child network (0 < density <= 1)."""
    if not 0 < density <= 1:
        raise UsageError(f"the density of a child network must be in (0, 1], got {density}.")
    return round(density * total)


def top_k(scores: Mapping[str, torch.Tensor], density: float) -> Mask:
    """Select the k = round(density x N) largest scores; :func:`nested_top_k` for a single density."""
    return nested_top_k(scores, [density]).at(density)


def nested_top_k(scores: Mapping[str, torch.Tensor], densities: Sequence[float]) -> NestedMask:
    """Select the k = round(density x N) largest scores over all tensors together, for several densities at once.

    Exactly k entries are chosen also among ties: the lowest flat index first, in the order of `scores`. A smaller
    density therefore gives a subset of the mask of a larger one.

    Args:
        scores: non-negative importance per weight, by tensor name, any shapes, float32, on any device.
        densities: fractions of all N entries, in (0, 1].

    Raises:
        DataError: a score is negative, NaN or infinite, or all scores are zero.
    """
    total = sum(score.numel() for score in scores.values())
    densities = tuple(sorted(set(densities), reverse=True))
    sizes = [child_size(total, density) for density in densities]
    if not sizes or sizes[0] == 0:
        return NestedMask(densities, {}, {})
    candidates, high = _candidates(scores, _floor(scores, sizes[0]))
    if high.sum() < sizes[0]:
        candidates, high = _candidates(scores, 0)
    bins = [_bin_of(high, k) if k else (_BINS, 0) for k in sizes]  # of k = 0: a bin above all
    levels, undecided = _levels(scores, candidates, [upper for upper, _ in bins])
    for rank, (upper, remaining) in enumerate(bins):
        if upper < _BINS:
            _decide(levels, undecided, rank, upper, remaining)
    indices, chosen_levels = {}, {}
    for name in scores:
        inside, level = candidates.pop(name), levels.pop(name)  # the copies take their place
        chosen = level > 0
        if chosen.any():
            indices[name], chosen_levels[name] = torch.from_numpy(inside[chosen]), torch.from_numpy(level[chosen])
    return NestedMask(densities, indices, chosen_levels)


def score_histogram(scores: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the scores in bins of an eighth of an octave, for a picture on logarithmic axes (AD-TUNING, Fig. 2).

    Args:
        scores: as for :func:`nested_top_k`.

    Returns:
        The lower edges of 2048 bins (float32, the first is 0) and the number of scores in each (int64).

    Raises:
        DataError: as :func:`nested_top_k`.
    """
    width = 16  # of the histogram's 128 bins per octave
    counts = torch.from_numpy(_histogram(scores)).reshape(-1, width).sum(1)
    edges = (torch.arange(0, _BINS, width, dtype=torch.int32) << _LOW_BITS).view(torch.float32)
    return edges, counts


# A non-negative float32 orders like its bits read as an integer. A sample says what may be left out at first sight, and
# among the rest the search goes by the high and then the low 16 bits, in pieces that stay in the processor's cache, so
# that it needs a few MB on top of scores and masks, whatever the model's size.
_PIECE = 1 << 18
_LOW_BITS = 16
_BINS = 1 << 15
_FIRST_INFINITE = 0x7F80  # high bits of +inf; those of NaN lie above, those of negative numbers above _BINS
_STRIDE = 61  # of the sample; prime, so that it goes through the columns of every matrix


def _bits(score: torch.Tensor) -> np.ndarray:
    return score.detach().reshape(-1).float().contiguous().cpu().numpy().view(np.int32)


def _pieces(score: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first flat index and the bits of every piece of a tensor."""
    bits = _bits(score)
    for start in range(0, bits.size, _PIECE):
        yield start, bits[start : start + _PIECE]


def _histogram(scores: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Count the scores by their high 15 bits, and refuse scores that nothing can be chosen from."""
    high = np.zeros(_BINS, np.int64)
    for name, score in scores.items():
        for _, bits in _pieces(score):
            _check(name, bits)
            high += np.bincount(bits >> _LOW_BITS, minlength=_BINS)
    _check_not_all_zero(scores, high)
    return high


def _check(name: str, bits: np.ndarray) -> None:
    if bits.view(np.uint32).max() >> _LOW_BITS >= _FIRST_INFINITE:
        raise DataError(
            f"the scores of '{name}' hold negative, NaN or infinite values, so a child network cannot be "
            "chosen; check the upstream's weights and the training data."
        )


def _check_not_all_zero(scores: Mapping[str, torch.Tensor], high: np.ndarray) -> None:
    if high[0] == high.sum() and not any(bool(score.any()) for score in scores.values()):
        raise DataError(
            "all scores are zero: the eligible weights got no gradient. Use features of a later layer (-s, -l) or "
            "change tuning.eligible."
        )


def _floor(scores: Mapping[str, torch.Tensor], k: int) -> int:
    """Return bits that most likely at least `k` scores reach, and few more; 0 where a sample cannot tell."""
    sample = np.concatenate([_bits(score)[::_STRIDE] for score in scores.values()])
    share = k / sum(score.numel() for score in scores.values())
    rank = math.ceil(share * sample.size + 6 * math.sqrt(share * (1 - share) * sample.size)) + 1
    if rank > sample.size:
        return 0
    return max(0, int(np.partition(sample, sample.size - rank)[sample.size - rank]))


def _candidates(scores: Mapping[str, torch.Tensor], floor: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the flat indices of the scores whose bits are at least `floor`, and their counts by the high 15 bits.

    Raises:
        DataError: nothing can be chosen from the scores.
    """
    found = {}
    high = np.zeros(_BINS, np.int64)
    for name, score in scores.items():
        parts = [np.zeros(0, np.int32)]
        for start, bits in _pieces(score):
            _check(name, bits)
            inside = np.flatnonzero(bits >= floor)
            high += np.bincount(bits[inside] >> _LOW_BITS, minlength=_BINS)
            parts.append((inside + start).astype(np.int32))
        found[name] = np.concatenate(parts)
    _check_not_all_zero(scores, high)
    return found, high


def _bin_of(histogram: np.ndarray, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top, and which of that bin's entries it is (from 1)."""
    from_top = histogram[::-1].cumsum()
    position = int(np.searchsorted(from_top, k))
    above = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, k - above


def _levels(
    scores: Mapping[str, torch.Tensor], candidates: Mapping[str, np.ndarray], bins: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return how many of `bins` (ascending) lie below each candidate, and places and bits of the candidates in one."""
    below = np.searchsorted(bins, np.arange(_BINS)).astype(np.uint8)
    is_asked = np.isin(np.arange(_BINS), bins)
    levels, undecided = {}, {}
    for name, score in scores.items():
        inside, bits = candidates[name], _bits(score)
        levels[name] = np.empty(inside.size, np.uint8)
        places, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for start in range(0, inside.size, _PIECE):
            values = bits[inside[start : start + _PIECE]]
            upper = values >> _LOW_BITS
            levels[name][start : start + _PIECE] = below[upper]
            asked = np.flatnonzero(is_asked[upper])
            places.append(asked + start)
            found.append(values[asked])
        undecided[name] = np.concatenate(places), np.concatenate(found)
    return levels, undecided


def _decide(
    levels: Mapping[str, np.ndarray],
    undecided: Mapping[str, tuple[np.ndarray, np.ndarray]],
    rank: int,
    upper: int,
    remaining: int,
) -> None:
    """Add one to the levels of the `remaining` largest candidates of bin `upper`; of equal ones to the first."""
    low = np.zeros(1 << _LOW_BITS, np.int64)
    for _, bits in undecided.values():
        low += np.bincount(bits[bits >> _LOW_BITS == upper] & ((1 << _LOW_BITS) - 1), minlength=low.size)
    lower, ties = _bin_of(low, remaining)
    threshold = upper << _LOW_BITS | lower
    for name, (places, bits) in undecided.items():
        in_bin = bits >> _LOW_BITS == upper
        equal = places[bits == threshold][:ties]
        ties -= equal.size
        levels[name][places[in_bin & (bits > threshold)]] += 1
        levels[name][equal] += 1


def full(sizes: Mapping[str, int]) -> Mask:
    """Return the mask of density 1: every entry of every tensor.

    Args:
        sizes: number of entries per tensor name.
    """
    return nested_full(sizes, [1.0]).at(1.0)


def nested_full(sizes: Mapping[str, int], densities: Sequence[float]) -> NestedMask:
    """Return masks of which each holds every entry of every tensor."""
    indices = {name: torch.arange(size, dtype=torch.int32) for name, size in sizes.items() if size}
    levels = {name: torch.full((i.numel(),), len(densities), dtype=torch.uint8) for name, i in indices.items()}
    return NestedMask(tuple(sorted(densities, reverse=True)), indices, levels)


def bernoulli(sizes: Mapping[str, int], density: float, seed: int) -> Mask:
    """Draw each of the entries with probability `density` (CHILD-TUNING_F, Eq. 4), from a generator of its own.

    With the same seed the draw for a smaller density gives a subset of that for a larger one.

    Args:
        sizes: number of entries per tensor name.
        density: probability of an entry, in (0, 1].
        seed: seed of the draw; the same seed gives the same mask on every device and rank.
    """
    return nested_bernoulli(sizes, [density], seed).at(density)


def nested_bernoulli(sizes: Mapping[str, int], densities: Sequence[float], seed: int) -> NestedMask:
    """Draw the masks of several densities at once; see :func:`bernoulli`."""
    densities = tuple(sorted(set(densities), reverse=True))
    for density in densities:
        child_size(1, density)
    generator = torch.Generator().manual_seed(seed)
    indices, levels = {}, {}
    for name, size in sizes.items():
        drawn = torch.rand(size, generator=generator)
        inside = torch.nonzero(drawn < densities[0]).squeeze(1)
        if inside.numel():
            values = drawn[inside]
            indices[name] = inside.to(torch.int32)
            levels[name] = torch.stack([values < density for density in densities]).sum(0, dtype=torch.uint8)
    return NestedMask(densities, indices, levels)


def count(mask: Mapping[str, torch.Tensor]) -> int:
    """Return the number of trainable entries."""
    return sum(indices.numel() for indices in mask.values())
