"""Find the query, key and value parameters of layer i among the keys of a state dict, by the table of architectures."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from s3prl_ext.errors import DataError, nearest
from s3prl_ext.models.architectures import PROJECTIONS, Architecture, known

PARAMETER_KINDS = ("weight", "bias")


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
        return self.layer, PROJECTIONS.index(self.projection), PARAMETER_KINDS.index(self.kind)


@dataclass(frozen=True)
class AttentionKeys:
    """Where the attention parameters of one model are.

    Attributes:
        architecture: the matching row.
        prefix: what comes before the row's names, with its final dot, or empty.
        layers: number of layers.
        names: slot -> state-dict key (of a fused tensor: the same key for q, k and v).
    """

    architecture: Architecture
    prefix: str
    layers: int
    names: dict[Slot, str]


def find_attention(keys: Iterable[str], where: str, prefix: str | None = None) -> AttentionKeys:
    """Find the attention parameters among the keys of a state dict.

    Args:
        keys: all keys of the state dict.
        where: name of the model or file, for the error.
        prefix: take only names after this prefix, what comes right before the row's names (``text_model``) or before
            the layers (``decoder``); needed where a model holds several encoders, and for the decoder of a model that
            has both.

    Raises:
        DataError: no row matches (the keys seen are listed), several prefixes match, or layers are incomplete.
    """
    keys = list(keys)
    for row in known():
        matches = {key: match for key in keys if (match := row.pattern.fullmatch(key))}
        if prefix is not None:
            matches = {key: match for key, match in matches.items() if _is_after(row, match, prefix)}
        if matches:
            return _collect(row, matches, where)
    raise DataError(_unmatched(keys, where) if prefix is None else _no_prefix(keys, where, prefix))


def slots_of(keys: Iterable[str], prefix: str | None = None) -> dict[str, list[Slot]]:
    """Return the attention parameters among some keys of a state dict: one slot for each, or three of a fused tensor.

    Args:
        keys: any of a model's; those of other parameters are left out.
        prefix: as for :func:`find_attention`.
    """
    keys = list(keys)
    for row in known():
        matches = {key: match for key in keys if (match := row.pattern.fullmatch(key))}
        found = {
            key: _slots(row, match) for key, match in matches.items() if prefix is None or _is_after(row, match, prefix)
        }
        if found:
            return found
    return {}


def _collect(row: Architecture, matches: dict[str, re.Match[str]], where: str) -> AttentionKeys:
    prefixes = sorted({match["prefix"] for match in matches.values()})
    if len(prefixes) > 1:
        listed = ", ".join(f"'{prefix}'" for prefix in prefixes)
        raise DataError(
            f"{where} holds several encoders with attention ({row.name}), after {listed}: choose one with the key "
            f"prefix next to its model, such as prefix: {prefixes[-1].strip('.')}."
        )
    names = {slot: key for key, match in matches.items() for slot in _slots(row, match)}
    layers = 1 + max(slot.layer for slot in names)
    missing = [str(slot) for i in range(layers) for p in PROJECTIONS if (slot := Slot(i, p)) not in names]
    if missing:
        raise DataError(f"{where} is incomplete: of {layers} attention layers it lacks {', '.join(missing[:6])}.")
    ordered = {slot: names[slot] for slot in sorted(names, key=lambda slot: slot.order)}
    return AttentionKeys(row, prefixes[0], layers, ordered)


def _is_after(row: Architecture, match: re.Match[str], prefix: str) -> bool:
    """Return whether a matching key belongs to the encoder after `prefix`, see :func:`find_attention`."""
    owner = match["prefix"].strip(".").split(".")
    layers = f"{match['prefix']}{row.layers}".split(".")[:-1]
    wanted = prefix.strip(".").split(".")
    return wanted in (owner[-len(wanted) :], layers[-len(wanted) :])


def _slots(row: Architecture, match: re.Match[str]) -> list[Slot]:
    """Return the slots of the tensor behind a matching key: one, or query, key and value of a fused tensor."""
    layer, kind = int(match["layer"]), match["kind"]
    if row.projections is None:
        return [Slot(layer, projection, kind) for projection in PROJECTIONS]
    return [Slot(layer, PROJECTIONS[row.projections.index(match["projection"])], kind)]


def _no_prefix(keys: list[str], where: str, prefix: str) -> str:
    """Return the complaint that nothing is after a prefix, with the parts of the model that have attention."""
    parts = {
        match["prefix"] + row.attention.partition(".")[0]
        for row in known()
        for key in keys
        if (match := row.pattern.fullmatch(key))
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
    users: dict[str, list[str]] = {}
    for row in known():
        users.setdefault(row.attention, []).append(row.models)
    listed = "; ".join(f"{template} ({'; '.join(models)})" for template, models in users.items())
    return f"{where} has no attention matrices with a known name. Keys seen: {shown or 'none'}. Known: {listed}."


def Layout(
    name: str, models: str, template: str, projections: tuple[str, str, str] | None = PROJECTIONS
) -> Architecture:
    """Return a row of the table of architectures; deprecated: write an ``Architecture``. It goes with version 0.3."""
    warnings.warn("Layout is now s3prl_ext.models.architectures.Architecture.", DeprecationWarning, stacklevel=2)
    return Architecture(name, models, template, projections)
