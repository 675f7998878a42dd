"""LoRA: a low-rank update of projection matrices, acting on the weights themselves.

The attention of s3prl's models and of transformers' WavLM hands ``q_proj.weight`` straight to
``F.multi_head_attention_forward``: the projection module is never called there, so a layer wrapped around it (as peft
and loralib do) neither changes the output nor gets a gradient. A parametrisation changes what ``.weight`` returns, and
so reaches every model. peft's layers reach only models that call their projections, such as transformers' HuBERT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s3prl_ext import settings
from s3prl_ext.adapters.architectures import Dimensions, EncoderPlaces, find_encoder
from s3prl_ext.adapters.insertion import parameters_of
from s3prl_ext.errors import UsageError, unknown_name

PAPER = "Hu et al. 2022, LoRA, section 4.1, Eq. 3; AD-TUNING, Table 2, LoRA"
EQUATION = "W + (alpha / rank) B A"
ACTS_ON = ("the projection matrices",)
CAN_FOLD = True


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        rank: rank of the update.
        alpha: the update is scaled by alpha / rank.
        projections: of ``q_proj, k_proj, v_proj, out_proj, fc1, fc2``; fc1 and fc2 are the feed-forward's.
        layers: 0-based layers that are updated; None = all.
    """

    rank: Annotated[int, settings.count()] = 8
    alpha: Annotated[float, settings.number(above=0)] = 16.0
    projections: Annotated[Any, settings.names("[q_proj, v_proj]")] = ("q_proj", "v_proj")
    layers: Annotated[Any, settings.layers()] = None

    def __post_init__(self) -> None:
        settings.check_fields(self, "lora")


class LowRankUpdate(nn.Module):
    """A parametrisation of a matrix; no change at the start, because B begins at zero.

    Args:
        outputs, inputs: shape of the matrix.
        rank: rank of the update.
        alpha: the update is scaled by alpha / rank.
    """

    def __init__(self, outputs: int, inputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, inputs))
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated matrix, [outputs, inputs]."""
        return weight + self.scale * (self.lora_b @ self.lora_a).to(weight.dtype)


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Parametrise the chosen projections; on top of what parametrises them already, such as a learnt merge.

    Returns:
        The new parameters by name.

    Raises:
        UsageError: a projection or layer does not exist, or the rank is above a matrix's smaller side.
    """
    found = find_encoder(model)
    for name in config.projections:
        if name not in found.projections():
            raise unknown_name("projection", name, found.projections(), where="lora")
    places = [(name, linear) for name, linear in _places(found, config)]
    for name, linear in places:
        if config.rank > (limit := min(linear.out_features, linear.in_features)):
            raise UsageError(f"lora: rank {config.rank} is above {limit}, the width of {name}; choose at most {limit}.")
    updates = []
    for _, linear in places:
        update = LowRankUpdate(linear.out_features, linear.in_features, config.rank, config.alpha)
        weight = linear.weight
        update.to(device=weight.device, dtype=weight.dtype)
        parametrize.register_parametrization(linear, "weight", update)
        updates.append(update)
    return parameters_of(model, updates)


def remove(model: nn.Module, config: Config) -> None:
    """Take the updates away; the matrices are bitwise what they were, other parametrisations stay."""
    for _, linear in _places(find_encoder(model), config):
        chain = cast(Any, linear).parametrizations.weight
        if len(chain) == 1:
            _make_plain(linear, folded=False)
        else:
            del chain[next(i for i, step in enumerate(chain) if isinstance(step, LowRankUpdate))]


def fold(model: nn.Module, config: Config) -> None:
    """Write the updated matrices into plain weights, with the same output bit by bit.

    Raises:
        UsageError: another parametrisation, such as a learnt merge, acts on the same matrix.
    """
    places = [linear for _, linear in _places(find_encoder(model), config)]
    if any(len(cast(Any, linear).parametrizations.weight) > 1 for linear in places):
        raise UsageError("lora: another method acts on the same matrices (a learnt merge): fold that one first.")
    for linear in places:
        _make_plain(linear, folded=True)


def _make_plain(linear: nn.Linear, folded: bool) -> None:
    """Make `weight` a plain parameter again, with or without the update, before the bias as it was."""
    # Deep copies share the class that holds the property `weight`; taking it from there would break the others.
    shared = type(linear)
    linear.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=folded)
    if linear.bias is not None:
        bias = linear.bias
        del linear.bias
        linear.bias = bias


def base_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with plain names for the matrices that only LoRA parametrises."""
    renamed = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        if all(isinstance(step, LowRankUpdate) for step in cast(Any, module).parametrizations.weight):
            renamed[f"{name}.parametrizations.weight.original"] = f"{name}.weight"
    return {renamed.get(name, name): tensor for name, tensor in state.items()}


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights: rank · (outputs + inputs) of each matrix."""
    layers = dimensions.layers if config.layers is None else len(config.layers)
    return layers * config.rank * sum(sum(dimensions.shape(name)) for name in config.projections)


def _places(found: EncoderPlaces, config: Config) -> Iterator[tuple[str, nn.Linear]]:
    for layer in found.chosen_layers(config.layers, "lora: layers"):
        for name in config.projections:
            yield name, cast(nn.Linear, found.linear(layer, name))
