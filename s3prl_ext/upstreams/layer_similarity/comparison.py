"""Compare the layers of two encoders on paired inputs: by mean vectors, or frames against tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import AttentionWeights, depth, extract, sha256, width
from s3prl_ext.corpora.pairs import Pair, content_hash
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.layer_selection import LayerTable, layer_table, similarity_matrix
from s3prl_ext.merging.layers import LayerMap, resolve_layer_map
from s3prl_ext.merging.selection_config import ComparisonSettings
from s3prl_ext.merging.similarity import draw_projections, swd
from s3prl_ext.models.fingerprint import model_sha256, module_sha256
from s3prl_ext.reading import parse_json
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS
from s3prl_ext.upstreams.layer_similarity.encoders import Encoder, load_source, source_kind
from s3prl_ext.upstreams.layer_similarity.features import (
    CACHE_FORMAT,
    cache_dir,
    check_finite,
    folder_hash,
    hash_of,
    in_parts,
    layer_vectors,
)
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.writing import write_json


@dataclass(frozen=True)
class Side:
    """One of the two models of a comparison.

    Attributes:
        name: what to call it.
        kind: what it reads: ``speech``, ``text`` or ``image``.
        layers, width: its size.
        attention_sha256: hash of its attention parameters, as in the record of a merge.
        model_sha256: hash of the model, however it is run.
        key: hash of all that its outputs depend on.
        load: builds its encoder; not called where everything is on disk already.
    """

    name: str
    kind: str
    layers: int
    width: int
    attention_sha256: str
    model_sha256: str
    key: str
    load: Callable[[], Encoder]

    def describe(self) -> dict[str, Any]:
        """Return the side as plain values."""
        described = asdict(self)
        del described["key"], described["load"]
        return described


def target_side(upstream: nn.Module, name: str, batch_size: int = 1, point: str = BLOCKS) -> Side:
    """Return an upstream as the target of a comparison; it must stay in evaluation mode until that is done.

    Args:
        batch_size: clips in one pass, see :class:`SpeechEncoder`.
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: no attention found.
    """
    weights = extract(upstream.state_dict(), f"target {name}")
    key = hash_of("target", module_sha256(upstream), batch_size, *_point(point))
    model = model_sha256(upstream)
    return _side(name, "speech", weights, model, key, lambda: SpeechEncoder(upstream, name, batch_size, point))


def source_side(
    folder: Path,
    name: str,
    prefix: str | None = None,
    special_tokens: bool = True,
    device: str = "cpu",
    point: str = BLOCKS,
) -> Side:
    """Return a transformers folder as the source of a comparison.

    Args:
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: it lacks a tokenizer or another file.
    """
    kind = source_kind(folder, name, prefix)
    model = folder_hash(folder)
    key = hash_of("source", model, prefix, special_tokens, *_point(point))
    weights = read_attention(folder, prefix)

    def load() -> Encoder:
        return load_source(folder, name, prefix, special_tokens, device, point)

    return _side(name, kind, weights, model, key, load)


def _point(point: str) -> tuple[str, ...]:
    """Return what tells vectors of other points apart on disk; those of blocks were stored without."""
    return () if point == BLOCKS else (point,)


def _side(name: str, kind: str, weights: AttentionWeights, model: str, key: str, load: Callable[[], Encoder]) -> Side:
    return Side(name, kind, depth(weights), width(weights), sha256(weights), model, key, load)


def meeting_layers(target: Side, source: Side, layer_map: LayerMap, any_width: bool = False) -> list[int | None]:
    """Return the source layer that each target layer is compared with, None for one that is left out.

    Args:
        any_width: the widths may differ.

    Raises:
        UsageError: width, or depth without a map, differ.
    """
    names = f"target {target.name}", f"source {source.name}"
    unequal = target.width != source.width and not any_width
    if unequal or (layer_map is None and target.layers != source.layers):
        sizes = [
            f"{name} has {side.layers} layers of width {side.width}" for name, side in zip(names, (target, source))
        ]
        advice = "choose models of equal width" if unequal else "set layer_map (such as linear)"
        raise UsageError(f"{sizes[0]} and {sizes[1]}: equal layers cannot be compared, {advice}.")
    return resolve_layer_map(layer_map, target.layers, source.layers, names)


def pair_kind(target: Side, source: Side) -> str:
    """Return what a clip is paired with: ``text``, ``image`` or ``speech``.

    Raises:
        UsageError: the target is a decoder, which reads the transcript, and the source reads images.
    """
    if target.kind == "speech":
        return source.kind
    if source.kind == "image":
        raise UsageError(
            f"{target.name} reads transcripts and {source.name} images, which no pair of a clip has both of."
        )
    return target.kind


def inputs(target: Side, source: Side, pairs: Sequence[Pair]) -> tuple[list[Any], list[Any]]:
    """Return what target and source read of each pair: a speech target the clip, a decoder the transcript."""
    clips, others = [pair.audio for pair in pairs], [pair.other for pair in pairs]
    if target.kind == "speech":
        return clips, others
    return others, (clips if source.kind == "speech" else others)


def hashed_inputs(
    target: Side, source: Side, pairs: Sequence[Pair]
) -> tuple[tuple[list[Any], list[Any]], tuple[list[str], list[str]], str]:
    """Return what target and source read of each pair, the hash of each of these, and the hash of all.

    Args:
        pairs: those to use, drawn already.

    Raises:
        DataError: an input cannot be read.
    """
    items = inputs(target, source, pairs)
    ours, theirs = ([content_hash(item) for item in side] for side in items)
    return items, (ours, theirs), hash_of(ours, theirs)


def compare(
    target: Side,
    source: Side,
    pairs: Sequence[Pair],
    layers: Sequence[int | None],
    metrics: Sequence[str],
    settings: ComparisonSettings,
) -> tuple[list[LayerTable], str]:
    """Return one table per metric, and the hash of the pairs; what is on disk for the same hashes is not repeated.

    Args:
        pairs: those to use, drawn already.
        layers: source layer for each target layer, as :func:`meeting_layers` gives them.
        metrics: names of :data:`s3prl_ext.merging.similarity.SIMILARITIES` that fit the settings.

    Raises:
        DataError: an input cannot be read, or an output holds NaN.
    """
    items, hashes, pairs_key = hashed_inputs(target, source, pairs)
    how = (settings.level, settings.normalize, settings.projections)
    key = hash_of(CACHE_FORMAT, "table", target.key, source.key, pairs_key, list(layers), *how)
    compared = tuple(layer for layer, other in enumerate(layers) if other is not None)
    known = _read_tables(key)
    missing = [metric for metric in metrics if metric not in known]
    if missing and settings.level == "frame":
        values = _frame_distances(target, source, items, layers, hash_of(key, "frames"), hashes, settings)
        known |= {metric: values for metric in missing}
    elif missing:
        x, y = _vectors((target, source), items, hashes)
        x_layers = [x[:, layer] for layer in compared]
        y_layers = [y[:, layers[layer]] for layer in compared]
        for metric in missing:
            table = layer_table(x_layers, y_layers, metric, settings.normalize, settings.projections)
            known[metric] = list(table.values)
    if missing:
        _table_file(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_table_file(key), known, ensure_ascii=False)
    return [LayerTable(metric, tuple(known[metric]), compared) for metric in metrics], pairs_key


def compare_all(
    target: Side, source: Side, pairs: Sequence[Pair], metric: str, settings: ComparisonSettings
) -> tuple[Tensor, str]:
    """Return how similar every layer of the target is to every layer of the source, and the hash of the pairs.

    Args:
        pairs: those to use, drawn already.
        metric: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.
        settings: of level ``utterance``.

    Raises:
        DataError: an input cannot be read, or an output holds NaN.
    """
    x, y, pairs_key = paired_vectors(target, source, pairs)
    matrix = similarity_matrix(x.unbind(1), y.unbind(1), metric, settings.normalize, settings.projections)
    return matrix, pairs_key


def paired_vectors(target: Side, source: Side, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, str]:
    """Return the mean over time or tokens for each pair and layer, [pairs, layers, width], and the hash of the pairs.

    Args:
        pairs: those to use, drawn already.

    Raises:
        DataError: an input cannot be read, or an output holds NaN.
    """
    items, hashes, pairs_key = hashed_inputs(target, source, pairs)
    x, y = _vectors((target, source), items, hashes)
    return x, y, pairs_key


def _vectors(
    sides: tuple[Side, Side], items: tuple[Sequence[Any], Sequence[Any]], hashes: tuple[list[str], list[str]]
) -> list[Tensor]:
    return [
        layer_vectors(side.load(), side.key, read, hashed)
        for side, read, hashed in zip(sides, items, hashes, strict=True)
    ]


def _frame_distances(
    target: Side,
    source: Side,
    items: tuple[Sequence[Any], Sequence[Any]],
    layers: Sequence[int | None],
    key: str,
    hashes: Sequence[Sequence[str]],
    settings: ComparisonSettings,
) -> list[float]:
    """Return for each compared layer the mean over samples of the distance between frames and tokens."""
    x_encoder, y_encoder = target.load(), source.load()
    directions = draw_projections(target.width, settings.projections)
    meeting = [(layer, other) for layer, other in enumerate(layers) if other is not None]

    def prepare(states: Tensor, encoder: Encoder, item: Any) -> Tensor:
        check_finite(states, encoder.name, item)
        states = states.float().cpu()
        return nn.functional.normalize(states, dim=2) if settings.normalize else states

    def compute(indices: Sequence[int]) -> Tensor:
        x_items, y_items = ([side[index] for index in indices] for side in items)
        rows = []
        for x_item, y_item, x, y in zip(
            x_items, y_items, x_encoder.states(x_items), y_encoder.states(y_items), strict=True
        ):
            x, y = prepare(x, x_encoder, x_item), prepare(y, y_encoder, y_item)
            rows.append([swd(x[layer], y[other], directions) for layer, other in meeting])
        return torch.tensor(rows, dtype=torch.float64)

    keys = [hash_of(key, *both) for both in zip(*hashes, strict=True)]
    return in_parts(compute, keys, x_encoder.batch_size, "comparing frames with tokens").mean(0).tolist()


def _table_file(key: str) -> Path:
    return cache_dir() / "layers" / f"{key}.json"


def _read_tables(key: str) -> dict[str, list[float]]:
    try:
        return parse_json(_table_file(key).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
