"""Build the target, read the sources' attention, and fold the merge into the target's parameters."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch

from s3prl_ext import hub, randomness
from s3prl_ext.attention.weights import AttentionWeights, depth, extract
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.merge import Source, format_table, merge_in_place
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.upstreams.layer_similarity.paired_alignment import decide_by_pairs
from s3prl_ext.upstreams.merged_attention.learnable import describe_learnable, install_learnable
from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, build_target, open_sources, read_decoder
from s3prl_ext.upstreams.merged_attention.record import MergeRecord, describe_model, describe_source
from s3prl_ext.upstreams.merged_attention.sources import prepare_sources

logger = logging.getLogger(__name__)

NO_LAYERS: tuple[Any, ...] = ("none", [], ())


def build_upstream(config: MergeConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the target as an s3prl upstream with the sources' attention merged in; it costs nothing at run time.

    With ``learnable`` the merge stays in the model, see :func:`s3prl_ext.merging.learnable.make_learnable`; otherwise
    the module is the target itself, with its parameter names. It has the attributes ``merge_record``, a dict of plain
    values for :func:`s3prl_ext.upstreams.merged_attention.record.check_merge_record`, and ``unmerged_sha256``, a
    function that builds the untouched target again and returns its hash. Where the decoder is merged
    (``target.prefix``) the upstream is the unmerged encoder: a task merges the decoder that it transcribes with, see
    :mod:`s3prl_ext.upstreams.merged_attention.decoder`.

    Args:
        refresh: let s3prl download the target again.

    Raises:
        UsageError: the models do not fit each other or the configuration.
        DataError: a model is missing, unreadable, or without attention.
    """
    sources = open_sources(config)
    upstream = build_target(config.target, refresh)
    merge = OpenedMerge(config, sources, None if config.target.prefix else upstream)
    if merge.by_pairs:
        merge = decide_by_pairs(merge)
    record = _decoder_record(merge) if config.target.prefix else merge_in_module(merge)
    upstream.unmerged_sha256 = functools.partial(unmerged_sha256, config.target)  # type: ignore[assignment]
    upstream.merge_record = record  # type: ignore[assignment]  # a plain attribute, not a submodule
    return upstream


def unmerged_sha256(target: TargetConfig) -> str:
    """Return the hash of a target before the merge, by which a head that was fitted on it is known."""
    with randomness.preserved():
        return state_sha256(build_target(target).state_dict())


def _decoder_record(merge: OpenedMerge) -> MergeRecord:
    """Return the record of a merge into a decoder, which is not part of the upstream."""
    decoder = read_decoder(merge.config.target)
    logger.info(
        "%s is merged by the task that transcribes with it; the features are those of the unmerged encoder", merge.name
    )
    return merge_record(merge, decoder, prepare_sources(merge, decoder))


def merge_in_module(merge: OpenedMerge) -> MergeRecord:
    """Merge the sources into the parameters of the module, in place, log what changed, and return the record.

    Args:
        merge: with a module, and its layers chosen.

    Raises:
        UsageError: depth, width, layers or lambda do not fit.
        DataError: no attention found, or NaN in a matrix.
    """
    config = merge.config
    assert merge.module is not None
    target = extract(merge.module.state_dict(), f"target {merge.name}", config.target.prefix)
    prepared = prepare_sources(merge, target)
    record = merge_record(merge, target, prepared)
    if config.learnable is not None:
        rows = install_learnable(merge.module, target, prepared, config, merge.name)
    else:
        rows = merge_in_place(target, prepared, config.biases, config.combination)
    names = ", ".join(source.name for source in prepared)
    first = " with a learnable lambda, at first" if config.learnable else ""
    if not rows and any(source.layers in NO_LAYERS for source in config.sources):
        logger.warning("layers names no layer: %s stays unmerged, and %s has no effect", merge.name, names)
    logger.info("Merged the attention of %s into %s%s:\n%s", names, merge.name, first, format_table(rows))
    return record


def merge_record(merge: OpenedMerge, target: AttentionWeights, prepared: Sequence[Source]) -> MergeRecord:
    """Return what ``check_merge_record`` compares, and how layers were chosen, as plain values: models by their hashes.

    Args:
        merge: with its layers chosen.
        target: its parameters before the merge.
        prepared: its sources as :func:`prepare_sources` returns them.
    """
    config, sources = merge.config, []
    for source, ready in zip(merge.sources, prepared, strict=True):
        section, layers = source.section, list(ready.layers or range(depth(target)))
        described = describe_source(section.noise, source.weights, ready, layers)
        described |= {"revision": hub.resolved().get(str(section.model)), "layer_selection": source.selection}
        sources.append(described | ({} if source.match is None else {"layer_match": source.match}))
    return {
        "target": describe_model(merge.name, target) | {"revision": _revision(config.target)},
        "sources": sources,
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
