"""Which layers are paired: sets of layers, and the map of target to source layers for models of unequal depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.merging.selection_config import KEYS as SELECTION_KEYS
from s3prl_ext.merging.selection_config import LayerMatch, LayerSelection, parse_match, parse_selection

_Value = TypeVar("_Value")

# As configured: target layer -> source layer, ``linear``, by similarity, or None where equal layers are paired.
LayerMap = dict[int, int] | LayerMatch | str | None


def parse_layer_choice(value: Any, where: str = "layers") -> Any:
    """Check the form of a set of layers, or of a selection by similarity, and return it.

    Args:
        value: as for :func:`parse_layers`, which is returned as it is; or a mapping such as ``{by: swd, top_k: 6,
            ...}``.

    Raises:
        UsageError: malformed.
    """
    if isinstance(value, Mapping) and value.keys() & set(SELECTION_KEYS):
        return parse_selection(value, where)
    parse_layers(value, None, where)
    return value


def parse_layer_map(value: Any, where: str = "layer_map") -> LayerMap:
    """Check the form of a layer map: ``linear``, ``{0: 0, 1: 2}``, ``{match: swd, pairs: ...}``, or None.

    Raises:
        UsageError: anything else.
    """
    if value is None or value == "linear":
        return value
    if isinstance(value, Mapping) and "match" in value:
        return parse_match(value, where)
    if isinstance(value, Mapping) and value:
        indices = [*value, *value.values()]
        if all(isinstance(index, int) and not isinstance(index, bool) and index >= 0 for index in indices):
            return dict(value)
    raise UsageError(
        f"{where} must be linear, map target layers to source layers such as {{0: 0, 1: 2}}, or say how to match them "
        f"such as {{match: swd, pairs: FILE}}, got {value!r}."
    )


def chosen_layers(layers: Any, layer_map: LayerMap, depth: int, where: str = "layers") -> tuple[int, ...]:
    """Return the target layers to merge: those named, of ``all`` only those that a map has.

    Raises:
        UsageError: a layer is out of range, or named but not in the map.
    """
    if isinstance(layers, LayerSelection):
        raise UsageError(f"{where}: the layers by {layers.by} are only known when both models are opened.")
    chosen = parse_layers(layers, depth, where)
    if not isinstance(layer_map, dict):
        return chosen
    missing = [layer for layer in chosen if layer not in layer_map]
    if missing and layers != "all":
        raise UsageError(
            f"{where} names {', '.join(map(str, missing))}, which layer_map does not map to a source layer."
        )
    return tuple(layer for layer in chosen if layer in layer_map)


def resolve_layer_map(
    layer_map: LayerMap, depth: int, source_depth: int | None, names: tuple[str, str] = ("the target", "the source")
) -> list[int | None]:
    """Return the source layer that each of the `depth` target layers is paired with, None for none.

    ``linear`` spreads evenly, first to first and last to last: target i is paired with
    round(i * (Ls - 1) / (Lt - 1)), with halves rounded to the even layer.

    Args:
        layer_map: None for equal layers, which needs equal depths.
        depth, source_depth: numbers of layers of the target (Lt) and the source (Ls; None for one of any depth).
        names: what target and source are called in the message.

    Raises:
        UsageError: the map names a layer that is not there.
    """
    if isinstance(layer_map, LayerMatch):
        raise UsageError(
            f"layer_map: which layers are paired by {layer_map.match} is only known when both models are opened."
        )
    if layer_map is None or (layer_map == "linear" and source_depth is None):
        return list(range(depth))
    if not isinstance(layer_map, dict):
        return [round(layer * (source_depth - 1) / max(1, depth - 1)) for layer in range(depth)]  # type: ignore[operator]
    problems = []
    for name, named, layers in ((names[0], layer_map.keys(), depth), (names[1], layer_map.values(), source_depth)):
        if layers is not None and max(named) >= layers:
            problems.append(
                f"layer_map: layer {max(named)} of {name} is out of range: {layers} layers are numbered 0-{layers - 1}."
            )
    if problems:
        raise UsageError("\n".join(problems))
    return [layer_map.get(layer) for layer in range(depth)]


def align(values: Mapping[Slot, _Value], layer_map: list[int | None]) -> dict[Slot, _Value]:
    """Return what belongs to a source's slots under the slots of the target.

    Args:
        values: a source's tensors, or anything else by slot.
        layer_map: source layer for each target layer, as :func:`resolve_layer_map` gives it.
    """
    return {
        Slot(layer, slot.projection, slot.kind): value
        for layer, source_layer in enumerate(layer_map)
        for slot, value in values.items()
        if slot.layer == source_layer
    }
