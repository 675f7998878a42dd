"""The validated configuration of a merge: target, one or more sources with lambda, layers and noise, biases.

All problems of a configuration are reported together, before any model is opened. How the values fit the depth of
the models is checked by :func:`resolve_lambdas`, before any tensor is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment_config import Alignment, parse_align
from s3prl_ext.merging.interpolation import SUM_TOLERANCE
from s3prl_ext.merging.lambdas import LambdaSchedule, over_depth, parse_lambda, parse_projections
from s3prl_ext.merging.layers import LayerMap, chosen_layers, parse_layer_choice, parse_layer_map
from s3prl_ext.merging.learnable_config import DEFAULT_LAMBDA, LearnableConfig, parse_learnable
from s3prl_ext.merging.methods import LINEAR, MERGE_METHODS, MethodConfig, parse_method
from s3prl_ext.merging.names import DECODER, TARGET_PREFIXES
from s3prl_ext.merging.noise import NoiseConfig, parse_noise
from s3prl_ext.settings import Problems, choice, load, name, switch, unknown_keys

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class TargetConfig:
    """The speech model that is merged into.

    Attributes:
        upstream: name of an upstream of s3prl's hub; None where `model` is given.
        ckpt: checkpoint for `upstream`, where it needs one.
        model: transformers folder or hub id; None where `upstream` is given.
        prefix: ``decoder`` for the decoder of a Whisper, which a task of speech recognition transcribes with; None for
            the encoder.
    """

    upstream: Annotated[str | None, name()] = None
    ckpt: Annotated[str | None, name()] = None
    model: Annotated[str | None, name()] = None
    prefix: Annotated[str | None, choice(*TARGET_PREFIXES)] = None


@dataclass(frozen=True)
class SourceModel:
    """Where the model of section ``source`` or ``base`` is; the keys are those of :class:`SourceConfig`."""

    model: Annotated[str | None, name()] = None
    package: Annotated[str | None, name()] = None
    prefix: Annotated[str | None, name()] = None


@dataclass(frozen=True)
class SourceSection(SourceModel):
    """Section ``source``.

    Attributes:
        adapter: folder of a LoRA in peft's format that was trained on the model, which is folded in.
    """

    adapter: Annotated[str | None, name()] = None


@dataclass(frozen=True)
class SourceConfig:
    """A model whose attention is merged in, and how.

    Attributes:
        lambda_: projection -> value(s) over depth; 0 = target, 1 = source. Projections not in it are left alone.
        model: transformers folder, checkpoint file or hub id; None where `package` is given.
        package: import name of a pip package with a model folder inside; None where `model` is given.
        prefix: take the encoder after this prefix, where the model holds several.
        adapter: folder of a LoRA that is folded into the model; None for none.
        layers: layer indices of the target as given, 0-based and inclusive, or ``all``; others are left alone. Or a
            :class:`LayerSelection`, which gives way to a list when the models are opened.
        layer_map: target layer -> source layer, or ``linear``; None where equal layers are paired.
        noise: merge random matrices in place of the source's; None for the source itself.
        base: the model that the source was trained from, for methods that merge what training changed.
        by_inputs: the method needs what the source reads on paired inputs.
        align: pair heads that are alike, rotate the hidden space onto the target's, before the merge; None for neither.
    """

    lambda_: dict[str, LambdaSchedule]
    model: str | None = None
    package: str | None = None
    prefix: str | None = None
    adapter: str | None = None
    layers: Any = "all"
    layer_map: LayerMap = None
    noise: NoiseConfig | None = None
    base: SourceModel | None = None
    align: Alignment | None = None
    by_inputs: bool = False

    @property
    def is_read(self) -> bool:
        """Whether a model is read: N(target) and N(0, 1) need none unless they are aligned by pairs."""
        return self.noise is None or self.noise.needs_source or self.runs

    def base_for(self, method: MethodConfig) -> SourceModel | None:
        """Return the model whose difference to the source is merged.

        The base, or of an adapter the model without it.
        """
        if self.base is not None or self.adapter is None or not method.method.needs_base:
            return self.base
        return SourceModel(self.model, self.package, self.prefix)

    @property
    def runs(self) -> bool:
        """Whether source and target are run over paired inputs."""
        return self.by_inputs or (self.align is not None and self.align.runs)

    @property
    def rotates(self) -> bool:
        """Whether the hidden space of the source is rotated onto the target's."""
        return self.align is not None and self.align.basis is not None


