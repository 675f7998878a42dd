"""Find the layers of ``layers: {by: swd, top_k: 6, ...}``: from paired inputs, or from a ``layers.json``."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import sha256
from s3prl_ext.corpora.pairs import Pair, check_audio, draw_pairs, read_corpus
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.merging.layer_selection import LayerTable, check_top_k, ranking, top_k
from s3prl_ext.merging.layer_selection import match_layers as best_map
from s3prl_ext.merging.layers import LayerMap, resolve_layer_map
from s3prl_ext.merging.selection_config import ComparisonSettings, LayerMatch, LayerSelection
from s3prl_ext.merging.similarity import SIMILARITIES
from s3prl_ext.models.fingerprint import model_sha256
from s3prl_ext.package_versions import versions_of
from s3prl_ext.randomness import preserved
from s3prl_ext.reading import parse_json
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, as_found
from s3prl_ext.upstreams.layer_similarity.comparison import (
    Side,
    compare,
    compare_all,
    meeting_layers,
    pair_kind,
    source_side,
    target_side,
)
from s3prl_ext.upstreams.layer_similarity.features import folder_hash
from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, OpenedSource, decoder_folder

logger = logging.getLogger(__name__)

KIND = "layer similarity"  # marks a layers.json
FORMAT = 2  # of a layers.json whose model_sha256 is that of the model alone; files of 0.1.0 name no format
FEW_PAIRS = 50  # pairs: below, a warning


def choose_layers(merge: OpenedMerge) -> OpenedMerge:
    """Replace every selection by similarity in a merge by the layers that it chooses.

    The model and all random generators are left as found.

    Args:
        merge: with the maps of layers that :func:`match_layers` found.

    Returns:
        The merge with lists of layers, and in each source how they were chosen.

    Raises:
        UsageError: models, settings or k do not fit each other.
        DataError: pairs, models or a ``layers.json`` are unsuitable.
    """
    sources = []
    for source in merge.sources:
        selection = source.section.layers
        if isinstance(selection, LayerSelection):
            if source.path is None:
                raise UsageError(
                    "layers by similarity need a source model to compare with: name it, or list the layers."
                )
            record = (_from_file if selection.file else _from_pairs)(selection, merge, source)
            section = dataclasses.replace(source.section, layers=record["layers"])
            named = section.model or f"package {section.package}"
            logger.info("Layers of %s by %s, top %d: %s", named, record["by"], record["top_k"], record["layers"])
            source = dataclasses.replace(source, section=section, selection=record)
        sources.append(source)
    return merge.with_sources(sources)


def match_layers(merge: OpenedMerge) -> OpenedMerge:
    """Replace every ``layer_map: {match: ...}`` in a merge by the map that it finds.

    Returns:
        The merge with maps of layers, and in each source how its map was found.

    Raises:
        UsageError: models or settings do not fit each other.
        DataError: pairs or models are unsuitable.
    """
    sources = []
    for source in merge.sources:
        match = source.section.layer_map
        if isinstance(match, LayerMatch):
            if source.path is None:
                raise UsageError("layers are matched with those of a source model: name it, or give another layer_map.")
            with opened_sides(merge, source, match.settings.special_tokens) as sides:
                record = _matched(match, *sides)
            found = record["layer_map"]
            logger.info(
                "Layers of %s paired with layers 0 to %d by %s: %s", source.name, len(found) - 1, match.match, found
            )
            section = dataclasses.replace(source.section, layer_map=dict(enumerate(found)))
            source = dataclasses.replace(source, section=section, match=record)
        sources.append(source)
    return merge.with_sources(sources)


def _matched(match: LayerMatch, target: Side, source: Side) -> dict[str, Any]:
    """Return which layers are paired, and the similarities behind it."""
    meeting_layers(target, source, "linear")  # equal width
    drawn, of = drawn_pairs(match.pairs, match.root, match.split, target, source, match.settings)
    matrix, pairs_key = compare_all(target, source, drawn, match.match, match.settings)
    return {
        "match": match.match,
        "monotone": match.monotone,
        "layer_map": best_map(matrix, match.match, match.monotone),
        "values": matrix.tolist(),
        "pairs": {"file": match.pairs, "split": match.split, "of": of, "used": len(drawn), "sha256": pairs_key},
        "settings": dataclasses.asdict(match.settings),
    }


@contextmanager
def opened_sides(
    merge: OpenedMerge, source: OpenedSource, special_tokens: bool = True, point: str = BLOCKS
) -> Iterator[tuple[Side, Side]]:
    """Inside, target and source are the two sides of a comparison; afterwards the target is as it was.

    Both run where the target is; where that is the CPU, on a GPU if there is one.

    Args:
        source: of the merge, with a model.
        special_tokens: of texts: keep the tokens around them.
        point: where the models are listened to, one of
            :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: no attention found, or a tokenizer or another file is missing.
    """
    assert source.path is not None
    home = next(merge.module.parameters()).device if merge.module is not None else torch.device("cpu")
    device = "cuda" if home.type == "cpu" and torch.cuda.is_available() else str(home)
    with opened_target(merge, special_tokens, device, point=point) as target:
        yield target, source_side(source.path, source.name, source.section.prefix, special_tokens, device, point)


@contextmanager
def opened_target(
    merge: OpenedMerge, special_tokens: bool, device: str, batch_size: int = 1, point: str = BLOCKS
) -> Iterator[Side]:
    """Inside, the target is a side of a comparison; afterwards it and the random generators are as they were.

    Args:
        merge: of whose module a decoder is not looked at.
        special_tokens: of a decoder: keep the tokens before the text.
        batch_size: of an upstream: clips in one pass.
        point: as for :func:`opened_sides`.

    Raises:
        DataError: no attention found, or a decoder lacks its tokenizer.
    """
    prefix = merge.config.target.prefix
    if prefix:
        with preserved():
            yield source_side(decoder_folder(merge.config.target), merge.name, prefix, special_tokens, device, point)
        return
    assert merge.module is not None
    if next(merge.module.parameters(), None) is None:
        raise DataError(f"{merge.name} has no weights, so it has no layers to compare: name a speech model.")
    with as_found(merge.module, device):
        yield target_side(merge.module, merge.name, batch_size, point)


def _from_pairs(selection: LayerSelection, merge: OpenedMerge, source: OpenedSource) -> dict[str, Any]:
    with opened_sides(merge, source, selection.settings.special_tokens) as (ours, theirs):
        result = measure(
            ours, theirs, str(selection.pairs), selection.root, selection.split, source.section.layer_map,
            [selection.by], selection.top_k, selection.settings,
        )  # fmt: skip
    return _record(selection, result)


def measure(
    target: Side,
    source: Side,
    pairs_path: str,
    root: str | None,
    split: str | None,
    layer_map: LayerMap,
    metrics: Sequence[str],
    k: int,
    settings: ComparisonSettings,
) -> dict[str, Any]:
    """Compare two models on a table or corpus of pairs and return the content of a ``layers.json``.

    All that can be wrong with sizes, k and files is found before a model runs.

    Args:
        pairs_path, root, split: as for :func:`s3prl_ext.corpora.pairs.read_corpus`.
        metrics: names that fit the settings.
        k: number of layers to choose by each metric.
    """
    layers = meeting_layers(target, source, layer_map)
    check_top_k(k, sum(layer is not None for layer in layers))
    drawn, of = drawn_pairs(pairs_path, root, split, target, source, settings)
    tables, pairs_key = compare(target, source, drawn, layers, metrics, settings)
    return {
        "kind": KIND,
        "format": FORMAT,
        "target": target.describe(),
        "source": source.describe(),
        "layer_map": layers,
        "pairs": {"file": pairs_path, "split": split, "of": of, "used": len(drawn), "sha256": pairs_key},
        "settings": dataclasses.asdict(settings),
        "top_k": k,
        "metrics": {table.metric: _describe_table(table, k) for table in tables},
        "versions": versions_of(("s3prl_ext", "torch", "transformers", "numpy")),
    }


def drawn_pairs(
    path: str, root: str | None, split: str | None, target: Side, source: Side, settings: ComparisonSettings
) -> tuple[list[Pair], int]:
    """Return the pairs to compare on, and how many there are in all."""
    pairs = read_corpus(path, pair_kind(target, source), root, split)
    drawn = draw_pairs(pairs, settings.share, settings.seed, path)
    check_audio(drawn)
    if len(drawn) < FEW_PAIRS:
        logger.warning("Only %d pairs: with so few another draw may choose other layers.", len(drawn))
    return drawn, len(pairs)


def _describe_table(table: LayerTable, k: int) -> dict[str, Any]:
    return {
        "most_similar": "largest" if SIMILARITIES[table.metric].largest else "smallest",
        "compared": list(table.layers or range(len(table.values))),
        "values": list(table.values),
        "ranking": list(ranking(table)),
        "layers": list(top_k(table, k)),
    }


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a ``layers.json``.

    Raises:
        UsageError: no such file.
        DataError: it is something else.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no such file: {file}; `s3prl-ext layers` writes one.")
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        metrics = content["metrics"] if content["kind"] == KIND else {}
        fits = all(len(row["values"]) == len(row["compared"]) > 0 for row in metrics.values())
        hashes = [content[role]["attention_sha256"] for role in ("target", "source")]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        metrics, fits, hashes = {}, False, []
    if not (metrics and fits and hashes):
        raise DataError(f"{file} is not a layers.json of `s3prl-ext layers`: make it again.")
    return content


def _from_file(selection: LayerSelection, merge: OpenedMerge, source: OpenedSource) -> dict[str, Any]:
    """Return the choice from a file whose models have the hashes of the present ones, without an adapter.

    Models of equal attention may differ in all else, such as one that was tuned with frozen attention.
    """
    target, weights = merge.attention(), source.weights
    if source.section.adapter is not None and source.path is not None:
        weights = read_attention(source.path, source.section.prefix)  # as the model is run
    assert weights is not None
    content = read_result(str(selection.file))
    for role, name, present in (("target", merge.name, target), ("source", source.name, weights)):
        was, now = content[role]["attention_sha256"], sha256(present)
        if was != now:
            raise DataError(
                f"{selection.file} was made with another {role}: '{content[role]['name']}' (attention {was[:12]}), but "
                f"now it is '{name}' (attention {now[:12]}): run s3prl-ext layers with this {role}."
            )
    _check_models(str(selection.file), content, merge, source)
    layers = resolve_layer_map(source.section.layer_map, content["target"]["layers"], content["source"]["layers"])
    if layers != content["layer_map"]:
        raise DataError(
            f"{selection.file} was made with another layer_map, {content['layer_map']}, but now it is {layers}: "
            "give the same, or run s3prl-ext layers with this one."
        )
    if selection.by not in content["metrics"]:
        raise unknown_name("metric", selection.by, content["metrics"], str(selection.file))
    return _record(selection, content)


def _check_models(file: str, content: dict[str, Any], merge: OpenedMerge, source: OpenedSource) -> None:
    """Refuse a file whose models are others than the present ones outside their attention."""
    if content.get("format") != FORMAT:
        logger.warning(
            "%s was made by an earlier version, which does not tell models of equal attention apart: make it again "
            "with s3prl-ext layers unless it is of these very models.", file
        )  # fmt: skip
        return
    prefix = merge.config.target.prefix
    present = {"target": folder_hash(decoder_folder(merge.config.target)) if prefix else model_sha256(_module(merge))}
    if source.path is not None and source.path.is_dir():
        present["source"] = folder_hash(source.path)
    for role, now in present.items():
        if content[role]["model_sha256"] != now:
            raise DataError(
                f"{file} was made with another {role}: '{content[role]['name']}' has the same attention, but other "
                f"weights or settings: run s3prl-ext layers with this {role}."
            )


def _module(merge: OpenedMerge) -> torch.nn.Module:
    assert merge.module is not None
    return merge.module


def _record(selection: LayerSelection, result: dict[str, Any]) -> dict[str, Any]:
    """Return how layers were chosen, as plain values for the record of a merge."""
    row = result["metrics"][selection.by]
    table = LayerTable(selection.by, tuple(row["values"]), tuple(row["compared"]))
    return {
        "by": selection.by,
        "top_k": selection.top_k,
        "layers": list(top_k(table, selection.top_k)),
        "compared": row["compared"],
        "values": row["values"],
        "pairs": result["pairs"],
        "settings": result["settings"],
        "target_sha256": result["target"]["model_sha256"],
        "source_sha256": result["source"]["model_sha256"],
    }
