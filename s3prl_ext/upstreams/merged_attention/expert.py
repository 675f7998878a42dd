"""Build the target, read the sources' attention, and fold the merge into the target's parameters."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_ext import hub
from s3prl_ext.attention.weights import AttentionWeights, depth, extract
from s3prl_ext.merging.aligner import Paired
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.merge import Source, merge_in_place
from s3prl_ext.merging.report import format_table
from s3prl_ext.model_settings import head_count
from s3prl_ext.models.heads import module_heads
from s3prl_ext.upstreams.layer_similarity.paired_alignment import find_paired
from s3prl_ext.upstreams.layer_similarity.selection import choose_layers, match_layers
from s3prl_ext.upstreams.merged_attention.learnable import describe_learnable, install_learnable
from s3prl_ext.upstreams.merged_attention.record import MergeRecord, check_merge_record, describe_model, describe_source
from s3prl_ext.upstreams.merged_attention.sources import prepare_sources, read_sources
from s3prl_ext.upstreams.merged_attention.targets import (
    TRANSFORMERS_UPSTREAMS,
    build_target,
    read_decoder,
    target_name,
)

__all__ = [
    "TRANSFORMERS_UPSTREAMS",
    "build_target",
    "build_upstream",
    "check_merge_record",
    "merge_into",
    "target_name",
]

logger = logging.getLogger(__name__)

NO_LAYERS: tuple[Any, ...] = ("none", [], ())


def build_upstream(config: MergeConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the target as an s3prl upstream with the sources' attention merged in; it costs nothing at run time.

    With ``learnable`` the merge stays in the model, see :func:`s3prl_ext.merging.learnable.make_learnable`; otherwise
    the module is the target itself, with its parameter names. It has the attribute ``merge_record``: a dict of plain
    values for :func:`s3prl_ext.upstreams.merged_attention.record.check_merge_record`. Where the decoder is merged
    (``target.prefix``) the upstream is the unmerged encoder: a task merges the decoder that it transcribes with, see
    :mod:`s3prl_ext.upstreams.merged_attention.decoder`.

    Args:
        refresh: let s3prl download the target again.

    Raises:
        UsageError: the models do not fit each other or the configuration.
        DataError: a model is missing, unreadable, or without attention.
    """
    paths, sources = read_sources(config)
    upstream = build_target(config.target, refresh)
    config, matches = match_layers(config, upstream, target_name(config.target), paths)
    config, selections = choose_layers(config, upstream, target_name(config.target), paths, sources)
    heads = module_heads(upstream) if config.target.prefix is None else None
    paired = find_paired(config, upstream, target_name(config.target), paths, heads)
    merge = merge_into if config.target.prefix is None else _decoder_record
    record = merge(upstream, sources, config, paired)
    describe_choices(record, selections, matches)
    upstream.merge_record = record  # type: ignore[assignment]  # a plain attribute, not a submodule
    for path, source in zip(paths, config.sources, strict=True):
        if path and source.noise is None and not source.rotates:
            _warn_heads(upstream, path)
    return upstream


def describe_choices(
    record: MergeRecord, selections: Sequence[dict[str, Any] | None], matches: Sequence[dict[str, Any] | None]
) -> None:
    """Add to a record how the layers of each source were chosen, and how it was found which ones are paired."""
    for described, selection, match in zip(record["sources"], selections, matches, strict=True):
        described["layer_selection"] = selection
        if match is not None:
            described["layer_match"] = match


def _decoder_record(
    upstream: torch.nn.Module,
    sources: Sequence[AttentionWeights | None],
    config: MergeConfig,
    paired: Sequence[Paired],
) -> MergeRecord:
    """Return the record of a merge into a decoder, which is not part of the upstream."""
    decoder = read_decoder(config.target)
    logger.info(
        "%s is merged by the task that transcribes with it; the features are those of the unmerged encoder",
        target_name(config.target),
    )
    return merge_record(decoder, sources, prepare_sources(decoder, sources, config, paired=paired), config)


def merge_into(
    upstream: torch.nn.Module,
    sources: Sequence[AttentionWeights | None],
    config: MergeConfig,
    paired: Sequence[Paired] | None = None,
) -> MergeRecord:
    """Merge `sources` into the parameters of `upstream`, in place, log what changed, and return the record.

    Args:
        upstream: the model that holds the target's parameters.
        sources: attention of each of the configuration's sources, None for noise that needs no source.
        paired: what paired inputs say about each source; None where no alignment asks for it.

    Raises:
        UsageError: depth, width, layers or lambda do not fit.
        DataError: no attention found, or NaN in a matrix.
    """
    name = target_name(config.target)
    target = extract(upstream.state_dict(), f"target {name}", config.target.prefix)
    prepared = prepare_sources(target, sources, config, module_heads(upstream), paired)
    record = merge_record(target, sources, prepared, config)
    if config.learnable is not None:
        rows = install_learnable(upstream, target, prepared, config, name)
    else:
        rows = merge_in_place(target, prepared, config.biases, config.combination)
    names = ", ".join(source.name for source in prepared)
    first = " with a learnable lambda, at first" if config.learnable else ""
    if not rows and any(source.layers in NO_LAYERS for source in config.sources):
        logger.warning("layers names no layer: %s stays unmerged, and %s has no effect", name, names)
    logger.info("Merged the attention of %s into %s%s:\n%s", names, name, first, format_table(rows))
    return record


def merge_record(
    target: AttentionWeights,
    sources: Sequence[AttentionWeights | None],
    prepared: Sequence[Source],
    config: MergeConfig,
) -> MergeRecord:
    """Return what :func:`check_merge_record` compares, as plain values: models by their hashes, lambda, noise.

    Args:
        target: its parameters before the merge.
        sources: as read; None where no model is.
        prepared: the same as :func:`prepare_sources` returns them.
    """
    return {
        "target": describe_model(target_name(config.target), target) | {"revision": _revision(config.target)},
        "sources": [
            describe_source(source.noise, weights, ready, list(ready.layers or range(depth(target))))
            | {"revision": hub.resolved().get(str(source.model))}
            for source, weights, ready in zip(config.sources, sources, prepared, strict=True)
        ],
        "biases": config.biases,
        "learnable": describe_learnable(config, depth(target)),
        "config": _plain(config),
    } | ({"method": config.method.plain()} if config.method else {})


def _revision(target: TargetConfig) -> str | None:
    """Return the commit of a target that came from the hub."""
    return hub.resolved().get(str(target.model or target.ckpt))


def _plain(config: MergeConfig) -> dict[str, Any]:
    """Return the configuration under the keys of its YAML file, in plain values."""
    content = dataclasses.asdict(config)
    content["method"] = {key: value for key, value in (content["method"] or {}).items() if value is not None}
    if config.method is None:
        content.pop("method")
    for source, align in zip(content["sources"], [source.align for source in config.sources], strict=True):
        source["lambda"] = source.pop("lambda_")
        source.pop("by_inputs")
        source["align"] = align and align.plain()
        for key in ("base", "align", "adapter"):
            if source[key] is None:
                source.pop(key)
        if isinstance(source["layer_map"], dict):
            source["layer_map"] = {str(layer): other for layer, other in source["layer_map"].items()}
    return content | {"sources": list(content["sources"])}


def _warn_heads(upstream: torch.nn.Module, source_path: Path) -> None:
    """Warn where source and target split the same width into different numbers of heads."""
    source_heads = head_count(source_path)
    target_heads = module_heads(upstream)
    if source_heads and target_heads and source_heads != target_heads:
        logger.warning(
            "The target has %d attention heads, the source %d: heads will not line up.", target_heads, source_heads
        )
