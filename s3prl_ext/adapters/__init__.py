"""Methods that train few weights of a frozen upstream: the table of them, insertion, state, folding, removal.

Every method has a file of the same shape: its options (``Config``), ``insert``, ``remove``, ``count`` by formula, where
possible ``fold``, and its paper and equation. All but prefix leave the output as it was until something is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from s3prl_ext.adapters import adapter_bias, bitfit, chapter, cnn_adapter, houlsby, lora, prefix
from s3prl_ext.adapters.architectures import DIMENSIONS, Dimensions, dimensions
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.settings import load

__all__ = [
    "ADAPTERS",
    "DIMENSIONS",
    "Dimensions",
    "adapter_state",
    "base_state",
    "can_fold",
    "check_file",
    "count",
    "dimensions",
    "fold",
    "insert",
    "insert_trained",
    "inserted",
    "load_adapter_state",
    "options",
    "parse_options",
    "remove",
    "trains_base",
]  # fmt: skip

ADAPTERS: dict[str, ModuleType] = {
    "houlsby": houlsby,
    "adapter_bias": adapter_bias,
    "lora": lora,
    "prefix": prefix,
    "cnn_adapter": cnn_adapter,
    "chapter": chapter,
    "bitfit": bitfit,
}

METHOD_PARTS = (
    "Config",
    "PAPER",
    "ACTS_ON",
    "CAN_FOLD",
    "insert",
    "remove",
    "count",
)  # what every file of a method has

_RECORD = "inserted_adapters"  # plain attribute of the model: method -> Inserted


class Inserted(NamedTuple):
    """A method in a model: its options and the names of its weights."""

    config: Any
    names: tuple[str, ...]


def method(name: str) -> ModuleType:
    """Return the file of a method.

    Raises:
        UsageError: there is no such method.
    """
    if name not in ADAPTERS:
        raise unknown_name("method", name, ADAPTERS)
    return ADAPTERS[name]


def check_file(name: str, file: Any) -> None:
    """Check that the file of a method is complete, see :data:`METHOD_PARTS`.

    Raises:
        UsageError: something is missing, or ``Config`` is not a dataclass.
    """
    parts = [*METHOD_PARTS, *(["fold"] if getattr(file, "CAN_FOLD", False) else [])]
    parts += ["base_state"] if getattr(file, "TRAINS_BASE", False) else []
    missing = [part for part in parts if not hasattr(file, part)]
    if missing:
        raise UsageError(f"the file of the tuning method '{name}' lacks {', '.join(missing)}: see adapters/lora.py.")
    if not dataclasses.is_dataclass(file.Config):
        raise UsageError(f"the Config of the tuning method '{name}' must be a dataclass of its options.")


def options(name: str) -> tuple[str, ...]:
    """Return the names of a method's options."""
    return tuple(field.name for field in dataclasses.fields(method(name).Config))


def parse_options(name: str, given: Mapping[str, Any], where: str = "tuning") -> Any:
    """Return the checked options of a method, as an instance of its ``Config``.

    Raises:
        UsageError: an unknown key (the nearest known one is named) or an unsuitable value.
    """
    if given and not options(name):
        raise UsageError(f"{where}: {name} has no options; remove {', '.join(given)}.")
    return load(method(name).Config, given, where)


def insert(model: nn.Module, name: str, config: Any = None, seed: int | None = None) -> dict[str, nn.Parameter]:
    """Freeze `model` and insert a method; other methods already inserted go on training.

    The global random state is left as it was, so whatever is drawn next does not depend on the method.

    Args:
        model: a speech encoder, or an upstream that holds one.
        name: a method of :data:`ADAPTERS`.
        config: its options; None = the defaults.
        seed: seed of the new weights; None = the seed that torch was last given.

    Returns:
        The trainable parameters of the method by name.

    Raises:
        UsageError: the method does not fit the model, or collides with one that is there.
    """
    file, present = method(name), inserted(model)
    for other in present:
        shared = [part for part in ADAPTERS[other].ACTS_ON if part in file.ACTS_ON]
        if shared:
            raise UsageError(
                f"{name} cannot be stacked on {other}: both act on {shared[0]}; "
                f"remove {other} or choose one of the two."
            )
    config = file.Config() if config is None else config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed() if seed is None else seed)
        parameters: dict[str, nn.Parameter] = file.insert(model, config)
    present[name] = Inserted(config, tuple(parameters))
    training = {parameter for row in present.values() for parameter in row.names}
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in training)
    _set_record(model, present)
    return parameters


