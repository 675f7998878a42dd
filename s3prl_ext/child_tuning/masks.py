"""Masks of child networks, as sorted flat indices per tensor: True = trainable (AD-TUNING, Eq. 2, 4 and section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping

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

    Exactly k entries are chosen also among ties: the lowest flat index first, in the order of `scores`.

    Args:
        scores: non-negative importance per weight, by tensor name, any shapes.
        density: fraction of all N entries, in (0, 1].

    Returns:
        Sorted flat indices (int64, CPU) of the chosen entries per tensor; tensors without any are left out.

    Raises:
        DataError: a score is NaN or infinite, or all scores are zero.
    """
    flat = torch.cat([score.detach().float().reshape(-1).cpu() for score in scores.values()])
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise DataError(f"the scores of '{name}' hold NaN or infinite values; no child network can be chosen.")
    if not flat.any():
        raise DataError("all scores are zero: no gradient has reached the upstream; no child network can be chosen.")
    k = child_size(flat.numel(), density)
    if k == 0:
        return {}
    threshold = torch.kthvalue(flat, flat.numel() - k + 1).values
    chosen = flat > threshold
    ties = torch.nonzero(flat == threshold).squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return _split(chosen, {name: score.numel() for name, score in scores.items()})


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
