"""How alike the heads of two models are by what they do on paired inputs, in place of their matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