def insert_trained(model: nn.Module, tuning: Mapping[str, Any] | None, state: Mapping[str, Tensor], where: str) -> None:
    """Insert a method with its trained weights; where they do not fit, the model stays as it was.

    Args:
        tuning: the section ``tuning`` that they were trained with: method and options.
        state: its weights by name.
        where: what holds them, for messages.

    Raises:
        DataError: the section names no method of :data:`ADAPTERS`, or the weights do not fit it.
    """
    tuning = tuning or {}
    name = tuning.get("method")
    if name not in ADAPTERS:
        raise DataError(f"{where} holds added weights, but its tuning method is {name}: it was edited or is corrupt.")
    given = {key: tuning[key] for key in options(name) if key in tuning}
    flags = {parameter_name: parameter.requires_grad for parameter_name, parameter in model.named_parameters()}
    insert(model, name, parse_options(name, given, where))
    try:
        load_adapter_state(model, state)
    except DataError:
        remove(model, name)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[parameter_name])
        raise


def inserted(model: nn.Module) -> dict[str, Inserted]:
    """Return the methods in `model`, in the order of their insertion."""
    return dict(getattr(model, _RECORD, {}))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the inserted methods' own weights by name, and nothing of the model.

    Raises:
        UsageError: no method was inserted.
    """
    return {name: parameter.detach().clone() for name, parameter in _own(model).items()}


def trains_base(name: str) -> bool:
    """Return whether the method trains the model's own weights (BitFit's biases) rather than new ones."""
    return bool(getattr(method(name), "TRAINS_BASE", False))


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that `model` had before the methods were inserted, without copying what is unchanged."""
    added = {name for each, row in inserted(model).items() if not trains_base(each) for name in row.names}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in added}
    for each in inserted(model):
        restore = getattr(ADAPTERS[each], "base_state", None)
        state = restore(model, state) if restore is not None else state
    return state


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what :func:`adapter_state` returned into a model with the same methods and options.

    Raises:
        DataError: names or shapes differ; nothing is loaded then.
        UsageError: no method was inserted.
    """
    own = _own(model)
    wrong = [name for name in own if name not in state] + [name for name in state if name not in own]
    wrong += [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"the weights do not belong to {', '.join(inserted(model))} with these options on this upstream: "
            f"{', '.join(wrong[:3])}{more} do not fit; insert the method with the options it was trained with."
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])


def remove(model: nn.Module, name: str | None = None) -> None:
    """Take a method (None: all) out of `model`, whose weights are bitwise what they were before.

    Raises:
        UsageError: the method was not inserted.
    """
    _own(model)
    for each in reversed(list(inserted(model))) if name is None else [name]:
        ADAPTERS[each].remove(model, _row(model, each).config)
        _forget(model, each)


def fold(model: nn.Module, name: str | None = None) -> None:
    """Write a method (None: all) into the model's plain weights; the output stays the same.

    Raises:
        UsageError: the method cannot be folded, or was not inserted.
    """
    _own(model)
    chosen = list(inserted(model)) if name is None else [name]
    for each in chosen:
        if not can_fold(each):
            foldable = ", ".join(other for other in ADAPTERS if can_fold(other))
            raise UsageError(f"{each} cannot be folded into plain weights: keep its own weights (only {foldable} can).")
    for each in chosen:
        ADAPTERS[each].fold(model, _row(model, each).config)
        _forget(model, each)


def can_fold(name: str) -> bool:
    """Return whether the trained method can become part of the model's plain weights."""
    return bool(method(name).CAN_FOLD)


def count(name: str, sizes: Dimensions, config: Any = None) -> int:
    """Return a method's number of trainable weights by its formula.

    Raises:
        UsageError: the method does not fit a model of these sizes.
    """
    file = method(name)
    return file.count(sizes, file.Config() if config is None else config)


def _own(model: nn.Module) -> dict[str, nn.Parameter]:
    names = {name for row in inserted(model).values() for name in row.names}
    if not names:
        raise UsageError(f"no adapter method was inserted into this model; known methods: {', '.join(ADAPTERS)}.")
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def _row(model: nn.Module, name: str) -> Inserted:
    present = inserted(model)
    if name not in present:
        raise unknown_name("inserted method", name, present)
    return present[name]


def _forget(model: nn.Module, name: str) -> None:
    _set_record(model, {other: row for other, row in inserted(model).items() if other != name})


def _set_record(model: nn.Module, record: dict[str, Inserted]) -> None:
    setattr(cast(Any, model), _RECORD, record)
