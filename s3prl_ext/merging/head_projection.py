"""Bring query, key and value of a source with other heads than the target's into the target's shape.

Head i of the target takes one head of the source. Where heads have the same width its rows are taken as they are. Where
not, they are rotated by L, [target width, source width] with orthonormal rows or columns, which minimizes |W_t - L
W_s|^2: with W_t W_s^T = U S V^T it is L = U V^T. Query and key share L, over the sum of both products, so that where
the target's heads are the wider ones <L q, L k> = <q, k>; the query is multiplied by the root of the ratio of widths,
since a model divides this product by the root of its own width. Then a source's attention weighs its tokens as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment import assign
from s3prl_ext.merging.interpolation import dtype_of_sum

ROTATED_TOGETHER = (("q_proj", "k_proj"), ("v_proj",))


@dataclass(frozen=True)
class Placement:
    """Which head of a source each head of one layer of the target takes, and how it is rotated.

    Attributes:
        order: source head for each target head.
        heads: number of heads of the source.
        rotations: projection -> L for each target head, [heads, target width, source width], float64; empty where heads
            have the same width.
    """

    order: tuple[int, ...]
    heads: int
    rotations: Mapping[str, Tensor]

    def apply(self, tensor: Tensor, projection: str) -> Tensor:
        """Return the rows of a matrix [out, in], or the entries of a bias [out], in the target's heads.

        Not yet scaled.
        """
        blocks = tensor.reshape(self.heads, -1, *tensor.shape[1:])[list(self.order)]
        if projection in self.rotations:
            rotation = self.rotations[projection].to(tensor.device, dtype_of_sum(tensor))
            blocks = torch.einsum("iab,ib...->ia...", rotation, blocks.to(rotation.dtype))
        return blocks.reshape(-1, *tensor.shape[1:])

    def scale(self, projection: str) -> float:
        """Return the factor of a projection: of the query the root of the ratio of widths, otherwise 1."""
        if projection != "q_proj" or projection not in self.rotations:
            return 1.0
        ours, theirs = self.rotations[projection].shape[1:]
        return math.sqrt(ours / theirs)


def place_heads(
    target: AttentionWeights,
    source: AttentionWeights,
    heads: tuple[int, int],
    projections: Sequence[str],
    pair: bool,
    alike: Mapping[int, Tensor] | None = None,
) -> dict[int, Placement]:
    """Return for each layer how the heads of a source are placed in those of the target.

    Args:
        source: under the target's slots, reading vectors of the target's width.
        heads: number of heads of target and source.
        projections: matrices that are compared.
        pair: take the assignment of heads of least squared distance, each source head at most ceil(target heads /
            source heads) times; otherwise target head i takes source head floor(i * source heads / target heads).
        alike: layer -> [heads of the target, heads of the source], what an assignment maximizes in place of the
            likeness of matrices; None for that.

    Raises:
        UsageError: the rows of a matrix cannot be divided into these heads.
    """
    placements = {}
    for layer in sorted({slot.layer for slot in source}):
        present = [p for p in projections if Slot(layer, p) in source and Slot(layer, p) in target]
        if present:
            ours = {p: _by_head(target[Slot(layer, p)], heads[0], "the target") for p in present}
            theirs = {p: _by_head(source[Slot(layer, p)], heads[1], "the source") for p in present}
            placements[layer] = _placement(ours, theirs, pair, None if alike is None else alike[layer])
    return placements


def _placement(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], pair: bool, alike: Tensor | None) -> Placement:
    """Return the placement of one layer; matrices by head, [heads, width of a head, in]."""
    first, other = next(iter(ours.values())), next(iter(theirs.values()))
    count, heads, rotated = len(first), len(other), first.shape[1] != other.shape[1]
    products = {
        group: torch.stack([torch.einsum("iad,jbd->ijab", ours[p], theirs[p]) for p in group if p in ours]).sum(0)
        for group in ROTATED_TOGETHER
        if any(p in ours for p in group)
    }
    order = [place * heads // count for place in range(count)]
    if pair:
        order = assign(_likeness(list(products.values()), rotated) if alike is None else alike)
    rotations: dict[str, Tensor] = {}
    for group, product in products.items() if rotated else ():
        left, _, right = torch.linalg.svd(product[range(count), order], full_matrices=False)
        rotations |= {p: left @ right for p in group}
    return Placement(tuple(order), heads, rotations)


def _likeness(products: Sequence[Tensor], rotated: bool) -> Tensor:
    """Return the sum of <W_t, W_s>, or of its largest value over the rotations of a head, for each two heads."""
    return torch.stack([
        torch.linalg.svdvals(product).sum(-1) if rotated else torch.einsum("ijaa->ij", product) for product in products
    ]).sum(0)  # fmt: skip


def _by_head(matrix: Tensor, heads: int, name: str) -> Tensor:
    if matrix.shape[0] % heads:
        raise UsageError(f"a matrix of {matrix.shape[0]} rows of {name} cannot be divided into {heads} heads.")
    return matrix.detach().double().reshape(heads, -1, matrix.shape[1])
