"""Bring the sources of a merge under the target's slots: lambdas, layer maps, noise, bases, alignment."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth, sha256
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Aligner
from s3prl_ext.merging.layers import align, resolve_layer_map
from s3prl_ext.merging.merge import Lambdas, Source, check_compatible, chosen_slots
from s3prl_ext.merging.noise import noise_moments, sample
from s3prl_ext.merging.resolution import resolve_lambdas
from s3prl_ext.merging.source_config import SourceModel
from s3prl_ext.upstreams.merged_attention.learnable import learnable_slots
from s3prl_ext.upstreams.merged_attention.models import (
    OpenedMerge,
    OpenedSource,
    find_source,
    model_name,
    source_name,
)
from s3prl_ext.upstreams.merged_attention.record import describe_model

logger = logging.getLogger(__name__)


def prepare_sources(merge: OpenedMerge, target: AttentionWeights) -> list[Source]:
    """Return the sources under the target's slots with their resolved lambdas; noise is drawn.

    Args:
        merge: with its layers chosen.
        target: the parameters that are merged into.

    Raises:
        UsageError: depth, width, layers or lambda do not fit, one line for each problem.
        DataError: NaN in a matrix whose statistics the noise needs.
    """
    lambdas, maps = resolve_sources(merge, target)
    prepared = []
    for index, (source, values, layer_map) in enumerate(zip(merge.sources, lambdas, maps, strict=True)):
        if merge.config.learnable is not None:
            slots = learnable_slots(merge.config, source.section, depth(target))
        else:
            slots = list(chosen_slots(target, values, merge.config.biases))
        _warn_heads(merge, source)
        base = _read_base(merge, target, source, layer_map)
        ready = _prepare(target, source, values, layer_map, slots, index)
        ready = dataclasses.replace(ready, base=base and align(base, layer_map), facts=_base_facts(source, base))
        aligner = aligner_of(merge, source)
        if aligner is not None:
            ready = _aligned(ready, target, aligner, source.section.noise is not None)
        if source.paired.moments is not None:
            ready = _with_moments(ready, source)
        prepared.append(ready)
    return prepared


def _warn_heads(merge: OpenedMerge, source: OpenedSource) -> None:
    """Warn where source and target split the same width into different numbers of heads."""
    if source.path is None or source.section.noise is not None or source.section.rotates:
        return
    found = merge.head_counts(source.section)
    if None not in found.values() and found["target"] != found["source"]:
        logger.warning(
            "The target has %d attention heads, the source %s %d: heads will not line up.",
            found["target"], source.name, found["source"],
        )  # fmt: skip


def resolve_sources(
    merge: OpenedMerge, target: AttentionWeights
) -> tuple[list[dict[str, list[float]]], list[list[int | None]]]:
    """Return lambdas and layer map of each source; report everything that does not fit at once."""
    problems: list[str] = []

    def attempt(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except UsageError as error:
            problems.append(str(error))

    config, maps = merge.config, []
    for source in merge.sources:
        section, weights = source.section, source.weights
        names = f"target {merge.name}", f"source {source_name(section)}"
        source_depth = None if weights is None else depth(weights)
        maps.append(attempt(resolve_layer_map, section.layer_map, depth(target), source_depth, names))
        if weights is not None and maps[-1] is not None:
            known = maps[-1] if section.layer_map is not None else None
            attempt(check_compatible, target, weights, names, config.biases, known, section.rotates)
    lambdas = attempt(resolve_lambdas, config, depth(target))
    if problems:
        raise UsageError("\n".join(problems))
    return lambdas, maps


def aligner_of(merge: OpenedMerge, source: OpenedSource) -> Aligner | None:
    """Return how a source is brought into the target's coordinates, None where it is merged as it is.

    Raises:
        UsageError: heads are to be paired, and their numbers differ or are not known.
    """
    section = source.section
    if section.align is None:
        return None
    heads = merge.heads(section)
    return Aligner(source.paired, heads, section.align.heads is not None, list(section.lambda_))


def _read_base(
    merge: OpenedMerge, target: AttentionWeights, source: OpenedSource, layer_map: list[int | None]
) -> AttentionWeights | None:
    """Return the attention of a source's base, None where it has none.

    Raises:
        UsageError: it does not fit the target, or has not the depth of the source.
        DataError: the model is missing, unreadable, or without attention.
    """
    section, weights, biases = source.section, source.weights, merge.config.biases
    model = section.base_for(merge.config.combination)
    if model is None:
        return None
    base = read_attention(find_source(model), model.prefix)
    if weights is not None and depth(base) != depth(weights):
        raise UsageError(
            f"base {model_name(model)} has {depth(base)} layers and source {source_name(section)} {depth(weights)}: "
            "name the model that the source was trained from."
        )
    names = f"target {merge.name}", f"base {model_name(model)}"
    if section.rotates and weights is not None:  # it is moved as the source is
        check_compatible(weights, base, (f"source {source_name(section)}", names[1]), biases)
    else:
        check_compatible(target, base, names, biases, layer_map if section.layer_map is not None else None)
    return base


def _base_facts(source: OpenedSource, base: AttentionWeights | None) -> dict[str, Any]:
    section = source.section
    model = section.base or SourceModel(section.model, section.package, section.prefix)
    return {} if base is None else {"base": describe_model(model_name(model), base)}


def _prepare(
    target: AttentionWeights,
    source: OpenedSource,
    lambdas: Lambdas,
    layer_map: list[int | None],
    slots: Sequence[Slot],
    index: int,
) -> Source:
    """Return a source under the target's slots, or noise for `slots` in its place."""
    section, weights = source.section, source.weights
    name = source_name(section)
    if section.noise is not None:
        own = align(weights, layer_map) if weights is not None and section.rotates else target
        shapes = {slot: own[slot].shape for slot in slots}
        noise = sample(shapes, noise_moments(section.noise, target, weights, layer_map), section.noise, index)
        return Source(noise, lambdas, name, None if weights is None else layer_map)
    assert weights is not None
    return Source(align(weights, layer_map), lambdas, name, layer_map)


def _aligned(source: Source, target: AttentionWeights, aligner: Aligner, noisy: bool) -> Source:
    """Return a source, or the noise in its place (`noisy`), with its base, in the target's coordinates."""
    aligned = aligner.apply(target, source.weights, source.base)
    facts = {**source.facts, **aligned.facts}
    drawn = sha256(source.weights) if aligner.basis is not None and noisy else None
    if "align" in facts:
        orders = facts["align"]["orders"]
        moved = sum(head != place for order in orders for place, head in enumerate(order))
        logger.info("heads of %s: %d of %d in another place", source.name, moved, sum(map(len, orders)))
    if aligner.basis is not None:
        facts["basis"] = aligner.basis.describe()
    changed = {"weights": aligned.weights, "base": aligned.base, "kept": aligned.kept, "drawn_sha256": drawn}
    return dataclasses.replace(source, facts=facts, **changed)  # type: ignore[arg-type]  # each of its field


def _with_moments(ready: Source, source: OpenedSource) -> Source:
    """Return a source with the second moments of what it and the target read."""
    moments = source.paired.common_moments()
    assert moments is not None
    return dataclasses.replace(ready, moments=moments, facts={**ready.facts, "moments": dict(moments.facts)})
