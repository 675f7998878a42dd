"""Read the sources of a merge and bring them under the target's slots: layer maps, noise, bases, alignment."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.attention.files import find_model, find_package_model, read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.peft_files import with_adapter
from s3prl_ext.attention.weights import AttentionWeights, depth, sha256
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Aligner, Paired
from s3prl_ext.merging.config import MergeConfig, SourceConfig, SourceModel, TargetConfig, resolve_lambdas
from s3prl_ext.merging.layers import align, resolve_layer_map
from s3prl_ext.merging.merge import Lambdas, Source, check_compatible, chosen_slots
from s3prl_ext.merging.noise import noise_moments, sample
from s3prl_ext.model_settings import head_count
from s3prl_ext.upstreams.merged_attention.learnable import learnable_slots
from s3prl_ext.upstreams.merged_attention.record import describe_model
from s3prl_ext.upstreams.merged_attention.targets import model_of, target_name, with_prefix

logger = logging.getLogger(__name__)

NOTHING_PAIRED = Paired()


def read_sources(config: MergeConfig) -> tuple[list[Path | None], list[AttentionWeights | None]]:
    """Return path and attention parameters of each source, None for noise that needs no source.

    Raises:
        DataError: a model is missing, unreadable, or without attention.
    """
    paths = [find_source(source) if source.is_read else None for source in config.sources]
    weights = [read_source(source, path) if path else None for path, source in zip(paths, config.sources, strict=True)]
    return paths, weights


def read_source(source: SourceConfig, path: Path) -> AttentionWeights:
    """Return the attention of a source, its adapter folded in.

    Args:
        path: as :func:`find_source` returns it.

    Raises:
        DataError: model or adapter is missing, unreadable, or the two do not belong together.
    """
    weights = read_attention(path, source.prefix)
    if source.adapter is None:
        return weights
    return with_adapter(weights, Path(source.adapter).expanduser(), _model_name(source), source.prefix)


def find_source(source: SourceConfig | SourceModel) -> Path:
    """Return the folder or file of a source, or of its base."""
    return find_package_model(source.package) if source.package else find_model(str(source.model))


def prepare_sources(
    target: AttentionWeights,
    sources: Sequence[AttentionWeights | None],
    config: MergeConfig,
    target_heads: int | None = None,
    paired: Sequence[Paired] | None = None,
) -> list[Source]:
    """Return the sources under the target's slots with their resolved lambdas; noise is drawn.

    Args:
        target_heads: number of heads of the target as it was built, for one whose files do not say it.
        paired: what paired inputs say about each source; None where no alignment asks for it.

    Raises:
        UsageError: depth, width, layers or lambda do not fit, one line for each problem.
        DataError: NaN in a matrix whose statistics the noise needs.
    """
    lambdas, maps = resolve_sources(target, sources, config)
    prepared = []
    for index, (weights, source) in enumerate(zip(sources, config.sources, strict=True)):
        if config.learnable is not None:
            slots = learnable_slots(config, source, depth(target))
        else:
            slots = list(chosen_slots(target, lambdas[index], config.biases))
        base = _read_base(target, weights, source, maps[index], config)
        ready = _prepare(target, weights, source, lambdas[index], maps[index], slots, index)
        ready = dataclasses.replace(ready, base=base and align(base, maps[index]), facts=_base_facts(source, base))
        pair = paired[index] if paired else NOTHING_PAIRED
        aligned = _aligned(
            ready, target, aligner_of(source, config.target, target_heads, pair), source.noise is not None
        )
        prepared.append(_with_moments(aligned, pair))
    return prepared


def aligner_of(
    source: SourceConfig, target: TargetConfig, target_heads: int | None = None, paired: Paired = NOTHING_PAIRED
) -> Aligner | None:
    """Return how a source is brought into the target's coordinates, None where it is merged as it is.

    Args:
        target_heads: number of heads of the target as it was built, for one whose files do not say it.
        paired: what paired inputs say about the source.

    Raises:
        UsageError: heads are to be paired, and their numbers differ or are not known.
    """
    if source.align is None:
        return None
    heads = heads_of(source, target, target_heads)
    return Aligner(paired, heads, source.align.heads is not None, list(source.lambda_))


def _read_base(
    target: AttentionWeights,
    weights: AttentionWeights | None,
    source: SourceConfig,
    layer_map: list[int | None],
    config: MergeConfig,
) -> AttentionWeights | None:
    """Return the attention of a source's base, None where it has none.

    Raises:
        UsageError: it does not fit the target, or has not the depth of the source.
        DataError: the model is missing, unreadable, or without attention.
    """
    model = source.base_for(config.combination)
    if model is None:
        return None
    base = read_attention(find_source(model), model.prefix)
    if weights is not None and depth(base) != depth(weights):
        raise UsageError(
            f"base {_model_name(model)} has {depth(base)} layers and source {source_name(source)} {depth(weights)}: "
            "name the model that the source was trained from."
        )
    names = f"target {target_name(config.target)}", f"base {_model_name(model)}"
    if source.rotates and weights is not None:  # it is moved as the source is
        check_compatible(weights, base, (f"source {source_name(source)}", names[1]), config.biases)
    else:
        check_compatible(target, base, names, config.biases, layer_map if source.layer_map is not None else None)
    return base


def _base_facts(source: SourceConfig, base: AttentionWeights | None) -> dict[str, Any]:
    model = source.base or SourceModel(source.model, source.package, source.prefix)
    return {} if base is None else {"base": describe_model(_model_name(model), base)}


def _aligned(source: Source, target: AttentionWeights, aligner: Aligner | None, noisy: bool) -> Source:
    """Return a source, or the noise in its place (`noisy`), with its base, as they are merged."""
    if aligner is None:
        return source
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


def _with_moments(source: Source, paired: Paired) -> Source:
    """Return a source with the moments of what it and the target read, where the method asks for them."""
    moments = paired.common_moments()
    if moments is None:
        return source
    return dataclasses.replace(source, moments=moments, facts={**source.facts, "moments": dict(moments.facts)})


def heads_of(source: SourceConfig, target: TargetConfig, built: int | None) -> tuple[int | None, int | None]:
    """Return the numbers of heads of both models: as given, and as each ``config.json`` or the built target says.

    Raises:
        UsageError: heads are to be paired one to one and the numbers differ, or one is not known.
    """
    assert source.align is not None
    pair = source.align.heads
    model = model_of(target)
    found = {"target": (head_count(find_model(model), target.prefix) if model else None) or built}
    if source.is_read:
        found["source"] = head_count(find_source(source), source.prefix)
    if pair is not None:
        _check_heads(found, pair.heads, source.rotates)
    given = pair.heads if pair is not None else None
    ours = found["target"] or given
    return ours, found.get("source", ours) or given


def _check_heads(found: Mapping[str, int | None], given: int | None, rotates: bool) -> None:
    """Refuse numbers of heads that are not known, or differ; with a basis they may."""
    said = {f"the {role} has {count}": count for role, count in found.items() if count}
    if given:
        said[f"align.heads is {given}"] = given
    if len(set(said.values())) > 1 and (given or not rotates):
        raise UsageError(
            f"align: {' and '.join(said)}: heads are paired one to one, so leave align out, or correct it."
        )
    if not given and None in found.values():
        silent = next(role for role, count in found.items() if count is None)
        raise UsageError(
            f"align: the {silent} does not say how many heads it has: give align: {{kind: heads, heads: N}}."
        )


def _prepare(
    target: AttentionWeights,
    weights: AttentionWeights | None,
    config: SourceConfig,
    lambdas: Lambdas,
    layer_map: list[int | None],
    slots: Sequence[Slot],
    index: int,
) -> Source:
    """Return a source under the target's slots, or noise for `slots` in its place."""
    name = source_name(config)
    if config.noise is not None:
        own = align(weights, layer_map) if weights is not None and config.rotates else target
        shapes = {slot: own[slot].shape for slot in slots}
        noise = sample(shapes, noise_moments(config.noise, target, weights, layer_map), config.noise, index)
        return Source(noise, lambdas, name, None if weights is None else layer_map)
    assert weights is not None
    return Source(align(weights, layer_map), lambdas, name, layer_map)


