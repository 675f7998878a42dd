"""The sources of a merge as a file says them: which model, its lambda, layers, noise, base and alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment_config import Alignment, parse_align
from s3prl_ext.merging.lambdas import LambdaSchedule, parse_lambda, parse_projections
from s3prl_ext.merging.layers import LayerMap, parse_layer_choice, parse_layer_map
from s3prl_ext.merging.methods import MethodConfig
from s3prl_ext.merging.noise import NoiseConfig, parse_noise
from s3prl_ext.settings import Problems, load, name

_Parsed = TypeVar("_Parsed")

# Next to `source`, or in an item of `sources`; what an item does not say holds from the top level.
SOURCE_KEYS = ("lambda", "layers", "projections", "layer_map", "noise", "base", "align")


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


def source_items(raw: Mapping[str, Any], where: str) -> list[tuple[Any, str]]:
    """Return the sections that name sources, each with its place in the file."""
    if raw.get("sources") is None:
        return [(raw.get("source"), f"{where}: source")]
    if raw.get("source") is not None:
        raise UsageError(f"{where} has both source and sources: give source for one model, sources for several.")
    items = raw["sources"]
    if not isinstance(items, list) or not items:
        raise UsageError(f"{where}: sources must be a list such as [{{model: ..., lambda: 0.1}}], got {items!r}.")
    return [(item, f"{where}: sources[{index}]") for index, item in enumerate(items)]


def parse_source(
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
        model = vars(load_one_of(SourceSection, item, place, ("model", "package"), problems))
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
    base = load_one_of(SourceModel, value, where, ("model", "package"), problems)
    problems.raise_lines()
    return base


def load_one_of(cls: type[_Parsed], section: Any, where: str, choices: tuple[str, str], problems: list[str]) -> _Parsed:
    """Return a section that has exactly one of two keys; complaints are appended to `problems`."""
    if isinstance(section, Mapping) and sum(section.get(key) is not None for key in choices) != 1:
        problems.append(f"{where} must name exactly one of {choices[0]} and {choices[1]}.")
    return load(cls, section, where, example=f"{{{choices[0]}: ...}}", problems=problems)
