"""Run both models of a merge over paired inputs: the basis of ``align: basis``, heads by what they do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.attention.files import read_attention
from s3prl_ext.corpora.pairs import Pair
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Paired
from s3prl_ext.merging.alignment import HeadLikeness, alike_by_outputs, alike_by_patterns
from s3prl_ext.merging.alignment_config import Alignment, BasisAlignment, HeadAlignment
from s3prl_ext.merging.basis import Basis, basis_of
from s3prl_ext.merging.methods import MethodConfig
from s3prl_ext.merging.names import SHARE
from s3prl_ext.merging.regmean import InputMoments
from s3prl_ext.merging.selection_config import ComparisonSettings
from s3prl_ext.tables import columns
from s3prl_ext.upstreams.layer_similarity.block_outputs import ATTENTION, INPUTS
from s3prl_ext.upstreams.layer_similarity.comparison import (
    Side,
    hashed_inputs,
    meeting_layers,
    paired_vectors,
)
from s3prl_ext.upstreams.layer_similarity.features import CACHE_FORMAT, check_finite, hash_of, in_parts, layer_vectors
from s3prl_ext.upstreams.layer_similarity.head_outputs import HeadEncoder
from s3prl_ext.upstreams.layer_similarity.selection import choose_layers, drawn_pairs, match_layers, opened_sides
from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, OpenedSource

logger = logging.getLogger(__name__)

FRAMES_APART = 2  # by which the numbers of frames of a clip may differ in two models


def decide_by_pairs(merge: OpenedMerge) -> OpenedMerge:
    """Find out all of a merge that paired inputs decide: maps of layers, layers, bases, likeness of heads, moments.

    The model and all random generators are left as found.

    Returns:
        The merge with maps and lists of layers, and what was found out about each source.

    Raises:
        UsageError: models or settings do not fit each other.
        DataError: pairs, models or a ``layers.json`` are unsuitable.
    """
    return align_by_pairs(choose_layers(match_layers(merge)))


def align_by_pairs(merge: OpenedMerge) -> OpenedMerge:
    """Find out what paired inputs say about each source whose alignment, or the method, asks for it.

    Args:
        merge: with its layers chosen.

    Raises:
        UsageError: models or settings do not fit each other.
        DataError: pairs or models are unsuitable.
    """
    return merge.with_sources(
        [dataclasses.replace(one, paired=_paired(merge, one)) if one.section.runs else one for one in merge.sources]
    )


def _paired(merge: OpenedMerge, source: OpenedSource) -> Paired:
    """Return what paired inputs say about a source."""
    section = source.section
    if source.path is None:
        raise UsageError("a source is run over the pairs: name it with source.")
    heads = merge.heads(section) if section.align is not None else (None, None)
    align = section.align or Alignment()
    by_weights = align.heads is None or align.heads.pairs is None
    return Paired(
        _basis(merge, source, align.basis) if align.basis is not None else None,
        None if by_weights else _alike(merge, source, align.heads, heads),
        _moments(merge, source) if section.by_inputs else None,
    )


def _moments(merge: OpenedMerge, source: OpenedSource) -> InputMoments:
    """Return the second moments of what target and source read, the mean over the frames of a clip and over pairs."""
    section, settings = source.section, merge.config.combination
    with opened_sides(merge, source, point=INPUTS) as sides:
        layers = meeting_layers(*sides, section.layer_map, any_width=section.rotates)
        drawn, of = _draw(settings, *sides)
        items, hashes, pairs_key = hashed_inputs(*sides, drawn)
        ours, theirs = (
            _moments_of(side, read, hashed) for side, read, hashed in zip(sides, items, hashes, strict=True)
        )
    values = {layer: (ours[layer], theirs[other]) for layer, other in enumerate(layers) if other is not None}
    return InputMoments(values, _facts(settings, of, drawn, pairs_key))


def _moments_of(side: Side, items: Sequence[Any], hashes: Sequence[str]) -> Tensor:
    """Return the second moments of what each layer of a model reads, [layers, width, width].

    In float64, also on disk: rounded to float32, directions that no token has would get moments that an inverse blows
    up.
    """

    def compute(indices: Sequence[int]) -> Tensor:
        encoder, total = side.load(), torch.zeros(side.layers, side.width, side.width, dtype=torch.float64)
        for start in range(0, len(items), encoder.batch_size):
            for item, states in zip(
                items[start:], encoder.states(items[start : start + encoder.batch_size]), strict=False
            ):
                check_finite(states, encoder.name, item)
                states = states.double().cpu()
                total += states.transpose(1, 2) @ states / states.shape[1]
        return (total / len(items))[None]

    key = hash_of(CACHE_FORMAT, "moments in float64", side.key, *hashes)
    return in_parts(compute, [key], 1, f"inputs of {side.name}")[0]


def _basis(merge: OpenedMerge, opened: OpenedSource, settings: BasisAlignment) -> Basis:
    """Return the basis of a source, and log how well it fits."""
    with opened_sides(merge, opened, settings.special_tokens, INPUTS) as (target, source):
        layers = meeting_layers(target, source, opened.section.layer_map, any_width=True)
        drawn, of = _draw(settings, target, source)
        narrow = min(target.width, source.width)
        if len(drawn) < narrow:
            rest = "stay as they are" if target.width == source.width else "are left out"
            logger.warning("%d pairs determine %d of %d directions of the basis at most: the others %s.",
                           len(drawn), len(drawn), narrow, rest)  # fmt: skip
        x, y, pairs_key = paired_vectors(target, source, drawn)
    basis = basis_of(x, y, layers, _facts(settings, of, drawn, pairs_key) | {"special_tokens": settings.special_tokens})
    rows = [
        ("layer", "fit", "directions"),
        *((str(n), f"{t.fit:.4f}", f"{t.rank}") for n, t in basis.rotations.items()),
    ]
    logger.info("basis of %s in that of %s:\n%s", source.name, target.name, "\n".join(columns(rows, right=True)))
    return basis


def _alike(
    merge: OpenedMerge, opened: OpenedSource, settings: HeadAlignment | None, heads: tuple[int | None, int | None]
) -> HeadLikeness:
    """Return how alike the heads of both models are by their outputs or patterns."""
    assert settings is not None and opened.path is not None
    with opened_sides(merge, opened, point=INPUTS) as sides, opened_sides(merge, opened, point=ATTENTION) as given:
        target, source = sides
        layers = meeting_layers(target, source, opened.section.layer_map, any_width=True)
        if settings.by == "patterns" and target.kind != source.kind:
            raise UsageError(
                f"align heads: {target.name} reads {target.kind} and {source.name} {source.kind}, and patterns are "
                "compared on what both read: take by: outputs."
            )
        drawn, of = _draw(settings, target, source)
        items, hashes, pairs_key = hashed_inputs(target, source, drawn)
        weights = merge.attention(), read_attention(opened.path, opened.section.prefix)
        encoders = [
            HeadEncoder(side.load(), attention.load(), own, _known(count, side.name), read[0])
            for side, attention, own, count, read in zip(sides, given, weights, heads, items, strict=True)
        ]
        keys = [hash_of(side.key, "heads", count) for side, count in zip(sides, heads, strict=True)]
        if settings.by == "patterns":
            alike = _by_patterns(encoders, items, layers, hash_of(*keys, layers), hashes)
        else:
            x, y = (layer_vectors(*each) for each in zip(encoders, keys, items, hashes, strict=True))
            alike = _by_outputs(x, y, layers, heads)
    facts = {"by": settings.by, **_facts(settings, of, drawn, pairs_key)}
    return HeadLikeness(alike, facts)


def _known(heads: int | None, name: str) -> int:
    if heads is None:
        raise UsageError(
            f"align heads: {name} does not say how many heads it has: give align: {{kind: heads, heads: N}}."
        )
    return heads


def _by_outputs(
    x: Tensor, y: Tensor, layers: Sequence[int | None], heads: tuple[int | None, int | None]
) -> dict[int, Tensor]:
    """Return how alike heads are by mean outputs, [pairs, layers, heads * width of a head]."""
    ours, theirs = (vectors.unflatten(2, (count or 1, -1)) for vectors, count in zip((x, y), heads, strict=True))
    return {
        layer: alike_by_outputs(ours[:, layer], theirs[:, other])
        for layer, other in enumerate(layers)
        if other is not None
    }


def _by_patterns(
    encoders: Sequence[HeadEncoder],
    items: tuple[Sequence[Any], Sequence[Any]],
    layers: Sequence[int | None],
    key: str,
    hashes: Sequence[Sequence[str]],
) -> dict[int, Tensor]:
    """Return the mean over clips of how alike the patterns of heads are."""
    meeting = [(layer, other) for layer, other in enumerate(layers) if other is not None]

    def compute(indices: Sequence[int]) -> Tensor:
        rows = []
        for index in indices:
            ours, theirs = (encoder.patterns(side[index]) for encoder, side in zip(encoders, items, strict=True))
            counts = [patterns[0].shape[-1] for patterns in (ours, theirs)]
            if abs(counts[0] - counts[1]) > FRAMES_APART:
                raise UsageError(
                    f"align heads: {encoders[0].name} gives {counts[0]} frames for {items[0][index]} and "
                    f"{encoders[1].name} {counts[1]}, and patterns are compared frame by frame: take by: outputs."
                )
            size = min(counts)
            cut = [
                (ours[layer][:, :size, :size].cpu(), theirs[other][:, :size, :size].cpu()) for layer, other in meeting
            ]
            rows.append(torch.stack([alike_by_patterns(*both) for both in cut]))
        return torch.stack(rows)

    keys = [hash_of(CACHE_FORMAT, "patterns", key, *both) for both in zip(*hashes, strict=True)]
    values = in_parts(compute, keys, 1, "comparing attention patterns").mean(0)
    return {layer: value for (layer, _), value in zip(meeting, values, strict=True)}


def _draw(
    settings: BasisAlignment | HeadAlignment | MethodConfig, target: Side, source: Side
) -> tuple[list[Pair], int]:
    draw = ComparisonSettings(share=settings.share or SHARE, seed=settings.seed or 0)
    return drawn_pairs(str(settings.pairs), settings.root, settings.split, target, source, draw)


def _facts(
    settings: BasisAlignment | HeadAlignment | MethodConfig, of: int, drawn: Sequence[Pair], pairs_key: str
) -> dict[str, Any]:
    """Return which pairs were used, as plain values."""
    pairs = {"file": settings.pairs, "of": of, "used": len(drawn), "sha256": pairs_key}
    return {"split": settings.split, "share": settings.share, "seed": settings.seed, "pairs": pairs}
