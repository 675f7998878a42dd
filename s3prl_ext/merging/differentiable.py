"""Combinations of a trained and a frozen matrix under a trained lambda, which keep no matrix but their inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Interpolate(torch.autograd.Function):
    """``lerp(target, source, weight)`` that keeps no tensor but its inputs.

    With G = dL/dW: dL/dW_target = (1 - lambda) * G, dL/dlambda = <G, W_source> - <G, W_target>; the source gets none.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, source: Tensor, weight: Tensor) -> Tensor:
        """Return the merged matrix.

        Args:
            target, source: [out, in], same dtype.
            weight: lambda of each of k equal blocks of rows, [k].
        """
        ctx.save_for_backward(target, source, weight)
        blocks = len(weight), -1
        return torch.lerp(target.reshape(blocks), source.reshape(blocks), weight.unsqueeze(1)).view_as(target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of target and weight."""
        target, source, weight = ctx.saved_tensors
        blocks = len(weight), -1
        gradient = gradients[0].reshape(blocks)
        to_target = to_weight = None
        if ctx.needs_input_grad[2]:
            to_weight = _dots(gradient, source.reshape(blocks)) - _dots(gradient, target.reshape(blocks))
        if ctx.needs_input_grad[0]:
            to_target = (gradient * (1 - weight).unsqueeze(1)).view_as(target)
        return to_target, None, to_weight


class WeightedSum(torch.autograd.Function):
    """``a_0 * target + sum of a_s * source_s``, with gradients for the target and the shares a; the sources get none.

    With G = dL/dW: dL/dW_target = a_0 * G, dL/da_s = <G, W_s>.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
        """Return the sum.

        Args:
            target: [out, in].
            sources: [s, out, in], same dtype.
            shares: of target and sources for each of k equal blocks of rows, [1 + s, k], in the same dtype.
        """
        ctx.save_for_backward(target, sources, shares)
        blocks = shares.shape[1], -1
        total = target.reshape(blocks) * shares[0].unsqueeze(1)
        for source, share in zip(sources, shares[1:], strict=True):
            total.addcmul_(source.reshape(blocks), share.unsqueeze(1))
        return total.view_as(target)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Return the gradients of target and shares."""
        target, sources, shares = ctx.saved_tensors
        blocks = shares.shape[1], -1
        gradient = gradients[0].reshape(blocks)
        to_target = to_shares = None
        if ctx.needs_input_grad[2]:
            to_shares = torch.stack([_dots(gradient, matrix.reshape(blocks)) for matrix in (target, *sources)])
        if ctx.needs_input_grad[0]:
            to_target = (gradient * shares[0].unsqueeze(1)).view_as(target)
        return to_target, None, to_shares


def line_shares(weights: Tensor) -> Tensor:
    """Return what target and sources count in an interpolation, [1 + s, k] in float64: 1 - sum of lambda, and lambda.

    Args:
        weights: lambda of each source, [s, k].
    """
    weights = weights.double()
    return torch.cat([1.0 - weights.sum(dim=0, keepdim=True), weights])


def arc_shares(weight: Tensor, angle: float) -> Tensor:
    """Return what target and source count `weight` of the way along the arc between them (slerp), [2, k] in float64.

    sin((1 - lambda) a) / sin(a) and sin(lambda a) / sin(a), whose gradients autograd takes.

    Args:
        weight: lambda, [k].
        angle: a, in radians, not 0 or pi.
    """
    return torch.stack((1 - weight, weight)).double().mul(angle).sin() / math.sin(angle)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row of `a` [k, n] with that of `b`, [k]; of one row without a temporary."""
    return torch.dot(a[0], b[0]).unsqueeze(0) if len(a) == 1 else torch.linalg.vecdot(a, b)