@dataclass(frozen=True)
class MergeConfig:
    """A merge, by default after MAM, Eq. 1 and 2: W = (1 - sum of lambda_j) * W_target + sum of lambda_j * W_j.

    Attributes:
        target: the model that is merged into.
        sources: the models that are merged in, mostly one.
        biases: merge the bias vectors as well as the matrices.
        allow_extrapolation: accept lambda outside [0, 1], and sums over the sources above 1.
        learnable: train lambda together with the target (L-MAM, Eq. 3), beginning with the given values; None for a
            fixed lambda.
        method: how matrices are combined; None for the interpolation of Eq. 1 and 2.
    """

    target: TargetConfig
    sources: tuple[SourceConfig, ...]
    biases: bool = False
    allow_extrapolation: bool = False
    learnable: LearnableConfig | None = None
    method: MethodConfig | None = None

    @property
    def combination(self) -> MethodConfig:
        """How matrices are combined."""
        return self.method or LINEAR


# Next to `source`, or in an item of `sources`; what an item does not say holds from the top level.
SOURCE_KEYS = ("lambda", "layers", "projections", "layer_map", "noise", "base", "align")
KEYS = ("target", "source", "sources", *SOURCE_KEYS, "method", "biases", "allow_extrapolation", "learnable")


def parse_config(raw: Mapping[str, Any], where: str) -> MergeConfig:
    """Check a configuration and return it.

    Args:
        raw: the content of a YAML file, keys as in :data:`KEYS`: target, source or sources, and lambda are required;
            no source is where the noise needs none.
        where: name of the configuration, shown before each complaint.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = Problems(unknown_keys(raw, KEYS, where))
    if "target" not in raw:
        problems.append(f"{where}: the key 'target' is missing.")
        target = None
    else:
        place = f"{where}: target"
        target = _load_one_of(TargetConfig, raw["target"], place, ("upstream", "model"), problems)
        if target.model and target.ckpt:
            problems.append(
                f"{place}.ckpt belongs to {place}.upstream; with {place}.model the model is the checkpoint."
            )
        target = replace(target, prefix=DECODER if target.prefix == DECODER else None)
    flags = {
        key: problems.attempt(switch(), raw.get(key, False), f"{where}: {key}") or False
        for key in ("biases", "allow_extrapolation")
    }
    learnable = problems.attempt(parse_learnable, raw.get("learnable", False), f"{where}: learnable")
    shared = {key: (raw[key], f"{where}: {key}") for key in SOURCE_KEYS if key in raw}
    if raw.get("learnable"):
        shared.setdefault("lambda", (DEFAULT_LAMBDA, f"{where}: lambda"))
    # a stand-in, where the sections themselves are wrong, lets the other keys be checked all the same
    items = problems.attempt(_source_items, raw, where) or [({"model": "unknown"}, f"{where}: source")]
    sources = [
        problems.attempt(_parse_source, item, place, shared, where, flags["allow_extrapolation"])
        for item, place in items
    ]
    method = problems.attempt(parse_method, raw["method"], f"{where}: method") if "method" in raw else LINEAR
    if learnable:
        problems += _unlearnable(flags["biases"], method or LINEAR, where)
    problems += _unfit_method(method or LINEAR, sources, where)
    problems.raise_lines()
    if method is not None and method.method.by_inputs:
        sources = [replace(source, by_inputs=True) for source in sources if source is not None]
    fitting = None if method == LINEAR else method
    return MergeConfig(target, tuple(sources), **flags, learnable=learnable, method=fitting)  # type: ignore[arg-type]  # nothing is None without problems


def _load_one_of(
    cls: type[_Parsed], section: Any, where: str, choices: tuple[str, str], problems: list[str]
) -> _Parsed:
    """Return a section that has exactly one of two keys; complaints are appended to `problems`."""
    if isinstance(section, Mapping) and sum(section.get(key) is not None for key in choices) != 1:
        problems.append(f"{where} must name exactly one of {choices[0]} and {choices[1]}.")
    return load(cls, section, where, example=f"{{{choices[0]}: ...}}", problems=problems)


def _unlearnable(biases: bool, method: MethodConfig, where: str) -> list[str]:
    """Return a complaint for each setting that a learnable lambda cannot be combined with."""
    problems = []
    if biases:
        problems.append(f"{where}: learnable merges matrices only: set biases: false, or fix lambda.")
    if not method.method.learnable:
        able = " or ".join(name for name, row in MERGE_METHODS.items() if row.learnable)
        problems.append(f"{where}: learnable takes method {able}, but it is {method.name}: choose one, or fix lambda.")
    return problems


def _unfit_method(method: MethodConfig, sources: Sequence[SourceConfig | None], where: str) -> list[str]:
    """Return a complaint for each source that a method cannot take.

    None stands for a source with complaints of its own.
    """
    problems = []
    if len(sources) > 1 and not method.method.several:
        problems.append(f"{where}: method {method.name} takes one source, but there are {len(sources)}: keep one.")
    if method.method.of_tasks:
        return [
            *problems,
            f"{where}: method {method.name} weighs what tuned tasks changed by their own data, which a source has none "
            "of: it is for s3prl-ext merge --deltas.",
        ]
    needing = [name for name, row in MERGE_METHODS.items() if row.needs_base and not row.of_tasks]
    for index, source in enumerate(sources):
        place = f"{where}: sources[{index}]" if len(sources) > 1 else where
        if source is None:
            continue
        if method.method.by_inputs and not (source.model or source.package):
            problems.append(f"{place}: method {method.name} runs a source over the pairs: name it with source.")
        if source.base_for(method) is None and method.method.needs_base:
            problems.append(
                f"{place} needs a base for method {method.name}: name the model that the source was trained from, such "
                "as base: {model: FOLDER}."
            )
        if source.base is not None and not method.method.needs_base:
            problems.append(f"{place}: base is for the methods {', '.join(needing)}, but method is {method.name}.")
        if source.base_for(method) is not None and source.noise is not None:
            problems.append(
                f"{place}: noise replaces a source's matrices, but {method.name} merges what training changed."
            )
    return problems


def _source_items(raw: Mapping[str, Any], where: str) -> list[tuple[Any, str]]:
    """Return the sections that name sources, each with its place in the file."""
    if raw.get("sources") is None:
        return [(raw.get("source"), f"{where}: source")]
    if raw.get("source") is not None:
        raise UsageError(f"{where} has both source and sources: give source for one model, sources for several.")
    items = raw["sources"]
    if not isinstance(items, list) or not items:
        raise UsageError(f"{where}: sources must be a list such as [{{model: ..., lambda: 0.1}}], got {items!r}.")
    return [(item, f"{where}: sources[{index}]") for index, item in enumerate(items)]


def _parse_source(
    item: Any, place: str, shared: Mapping[str, tuple[Any, str]], where: str, extrapolate: bool
) -> SourceConfig:
    """Return one source; `shared` holds value and place of each key that the item may leave out."""
    problems = Problems()
    own = place.endswith("]")  # an item of `sources` may have the keys that otherwise come next to `source`
    settings = dict(shared)
    if own and isinstance(item, Mapping):
        settings |= {key: (item[key], f"{place}.{key}") for key in SOURCE_KEYS if key in item}
        item = {key: value for key, value in item.items() if key not in SOURCE_KEYS} or None

    def setting(key: str, parse: Callable[..., _Parsed], *more: Any) -> _Parsed | None:
        return problems.attempt(parse, *settings[key], *more) if key in settings else None

    noise, align = setting("noise", parse_noise), setting("align", parse_align)
    model: dict[str, Any] = {}
    if item is not None:
        model = vars(_load_one_of(SourceSection, item, place, ("model", "package"), problems))
    elif align is not None and align.runs:
        problems.append(f"{place if own else where}: a source is run over the pairs: name it with source.")
    elif not noise or noise.needs_source:
        problems.append(f"{place} must name a model." if own else f"{where}: the key 'source' is missing.")
    projections = setting("projections", parse_projections) or list(PROJECTIONS)
    lambdas = setting("lambda", parse_lambda, projections, extrapolate)
    if "lambda" not in settings:
        problems.append(f"{place} needs a lambda." if own else f"{where}: the key 'lambda' is missing.")
    layers = setting("layers", parse_layer_choice)
    layer_map = setting("layer_map", parse_layer_map)
    base = setting("base", _parse_base)
    problems.raise_lines()
    layers = "all" if "layers" not in settings else layers
    return SourceConfig(lambdas or {}, **model, layers=layers, layer_map=layer_map, noise=noise, base=base, align=align)


def _parse_base(value: Any, where: str) -> SourceModel | None:
    if value is None:
        return None
    problems = Problems()
    base = _load_one_of(SourceModel, value, where, ("model", "package"), problems)
    problems.raise_lines()
    return base


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
