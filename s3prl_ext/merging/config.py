"""The validated configuration of a merge: target, source, lambda, layers, projections, biases.

All problems of a configuration are reported together, before any model is opened. How the values fit the depth of
the models is checked by :func:`resolve_lambdas`, before any tensor is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.configs import as_number, check_keys
from s3prl_ext.errors import UsageError, nearest
from s3prl_ext.merging.interpolation import spread

# Names of a projection that users of s3prl, transformers and the paper write.
PROJECTION_NAMES = {
    name: projection
    for projection, names in zip(PROJECTIONS, (("q", "query"), ("k", "key"), ("v", "value")), strict=True)
    for name in (projection, *names)
}
LAMBDA_KEYS = ("default", "gradient", *PROJECTION_NAMES)
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")

# Values of lambda over depth: a number, one value per layer, or the points of a gradient over depth.
LambdaSchedule = float | list[float] | dict[str, list[float]]


@dataclass(frozen=True)
class TargetConfig:
    """The speech model that is merged into.

    Attributes:
        upstream: name of an upstream of s3prl's hub; None where `model` is given.
        ckpt: checkpoint for `upstream`, where it needs one.
        model: transformers folder or hub id; None where `upstream` is given.
    """

    upstream: str | None = None
    ckpt: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class SourceConfig:
    """The model whose attention is merged in.

    Attributes:
        model: transformers folder, checkpoint file or hub id; None where `package` is given.
        package: import name of a pip package with a model folder inside; None where `model` is given.
        prefix: take the encoder after this prefix, where the model holds several.
    """

    model: str | None = None
    package: str | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class MergeConfig:
    """A merge after MAM, Eq. 1 and 2: W = lambda * W_source + (1 - lambda) * W_target.

    Attributes:
        target, source: the two models.
        lambda_: projection -> value(s) over depth; 0 = target, 1 = source. Projections not in it are left alone.
        layers: layer indices as given, 0-based and inclusive, or ``all``; other layers are left alone.
        biases: merge the bias vectors as well as the matrices.
        allow_extrapolation: accept lambda outside [0, 1].
    """

    target: TargetConfig
    source: SourceConfig
    lambda_: dict[str, LambdaSchedule]
    layers: Any = "all"
    biases: bool = False
    allow_extrapolation: bool = False


KEYS = ("target", "source", "lambda", "layers", "projections", "biases", "allow_extrapolation")


def parse_config(raw: Mapping[str, Any], where: str) -> MergeConfig:
    """Check a configuration and return it.

    Args:
        raw: the content of a YAML file; keys as in :data:`KEYS`, of which target, source and lambda are required.
        where: name of the configuration, shown before each complaint.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = check_keys(raw, KEYS, where)
    problems += [f"{where}: the key '{key}' is missing." for key in ("target", "source", "lambda") if key not in raw]

    def attempt(function: Any, key: str, *arguments: Any) -> Any:
        try:
            return function(raw[key], f"{where}: {key}", *arguments) if key in raw else None
        except UsageError as error:
            problems.append(str(error))
            return None

    target = attempt(_parse_target, "target")
    source = attempt(_parse_source, "source")
    extrapolate = attempt(_parse_flag, "allow_extrapolation") or False
    projections = attempt(_parse_projections, "projections") or list(PROJECTIONS)
    lambdas = attempt(_parse_lambda, "lambda", projections, extrapolate)
    attempt(_check_layers, "layers")
    biases = attempt(_parse_flag, "biases") or False
    if problems:
        raise UsageError("\n".join(problems))
    return MergeConfig(target, source, lambdas, raw.get("layers", "all"), biases, extrapolate)


def resolve_lambdas(config: MergeConfig, depth: int, where: str = "config") -> dict[str, list[float]]:
    """Return projection -> one lambda per layer for models of `depth` layers; 0 outside the chosen layers.

    Raises:
        UsageError: with one line for every value that does not fit the depth.
    """
    problems: list[str] = []
    try:
        chosen = parse_layers(config.layers, depth, f"{where}: layers")
    except UsageError as error:
        problems.append(str(error))
        chosen = ()
    resolved = {projection: [0.0] * depth for projection in PROJECTIONS}
    for projection, schedule in config.lambda_.items():
        if isinstance(schedule, list) and len(schedule) != depth:
            problems.append(
                f"{where}: lambda of {projection} has {len(schedule)} values, but the models have {depth} layers: give "
                f"one value per layer, or lambda: {{gradient: [first, ..., last]}} to interpolate over depth."
            )
            continue
        values = _over_depth(schedule, depth)
        resolved[projection] = [values[layer] if layer in chosen else 0.0 for layer in range(depth)]
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return resolved


