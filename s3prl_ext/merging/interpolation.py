"""Combine a target tensor with one or more sources: W = lambda * W_source + (1 - lambda) * W_target (MAM, Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Sums of lambda that miss 1 by less than this are 1: 0.7 + 0.2 + 0.1 is not, in floating point.
SUM_TOLERANCE = 1e-9


def dtype_of_sum(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which tensors are summed: float32, or float64 if one of them is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def interpolate(target: Tensor, source: Tensor, weight: float) -> Tensor:
    """Return the tensor `weight` of the way from `target` to `source`, in the target's dtype and on its device.

    The sum is taken in float32 (float64 if either tensor is). Both ends are exact: 0 returns `target` itself,
    1 the source's values bit for bit (cast to the target's dtype). See MAM, Eq. 1.

    Args:
        target, source: same shape, any floating-point dtypes.
        weight: the paper's lambda; 0 = target, 1 = source.
    """
    if weight == 0.0:
        return target
    source = source.to(target.device)
    if weight == 1.0:
        return source.to(target.dtype, copy=True)
    dtype = dtype_of_sum(target, source)
    return torch.lerp(target.to(dtype), source.to(dtype), weight).to(target.dtype)


def combine(target: Tensor, sources: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return (1 - sum of lambda_j) * target + sum of lambda_j * source_j, in the target's dtype and on its device.

    With a single source of lambda other than 0 this is :func:`interpolate`. Where the lambdas add up to 1 the target's
    values do not enter.

    Args:
        target: any floating-point dtype.
        sources: tensors of the target's shape.
        weights: lambda of each source.
    """
    used = [(source, weight) for source, weight in zip(sources, weights, strict=True) if weight != 0.0]
    if not used:
        return target
    if len(used) == 1:
        return interpolate(target, *used[0])
    dtype = dtype_of_sum(target, *(source for source, _ in used))
    rest = 1.0 - math.fsum(weights)
    total = target.to(dtype) * (0.0 if abs(rest) < SUM_TOLERANCE else rest)
    for source, weight in used:
        total.add_(source.to(target.device, dtype), alpha=weight)
    return total.to(target.dtype)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return ||after - before|| / ||before|| in the Frobenius norm; 0 where both are zero."""
    before, after = before.float(), after.float()
    change = torch.linalg.vector_norm(after - before).item()
    norm = torch.linalg.vector_norm(before).item()
    if norm == 0.0:
        return 0.0 if change == 0.0 else float("inf")
    return change / norm


def spread(points: list[float], depth: int) -> list[float]:
    """Return `depth` values that run linearly through equally spaced `points`, first and last included.

    Args:
        points: at least one value, from the first to the last layer.
        depth: number of layers.
    """
    if len(points) == 1 or depth == 1:
        return [points[0]] * depth
    values = []
    for layer in range(depth):
        position = layer * (len(points) - 1) / (depth - 1)
        left = min(int(position), len(points) - 2)
        fraction = position - left
        values.append((1.0 - fraction) * points[left] + fraction * points[left + 1])
    return values
