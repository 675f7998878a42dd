"""Child networks of whole rows or attention heads.

The weights of an output neuron, or of a head, train together or not.

A unit is an index along one axis of one or more tensors: row i of a weight matrix and entry i of its bias; for ``head``
the rows of query, key and value that belong to a head, their biases, and the head's columns of the output projection
(everything else stays in rows). Units are ordered by their score per weight, the sum of the scores of their weights
over their number: the greedy answer to which of them hold the largest sum within k weights. The longest prefix that
fits into k is chosen, so a smaller density gives a subset, and k is missed by less than one unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from s3prl_ext.child_tuning.budgets import groups_of, joined
from s3prl_ext.child_tuning.masks import NestedMask, child_size, score_histogram
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.architectures import PROJECTIONS, encoder_layers, part_of


@dataclass(frozen=True)
class Place:
    """Where the units of a tensor are.

    Attributes:
        shape: of the tensor.
        start: number of its first unit.
        axis: the axis that its units divide.
        width: how many indices of that axis are one unit.
    """

    shape: tuple[int, ...]
    start: int
    axis: int = 0
    width: int = 1

    @property
    def count(self) -> int:
        """How many units it has."""
        return self.shape[self.axis] // self.width


def places_of(
    shapes: Mapping[str, tuple[int, ...]], unit: str, heads: Mapping[str, int] | None = None
) -> dict[str, Place]:
    """Return where the units of each tensor are.

    Args:
        shapes: by parameter name.
        unit: ``row`` or ``head``.
        heads: for ``head``: see :func:`s3prl_ext.models.heads.head_counts`.

    Raises:
        UsageError: no weight belongs to a head, the number of heads is not known, or query, key, value and output do
            not have as many heads of one width.
    """
    places: dict[str, Place] = {}
    starts: dict[object, tuple[int, int]] = {}  # module, or the heads of a layer -> first unit, number of units
    widths: dict[str, int] = {}  # the heads of a layer -> rows of each
    layers = encoder_layers(shapes) if unit == "head" else {}
    parts = _parts(shapes, layers)
    total = 0
    for name, shape in shapes.items():
        within = layers[name][1] if name in layers else ""
        part = parts.get(name)
        axis, width, owner = 0, 1, name.rpartition(".")[0]
        if part in PROJECTIONS or (part == "out_proj" and len(shape) == 2):
            owner = f"heads of {name.removesuffix(within)}"
            axis = 1 if part == "out_proj" else 0
            width = _head_width(name, shape[axis], within, heads or {}, widths.get(owner))
            widths[owner] = width
        count = shape[axis] // width
        if starts.get(owner, (0, count))[1] != count:  # such as a table next to a vector
            owner = name
        if owner not in starts:
            starts[owner] = total, count
            total += count
        places[name] = Place(shape, starts[owner][0], axis, width)
    if unit == "head" and not widths:
        raise UsageError(
            "tuning.unit head: none of the eligible weights is a query, key, value or output projection of its own "
            "(some models stack them in one matrix): use unit: row, or change tuning.eligible."
        )
    return places


def _parts(shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, str]]) -> dict[str, str | None]:
    """Return the linear map that each parameter of a layer belongs to.

    A family whose output projection has no name in the table (text models) has it found: the one matrix next to query,
    key and value that reads as many columns as the value has rows.

    Raises:
        UsageError: there are several such matrices.
    """
    parts = {name: part_of(within) for name, (_, within) in layers.items()}
    values = [name for name, part in parts.items() if part == "v_proj" and len(shapes[name]) == 2]
    for value in values:
        layer = value.removesuffix(layers[value][1])
        own = [name for name in layers if name.startswith(layer)]
        if any(parts[name] == "out_proj" for name in own):
            continue
        attention = f"{layer}{layers[value][1].partition('.')[0]}."
        outputs = [
            name
            for name in own
            if name.startswith(attention) and parts[name] is None and shapes[name][1:] == shapes[value][:1]
        ]
        if len(outputs) > 1:
            raise UsageError(
                f"tuning.unit head: it is not clear which of {', '.join(outputs)} the outputs of heads go to: use "
                "unit: row, or leave the others out by tuning.eligible."
            )
        parts |= dict.fromkeys(outputs, "out_proj")
        if outputs:
            bias = f"{outputs[0].rpartition('.')[0]}.bias"
            parts |= {bias: "out_proj"} if bias in layers else {}
    return parts


def _head_width(name: str, length: int, within: str, heads: Mapping[str, int], width: int | None) -> int:
    """Return how many rows of a projection a head has; `width` is that of the layer's projections before it."""
    layer = name.removesuffix(within).rstrip(".")
    found = {count for module, count in heads.items() if f"{module}.".startswith(f"{layer}.")}
    if len(found) != 1:
        raise UsageError(
            f"tuning.unit head: the upstream does not say how many attention heads {layer} has; use unit: row."
        )
    (count,) = found
    if length % count or width not in (None, length // count):
        raise UsageError(
            f"tuning.unit head: {name} has {length} rows for {count} attention heads (key and value are shared by "
            "several heads, or stacked): use unit: row."
        )
    return length // count


def nested_units(
    scores: Mapping[str, torch.Tensor], densities: Sequence[float], places: Mapping[str, Place], budget: str = "global"
) -> NestedMask:
    """Select whole units by the score per weight, at most round(density x N) weights.

    Args:
        scores: as for :func:`s3prl_ext.child_tuning.masks.nested_top_k`.
        densities: fractions of all N entries, in (0, 1].
        places: see :func:`places_of`.
        budget: ``global`` or ``layer``.

    Raises:
        DataError: a score is negative, NaN or infinite, all are zero, or the best unit of every group is larger than
            the k of a density, which would be an empty child network.
    """
    score_histogram(scores)  # refuses scores that nothing can be chosen from
    sums = np.zeros(_count(places), np.float64)
    for name, place in places.items():
        by_unit = _by_unit(scores[name], place)
        sums[place.start : place.start + place.count] += by_unit.double().cpu().numpy()
    return _chosen(sums / _sizes(places), densities, places, budget)


def random_units(densities: Sequence[float], places: Mapping[str, Place], seed: int, budget: str) -> NestedMask:
    """Draw whole units, each as likely as any other, at most round(density x N) weights; see :func:`nested_units`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 1 - torch.rand(_count(places), generator=generator, dtype=torch.float64).numpy()
    return _chosen(drawn, densities, places, budget)


def _count(places: Mapping[str, Place]) -> int:
    return max(place.start + place.count for place in places.values())


def _by_unit(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    others = [axis for axis in range(tensor.dim()) if axis != place.axis]
    along = tensor.sum(others, dtype=torch.float64) if others else tensor.double()
    return along.reshape(-1, place.width).sum(1)


def _sizes(places: Mapping[str, Place]) -> np.ndarray:
    """Return the number of weights of each unit."""
    sizes = np.zeros(_count(places), np.int64)
    for place in places.values():
        sizes[place.start : place.start + place.count] += int(np.prod(place.shape)) // place.count
    return sizes


def _chosen(values: np.ndarray, densities: Sequence[float], places: Mapping[str, Place], budget: str) -> NestedMask:
    """Return the masks of the units of largest value in each group."""
    densities = tuple(sorted(set(densities), reverse=True))
    sizes, levels = _sizes(places), np.zeros(len(values), np.uint8)
    for group in groups_of(places, budget):
        units = np.unique(np.concatenate([np.arange(p.start, p.start + p.count) for p in map(places.get, group) if p]))
        if not values[units].any():
            continue  # without gradient
        best = units[np.argsort(-values[units], kind="stable")]
        filled = sizes[best].cumsum()
        for density in densities:
            levels[best[filled <= child_size(int(filled[-1]), density)]] += 1
    if levels.max() < len(densities):
        empty = densities[levels.max()]
        raise DataError(
            f"a density of {empty:g} is less than one whole unit of this upstream (up to {sizes.max():,} "
            "weights): choose a larger density, or tuning.unit: entry."
        )
    return joined([NestedMask(densities, *_entries(levels, places))], places)


def _entries(
    levels: np.ndarray, places: Mapping[str, Place]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the flat indices of the units' entries and their levels, by tensor."""
    indices, found = {}, {}
    for name, place in places.items():
        along = torch.from_numpy(levels[place.start : place.start + place.count]).repeat_interleave(place.width)
        if not along.any():
            continue
        rows = int(np.prod(place.shape[: place.axis], dtype=np.int64))
        inner = int(np.prod(place.shape[place.axis + 1 :], dtype=np.int64))
        chosen = along.nonzero().squeeze(1)
        offsets = (chosen[:, None] * inner + torch.arange(inner)).reshape(-1)
        flat = torch.arange(rows)[:, None] * (len(along) * inner) + offsets
        indices[name] = flat.reshape(-1).to(torch.int32)
        found[name] = along[chosen].repeat_interleave(inner).repeat(rows)
    return indices, found
