"""Put a learnable merge (L-MAM) on a target as its configuration says."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import AttentionWeights, depth
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.interpolation import relative_change
from s3prl_ext.merging.layers import chosen_layers
from s3prl_ext.merging.learnable import make_learnable
from s3prl_ext.merging.merge import Source, check_finite
from s3prl_ext.merging.report import MergeRow


def learnable_slots(config: MergeConfig, layers: int) -> list[Slot]:
    """Return the matrices that get a lambda, also where its first value is 0: by default those of every layer (Eq. 3).

    Args:
        config: with the section ``learnable``, one source, and its layers as a list or range.
        layers: depth of the target.
    """
    assert config.learnable is not None
    (source,) = config.sources
    chosen = chosen_layers(source.layers, source.layer_map, layers)
    if chosen and config.learnable.layers == "all":
        chosen = chosen_layers("all", source.layer_map, layers)
    return [Slot(layer, projection) for layer in chosen for projection in PROJECTIONS if projection in source.lambda_]


def describe_learnable(config: MergeConfig, layers: int) -> dict[str, Any] | None:
    """Return what a checkpoint must share with the model it is loaded into, as plain values.

    None where lambda is fixed.
    """
    if config.learnable is None:
        return None
    slots = learnable_slots(config, layers)
    return dataclasses.asdict(config.learnable) | {
        "layers": sorted({slot.layer for slot in slots}),
        "projections": [p for p in PROJECTIONS if any(slot.projection == p for slot in slots)],
    }


def install_learnable(
    upstream: torch.nn.Module, target: AttentionWeights, source: Source, config: MergeConfig, name: str
) -> list[MergeRow]:
    """Put the learnable merge on the target's weights, in place, and return a report of its first values.

    Args:
        target: the parameters of `upstream`, as views.
        source: under the target's slots, with the first lambdas.
        name: what the target is called in messages.

    Raises:
        UsageError: the first values do not fit granularity or constraint, or q, k and v are one tensor.
        DataError: NaN or infinity in a matrix.
    """
    assert config.learnable is not None
    slots = learnable_slots(config, depth(target))
    check_finite(target, slots, "the target")
    check_finite(source.weights, slots, f"the source {source.name}".rstrip(), source.layer)
    rows = []
    for slot in slots:
        first = source.lambdas[slot.projection][slot.layer]
        merged = config.combination.combine(target[slot], [source.part(slot, first, 0)], slot)
        change = relative_change(target[slot], merged)
        kept = source.kept.get(slot)
        rows.append(MergeRow(slot.layer, slot.projection, first, change, source.name, source.layer(slot), kept))
    layers = sorted({slot.layer for slot in slots})
    initial = {projection: source.lambdas[projection] for projection in config.sources[0].lambda_}
    make_learnable(
        upstream, source.weights, initial, layers, config.learnable, f"target {name}", method=config.combination
    )
    return rows
