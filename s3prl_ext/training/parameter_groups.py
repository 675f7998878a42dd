"""Learning rates of the upstream's weights: its own, one per encoder block, one for the lambda of a learnable merge.

An optimizer is built by s3prl first, with the rate of section ``optimizer`` for everything; its parameter groups are
then divided. Without one of the keys here, and without a learnable lambda, it stays exactly as s3prl built it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.merging.learnable import find_lambda
from s3prl_ext.models.architectures import encoder_layers
from s3prl_ext.settings import load, number

UPSTREAM_KEYS = ("lr", "upstream_lr")  # of methods that train the upstream
FULL_KEYS = ("layer_decay", "train_layers")  # of method full
RATE_KEYS = (*UPSTREAM_KEYS, "lambda_lr", *FULL_KEYS)
DEFAULT_LAMBDA_LR = 1.0e-3  # the 1e-5 of MAM's fine-tuning would move lambda by about 0.01 in a whole run


def _trained_layers(value: Any, where: str) -> Any:
    """Check a set of layers of which at least one trains; it is resolved where the depth is known."""
    parse_layers(value, None, where)
    if value in ("none", []):
        raise UsageError(f"{where} names no layer; use method frozen to train none.")
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class RatesConfig:
    """The keys of section ``tuning`` that say how fast the upstream's weights train.

    Attributes:
        lr: learning rate of the upstream's weights (also ``upstream_lr``); None for that of section ``optimizer``.
        lambda_lr: learning rate of a learnable lambda, which has no weight decay; 0 keeps it at its first value.
        layer_decay: the last encoder block has the upstream's rate, each one below `layer_decay` times that of the
            next; what belongs to no block counts as below the first.
        train_layers: encoder blocks that train; of ``all`` the rest of the upstream trains too, else nothing of it.
    """

    lr: Annotated[float | None, number(above=0)] = None
    lambda_lr: Annotated[float | None, number(least=0)] = None
    layer_decay: Annotated[float, number(above=0, most=1)] = 1.0
    train_layers: Annotated[Any, _trained_layers] = "all"

    @classmethod
    def from_section(cls, section: Section, problems: list[str]) -> RatesConfig:
        """Check the values of the keys; problems are appended to `problems`.

        Args:
            section: the whole section ``tuning``.
            problems: sentences that the caller reports together.
        """
        given = {key: section[key] for key in RATE_KEYS if section.get(key) is not None}
        if "lr" in given and "upstream_lr" in given:
            problems.append("tuning.lr and tuning.upstream_lr are the same; keep one of them.")
        if "upstream_lr" in given:
            given["lr"] = given.pop("upstream_lr")
        return load(cls, given, "tuning", problems=problems)


@dataclass(frozen=True)
class Rate:
    """The learning rate of some weights.

    Attributes:
        lr: the rate; None for that of the group that the weights are in.
        factor: what it is multiplied by.
        decay: whether weight decay acts.
    """

    lr: float | None
    factor: float = 1.0
    decay: bool = True


def upstream_rates(
    upstream: nn.Module, config: RatesConfig, child: nn.Module | None = None
) -> dict[nn.Parameter, Rate]:
    """Return the rate of each of the upstream's parameters whose rate is not simply the optimizer's.

    Args:
        upstream: the unwrapped upstream.
        config: of section ``tuning``; the defaults where there is none.
        child: the child network that trains in place of the upstream's weights, or None.

    Raises:
        UsageError: ``layer_decay`` for an upstream without encoder blocks.
    """
    rates: dict[nn.Parameter, Rate] = {}
    weights = dict(upstream.named_parameters() if child is None else child.named_parameters())
    if config.layer_decay != 1.0:
        blocks, depth = _blocks(weights, "layer_decay")
        for name, parameter in weights.items():
            rates[parameter] = Rate(config.lr, config.layer_decay ** (depth - 1 - blocks.get(name, -1)))
    elif config.lr is not None:
        rates = {parameter: Rate(config.lr) for parameter in weights.values()}
    return rates | lambda_rates(upstream, config)


def lambda_rates(model: nn.Module, config: RatesConfig) -> dict[nn.Parameter, Rate]:
    """Return the rate of a model's learnable lambda, nothing where it has none.

    Args:
        model: the unwrapped upstream, or a task with a merged decoder.
        config: of section ``tuning``; the defaults where there is none.
    """
    shared = find_lambda(model)
    lr = DEFAULT_LAMBDA_LR if config.lambda_lr is None else config.lambda_lr
    return {} if shared is None else {shared.values: Rate(lr, decay=False)}


def parameter_groups(groups: Iterable[Record], rates: Mapping[nn.Parameter, Rate]) -> list[Record]:
    """Return an optimizer's parameter groups, divided so that each parameter has its rate.

    Within a group the parameters without a rate come first; every part keeps the options of its group.

    Args:
        groups: with ``params``, ``lr`` and whatever else the optimizer keeps.
        rates: by parameter.
    """
    divided = []
    for group in groups:
        parts: dict[Rate | None, list[nn.Parameter]] = {None: []}
        for parameter in group["params"]:
            parts.setdefault(rates.get(parameter), []).append(parameter)
        for rate, parameters in parts.items():
            if parameters:
                divided.append({**group, "params": parameters, **_options(group, rate)})
    return divided


def _options(group: Section, rate: Rate | None) -> Record:
    if rate is None:
        return {}
    options = {"lr": (group["lr"] if rate.lr is None else rate.lr) * rate.factor}
    return options if rate.decay or "weight_decay" not in group else options | {"weight_decay": 0.0}


def train_only(upstream: nn.Module, layers: Any) -> None:
    """Freeze all of an upstream but the encoder blocks of `layers`, and a learnable lambda.

    Args:
        upstream: not yet wrapped for several devices.
        layers: as in ``tuning.train_layers``; of ``all`` nothing is frozen.

    Raises:
        UsageError: a layer is not there, or the upstream has no encoder blocks.
    """
    if layers == "all":
        return
    weights = dict(upstream.named_parameters())
    value = list(layers) if isinstance(layers, tuple) else layers
    blocks, depth = _blocks(weights, "train_layers")
    chosen = parse_layers(value, depth, "tuning.train_layers")
    shared = find_lambda(upstream)
    for name, parameter in weights.items():
        if blocks.get(name) not in chosen and (shared is None or parameter is not shared.values):
            parameter.requires_grad_(False)


def _blocks(names: Iterable[str], key: str) -> tuple[dict[str, int], int]:
    """Return the 0-based encoder block of each parameter that belongs to one, and the number of blocks."""
    blocks = {name: layer for name, (layer, _) in encoder_layers(names).items()}
    if not blocks:
        raise UsageError(f"tuning.{key} needs an upstream with encoder blocks, but this one has none; remove it.")
    return blocks, 1 + max(blocks.values())
