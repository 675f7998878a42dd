"""The record of a merge that a checkpoint keeps, the check that a model matches it, and what to do where it is gone."""

from __future__ import annotations

import dataclasses
from typing import Any

from s3prl_ext import hub
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth, sha256, width
from s3prl_ext.errors import DataError, ExtError
from s3prl_ext.merging.merge import Source
from s3prl_ext.merging.names import OWN_UPSTREAM
from s3prl_ext.merging.noise import STREAMS, NoiseConfig
from s3prl_ext.merging.recorded import of_basis, pairs_sha256, used_layers, without_pairs
from s3prl_ext.upstreams.merged_attention.config import is_merged

MergeRecord = dict[str, Any]

UNKNOWN = "unknown"  # in place of a record, where a file does not say how its upstream was merged


def describe_model(name: str, weights: AttentionWeights) -> MergeRecord:
    """Return name, size and attention hash of a model as plain values, and the commit of one that came from the hub."""
    size = {"layers": depth(weights), "width": width(weights)}
    return {"name": name, "revision": hub.resolved().get(name), **size, "attention_sha256": sha256(weights)}


def describe_source(
    noise: NoiseConfig | None, weights: AttentionWeights | None, source: Source, layer_map: list[int | None]
) -> MergeRecord:
    """Return a source as plain values: the model, lambda, which layers are paired, and the noise in its place.

    Args:
        noise: as configured; None where the source itself is merged.
        weights: the source's parameters as read; None where no model is.
        source: what is merged; of noise the sample's hash is kept, since another torch may draw other numbers.
        layer_map: source layer for each target layer.
    """
    unread: MergeRecord = {
        "name": source.name,
        "revision": None,
        "layers": None,
        "width": None,
        "attention_sha256": None,
    }
    record = unread if weights is None else describe_model(source.name, weights)
    record |= {"lambda": source.lambdas, "layer_map": None if weights is None else layer_map, "noise": None}
    if noise is not None:
        statistics = None if noise.kind == "standard" else noise.statistics
        facts = {"statistics": statistics, "streams": STREAMS, "sha256": source.drawn_sha256 or sha256(source.weights)}
        record["noise"] = dataclasses.asdict(noise) | facts
    return record | dict(source.facts)


def check_merge_record(stored: MergeRecord | str | None, current: MergeRecord | None) -> None:
    """Check that a model was merged in the same way as the one a checkpoint was made with.

    Names and paths may differ; what counts are the hashes of target, sources and bases, noise, layer maps, the order of
    heads, pairs of an alignment, lambdas (of learnable ones the first values), the method, and whether biases are
    merged.

    Args:
        stored: ``merge_record`` of the checkpoint; None or empty where its upstream was not merged; :data:`UNKNOWN` of
            a delta that does not say, which is judged by the hash of its upstream.
        current: ``merge_record`` of the present upstream; None or empty where it is not merged.

    Raises:
        DataError: they differ; the message names the difference.
    """
    if stored == UNKNOWN or (not stored and not current):
        return
    if not stored or not current:
        was, now = ("a merged", "not merged") if stored else ("an unmerged", "merged")
        raise DataError(f"the checkpoint was made with {was} upstream, but this one is {now}: give its -u and -g.")
    assert isinstance(stored, dict)
    _check_model("target", stored["target"], current["target"])
    counts = len(stored["sources"]), len(current["sources"])
    if counts[0] != counts[1]:
        raise DataError(
            f"the checkpoint was made with {counts[0]} sources, but now there are {counts[1]}: give the same."
        )
    if stored.get("method") != current.get("method"):
        raise DataError(
            f"the checkpoint was made with method: {_method(stored)}, but now it is method: {_method(current)}: "
            "give the same."
        )
    learnt = stored.get("learnable") or {}
    for index, (was, now) in enumerate(zip(stored["sources"], current["sources"], strict=True)):
        own = learnt["sources"][index] if "sources" in learnt else learnt
        _check_source(f"source {index + 1}" if counts[0] > 1 else "source", was, now, own.get("layers", []))
    _check_learnable(stored.get("learnable"), current.get("learnable"))
    if stored["biases"] != current["biases"]:
        raise DataError(
            f"the checkpoint was made with biases: {_yaml(stored['biases'])}, but now it is "
            f"biases: {_yaml(current['biases'])}: give the same."
        )
    for was, now in zip(stored["sources"], current["sources"], strict=True):
        _check_noise(was, now)


def with_remedy(error: ExtError, upstream: str, made_from: object) -> ExtError:
    """Return an error about the models of a merge with the flags that say where they are now.

    Args:
        error: as it was raised.
        upstream: name of the upstream; of one that is not merged the error is returned as it is.
        made_from: the checkpoint or delta whose upstream could not be built.
    """
    if not is_merged(upstream):
        return error
    file = "FILE,," if upstream == OWN_UPSTREAM else ""
    return type(error)(
        f"{error} The upstream of {made_from} is merged again from its models: where they have moved, give -g "
        f'"{file}source.model=PATH", and for the target -k PATH.'
    )


def rounding_hint(record: MergeRecord | str | None) -> str:
    """Return what to do where a merge of the same models has other bits; empty where it has the same everywhere.

    Decompositions and products of large matrices are rounded otherwise on another machine or with more threads.
    """
    if not isinstance(record, dict) or not any(
        source.get(key) for source in record["sources"] for key in ("basis", "projection", "moments")
    ):
        return ""
    return (
        " Its merge (align: basis, regmean) may also be rounded otherwise on another machine or with another number of "
        "threads: use it where it was made; for new runs write the merge with s3prl-ext merge --out and train on that."
    )


