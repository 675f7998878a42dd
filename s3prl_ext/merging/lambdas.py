"""Values of lambda over projections and depth: parse what a YAML file says, and spread it over the layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.errors import UsageError, nearest
from s3prl_ext.merging.interpolation import spread
from s3prl_ext.settings import as_number, number, unknown_keys

# Names of a projection that users of s3prl, transformers and the paper write.
PROJECTION_NAMES = {
    name: projection
    for projection, names in zip(PROJECTIONS, (("q", "query"), ("k", "key"), ("v", "value")), strict=True)
    for name in (projection, *names)
}
LAMBDA_KEYS = ("default", "gradient", "first", "decay", *PROJECTION_NAMES)
DECAY = {"first", "decay"}

# Values of lambda over depth: a number, one value per layer, the points of a gradient over depth, or first value and
# factor from layer to layer.
LambdaSchedule = float | list[float] | dict[str, list[float]] | dict[str, float]


def over_depth(schedule: LambdaSchedule, depth: int) -> list[float]:
    """Return one lambda per layer; a list is taken as it is."""
    if isinstance(schedule, dict):
        points = schedule.get("gradient")
        if isinstance(points, list):
            return spread(points, depth)
        return [schedule["first"] * schedule["decay"] ** layer for layer in range(depth)]  # type: ignore[operator]  # numbers
    return schedule if isinstance(schedule, list) else [schedule] * depth


def is_zero(schedule: LambdaSchedule) -> bool:
    """Return whether a schedule is 0 in every layer."""
    if isinstance(schedule, dict):
        points = schedule.get("gradient", schedule.get("first"))
        return not any(points) if isinstance(points, list) else not points
    return not any(schedule) if isinstance(schedule, list) else not schedule


def parse_projections(value: Any, where: str) -> list[str]:
    """Return the projections that `value` names, in the order q, k, v.

    Raises:
        UsageError: no list, empty, or an unknown name.
    """
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise UsageError(f"{where} must be a list such as [q_proj, k_proj], got {value!r}.")
    for name in names:
        if str(name) not in PROJECTION_NAMES:
            raise UsageError(
                f"{where}: unknown projection '{name}'{nearest(name, PROJECTIONS)} Known: q_proj, k_proj, v_proj."
            )
    return [projection for projection in PROJECTIONS if projection in {PROJECTION_NAMES[name] for name in names}]


def parse_lambda(value: Any, where: str, projections: list[str], extrapolate: bool) -> dict[str, LambdaSchedule]:
    """Return projection -> schedule for the projections to be merged.

    Args:
        value: a number, a list, ``{gradient: [...]}``, ``{first: ..., decay: ...}``, or one of these for each
            projection and ``default``.
        projections: those that may be merged.
        extrapolate: accept values outside [0, 1].

    Raises:
        UsageError: malformed or out of range; of several filters, all problems are in one message.
    """
    if not isinstance(value, Mapping) or "gradient" in value or DECAY & value.keys():
        schedule = _parse_schedule(value, where, extrapolate)
        return dict.fromkeys(projections, schedule)
    problems = unknown_keys(value, LAMBDA_KEYS, where)
    problems += [
        f"{where}: {key} is not among the projections {', '.join(projections)}."
        for key in value
        if key in PROJECTION_NAMES and PROJECTION_NAMES[key] not in projections
    ]
    names = {
        projection: [key for key in value if PROJECTION_NAMES.get(key) == projection] for projection in PROJECTIONS
    }
    problems += [
        f"{where}: {' and '.join(keys)} are one projection: give it one value."
        for keys in names.values()
        if len(keys) > 1
    ]
    if problems or not value:
        raise UsageError("\n".join(problems) or f"{where} is empty: give a number.")
    schedules = {key: _parse_schedule(item, f"{where}.{key}", extrapolate) for key, item in value.items()}
    default = schedules.pop("default", None)
    named = {PROJECTION_NAMES[key]: schedule for key, schedule in schedules.items()}
    filled = {projection: named.get(projection, default) for projection in projections}
    return {projection: schedule for projection, schedule in filled.items() if schedule is not None}


def _parse_schedule(value: Any, where: str, extrapolate: bool) -> LambdaSchedule:
    if isinstance(value, Mapping) and set(value) == DECAY:
        first = _parse_value(value["first"], f"{where}.first", extrapolate)
        return {"first": first, "decay": number(above=0, most=1)(value["decay"], f"{where}.decay")}
    if isinstance(value, Mapping):
        if set(value) != {"gradient"} or not isinstance(value["gradient"], list) or not value["gradient"]:
            raise UsageError(
                f"{where} must be a number, a list, {{gradient: [first, ..., last]}} or {{first: 0.2, decay: 0.9}}, "
                f"got {value!r}."
            )
        return {"gradient": [_parse_value(item, f"{where}.gradient", extrapolate) for item in value["gradient"]]}
    if isinstance(value, (list, tuple)):
        return [_parse_value(item, where, extrapolate) for item in value]
    return _parse_value(value, where, extrapolate)


def _parse_value(value: Any, where: str, extrapolate: bool) -> float:
    found = as_number(value, where)
    if not extrapolate and not 0.0 <= found <= 1.0:
        raise UsageError(
            f"{where} must be between 0 (target) and 1 (source), got {found:g}: "
            "set allow_extrapolation: true to go beyond."
        )
    return found