def parse_layers(value: Any, depth: int | None, where: str = "layers") -> tuple[int, ...]:
    """Return the layer indices that `value` names, sorted: 0-based, ranges inclusive, as in the paper's Table 2.

    Args:
        value: ``all``, ``none``, an index, a range ``12-19``, a mixture ``0-3,8``, or a list of these.
        depth: number of layers; None checks the form only and takes ``all`` for no layers.

    Raises:
        UsageError: malformed, a range that runs backwards, or a layer that is not there.
    """
    if value == "all":
        return tuple(range(depth or 0))
    if value in ("none", []):
        return ()
    items = value if isinstance(value, (list, tuple)) else [value]
    layers: set[int] = set()
    for part in [part.strip() for item in items for part in str(item).split(",")]:
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(
                f"{where}: '{part}' is neither a layer index nor a range: write all, 12-19, 0-3,8 or a list."
            )
        if depth is not None and last >= depth:
            raise UsageError(f"{where}: layer {last} is out of range: {depth} layers are numbered 0-{depth - 1}.")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def _check_layers(value: Any, where: str) -> None:
    parse_layers(value, None, where)


def _over_depth(schedule: LambdaSchedule, depth: int) -> list[float]:
    if isinstance(schedule, dict):
        return spread(schedule["gradient"], depth)
    return schedule if isinstance(schedule, list) else [schedule] * depth


def _parse_section(value: Any, where: str, section: type, choices: tuple[str, str]) -> Any:
    """Return a dataclass of optional strings of which exactly one of the two `choices` is set."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping such as {{{choices[0]}: ...}}, but is {value!r}.")
    problems = check_keys(value, [field.name for field in fields(section)], where)
    wrong = [key for key, item in value.items() if item is not None and (not isinstance(item, str) or not item)]
    problems += [f"{where}.{key} must be a name or path, but is {value[key]!r}." for key in wrong]
    if sum(value.get(choice) is not None for choice in choices) != 1:
        problems.append(f"{where} must name exactly one of {choices[0]} and {choices[1]}.")
    if problems:
        raise UsageError("\n".join(problems))
    return section(**value)


def _parse_target(value: Any, where: str) -> TargetConfig:
    target = _parse_section(value, where, TargetConfig, ("upstream", "model"))
    if target.model and target.ckpt:
        raise UsageError(f"{where}.ckpt belongs to {where}.upstream; with {where}.model the model is the checkpoint.")
    return target


def _parse_source(value: Any, where: str) -> SourceConfig:
    return _parse_section(value, where, SourceConfig, ("model", "package"))


def _parse_flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{where} must be true or false, but is {value!r}.")
    return value


def _parse_projections(value: Any, where: str) -> list[str]:
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise UsageError(f"{where} must be a list such as [q_proj, k_proj], but is {value!r}.")
    for name in names:
        if str(name) not in PROJECTION_NAMES:
            raise UsageError(
                f"{where}: unknown projection '{name}'{nearest(name, PROJECTIONS)} Known: q_proj, k_proj, v_proj."
            )
    return [projection for projection in PROJECTIONS if projection in {PROJECTION_NAMES[name] for name in names}]


def _parse_lambda(value: Any, where: str, projections: list[str], extrapolate: bool) -> dict[str, LambdaSchedule]:
    """Return projection -> schedule for the projections to be merged."""
    if not isinstance(value, Mapping) or "gradient" in value:
        schedule = _parse_schedule(value, where, extrapolate)
        return dict.fromkeys(projections, schedule)
    problems = check_keys(value, LAMBDA_KEYS, where)
    problems += [
        f"{where}: {key} is not among the projections {', '.join(projections)}."
        for key in value
        if key in PROJECTION_NAMES and PROJECTION_NAMES[key] not in projections
    ]
    if problems or not value:
        raise UsageError("\n".join(problems) or f"{where} is empty: give a number.")
    schedules = {key: _parse_schedule(item, f"{where}.{key}", extrapolate) for key, item in value.items()}
    default = schedules.pop("default", None)
    named = {PROJECTION_NAMES[key]: schedule for key, schedule in schedules.items()}
    filled = {projection: named.get(projection, default) for projection in projections}
    return {projection: schedule for projection, schedule in filled.items() if schedule is not None}


def _parse_schedule(value: Any, where: str, extrapolate: bool) -> LambdaSchedule:
    if isinstance(value, Mapping):
        if set(value) != {"gradient"} or not isinstance(value["gradient"], list) or not value["gradient"]:
            raise UsageError(
                f"{where} must be a number, a list, or {{gradient: [first, ..., last]}}, but is {value!r}."
            )
        return {"gradient": [_parse_value(item, f"{where}.gradient", extrapolate) for item in value["gradient"]]}
    if isinstance(value, (list, tuple)):
        return [_parse_value(item, where, extrapolate) for item in value]
    return _parse_value(value, where, extrapolate)


def _parse_value(value: Any, where: str, extrapolate: bool) -> float:
    number = as_number(value, where)
    if number - number != 0.0:
        raise UsageError(f"{where} must be finite, but is {value!r}.")
    if not extrapolate and not 0.0 <= number <= 1.0:
        raise UsageError(
            f"{where} must lie between 0 (target) and 1 (source), but is {number:g}: "
            "set allow_extrapolation: true to go beyond."
        )
    return number
