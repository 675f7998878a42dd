"""Put a learnable merge (L-MAM) on a target as its configuration says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import AttentionWeights, depth
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.interpolation import relative_change
from s3prl_ext.merging.layers import chosen_layers
from s3prl_ext.merging.learnable import LearnableSource, make_learnable
from s3prl_ext.merging.merge import MergeRow, Source, check_finite
from s3prl_ext.merging.source_config import SourceConfig


def learnable_slots(config: MergeConfig, source: SourceConfig, layers: int) -> list[Slot]:
    """Return the matrices that get a lambda of a source, also where its first value is 0.

    By default those of every layer (Eq. 3).

    Args:
        config: with the section ``learnable``.
        source: one of its sources, its layers as a list or range.
        layers: depth of the target.
    """
    assert config.learnable is not None
    chosen = chosen_layers(source.layers, source.layer_map, layers)
    if chosen and config.learnable.layers == "all":
        chosen = chosen_layers("all", source.layer_map, layers)
    return [Slot(layer, projection) for layer in chosen for projection in PROJECTIONS if projection in source.lambda_]


def describe_learnable(config: MergeConfig, layers: int) -> dict[str, Any] | None:
    """Return what a checkpoint must share with the model it is loaded into, as plain values.

    None where lambda is fixed. Layers and projections are those of all sources; of several, ``sources`` has them one by
    one.
    """
    if config.learnable is None:
        return None
    slots = [learnable_slots(config, source, layers) for source in config.sources]
    described = dataclasses.asdict(config.learnable) | _extent([slot for each in slots for slot in each])
    return described if len(slots) == 1 else described | {"sources": [_extent(each) for each in slots]}


def _extent(slots: Sequence[Slot]) -> dict[str, Any]:
    return {
        "layers": sorted({slot.layer for slot in slots}),
        "projections": [p for p in PROJECTIONS if any(slot.projection == p for slot in slots)],
    }


def install_learnable(
    upstream: torch.nn.Module, target: AttentionWeights, sources: Sequence[Source], config: MergeConfig, name: str
) -> list[MergeRow]:
    """Put the learnable merge on the target's weights, in place, and return a report of its first values.

    Args:
        target: the parameters of `upstream`, as views.
        sources: under the target's slots, with the first lambdas.
        name: what the target is called in messages.

    Raises:
        UsageError: the first values do not fit granularity or constraint, or q, k and v are one tensor.
        DataError: NaN or infinity in a matrix.
    """
    assert config.learnable is not None
    slots = [learnable_slots(config, source, depth(target)) for source in config.sources]
    merged = [slot for slot in target if any(slot in each for each in slots)]
    check_finite(target, merged, "the target")
    for source, each in zip(sources, slots, strict=True):
        check_finite(source.weights, each, f"the source {source.name}".rstrip(), source.layer)
    rows = []
    for slot in merged:
        used = [(number, s) for number, (s, each) in enumerate(zip(sources, slots, strict=True)) if slot in each]
        firsts = [source.lambdas[slot.projection][slot.layer] for _, source in used]
        parts = [source.part(slot, first, number) for (number, source), first in zip(used, firsts, strict=True)]
        change = relative_change(target[slot], config.combination.combine(target[slot], parts, slot))
        rows += [
            MergeRow(slot.layer, slot.projection, first, change, s.name, s.layer(slot), s.kept.get(slot))
            for (_, s), first in zip(used, firsts, strict=True)
        ]
    learnt = [
        LearnableSource(
            source.weights,
            {projection: source.lambdas[projection] for projection in described.lambda_},
            sorted({slot.layer for slot in each}),
            source.name,
        )
        for source, described, each in zip(sources, config.sources, slots, strict=True)
    ]
    make_learnable(upstream, learnt, config.learnable, f"target {name}", method=config.combination)
    return rows