def source_name(source: SourceConfig) -> str:
    """Return what to call the source in messages and records."""
    model = _model_name(source)
    if source.noise is None:
        return model
    owner = {"source": model, "target": "the target", "standard": "N(0, 1)"}[source.noise.kind]
    return f"noise of {owner} (draw {source.noise.draw}, seed {source.noise.seed})"


def _model_name(source: SourceConfig | SourceModel) -> str:
    name = with_prefix(source.model or f"package {source.package}", source.prefix)
    adapter = getattr(source, "adapter", None)
    return f"{name} with adapter {adapter}" if adapter else name


def resolve_sources(
    target: AttentionWeights, sources: Sequence[AttentionWeights | None], config: MergeConfig
) -> tuple[list[dict[str, list[float]]], list[list[int | None]]]:
    """Return lambdas and layer map of each source; report everything that does not fit at once."""
    problems: list[str] = []

    def attempt(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except UsageError as error:
            problems.append(str(error))

    maps = []
    for source, weights in zip(config.sources, sources, strict=True):
        names = f"target {target_name(config.target)}", f"source {source_name(source)}"
        source_depth = None if weights is None else depth(weights)
        maps.append(attempt(resolve_layer_map, source.layer_map, depth(target), source_depth, names))
        if weights is not None and maps[-1] is not None:
            known = maps[-1] if source.layer_map is not None else None
            attempt(check_compatible, target, weights, names, config.biases, known, source.rotates)
    lambdas = attempt(resolve_lambdas, config, depth(target))
    if problems:
        raise UsageError("\n".join(problems))
    return lambdas, maps
