"""The table of attention layouts: how model families name the query, key and value parameters of layer i.

A layout is found by matching the keys of a state dict. All weights are [out, in]; a fused weight stacks q, k, v
along its first dimension. Any prefix may stand before a name (``hubert.``, ``model.``, ``roberta.``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from s3prl_ext.errors import DataError, UsageError, nearest

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
KINDS = ("weight", "bias")


class Slot(NamedTuple):
    """One attention parameter: 0-based `layer`, `projection` of :data:`PROJECTIONS`, `kind` ``weight`` or ``bias``."""

    layer: int
    projection: str
    kind: str = "weight"

    def __str__(self) -> str:
        return f"layer {self.layer} {self.projection}.{self.kind}"

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key: by layer, then q, k, v, then weight before bias."""
        return self.layer, PROJECTIONS.index(self.projection), KINDS.index(self.kind)


@dataclass(frozen=True)
class Layout:
    """One row of the table.

    Attributes:
        name: short name of the row.
        models: who uses it.
        template: module name with ``{layer}`` and, unless fused, ``{projection}``.
        projections: the row's own names of query, key and value, in this order; None for a fused module.
    """

    name: str
    models: str
    template: str
    projections: tuple[str, str, str] | None = PROJECTIONS

    @property
    def fused(self) -> bool:
        """Whether one tensor of shape [3 * width, ...] holds q, k and v, in this order."""
        return self.projections is None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of the full key, with the groups prefix, layer, projection (unless fused), kind."""
        body = re.escape(self.template).replace(r"\{layer\}", r"(?P<layer>\d+)")
        if self.projections:
            body = body.replace(r"\{projection\}", f"(?P<projection>{'|'.join(self.projections)})")
        return re.compile(rf"(?P<prefix>(?:.*\.)?){body}\.(?P<kind>weight|bias)")

    def is_after(self, match: re.Match[str], prefix: str) -> bool:
        """Return whether a matching key belongs to the encoder after `prefix`.

        Args:
            prefix: all that stands before the row's names, or the last modules before the layers: ``decoder``.
        """
        before = (match["prefix"] + self.template.partition("{layer}")[0]).split(".")[:-2]
        wanted = prefix.strip(".").split(".")
        return match["prefix"] == prefix or before[-len(wanted) :] == wanted

    def slots(self, match: re.Match[str]) -> list[Slot]:
        """Return the slots that the tensor behind a matching key holds: one, or q, k, v of a fused tensor."""
        layer, kind = int(match["layer"]), match["kind"]
        if self.projections is None:
            return [Slot(layer, projection, kind) for projection in PROJECTIONS]
        return [Slot(layer, PROJECTIONS[self.projections.index(match["projection"])], kind)]


# Tried from top to bottom, the first row with a match wins: a row stands above those that match the end of its names.
LAYOUTS = (
    Layout(
        "transformers-speech",
        "transformers HuBERT, wav2vec 2.0, WavLM, data2vec-audio",
        "encoder.layers.{layer}.attention.{projection}",
    ),
    Layout(
        "fairseq",
        "s3prl and fairseq HuBERT, wav2vec 2.0, WavLM; BEATs; Whisper's encoder",
        "encoder.layers.{layer}.self_attn.{projection}",
    ),
    Layout(
        "bert",
        "transformers BERT, RoBERTa",
        "encoder.layer.{layer}.attention.self.{projection}",
        ("query", "key", "value"),
    ),
    Layout(
        "vit",
        "transformers ViT, DeiT, AST: files on disk (and in memory before version 5)",
        "encoder.layer.{layer}.attention.attention.{projection}",
        ("query", "key", "value"),
    ),
    Layout("timm", "timm ViT and its relatives", "blocks.{layer}.attn.qkv", None),
    Layout("decoder", "Whisper's decoder, with prefix: decoder", "decoder.layers.{layer}.self_attn.{projection}"),
    Layout("vit-memory", "transformers 5 ViT, DeiT, AST in memory", "layers.{layer}.attention.{projection}"),
)

added_layouts: list[Layout] = []  # rows of extensions, tried after the table


def known_layouts() -> tuple[Layout, ...]:
    """Return the table and the rows that were added, in the order in which they are tried."""
    return (*LAYOUTS, *added_layouts)


def add_layout(row: Layout) -> None:
    """Add a row behind the table, so that models which the table knows are read as before.

    Raises:
        UsageError: the template lacks a placeholder, or does not name three projections.
    """
    wanted = ("{layer}",) if row.fused else ("{layer}", "{projection}")
    missing = [placeholder for placeholder in wanted if placeholder not in row.template]
    if missing:
        raise UsageError(f"the template '{row.template}' of the layout '{row.name}' lacks {' and '.join(missing)}.")
    if row.projections is not None and len(set(row.projections)) != len(PROJECTIONS):
        raise UsageError(f"the layout '{row.name}' must name query, key and value, but names {row.projections}.")
    added_layouts.append(row)


@dataclass(frozen=True)
class AttentionKeys:
    """Where the attention parameters of one model are.

    Attributes:
        layout: the matching row.
        prefix: what stands before the row's names, with its final dot, or empty.
        layers: number of layers.
        names: slot -> state-dict key (of a fused tensor: the same key for q, k and v).
    """

    layout: Layout
    prefix: str
    layers: int
    names: dict[Slot, str]


def find_attention(keys: Iterable[str], where: str, prefix: str | None = None) -> AttentionKeys:
    """Find the attention parameters among the keys of a state dict.

    Args:
        keys: all keys of the state dict.
        where: name of the model or file, for the error.
        prefix: take only names after this prefix, see :meth:`Layout.is_after`; needed where a model holds several
            encoders, and for the decoder of a model that has both.

    Raises:
        DataError: no row matches (the keys seen are listed), several prefixes match, or layers are incomplete.
    """
    keys = list(keys)
    for layout in known_layouts():
        matches = {key: match for key in keys if (match := layout.pattern.fullmatch(key))}
        if prefix is not None:
            matches = {key: match for key, match in matches.items() if layout.is_after(match, prefix)}
        if matches:
            return _collect(layout, matches, where)
    raise DataError(_unmatched(keys, where) if prefix is None else _no_prefix(keys, where, prefix))


def _collect(layout: Layout, matches: dict[str, re.Match[str]], where: str) -> AttentionKeys:
    prefixes = sorted({match["prefix"] for match in matches.values()})
    if len(prefixes) > 1:
        listed = ", ".join(f"'{prefix}'" for prefix in prefixes)
        raise DataError(f"{where} holds several encoders with attention ({layout.name}), after {listed}: choose one.")
    names = {slot: key for key, match in matches.items() for slot in layout.slots(match)}
    layers = 1 + max(slot.layer for slot in names)
    missing = [str(slot) for i in range(layers) for p in PROJECTIONS if (slot := Slot(i, p)) not in names]
    if missing:
        raise DataError(f"{where} is incomplete: of {layers} attention layers it lacks {', '.join(missing[:6])}.")
    ordered = {slot: names[slot] for slot in sorted(names, key=lambda slot: slot.order)}
    return AttentionKeys(layout, prefixes[0], layers, ordered)


def _no_prefix(keys: list[str], where: str, prefix: str) -> str:
    """Return the complaint that nothing is after a prefix, with the parts of the model that have attention."""
    parts = {
        match["prefix"] + layout.template.partition(".")[0]
        for layout in known_layouts()
        for key in keys
        if (match := layout.pattern.fullmatch(key))
    }
    if not parts:
        return _unmatched(keys, where)
    short = {part.rpartition(".")[2] for part in parts}
    return (
        f"{where} has no attention after the prefix '{prefix}'{nearest(prefix, parts | short)} It has some in "
        f"{', '.join(sorted(parts))}."
    )


def _unmatched(keys: list[str], where: str) -> str:
    shown = ", ".join(sorted(keys)[:12]) + (f", ... ({len(keys)} in all)" if len(keys) > 12 else "")
    known = "; ".join(f"{layout.template} ({layout.models})" for layout in known_layouts())
    return f"{where} has no attention matrices with a known name. Keys seen: {shown or 'none'}. Known: {known}."
