"""Merge the attention of one or more source models into that of a target model (MAM, Eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth, width
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.interpolation import relative_change
from s3prl_ext.merging.methods import LINEAR, MethodConfig, Part
from s3prl_ext.merging.regmean import InputMoments
from s3prl_ext.tables import columns

# projection -> one lambda per layer; 0 = target, 1 = source.
Lambdas = Mapping[str, list[float]]


@dataclass(frozen=True)
class MergeRow:
    """One tensor of one source.

    Attributes:
        layer: 0-based index in the target.
        projection: ``q_proj``, ``k_proj`` or ``v_proj``, with ``.bias`` for a bias.
        lambda_: weight of the source.
        relative_change: ||merged - target|| / ||target||, Frobenius norm, with all sources merged.
        source: name of the source.
        source_layer: its layer.
        kept: Frobenius norm of the source's tensor after its projection over that before; None where it was not
            projected.
    """

    layer: int
    projection: str
    lambda_: float
    relative_change: float
    source: str
    source_layer: int
    kept: float | None = None


def format_table(rows: Sequence[MergeRow]) -> str:
    """Return the rows as an aligned text table; one sentence where nothing was merged.

    Sources are shown where there are several, their layers where they are not the target's, what is kept of their norm
    where they were projected.
    """
    if not rows:
        return "nothing merged: lambda is 0 everywhere, or no layer is chosen"
    shown = {"layer": [str(row.layer) for row in rows], "projection": [row.projection for row in rows]}
    if len({row.source for row in rows}) > 1:
        shown["source"] = [row.source for row in rows]
    if any(row.source_layer != row.layer for row in rows):
        shown["source layer"] = [str(row.source_layer) for row in rows]
    shown["lambda"] = [f"{row.lambda_:g}" for row in rows]
    shown["relative change"] = [f"{row.relative_change:.4f}" for row in rows]
    if any(row.kept is not None for row in rows):
        shown["norm kept"] = ["" if row.kept is None else f"{row.kept:.4f}" for row in rows]
    return "\n".join(columns([tuple(shown), *zip(*shown.values(), strict=True)], right=True))


@dataclass(frozen=True)
class Source:
    """One of the models to merge in.

    Attributes:
        weights: its parameters under the target's slots, see :func:`s3prl_ext.merging.layers.align`.
        lambdas: projection -> one value per layer of the target; a projection that is not in it is left alone.
        name: what to call it in the report and in messages.
        layers: its layer behind each of the target's; None where they are equal.
        base: parameters of the model that it was trained from, under the target's slots; None where no method asks for
            them.
        facts: what its record says in addition: the base, the alignment.
        drawn_sha256: of noise that was rotated, the hash of the numbers as they were drawn; None otherwise.
        moments: second moments of what its layers and the target's read; None where no method asks for them.
        kept: Frobenius norm of each tensor over the one that it had before it was projected into the target's shape.
    """

    weights: AttentionWeights
    lambdas: Lambdas
    name: str = ""
    layers: Sequence[int | None] | None = None
    base: AttentionWeights | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[Slot, float] = field(default_factory=dict)
    drawn_sha256: str | None = None
    moments: InputMoments | None = None

    def part(self, slot: Slot, weight: float, number: int) -> Part:
        """Return what is merged in one slot with `weight`; `number` is that of the source."""
        base = None if self.base is None else self.base[slot]
        moments = self.moments.values[slot.layer] if self.moments and slot.kind == "weight" else None
        return Part(self.weights[slot], weight, base, number, moments=moments)

    def layer(self, slot: Slot) -> int:
        """Return the source's layer that is paired with the target's `slot`."""
        layer = self.layers[slot.layer] if self.layers is not None else None
        return slot.layer if layer is None else layer


def merge_attention(
    target: AttentionWeights, source: AttentionWeights, lambdas: Lambdas, biases: bool = False
) -> tuple[AttentionWeights, list[MergeRow]]:
    """Merge one source of the target's depth; see :func:`merge_sources`."""
    return merge_sources(target, [Source(source, lambdas)], biases)


def merge_sources(
    target: AttentionWeights, sources: Sequence[Source], biases: bool = False, method: MethodConfig = LINEAR
) -> tuple[AttentionWeights, list[MergeRow]]:
    """Return the merged parameters and a report; slots with lambda 0 are not in either, inputs stay unchanged.

    By default W = (1 - sum of lambda_j) * W_target + sum of lambda_j * W_j for each slot.

    Args:
        target: a model that :func:`check_compatible` accepts together with each source.
        sources: at least one.
        biases: merge the biases too.
        method: how matrices are combined.

    Raises:
        DataError: a tensor to be merged holds NaN or infinity.
    """
    merged: dict[Slot, Tensor] = {}
    rows: list[MergeRow] = []
    for slot, tensor, slot_rows in _merged_slots(target, sources, biases, method):
        merged[slot] = tensor
        rows += slot_rows
    return merged, rows


