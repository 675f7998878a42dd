"""Combine what training changed in several models: task arithmetic, TIES, DARE, the mean by Fisher information.

A task vector is delta_j = W_j - B_j, a model minus the one that it was trained from. All sums but those of the Fisher
mean (float64) are taken in float32, or float64 if a tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ext.merging.interpolation import dtype_of_sum


def task_arithmetic(target: Tensor, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return target + sum of lambda_j * delta_j (Ilharco et al., 2023, arXiv:2212.04089).

    Args:
        deltas: task vectors of the target's shape.
    """
    total = target.to(dtype_of_sum(target, *deltas), copy=True)
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    return total.to(target.dtype)


def ties(target: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Return target + the mean of lambda_j * delta_j over the sources that agree with the elected sign, entry by entry.

    Each task vector is trimmed to its `density` largest entries; the sign with the larger sum of lambda_j * delta_j is
    elected; others are left out of sum and count (Yadav et al., 2023, arXiv:2306.01708).
    """
    trimmed = torch.stack([weight * trim(delta, density) for delta, weight in zip(deltas, weights, strict=True)])
    elected = torch.where(trimmed.sum(dim=0) >= 0, 1.0, -1.0).to(trimmed.dtype)
    agree = trimmed.sign() == elected
    mean = (trimmed * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
    return (target.to(mean.dtype) + mean).to(target.dtype)


def trim(delta: Tensor, density: float) -> Tensor:
    """Return a copy that keeps the `density` largest magnitudes, at least one, and is 0 elsewhere.

    Of equal magnitudes the earlier ones are kept.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    flat = delta.flatten()
    order = torch.sort(flat.abs(), descending=True, stable=True).indices[:kept]
    result = torch.zeros_like(flat)
    result[order] = flat[order]
    return result.view_as(delta)


def drop_and_rescale(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return a copy that keeps each entry with probability `density`, divided by it; the mean stays.

    Yu et al., 2024, arXiv:2311.03099 (DARE); the numbers are drawn on the CPU, so that every device has the same ones.
    """
    kept = torch.rand(delta.shape, generator=generator) < density
    return (delta / density).masked_fill_(~kept.to(delta.device), 0.0)


def fisher_mean(
    target: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], fishers: Sequence[Tensor | None]
) -> Tensor:
    """Return target + sum of lambda_j F_j delta_j / sum of lambda_j F_j, entry by entry.

    It maximizes the sum of lambda_j times a Gaussian approximation of each task's posterior around its weights, with
    the diagonal Fisher information F_j as precision (Matena and Raffel, 2022, arXiv:2111.09832). Where every F_j is 0,
    or one was not estimated, it is the mean with weights lambda_j.

    Args:
        deltas: task vectors of the target's shape, 0 where a task changed nothing.
        weights: lambda of each, above 0.
        fishers: of each, of the target's shape; None where it was not estimated.
    """
    total = target.new_zeros(target.shape, dtype=torch.float64)
    norm = torch.zeros_like(total)
    plain = sum(weight * delta.double() for delta, weight in zip(deltas, weights, strict=True)) / math.fsum(weights)
    if any(fisher is None for fisher in fishers):
        return (target.double() + plain).to(target.dtype)
    for delta, weight, fisher in zip(deltas, weights, fishers, strict=True):
        assert fisher is not None
        share = weight * fisher.to(target.device, torch.float64)
        total += share * delta
        norm += share
    mean = torch.where(norm > 0, total / norm.clamp(min=torch.finfo(norm.dtype).tiny), plain)
    return (target.double() + mean).to(target.dtype)
