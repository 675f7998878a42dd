"""Find the layers of ``layers: {by: swd, top_k: 6, ...}``: from paired inputs, or from a ``layers.json``."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import AttentionWeights, extract, sha256
from s3prl_ext.corpora.pairs import Pair, check_audio, draw_pairs
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.layer_selection import LayerTable, check_top_k, ranking, top_k
from s3prl_ext.merging.layer_selection import match_layers as best_map
from s3prl_ext.merging.layers import LayerMap, resolve_layer_map
from s3prl_ext.merging.selection_config import ComparisonSettings, LayerMatch, LayerSelection
from s3prl_ext.merging.similarity import SIMILARITIES
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
from s3prl_ext.upstreams.layer_similarity.corpus import read_corpus
from s3prl_ext.upstreams.merged_attention.targets import decoder_folder, with_prefix

logger = logging.getLogger(__name__)

KIND = "layer similarity"  # marks a layers.json
FEW_PAIRS = 50  # pairs: below, a warning


def choose_layers(
    config: MergeConfig,
    upstream: torch.nn.Module | None,
    target_name: str,
    paths: Sequence[Path | None],
    weights: Sequence[AttentionWeights | None],
) -> tuple[MergeConfig, list[dict[str, Any] | None]]:
    """Replace every selection by similarity in `config` by the layers that it chooses.

    The model and all random generators are left as found.

    Args:
        upstream: the unmerged target; where the target is a decoder it is not looked at, and may be None.
        target_name: what to call it.
        paths: folder of each source, None for noise that needs none.
        weights: the attention of each source as read.

    Returns:
        The configuration with lists of layers, and for each source how they were chosen as plain values, or None.

    Raises:
        UsageError: models, settings or k do not fit each other.
        DataError: pairs, models or a ``layers.json`` are unsuitable.
    """
    sources, records = [], []
    for source, path, attention in zip(config.sources, paths, weights, strict=True):
        selection, record = source.layers, None
        if isinstance(selection, LayerSelection):
            if path is None or attention is None:
                raise UsageError(
                    "layers by similarity need a source model to compare with: name it, or list the layers."
                )
            name = source.model or f"package {source.package}"
            names = target_name, with_prefix(name, source.prefix)
            if selection.file:
                record = _from_file(
                    selection, target_attention(config, upstream, target_name), attention, names, source.layer_map
                )
            else:
                opened = opened_target(
                    config.target, upstream, target_name, selection.settings.special_tokens, comparison_device()
                )
                record = _from_pairs(selection, opened, path, names[1], source.prefix, source.layer_map)
            source = dataclasses.replace(source, layers=record["layers"])
            logger.info("Layers of %s by %s, top %d: %s", name, record["by"], record["top_k"], record["layers"])
        sources.append(source)
        records.append(record)
    return dataclasses.replace(config, sources=tuple(sources)), records


def match_layers(
    config: MergeConfig,
    upstream: torch.nn.Module | None,
    target_name: str,
    paths: Sequence[Path | None],
) -> tuple[MergeConfig, list[dict[str, Any] | None]]:
    """Replace every ``layer_map: {match: ...}`` in `config` by the map that it finds.

    Comes before :func:`choose_layers`.

    Args:
        upstream, target_name, paths: as for :func:`choose_layers`.

    Returns:
        The configuration with maps of layers, and for each source how its map was found as plain values, or None.

    Raises:
        UsageError: models or settings do not fit each other.
        DataError: pairs or models are unsuitable.
    """
    sources, records = [], []
    for source, path in zip(config.sources, paths, strict=True):
        match, record = source.layer_map, None
        if isinstance(match, LayerMatch):
            if path is None:
                raise UsageError("layers are matched with those of a source model: name it, or give another layer_map.")
            name = with_prefix(source.model or f"package {source.package}", source.prefix)
            opened = opened_target(
                config.target, upstream, target_name, match.settings.special_tokens, comparison_device()
            )
            with opened as target:
                record = _matched(
                    match,
                    target,
                    source_side(path, name, source.prefix, match.settings.special_tokens, comparison_device()),
                )
            found = record["layer_map"]
            source = dataclasses.replace(source, layer_map=dict(enumerate(found)))
            logger.info("Layers of %s paired with layers 0 to %d by %s: %s", name, len(found) - 1, match.match, found)
        sources.append(source)
        records.append(record)
    return dataclasses.replace(config, sources=tuple(sources)), records


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


def comparison_device() -> str:
    """Return where models of a comparison run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def target_attention(config: MergeConfig, upstream: torch.nn.Module | None, name: str) -> AttentionWeights:
    """Return the attention of the target as a ``layers.json`` hashes it; `upstream` is the unmerged target."""
    if config.target.prefix:
        return read_attention(decoder_folder(config.target), config.target.prefix)
    assert upstream is not None
    return extract(upstream.state_dict(), f"target {name}")


