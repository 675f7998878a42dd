"""Find the basis of ``align: {kind: basis, pairs: ...}`` from what both models read for the same clips."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment_config import BasisAlignment
from s3prl_ext.merging.basis import Basis, basis_of
from s3prl_ext.merging.config import MergeConfig, SourceConfig
from s3prl_ext.merging.selection_config import ComparisonSettings
from s3prl_ext.tables import columns
from s3prl_ext.upstreams.layer_similarity.comparison import Side, meeting_layers, paired_vectors, source_side
from s3prl_ext.upstreams.layer_similarity.selection import comparison_device, drawn_pairs, opened_target
from s3prl_ext.upstreams.merged_attention.targets import with_prefix

logger = logging.getLogger(__name__)


def find_bases(
    config: MergeConfig, upstream: torch.nn.Module | None, target_name: str, paths: Sequence[Path | None]
) -> list[Basis | None]:
    """Return the basis of each source whose hidden space is turned onto the target's, None for the others.

    The model and all random generators are left as found.

    Args:
        config: with the maps of layers that :func:`s3prl_ext.upstreams.layer_similarity.selection.match_layers` found.
        upstream: the unmerged target; where the target is a decoder it is not looked at, and may be None.
        target_name: what to call it.
        paths: folder of each source, None for noise that needs none.

    Raises:
        UsageError: models or settings do not fit each other.
        DataError: pairs or models are unsuitable.
    """
    return [
        _basis(config, source, upstream, target_name, path) if source.turns else None
        for source, path in zip(config.sources, paths, strict=True)
    ]


def _basis(
    config: MergeConfig, source: SourceConfig, upstream: torch.nn.Module | None, target_name: str, path: Path | None
) -> Basis:
    assert source.align is not None and source.align.basis is not None
    if path is None:
        raise UsageError("align basis turns a model onto the target: name it with source.")
    settings = source.align.basis
    name = with_prefix(source.model or f"package {source.package}", source.prefix)
    special, where = settings.special_tokens, comparison_device()
    with opened_target(config.target, upstream, target_name, special, where, inputs=True) as target:
        side = source_side(path, name, source.prefix, special, where, inputs=True)
        basis = _turned(settings, target, side, meeting_layers(target, side, source.layer_map, any_width=True))
    rows = [("layer", "fit", "directions"), *((str(n), f"{t.fit:.4f}", f"{t.rank}") for n, t in basis.turns.items())]
    logger.info("basis of %s in that of %s:\n%s", name, target_name, "\n".join(columns(rows, right=True)))
    return basis


def _turned(settings: BasisAlignment, target: Side, source: Side, layers: Sequence[int | None]) -> Basis:
    draw = ComparisonSettings(share=settings.share, seed=settings.seed)
    drawn, of = drawn_pairs(settings.pairs, settings.root, settings.split, target, source, draw)
    narrow = min(target.width, source.width)
    if len(drawn) < narrow:
        rest = "stay as they are" if target.width == source.width else "are left out"
        logger.warning("%d pairs determine %d of %d directions of the basis at most: the others %s.",
                       len(drawn), len(drawn), narrow, rest)  # fmt: skip
    x, y, pairs_key = paired_vectors(target, source, drawn)
    facts: dict[str, Any] = dataclasses.asdict(settings)
    facts = {key: facts[key] for key in ("split", "share", "seed", "special_tokens")}
    facts["pairs"] = {"file": settings.pairs, "of": of, "used": len(drawn), "sha256": pairs_key}
    return basis_of(x, y, layers, facts)
