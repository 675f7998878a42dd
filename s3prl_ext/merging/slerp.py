"""Spherical interpolation of two matrices: a point of the arc between their directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s3prl_ext.merging.interpolation import dtype_of_sum, interpolate

COLLINEAR = 0.9995  # |cosine| above which slerp is the straight line, as in mergekit
SMALLEST_NORM = 1e-8


def slerp(target: Tensor, source: Tensor, weight: float) -> Tensor:
    """Return the matrix `weight` of the way from `target` to `source` on the arc between their directions.

    With the angle a between the two, each as one vector: (sin((1 - t) a) * W_target + sin(t a) * W_source) / sin(a)
    (Shoemake, 1985; as mergekit). Where they are collinear, opposite, or one is zero: :func:`interpolate`. Both ends
    are exact.
    """
    if weight in (0.0, 1.0):
        return interpolate(target, source, weight)
    angle = angle_between(target, source)
    if angle is None:
        return interpolate(target, source, weight)
    dtype = dtype_of_sum(target, source)
    start, end = target.to(dtype), source.to(target.device, dtype)
    first, second = (math.sin(share * angle) / math.sin(angle) for share in (1 - weight, weight))
    return (start * first).add_(end, alpha=second).to(target.dtype)


def angle_between(target: Tensor, source: Tensor) -> float | None:
    """Return the angle between two matrices, each as one vector, in radians.

    None where it says no way from one to the other: they are collinear or opposite, or one is zero.
    """
    dtype = dtype_of_sum(target, source)
    start, end = target.to(dtype), source.to(target.device, dtype)
    norms = torch.linalg.vector_norm(start), torch.linalg.vector_norm(end)
    if min(norms) < SMALLEST_NORM:
        return None
    cosine = torch.sum(start / norms[0] * (end / norms[1]), dtype=torch.float64).clamp(-1, 1).item()
    return None if abs(cosine) > COLLINEAR else math.acos(cosine)