@contextmanager
def opened_target(
    target: TargetConfig,
    upstream: torch.nn.Module | None,
    name: str,
    special_tokens: bool,
    device: str,
    batch_size: int = 1,
    point: str = BLOCKS,
) -> Iterator[Side]:
    """Inside, the target is a side of a comparison; afterwards it and the random generators are as they were.

    Args:
        upstream: the unmerged target; where the target is a decoder it is not looked at, and may be None.
        special_tokens: of a decoder: keep the tokens before the text.
        batch_size: of an upstream: clips in one pass.
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: no attention found, or a decoder lacks its tokenizer.
    """
    if target.prefix:
        with preserved():
            yield source_side(decoder_folder(target), name, target.prefix, special_tokens, device, point)
        return
    assert upstream is not None
    with as_found(upstream, device):
        yield target_side(upstream, name, batch_size, point)


def _from_pairs(
    selection: LayerSelection,
    opened: AbstractContextManager[Side],
    path: Path,
    name: str,
    prefix: str | None,
    layer_map: LayerMap,
) -> dict[str, Any]:
    with opened as target:
        source = source_side(path, name, prefix, selection.settings.special_tokens, comparison_device())
        result = measure(
            target, source, str(selection.pairs), selection.root, selection.split, layer_map, [selection.by],
            selection.top_k,
            selection.settings,
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
        pairs_path, root, split: as for :func:`s3prl_ext.upstreams.layer_similarity.corpus.read_corpus`.
        metrics: names that fit the settings.
        k: number of layers to choose by each metric.
    """
    layers = meeting_layers(target, source, layer_map)
    check_top_k(k, sum(layer is not None for layer in layers))
    drawn, of = drawn_pairs(pairs_path, root, split, target, source, settings)
    tables, pairs_key = compare(target, source, drawn, layers, metrics, settings)
    return {
        "kind": KIND,
        "target": target.describe(),
        "source": source.describe(),
        "layer_map": layers,
        "pairs": {"file": pairs_path, "split": split, "of": of, "used": len(drawn), "sha256": pairs_key},
        "settings": dataclasses.asdict(settings),
        "top_k": k,
        "metrics": {table.metric: _describe_table(table, k) for table in tables},
        "versions": {name: metadata.version(name) for name in ("s3prl_ext", "torch", "transformers", "numpy")},
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


def _from_file(
    selection: LayerSelection,
    target: AttentionWeights,
    source: AttentionWeights,
    names: tuple[str, str],
    layer_map: LayerMap,
) -> dict[str, Any]:
    """Return the choice from a file whose models have the hashes of the present ones."""
    content = read_result(str(selection.file))
    for role, name, weights in (("target", names[0], target), ("source", names[1], source)):
        was, now = content[role]["attention_sha256"], sha256(weights)
        if was != now:
            raise DataError(
                f"{selection.file} was made with another {role}: '{content[role]['name']}' (attention {was[:12]}), but "
                f"now it is '{name}' (attention {now[:12]}): run s3prl-ext layers with this {role}."
            )
    layers = resolve_layer_map(layer_map, content["target"]["layers"], content["source"]["layers"])
    if layers != content["layer_map"]:
        raise DataError(
            f"{selection.file} was made with another layer_map, {content['layer_map']}, but now it is {layers}: "
            "give the same, or run s3prl-ext layers with this one."
        )
    if selection.by not in content["metrics"]:
        raise unknown_name("metric", selection.by, content["metrics"], str(selection.file))
    return _record(selection, content)


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
