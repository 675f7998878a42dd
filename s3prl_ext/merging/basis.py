"""Rotate the hidden space of a source onto that of the target: orthogonal Procrustes from paired inputs.

Two models that were trained apart write the same thing in other coordinates. With x_n and y_n what the attention of
target and source reads for pair n, R minimizes sum_n |y_n - R x_n|^2 over matrices with orthonormal rows or columns:
with Y^T X = U S V^T it is R = U V^T (Schönemann, 1966). The source's matrices then read the target's vectors: W_s R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.interpolation import dtype_of_sum


@dataclass(frozen=True)
class Rotation:
    """How the vectors that one layer reads are rotated.

    Attributes:
        matrix: R, [source width, target width], float64.
        rank: directions that the pairs determine.
        fit: trace of R^T Y^T X over |X| |Y|, in [0, 1]: 1 where the vectors are equal up to a rotation and a factor.
    """

    matrix: Tensor
    rank: int
    fit: float


@dataclass(frozen=True)
class Basis:
    """The source's hidden space in the target's coordinates.

    Attributes:
        rotations: target layer -> how the vectors that its attention reads are rotated into those of the source's
            layer.
        facts: where it comes from, as plain values: pairs and settings.
    """

    rotations: Mapping[int, Rotation]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, weights: AttentionWeights) -> AttentionWeights:
        """Return W_s R for the matrices of a source, biases as they are.

        Args:
            weights: under the target's slots.

        Raises:
            UsageError: a matrix does not read vectors of the source's width.
        """
        return {
            slot: self._rotated(slot, tensor) if slot.kind == "weight" else tensor for slot, tensor in weights.items()
        }

    def describe(self) -> dict[str, Any]:
        """Return the basis as plain values, for the record of a merge."""
        layers = sorted(self.rotations)
        return {
            **self.facts,
            "layers": layers,
            "fit": [self.rotations[layer].fit for layer in layers],
            "directions": [self.rotations[layer].rank for layer in layers],
        }

    def _rotated(self, slot: Any, tensor: Tensor) -> Tensor:
        matrix = self.rotations[slot.layer].matrix
        if tensor.shape[1] != len(matrix):
            raise UsageError(
                f"{slot} reads {tensor.shape[1]} values, but the basis is that of vectors of {len(matrix)}."
            )
        dtype = dtype_of_sum(tensor)
        return tensor.detach().to(dtype) @ matrix.to(tensor.device, dtype)


def procrustes(x: Tensor, y: Tensor) -> Rotation:
    """Return R that maximizes sum_n <y_n, R x_n> over matrices with orthonormal rows or columns.

    With equal widths it minimizes sum_n |y_n - R x_n|^2. Directions that the pairs do not determine (fewer pairs than
    coordinates) then stay where they are, as nearly as R allows, so that a model paired with itself is not rotated; of
    unequal widths they are left out.

    Args:
        x: vectors of the target, [pairs, width].
        y: those of the source for the same pairs, [pairs, width of the source].

    Raises:
        UsageError: the numbers of pairs differ.
    """
    if len(x) != len(y):
        raise UsageError(
            f"a basis needs vectors of the same pairs, got {tuple(x.shape)} of the target and {tuple(y.shape)} of the "
            "source."
        )
    x, y = x.double(), y.double()
    left, values, right = torch.linalg.svd(y.T @ x)
    rank = int((values > values[0] * max(left.shape[0], right.shape[0]) * torch.finfo(values.dtype).eps).sum())
    matrix = left[:, :rank] @ right[:rank]
    if rank < len(values) and left.shape == right.shape:  # of all completions the one with the largest trace
        rest, other = left[:, rank:], right[rank:]
        first, _, second = torch.linalg.svd(rest.T @ other.T)
        matrix = matrix + rest @ first @ second @ other
    scale = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    return Rotation(matrix, rank, float(values.sum() / scale) if scale > 0 else 0.0)


def basis_of(x: Tensor, y: Tensor, layers: Sequence[int | None], facts: Mapping[str, Any]) -> Basis:
    """Return the basis of a source by its paired vectors.

    Args:
        x, y: vectors of target and source, [pairs, layers, width].
        layers: source layer for each target layer, None for one that is paired with none.
        facts: where they come from.
    """
    meeting = [(layer, other) for layer, other in enumerate(layers) if other is not None]
    return Basis({layer: procrustes(x[:, layer], y[:, other]) for layer, other in meeting}, facts)
