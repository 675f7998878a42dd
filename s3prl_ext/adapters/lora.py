"""LoRA: a low-rank update of projection matrices, acting on the weights themselves.

The attention of s3prl's models and of transformers' WavLM hands ``q_proj.weight`` straight to
``F.multi_head_attention_forward``: the projection module is never called there, so a layer wrapped around it (as peft
and loralib do) neither changes the output nor gets a gradient. A parametrisation changes what ``.weight`` returns, and
so reaches every model. peft's layers reach only models that call their projections, such as transformers' HuBERT.

Where a projection is called, the output is that of the updated matrix too, bit by bit, but the backward pass is peft's:
it goes through B and A and computes no gradient of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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
        return _updated(weight, self.lora_a, self.lora_b, self.scale)


def _updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    kind = weight.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if weight.dtype == a.dtype and not autocast:
        return torch.addmm(weight, b, a, alpha=scale)
    return (b @ a).to(weight.dtype).mul_(scale).add_(weight)  # under autocast addmm would round the weight


class _UpdatedLinear(torch.autograd.Function):
    """The linear map of an updated matrix; of the matrix itself no gradient is computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        y = F.linear(x, _updated(weight, a, b, scale), bias)
        # For more than two dimensions F.linear returns a view, which autograd lets nobody change in place.
        return cast(Tensor, torch.ops.aten._unsafe_view(y, y.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])  # [positions, outputs]
        inputs, weight, a, b = (t.to(gradient.dtype) for t in (x.reshape(-1, x.shape[-1]), weight, a, b))
        through_b = ctx.scale * (b.t() @ gradient.t())  # [rank, positions]: several times faster than its transpose
        to_x = (gradient @ weight).addmm_(through_b.t(), a).reshape(x.shape) if ctx.needs_input_grad[0] else None
        to_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        to_b = ctx.scale * (a @ inputs.t() @ gradient).t()
        return to_x, None, to_bias, through_b @ inputs, to_b, None


def _called(linear: nn.Linear, x: Tensor) -> Tensor:
    """Be the ``forward`` of a projection with an update; whatever else wants the matrix's gradient gets it."""
    weight = cast(Any, linear).parametrizations.weight
    update = weight[0]
    alone = len(weight) == 1 and isinstance(update, LowRankUpdate) and not weight.original.requires_grad
    if not alone or not torch.is_grad_enabled():
        return F.linear(x, linear.weight, linear.bias)
    inputs = (x, weight.original, linear.bias, update.lora_a, update.lora_b, update.scale)
    return cast(Tensor, _UpdatedLinear.apply(*inputs))


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
        parametrise(linear, update)
        updates.append(update)
    return parameters_of(model, updates)


def parametrise(linear: nn.Linear, update: LowRankUpdate) -> None:
    """Let an update act on the matrix of a projection, whether the projection is called or its ``weight`` is read."""
    parametrize.register_parametrization(linear, "weight", update)
    if type(linear).forward is nn.Linear.forward:
        cast(Any, type(linear)).forward = _called  # torch made this class for the projection; it goes with the update


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
