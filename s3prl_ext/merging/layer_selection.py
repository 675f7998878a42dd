"""Choose by similarity which layers to merge (MAM, section 4.1, Table 3), and which layers are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.merging.similarity import SIMILARITIES, SWD_DIRECTIONS, draw_projections, swd


@dataclass(frozen=True)
class LayerTable:
    """How similar each layer of the target is to the source's.

    Attributes:
        metric: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`, which says whether large values are
            similar.
        values: one per layer.
        layers: which layers of the target these are; None for all of them.
    """

    metric: str
    values: tuple[float, ...]
    layers: tuple[int, ...] | None = None


def layer_table(
    x_layers: Sequence[Tensor],
    y_layers: Sequence[Tensor],
    metric: str,
    normalise: bool = False,
    projections: int = SWD_DIRECTIONS,
) -> LayerTable:
    """Compare equal layers of two encoders.

    Args:
        x_layers, y_layers: for each layer one vector per sample, [N, d], of target and source; for models of unequal
            depth the source's layers in the order of the layer map.
        metric: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.
        normalise: scale every vector to length 1 first; zero vectors stay.
        projections: directions of the sliced Wasserstein distance, shared by all layers.

    Raises:
        UsageError: unknown metric, or the numbers of layers, samples or coordinates do not fit.
        DataError: a vector holds NaN or infinity.
    """
    if metric not in SIMILARITIES:
        raise unknown_name("metric", metric, SIMILARITIES)
    _check(x_layers, y_layers, SIMILARITIES[metric].paired)
    if normalise:
        x_layers, y_layers = ([_unit_rows(vectors) for vectors in layers] for layers in (x_layers, y_layers))
    function = SIMILARITIES[metric].function
    if function is swd:
        first = x_layers[0]
        function = partial(swd, projections=draw_projections(first.shape[1], projections, 0, first.dtype, first.device))
    return LayerTable(metric, tuple(function(x, y) for x, y in zip(x_layers, y_layers, strict=True)))


def similarity_matrix(
    x_layers: Sequence[Tensor],
    y_layers: Sequence[Tensor],
    metric: str,
    normalise: bool = False,
    projections: int = SWD_DIRECTIONS,
) -> Tensor:
    """Compare every layer of one encoder with every layer of another: [layers of X, layers of Y].

    Args:
        x_layers, y_layers, metric, normalise, projections: as for :func:`layer_table`; the numbers of layers may
            differ.

    Raises:
        UsageError, DataError: as :func:`layer_table`.
    """
    rows = [layer_table([x] * len(y_layers), y_layers, metric, normalise, projections).values for x in x_layers]
    return torch.tensor(rows, dtype=torch.float64)


def match_layers(matrix: Tensor, metric: str, monotone: bool = True) -> list[int]:
    """Return for each layer of the target the source's layer that it is paired with.

    With `monotone` the map of least total distance (largest total similarity) among those that never go back, by
    dynamic
    programming: cost(i, j) = d(i, j) + min over j' <= j of cost(i - 1, j'). Otherwise the most similar layer of each.
    Of equally good layers the lower ones are taken.

    Args:
        matrix: as :func:`similarity_matrix` gives it.
        metric: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.
    """
    distance = (-matrix if SIMILARITIES[metric].largest else matrix).tolist()
    if not monotone:
        return [row.index(min(row)) for row in distance]
    costs, before = [distance[0]], []
    for row in distance[1:]:
        best, least = [], 0
        for layer, cost in enumerate(costs[-1]):
            least = layer if cost < costs[-1][least] else least
            best.append(least)
        before.append(best)
        costs.append([own + costs[-1][came] for own, came in zip(row, best, strict=True)])
    layer = costs[-1].index(min(costs[-1]))
    path = [layer]
    for best in reversed(before):
        layer = best[layer]
        path.append(layer)
    return path[::-1]


def top_k(table: LayerTable, k: int) -> tuple[int, ...]:
    """Return the k most similar layers, sorted by index; of equally similar layers the lower ones are taken.

    Raises:
        UsageError: k is not between 1 and the number of layers.
    """
    check_top_k(k, len(table.values))
    return tuple(sorted(ranking(table)[:k]))


def check_top_k(k: int, depth: int) -> None:
    """Check that k layers can be chosen from `depth`.

    Raises:
        UsageError: k is not between 1 and the number of layers.
    """
    if not 1 <= k <= depth:
        raise UsageError(f"top_k must be between 1 and the number of layers, {depth}, got {k}.")


def ranking(table: LayerTable) -> tuple[int, ...]:
    """Return all layers of a table, the most similar one first; equal ones by index."""
    sign = -1.0 if SIMILARITIES[table.metric].largest else 1.0
    layers = table.layers or tuple(range(len(table.values)))
    ranked = sorted(zip(layers, table.values, strict=True), key=lambda row: (sign * row[1], row[0]))
    return tuple(layer for layer, _ in ranked)


def _unit_rows(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _check(x_layers: Sequence[Tensor], y_layers: Sequence[Tensor], paired: bool) -> None:
    if len(x_layers) != len(y_layers) or not x_layers:
        raise UsageError(
            f"the target has {len(x_layers)} layers and the source {len(y_layers)}: layers are compared one by one."
        )
    for layer, (x, y) in enumerate(zip(x_layers, y_layers, strict=True)):
        if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
            raise UsageError(f"{_shapes(layer, x, y)}: both must be [samples, width] of the same width.")
        if paired and len(x) != len(y):
            raise UsageError(f"{_shapes(layer, x, y)}: this metric needs one of each for every pair.")
        for name, vectors in (("target", x), ("source", y)):
            if not vectors.isfinite().all():
                raise DataError(f"the vectors of layer {layer} of the {name} hold NaN or infinity.")


def _shapes(layer: int, x: Tensor, y: Tensor) -> str:
    return f"layer {layer} has vectors of shape {tuple(x.shape)} in the target and {tuple(y.shape)} in the source"