def _check_learnable(stored: MergeRecord | None, current: MergeRecord | None) -> None:
    if stored == current:
        return
    only_layers = stored and current and _without_layers(stored) == _without_layers(current)
    raise DataError(
        f"the checkpoint was made with learnable: {_section(stored)}, but now it is "
        f"learnable: {_section(current)}: give the same learnable, layers and projections"
        + (" (learnable: {layers: merged} keeps to the layers of the merge)." if only_layers else ".")
    )


def _check_noise(stored: MergeRecord, current: MergeRecord) -> None:
    """Check that the noise in a source's place is of the same numbers."""
    if stored["noise"] and stored["noise"].get("streams") != current["noise"]["streams"]:
        raise DataError(
            f"the checkpoint was made with other numbers for {stored['name']}: up to s3prl_ext 0.1.0 the three kinds "
            "of noise shared their random numbers, now each has its own. Use the version that made it, or train again."
        )
    if stored["noise"] != current["noise"]:
        raise DataError(
            f"the checkpoint was made with other numbers for {stored['name']}: this version of torch draws "
            "differently, use the one it was made with."
        )


def _check_model(role: str, stored: MergeRecord, current: MergeRecord) -> None:
    if stored["attention_sha256"] != current["attention_sha256"]:
        raise DataError(
            f"the checkpoint was made with another {role}: {_named(stored)}, but now it is "
            f"{_named(current)}: give the {role} it was made with."
        )


def _check_source(role: str, stored: MergeRecord, current: MergeRecord, learnt: list[int]) -> None:
    was, now = _noise(stored), _noise(current)
    if was != now:
        raise DataError(f"the checkpoint was made with {role} noise: {was}, but now it is {now}: give the same.")
    _check_model(role, stored, current)
    for key in ("base", "align", "basis"):
        if bool(stored.get(key)) != bool(current.get(key)):
            raise DataError(
                f"the checkpoint was made {_with(key, stored)} of the {role}, but now it is {_with(key, current)}: "
                "give the same configuration."
            )
    if stored.get("base"):
        _check_model(f"base of the {role}", stored["base"], current["base"])
    if without_pairs(stored.get("align")) != without_pairs(current.get("align")):
        raise DataError(
            f"the checkpoint was made with other heads of the {role} aligned: {stored['align']['heads']} heads, but "
            f"now {current['align']['heads']}, or in another order: give the same align and models."
        )
    if of_basis(stored) != of_basis(current):
        raise DataError(
            f"the checkpoint was made with another basis of the {role}: {stored['basis']['pairs']['used']} pairs, but "
            f"now {current['basis']['pairs']['used']} or other ones: give the same align and pairs."
        )
    if pairs_sha256(stored.get("moments")) != pairs_sha256(current.get("moments")):
        raise DataError(
            f"the checkpoint was made with regmean over other pairs for the {role}: give the same method and pairs."
        )
    if without_pairs(stored.get("projection")) != without_pairs(current.get("projection")):
        was, now = (_heads(record.get("projection")) for record in (stored, current))
        raise DataError(
            f"the checkpoint was made with the heads of the {role} placed otherwise: {was}, but now {now}: give the "
            "same align and models."
        )
    lambdas, maps = _difference(stored, current, learnt)
    of = "" if role == "source" else f" of {role}"
    if lambdas:
        raise DataError(
            f"the checkpoint was made with another lambda{of}: {lambdas}: give the same lambda, layers and projections."
        )
    if maps:
        raise DataError(f"the checkpoint was made with another layer_map{of}: {maps}: give the same.")


def _with(key: str, source: MergeRecord) -> str:
    name = "align basis" if key == "basis" else key
    return f"with {name}" if source.get(key) else f"without {name}"


def _heads(projection: dict[str, Any] | None) -> str:
    if projection is None:
        return "as they are"
    theirs, ours = projection["heads"]
    return f"{theirs} into {ours} heads, {'paired' if projection['paired'] else 'in order'}"


def _method(record: MergeRecord) -> str:
    method = record.get("method") or {"name": "linear"}
    return _section({key: value for key, value in method.items() if value is not None})


def _named(model: MergeRecord) -> str:
    return f"'{model['name']}' (attention {str(model['attention_sha256'])[:12]})"


def _yaml(flag: bool) -> str:
    return str(flag).lower()


def _without_layers(learnable: dict[str, Any]) -> dict[str, Any]:
    """Return the section of a learnable merge but for which layers have a lambda."""
    kept = {key: value for key, value in learnable.items() if key != "layers"}
    if "sources" in kept:
        kept["sources"] = [source["projections"] for source in kept["sources"]]
    return kept


def _section(learnable: dict[str, Any] | None) -> str:
    return "false" if learnable is None else "{" + ", ".join(f"{k}: {v}" for k, v in learnable.items()) + "}"


def _noise(source: MergeRecord) -> str:
    """Return the noise section of a source as one would write it."""
    if source["noise"] is None:
        return "none"
    return ", ".join(
        f"{key} {value}"
        for key, value in source["noise"].items()
        if key not in ("sha256", "streams") and value is not None
    )


def _difference(stored: MergeRecord, current: MergeRecord, learnt: list[int]) -> tuple[str | None, str | None]:
    """Return where the lambdas differ, and where other layers of the source are merged, learnt ones included."""
    for projection, values in stored["lambda"].items():
        for layer, (was, now) in enumerate(zip(values, current["lambda"][projection], strict=True)):
            if was != now:
                return f"{was:g} in {Slot(layer, projection)}, but now {now:g}", None
    for layer in used_layers(stored, learnt) if stored["layer_map"] else ():
        was, now = stored["layer_map"][layer], current["layer_map"][layer]
        if was != now:
            return None, f"layer {was} of the source in layer {layer}, but now {now}"
    return None, None
