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
    terms = [(rest, target, moments[0][0]), *zip(weights, sources, (own for _, own in moments), strict=True)]
    return _minimum(terms, shrink).to(target.device, dtype_of_sum(target, *sources)).to(target.dtype)


def regression_mean_of_tasks(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], moments: Sequence[Tensor], shrink: float
) -> Tensor:
    """Return the W with the least sum of lambda_j E|W x_j - (base + delta_j) x_j|^2 over tasks.

    W = base + (sum of lambda_j delta_j G_j) (sum of lambda_j G_j)^-1, with G_j and `shrink` as in
    :func:`regression_mean`. Where all G_j are equal, and along directions that no x_j has, it is base + the mean of
    delta_j with weights lambda_j. One task alone is itself, and a row that no task changed stays as it is.

    Args:
        base: [out, in].
        deltas: task vectors of the base's shape, 0 where a task changed nothing.
        weights: lambda of each, above 0.
        moments: G of what each tuned model multiplies with the matrix, [in, in].
        shrink: in [0, 1].
    """
    if len(deltas) == 1:
        return (base.double() + deltas[0].double()).to(base.dtype)
    total = sum(weights)
    terms = [(weight / total, delta, moment) for weight, delta, moment in zip(weights, deltas, moments, strict=True)]
    return (base.double() + _minimum(terms, shrink).to(base.device)).to(base.dtype)


def _minimum(terms: Sequence[tuple[float, Tensor, Tensor]], shrink: float) -> Tensor:
    """Return the W with the least sum of w E|W x - M x|^2 over (w, M, E[x x^T]), the w adding up to 1, in float64."""
    shape = terms[0][1].shape
    left, linear = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    total = torch.zeros(shape[1], shape[1], dtype=torch.float64)
    for weight, matrix, moment in terms:
        gram = weight * _shrunk(moment.cpu().double(), shrink)
        left += matrix.cpu().double() @ gram
        linear += weight * matrix.cpu().double()
        total += gram
    return linear + (left - linear @ total) @ torch.linalg.pinv(total, hermitian=True)


def _shrunk(moment: Tensor, shrink: float) -> Tensor:
    return shrink * moment + (1.0 - shrink) * torch.diag(torch.diagonal(moment))