def merge_in_place(
    target: AttentionWeights, sources: Sequence[Source], biases: bool = False, method: MethodConfig = LINEAR
) -> list[MergeRow]:
    """Write what :func:`merge_sources` returns into the target's parameters, and return the report.

    One matrix is merged at a time, so that little memory is taken besides the models.
    """
    rows: list[MergeRow] = []
    with torch.no_grad():
        for slot, tensor, slot_rows in _merged_slots(target, sources, biases, method):
            target[slot].copy_(tensor)
            rows += slot_rows
    return rows


def _merged_slots(
    target: AttentionWeights, sources: Sequence[Source], biases: bool, method: MethodConfig
) -> Iterator[tuple[Slot, Tensor, list[MergeRow]]]:
    """Yield each slot that changes, its merged tensor and rows; before the first all tensors are checked."""
    chosen = [chosen_slots(target, source.lambdas, biases) for source in sources]
    changed = [slot for slot in target if any(slot in slots for slots in chosen)]
    check_finite(target, changed, "the target")
    for source, slots in zip(sources, chosen, strict=True):
        check_finite(source.weights, slots, f"the source {source.name}".rstrip(), source.layer)
        if source.base is not None:
            check_finite(source.base, slots, f"the base of the source {source.name}".rstrip(), source.layer)
    for slot in changed:
        used = [(source, slots[slot]) for source, slots in zip(sources, chosen, strict=True) if slot in slots]
        parts = [
            source.part(slot, slots[slot], number)
            for number, (source, slots) in enumerate(zip(sources, chosen, strict=True))
            if slot in slots
        ]
        merged = method.combine(target[slot], parts, slot)
        change = relative_change(target[slot], merged)
        label = slot.projection if slot.kind == "weight" else f"{slot.projection}.bias"
        yield (
            slot,
            merged,
            [MergeRow(slot.layer, label, w, change, s.name, s.layer(slot), s.kept.get(slot)) for s, w in used],
        )


def chosen_slots(target: AttentionWeights, lambdas: Lambdas, biases: bool) -> dict[Slot, float]:
    """Return the slots that a merge changes, in order, with their lambda."""
    slots = [slot for slot in target if slot.projection in lambdas and (biases or slot.kind == "weight")]
    weights = {slot: lambdas[slot.projection][slot.layer] for slot in slots}
    return {slot: weight for slot, weight in weights.items() if weight != 0.0}


def check_compatible(
    target: AttentionWeights,
    source: AttentionWeights,
    names: tuple[str, str] = ("the target", "the source"),
    biases: bool = False,
    layer_map: Sequence[int | None] | None = None,
    projected: bool = False,
) -> None:
    """Check that two models have the same width, depth unless a map is given, and, for `biases`, bias vectors.

    Args:
        names: what target and source are called in the message.
        layer_map: source layer for each target layer, None for a layer that stays as it is.
        projected: the source will be brought into the target's shapes, so that only depth and biases count.

    Raises:
        UsageError: they differ; the message gives both shapes.
    """
    fits = projected or width(target) == width(source)
    if not fits or (layer_map is None and depth(target) != depth(source)):
        advice = "choose a source of the target's size"
        if fits:
            advice += ", or set layer_map (such as linear) to say which layers are paired"
        else:
            advice += ", or project it with align: {kind: basis, pairs: FILE}"
        raise UsageError(
            f"{names[0]} has {_describe(target)} and {names[1]} {_describe(source)}: "
            f"merging needs the same depth and width, so {advice}."
        )
    pairs = list(range(depth(target))) if layer_map is None else layer_map
    for slot, tensor in target.items():
        source_layer = pairs[slot.layer]
        if source_layer is None or (slot.kind == "bias" and not biases):
            continue
        theirs = Slot(source_layer, slot.projection, slot.kind)
        if theirs not in source:
            raise UsageError(
                f"{names[1]} has no {theirs}, which {names[0]} has: set biases: false to merge matrices only."
            )
        if not projected and tensor.shape != source[theirs].shape:
            shapes = f"{tuple(tensor.shape)} in {names[0]} and {tuple(source[theirs].shape)} in {names[1]}"
            raise UsageError(f"{slot} has the shape {shapes}: merging needs equal shapes.")


def check_finite(
    weights: AttentionWeights,
    slots: Iterable[Slot],
    name: str,
    layer: Callable[[Slot], int] = lambda slot: slot.layer,
) -> None:
    """Check that the parameters behind `slots` hold numbers only.

    Args:
        name: what the model is called in the message.
        layer: returns the layer to name for a slot.

    Raises:
        DataError: one of them holds NaN or infinity; the message names it.
    """
    for slot in slots:
        # NaN and infinity survive a sum, which is much faster; large finite values may overflow it
        if not weights[slot].sum(dtype=torch.float32).isfinite() and not weights[slot].isfinite().all():
            shown = Slot(layer(slot), slot.projection, slot.kind)
            raise DataError(f"{shown} of {name} holds NaN or infinity: the checkpoint is corrupt, get it again.")


def _describe(weights: AttentionWeights) -> str:
    return f"{depth(weights)} layers of shape {tuple(weights[Slot(0, 'q_proj')].shape)}"
