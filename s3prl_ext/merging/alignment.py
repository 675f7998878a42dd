"""Which heads of source and target are paired: permute its q, k and v rows by head before a merge.

The heads of a layer have no order: a model whose heads are permuted, together with the columns of its output
projection, is the same function. Interpolation pairs head i with head i all the same (MAM, Eq. 1); an assignment pairs
those that are alike (after the alignment of permuted units of Ainsworth et al., 2023, arXiv:2209.04836; by layer, heads
only), by their matrices or by what they do on paired inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import UsageError


def align_heads(
    target: AttentionWeights,
    source: AttentionWeights,
    heads: int,
    projections: Sequence[str],
    alike: Mapping[int, Tensor] | None = None,
) -> tuple[AttentionWeights, dict[int, list[int]]]:
    """Return the source with the heads of each layer in the order of the target's, and that order.

    Head i of the target is paired with the source's head ``order[layer][i]``: the assignment that maximizes the sum
    over heads of <W_target[i], W_source[j]>, summed over the matrices of `projections`, which is the one with the least
    squared distance. Of a source that is the target with permuted heads it gives the target back, bit for bit.

    Args:
        source: under the target's slots; slots of either model that the other lacks are left as they are.
        heads: number of heads of both models.
        projections: matrices that are compared; those, their biases and no others are permuted.
        alike: target layer -> [heads of the target, heads of the source], what is maximized in place of the products;
            None for these.

    Raises:
        UsageError: the width of a matrix is not a multiple of `heads`.
    """
    orders = {}
    for layer in sorted({slot.layer for slot in source}):
        slots = [Slot(layer, projection) for projection in projections]
        compared = [slot for slot in slots if slot in source and slot in target]
        if compared:
            products = _products([target[slot] for slot in compared], [source[slot] for slot in compared], heads)
            orders[layer] = assign(products if alike is None else alike[layer])
    permuted = {
        slot: permute_heads(tensor, orders[slot.layer])
        if slot.layer in orders and slot.projection in projections
        else tensor
        for slot, tensor in source.items()
    }
    return permuted, orders


def check_ungrouped(weights: AttentionWeights, name: str) -> None:
    """Check that every query head has a key and value head of its own.

    Args:
        name: what the model is called in the message.

    Raises:
        UsageError: groups of query heads share them (grouped-query attention).
    """
    for slot, tensor in weights.items():
        query = weights.get(slot._replace(projection="q_proj"))
        if query is not None and len(tensor) != len(query):
            raise UsageError(
                f"{slot} of {name} has {len(tensor)} rows and its query {len(query)}: groups of query heads share a "
                "key and value head, so that heads cannot be taken one by one."
            )


def permute_heads(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return the rows of a matrix [out, in], or the entries of a bias [out], with head ``order[i]`` at place i."""
    blocks = tensor.reshape(len(order), -1, *tensor.shape[1:])
    return blocks[list(order)].reshape(tensor.shape)


def assign(alike: Tensor) -> list[int]:
    """Return the column for each row with the largest sum; a column is taken at most ceil(rows / columns) times."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = alike.shape
    _, chosen = linear_sum_assignment(alike.repeat(1, math.ceil(rows / columns)).cpu().numpy(), maximize=True)
    return [int(place) % columns for place in chosen]


def _products(target: Sequence[Tensor], source: Sequence[Tensor], heads: int) -> Tensor:
    """Return the inner product of each head of the target with each of the source in one layer."""
    total = torch.zeros(heads, heads, dtype=torch.float64)
    for ours, theirs in zip(target, source, strict=True):
        if ours.shape[0] % heads:
            raise UsageError(
                f"a matrix of {ours.shape[0]} rows cannot be divided into {heads} heads: correct align.heads."
            )
        total += (_by_head(ours, heads) @ _by_head(theirs, heads).T).cpu()
    return total


def _by_head(matrix: Tensor, heads: int) -> Tensor:
    return matrix.detach().double().reshape(heads, -1)


@dataclass(frozen=True)
class HeadLikeness:
    """How alike heads are, layer by layer.

    Attributes:
        values: target layer -> [heads of the target, heads of the source], in [0, 1].
        facts: by what, and on which pairs, as plain values.
    """

    values: Mapping[int, Tensor]
    facts: Mapping[str, Any]


def alike_by_outputs(x: Tensor, y: Tensor) -> Tensor:
    """Return how alike the outputs of heads are up to a rotation, [heads of X, heads of Y].

    Of the centred vectors of two heads, |X_i^T Y_j|_* / (|X_i| |Y_j|) with the nuclear norm: 1 where one is the other
    rotated and scaled, as what the value matrix of a head writes into is rotated by the output projection. A head that
    always gives the same is like none.

    Args:
        x, y: mean over time of each head's output for the same pairs, [pairs, heads, width of a head].
    """
    x, y = (vectors.double() - vectors.double().mean(0) for vectors in (x, y))
    products = torch.linalg.svdvals(torch.einsum("nia,njb->ijab", x, y)).sum(-1)
    norms = torch.linalg.vector_norm(x, dim=(0, 2))[:, None] * torch.linalg.vector_norm(y, dim=(0, 2))
    return torch.where(norms > 0, products / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)


def alike_by_patterns(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine of the attention patterns of heads on one clip, [heads of X, heads of Y].

    Args:
        x, y: weights of attention, [heads, time, time], of equal time.
    """
    x, y = (torch.nn.functional.normalize(patterns.double().flatten(1), dim=1) for patterns in (x, y))
    return x @ y.T
