"""Merge the attention of a source model into that of a target model (MAM, Eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth, width
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.interpolation import interpolate, relative_change
from s3prl_ext.merging.report import MergeRow

# projection -> one lambda per layer; 0 = target, 1 = source.
Lambdas = Mapping[str, list[float]]


def merge_attention(
    target: AttentionWeights, source: AttentionWeights, lambdas: Lambdas, biases: bool = False
) -> tuple[AttentionWeights, list[MergeRow]]:
    """Return the merged parameters and a report; slots with lambda 0 are not in either, inputs stay unchanged.

    Args:
        target, source: models that :func:`check_compatible` accepts.
        lambdas: projection -> one value per layer; a projection that is not in it is left alone.
        biases: merge the biases too.

    Raises:
        DataError: a tensor to be merged holds NaN or infinity.
    """
    chosen = chosen_slots(target, lambdas, biases)
    for name, weights in (("target", target), ("source", source)):
        _check_finite(weights, chosen, name)
    merged: AttentionWeights = {}
    rows: list[MergeRow] = []
    for slot, weight in chosen.items():
        merged[slot] = interpolate(target[slot], source[slot], weight)
        label = slot.projection if slot.kind == "weight" else f"{slot.projection}.bias"
        rows.append(MergeRow(slot.layer, label, weight, relative_change(target[slot], merged[slot])))
    return merged, rows


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
) -> None:
    """Check that two models have the same depth, width and, for `biases`, bias vectors.

    Args:
        names: what target and source are called in the message.

    Raises:
        UsageError: they differ; the message gives both shapes.
    """
    if depth(target) != depth(source) or width(target) != width(source):
        raise UsageError(
            f"{names[0]} has {_describe(target)} and {names[1]} {_describe(source)}: "
            "merging needs the same depth and width, so choose a source of the target's size."
        )
    for slot, tensor in target.items():
        if slot.kind == "bias" and not biases:
            continue
        if slot not in source:
            raise UsageError(
                f"{names[1]} has no {slot}, which {names[0]} has: set biases: false to merge matrices only."
            )
        if tensor.shape != source[slot].shape:
            shapes = f"{tuple(tensor.shape)} in {names[0]} and {tuple(source[slot].shape)} in {names[1]}"
            raise UsageError(f"{slot} has the shape {shapes}: merging needs equal shapes.")


def _describe(weights: AttentionWeights) -> str:
    return f"{depth(weights)} layers of shape {tuple(weights[Slot(0, 'q_proj')].shape)}"


def _check_finite(weights: AttentionWeights, slots: Mapping[Slot, float], name: str) -> None:
    for slot in slots:
        # NaN and infinity survive a sum, which is much faster; large finite values may overflow it
        if not weights[slot].sum(dtype=torch.float32).isfinite() and not weights[slot].isfinite().all():
            raise DataError(f"{slot} of the {name} holds NaN or infinity: the checkpoint is damaged, get it again.")
