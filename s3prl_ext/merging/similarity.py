"""How similar the layers of two encoders are, from paired vectors: audio in one, its transcript in the other.

X and Y hold one vector per sample, [N, d], such as the mean of a block's output over time; row n of both is the same
sample. MAM, section 4.1 and Table 3. The sliced Wasserstein distance (Kolouri et al., 2019; Bonneel et al., 2015)
compares the two sets of vectors, so it does not see which row belongs to which, and the sets may differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s3prl_ext.merging.names import SWD_DIRECTIONS


@dataclass(frozen=True)
class Similarity:
    """A row of the table of metrics.

    Attributes:
        function: X [N, d], Y [N, d] -> one number.
        largest: whether the largest value is the most similar; otherwise the smallest is.
        paired: whether row n of X must belong to row n of Y.
    """

    function: Callable[[Tensor, Tensor], float]
    largest: bool
    paired: bool


def euclidean(x: Tensor, y: Tensor) -> float:
    """Return the mean over pairs of ||x_n - y_n||."""
    return torch.linalg.vector_norm(x - y, dim=1).mean(dtype=torch.float64).item()


def inner_product(x: Tensor, y: Tensor) -> float:
    """Return the mean over pairs of <x_n, y_n>."""
    return torch.linalg.vecdot(x, y).mean(dtype=torch.float64).item()


def swd(x: Tensor, y: Tensor, projections: Tensor | None = None) -> float:
    """Return the sliced Wasserstein distance, p = 2, between the sets of rows of two matrices.

    It is the root of the mean over directions of the squared distance between the sorted projections, as
    ``ot.sliced_wasserstein_distance`` of the library POT.

    Args:
        x, y: [N, d] and [M, d].
        projections: directions of length 1 in columns, [d, P]; None draws :data:`SWD_DIRECTIONS` with seed 0.
    """
    if projections is None:
        projections = draw_projections(x.shape[1], dtype=x.dtype, device=x.device)
    x_sorted, y_sorted = _sorted_projections(x, projections), _sorted_projections(y, projections)
    return _distance(x_sorted, y_sorted, spare=x_sorted)


def swd_coordinates(x: Tensor, y: Tensor) -> float:
    """Return the mean over pairs of the one-dimensional Wasserstein distance, p = 2, between their d coordinates."""
    difference = _sort_rows(x).sub_(_sort_rows(y))
    return difference.square_().mean(dim=1).sqrt_().mean(dtype=torch.float64).item()


SIMILARITIES = {  # by the names of SIMILARITY_NAMES
    "euclidean": Similarity(euclidean, largest=False, paired=True),
    "inner_product": Similarity(inner_product, largest=True, paired=True),
    "swd": Similarity(swd, largest=False, paired=False),
    "swd_coordinates": Similarity(swd_coordinates, largest=False, paired=True),
}


def draw_projections(
    width: int,
    count: int = SWD_DIRECTIONS,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return `count` directions, uniform on the unit sphere, in columns: [width, count].

    The global RNG is untouched.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, count, generator=generator, dtype=torch.float64)
    return (directions / torch.linalg.vector_norm(directions, dim=0)).to(device, dtype)


def swd_matrix(x_layers: Sequence[Tensor], y_layers: Sequence[Tensor], projections: Tensor | None = None) -> Tensor:
    """Return :func:`swd` between every layer of X and every layer of Y, [layers of X, layers of Y].

    All share their directions, and each layer is projected and sorted once.
    """
    if projections is None:
        first = x_layers[0]
        projections = draw_projections(first.shape[1], dtype=first.dtype, device=first.device)
    x_sorted = [_sorted_projections(x, projections) for x in x_layers]
    y_sorted = [_sorted_projections(y, projections) for y in y_layers]
    rows = []
    for x in x_sorted:
        spare = torch.empty_like(x)
        rows.append([_distance(x, y, spare) for y in y_sorted])
    return torch.tensor(rows, dtype=torch.float64)


def _sorted_projections(vectors: Tensor, projections: Tensor) -> Tensor:
    """Return the projections of the rows of `vectors` on each direction in ascending order, [P, N].

    On a CPU NumPy does both steps: it sorts several times faster than torch, and here in place.
    """
    if not _numpy_can(vectors):
        return (projections.T @ vectors.detach().T).sort(dim=1).values
    projected = projections.detach().numpy().T @ vectors.detach().numpy().T
    projected.sort(axis=1)
    return torch.from_numpy(projected)


def _sort_rows(values: Tensor) -> Tensor:
    """Return a copy with each row in ascending order."""
    if not _numpy_can(values):
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=1))


def _numpy_can(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


def _distance(x: Tensor, y: Tensor, spare: Tensor | None = None) -> float:
    """Return the root of the mean squared distance between sorted samples, [P, N] and [P, M].

    Args:
        spare: memory of the shape of `x` for the difference of sets of equal size; it may be `x` itself.
    """
    if x.shape == y.shape:
        difference = torch.sub(x, y, out=spare).view(-1)
        return math.sqrt(torch.dot(difference, difference).item() / difference.numel())
    lengths, x_index, y_index = (part.to(x.device) for part in _quantiles(x.shape[1], y.shape[1]))
    squares = (x[:, x_index] - y[:, y_index]).square_()
    return math.sqrt((squares @ lengths.to(squares.dtype)).mean().item())


def _quantiles(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pieces on which both quantile functions are constant: lengths, and the index of each in n and in m."""
    common = math.lcm(n, m)
    ends = torch.cat([torch.arange(1, n + 1) * (common // n), torch.arange(1, m + 1) * (common // m)]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return (ends - starts).double() / common, starts // (common // n), starts // (common // m)
