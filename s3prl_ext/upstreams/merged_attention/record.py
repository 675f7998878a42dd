"""The record of a merge that a checkpoint keeps, and the check that a model matches it."""

from __future__ import annotations

from typing import Any

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth, sha256, width
from s3prl_ext.errors import DataError

MergeRecord = dict[str, Any]


def describe_model(name: str, weights: AttentionWeights) -> MergeRecord:
    """Return name, size and attention hash of a model as plain values."""
    return {"name": name, "layers": depth(weights), "width": width(weights), "attention_sha256": sha256(weights)}


def check_merge_record(stored: MergeRecord | None, current: MergeRecord | None) -> None:
    """Check that a model was merged in the same way as the one a checkpoint was made with.

    Names and paths may differ; what counts are the hashes of target and source, lambda, and whether biases are merged.

    Args:
        stored: ``merge_record`` of the checkpoint; None or empty where its upstream was not merged.
        current: ``merge_record`` of the present upstream; None or empty where it is not merged.

    Raises:
        DataError: they differ; the message names the difference.
    """
    if not stored and not current:
        return
    if not stored or not current:
        was, now = ("a merged", "not merged") if stored else ("an unmerged", "merged")
        raise DataError(f"the checkpoint was made with {was} upstream, but this one is {now}: give its -u and -g.")
    for role in ("target", "source"):
        if stored[role]["attention_sha256"] != current[role]["attention_sha256"]:
            raise DataError(
                f"the checkpoint was made with another {role}: {_named(stored[role])}, but now it is "
                f"{_named(current[role])}: give the {role} it was made with."
            )
    difference = _lambda_difference(stored["lambda"], current["lambda"])
    if difference:
        raise DataError(
            f"the checkpoint was made with another lambda: {difference}: give the same lambda, layers and projections."
        )
    if stored["biases"] != current["biases"]:
        raise DataError(
            f"the checkpoint was made with biases: {_yaml(stored['biases'])}, but now it is "
            f"biases: {_yaml(current['biases'])}: give the same."
        )


def _named(model: MergeRecord) -> str:
    return f"'{model['name']}' (attention {model['attention_sha256'][:12]})"


def _yaml(flag: bool) -> str:
    return str(flag).lower()


def _lambda_difference(stored: dict[str, list[float]], current: dict[str, list[float]]) -> str | None:
    for projection, values in stored.items():
        for layer, (was, now) in enumerate(zip(values, current[projection], strict=True)):
            if was != now:
                return f"{was:g} in {Slot(layer, projection)}, but now {now:g}"
    return None
