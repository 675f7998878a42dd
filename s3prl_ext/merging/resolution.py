"""How the lambdas of a configuration fit the depth of a target: one value per source, projection and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.interpolation import SUM_TOLERANCE
from s3prl_ext.merging.lambdas import over_depth
from s3prl_ext.merging.layers import chosen_layers
from s3prl_ext.merging.source_config import SourceConfig
from s3prl_ext.settings import Problems


def resolve_lambdas(config: MergeConfig, depth: int, where: str = "config") -> list[dict[str, list[float]]]:
    """Return for each source: projection -> one lambda per target layer; 0 outside the chosen layers.

    Args:
        depth: number of layers of the target.

    Raises:
        UsageError: with one line for every value that does not fit the depth, and for sums over 1.
    """
    problems = Problems()
    several = len(config.sources) > 1
    places = [f"{where}: sources[{i}]." if several else f"{where}: " for i in range(len(config.sources))]
    resolved = [
        problems.attempt(_resolve_source, source, depth, place) or {}
        for source, place in zip(config.sources, places, strict=True)
    ]
    problems.raise_lines()
    if not config.allow_extrapolation and config.combination.method.sums_to_one:
        _check_sums(resolved, depth, where)
    return resolved


def _resolve_source(source: SourceConfig, depth: int, place: str) -> dict[str, list[float]]:
    problems = Problems()
    chosen = problems.attempt(chosen_layers, source.layers, source.layer_map, depth, f"{place}layers") or ()
    resolved = {projection: [0.0] * depth for projection in PROJECTIONS}
    for projection, schedule in source.lambda_.items():
        if isinstance(schedule, list) and len(schedule) != depth:
            problems.append(
                f"{place}lambda of {projection} has {len(schedule)} values, but the models have {depth} layers: give "
                f"one value per layer, or lambda: {{gradient: [first, ..., last]}} to interpolate over depth."
            )
            continue
        values = over_depth(schedule, depth)
        resolved[projection] = [values[layer] if layer in chosen else 0.0 for layer in range(depth)]
    problems.raise_lines()
    return resolved


def _check_sums(resolved: Sequence[Mapping[str, Sequence[float]]], depth: int, where: str) -> None:
    """Refuse lambdas that add up to more than 1 over the sources; the message names the largest sum."""
    sums = [
        (math.fsum(lambdas[projection][layer] for lambdas in resolved), layer, projection)
        for layer in range(depth)
        for projection in PROJECTIONS
    ]
    total, layer, projection = max(sums, key=lambda item: item[0])
    if total > 1.0 + SUM_TOLERANCE:
        raise UsageError(
            f"{where}: lambda adds up to {total:g} over the sources in layer {layer} {projection}, but must not exceed "
            "1: lower it, or set allow_extrapolation: true."
        )
