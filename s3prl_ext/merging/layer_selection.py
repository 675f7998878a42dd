"""Choose the layers to merge: the k most similar ones of two encoders (MAM, section 4.1 and Table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.merging.similarity import METRICS


@dataclass(frozen=True)
class LayerTable:
    """How similar each layer of the target is to the source's.

    Attributes:
        metric: a name of :data:`s3prl_ext.merging.similarity.METRICS`, which says whether large values are similar.
        values: one per layer.
    """

    metric: str
    values: tuple[float, ...]


def layer_table(
    x_layers: Sequence[Tensor], y_layers: Sequence[Tensor], metric: str, normalise: bool = False
) -> LayerTable:
    """Compare equal layers of two encoders.

    Args:
        x_layers, y_layers: for each layer one vector per sample, [N, d], of target and source; for models of unequal
            depth the source's layers in the order of the layer map.
        metric: a name of :data:`s3prl_ext.merging.similarity.METRICS`.
        normalise: scale every vector to length 1 first; zero vectors stay.

    Raises:
        UsageError: unknown metric, or the numbers of layers, samples or coordinates do not fit.
        DataError: a vector holds NaN or infinity.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    _check(x_layers, y_layers, METRICS[metric].paired)
    if normalise:
        x_layers, y_layers = ([_unit_rows(vectors) for vectors in layers] for layers in (x_layers, y_layers))
    pairs = zip(x_layers, y_layers, strict=True)
    return LayerTable(metric, tuple(METRICS[metric].function(x, y) for x, y in pairs))


def top_k(table: LayerTable, k: int) -> tuple[int, ...]:
    """Return the k most similar layers, sorted by index; of equally similar layers the lower ones are taken.

    Raises:
        UsageError: k is not between 1 and the number of layers.
    """
    depth = len(table.values)
    if not 1 <= k <= depth:
        raise UsageError(f"top_k must lie between 1 and the number of layers, {depth}, but is {k}.")
    sign = -1.0 if METRICS[table.metric].largest else 1.0
    ranked = sorted(range(depth), key=lambda layer: (sign * table.values[layer], layer))
    return tuple(sorted(ranked[:k]))


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
