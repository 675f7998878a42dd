"""Merge the matrices that keep the outputs of all models on their own inputs best: RegMean (arXiv:2212.09849)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.merging.basis import Basis
from s3prl_ext.merging.interpolation import SUM_TOLERANCE, dtype_of_sum


@dataclass(frozen=True)
class InputMoments:
    """Second moments of what the attention of target and source reads on paired inputs.

    Attributes:
        values: target layer -> mean of x x^T over frames and of y y^T over tokens, [width, width] of each model.
        facts: where they come from, as plain values.
    """

    values: Mapping[int, tuple[Tensor, Tensor]]
    facts: Mapping[str, Any]

    def rotated(self, basis: Basis | None) -> InputMoments:
        """Return them with the source's in the target's coordinates: R^T (y y^T) R."""
        if basis is None:
            return self
        rotations = {layer: basis.rotations[layer].matrix for layer in self.values}
        values = {
            layer: (ours, rotations[layer].T @ theirs.double() @ rotations[layer])
            for layer, (ours, theirs) in self.values.items()
        }
        return InputMoments(values, self.facts)


def regression_mean(
    target: Tensor,
    sources: Sequence[Tensor],
    weights: Sequence[float],
    moments: Sequence[tuple[Tensor, Tensor]],
    shrink: float,
) -> Tensor:
    """Return the W with the least sum of w_j E|W x_j - W_j x_j|^2 over target and sources.

    With G_j = E[x_j x_j^T], whose entries off the diagonal are multiplied by `shrink`, and w the weights of the sources
    and 1 - their sum of the target, W = (sum of w_j W_j G_j) (sum of w_j G_j)^-1. Where all G_j are equal this is the
    interpolation, and so it is along directions that no x_j has.

    Args:
        target: [out, in].
        sources: matrices of the target's shape.
        weights: lambda of each source.
        moments: G of the target and of the source, for each source.
        shrink: in [0, 1].
    """
    rest = 1.0 - sum(weights)
    if abs(rest) < SUM_TOLERANCE:
        rest = 0.0
    if len(sources) == 1 and rest == 0.0:
        return sources[0].to(target.device, target.dtype, copy=True)
    grams = [(rest, target, moments[0][0]), *zip(weights, sources, (own for _, own in moments), strict=True)]
    left, linear = torch.zeros(target.shape, dtype=torch.float64), torch.zeros(target.shape, dtype=torch.float64)
    total = torch.zeros(target.shape[1], target.shape[1], dtype=torch.float64)
    for weight, matrix, moment in grams:
        gram = weight * _shrunk(moment.cpu().double(), shrink)
        left += matrix.cpu().double() @ gram
        linear += weight * matrix.cpu().double()
        total += gram
    merged = linear + (left - linear @ total) @ torch.linalg.pinv(total, hermitian=True)
    return merged.to(target.device, dtype_of_sum(target, *sources)).to(target.dtype)


def _shrunk(moment: Tensor, shrink: float) -> Tensor:
    return shrink * moment + (1.0 - shrink) * torch.diag(torch.diagonal(moment))
