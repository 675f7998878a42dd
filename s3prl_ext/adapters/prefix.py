"""Prefix tuning: learnt vectors at extra positions before the clip, which every frame can attend to.

The positions exist only inside the encoder: they pass the positional convolution and all layers with the clip, and
are taken off what a layer shows to the outside, so hidden states and lengths are those of the clip alone.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from s3prl_ext import settings
from s3prl_ext.adapters.architectures import Dimensions, find_encoder
from s3prl_ext.adapters.insertion import parameters_of
from s3prl_ext.errors import UsageError
from s3prl_ext.models.architectures import Architecture

PAPER = "Li and Liang 2021, Prefix-Tuning; Jia et al. 2022, Visual Prompt Tuning; AD-TUNING, Table 2, Prefix"
EQUATION = "layer_i([p + P_i; x]), [p; x] the output of layer i - 1, p = P at the input of the encoder"
ACTS_ON = ("the positions of the encoder",)
CAN_FOLD = False
NEEDS = ("linears", "mask")  # of the row of a family


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        length: number of extra positions.
    """

    length: Annotated[int, settings.count()] = 10

    def __post_init__(self) -> None:
        settings.check_fields(self, "prefix")


class Running:
    """The state of the extra positions on their way through the layers; None where they are still part of the clip.

    Every layer of a model refers to the same object, and a deep copy of the model to a copy of it.
    """

    def __init__(self) -> None:
        self.state: Tensor | None = None


class Prefix(nn.Module):
    """The learnt vectors of one place, `vectors` of shape [length, width].

    Args:
        length: number of extra positions.
        like: a weight of the same width, device and dtype, [..., width].
        running: shared by all places of a model.
        architecture: how the model orders dimensions and marks padding.
        std: standard deviation of the start, 0 for zeros.
    """

    def __init__(self, length: int, like: Tensor, running: Running, architecture: Architecture, std: float) -> None:
        super().__init__()
        vectors = torch.empty(length, like.shape[-1]).normal_(0.0, std) if std else torch.zeros(length, like.shape[-1])
        self.vectors = nn.Parameter(vectors.to(device=like.device, dtype=like.dtype))
        self.length = length
        self.running = running
        self.architecture = architecture

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the extra positions and the clip of a layer's input or output."""
        time = self.architecture.time
        return x.narrow(time, 0, self.length), x.narrow(time, self.length, x.shape[time] - self.length)


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Prepend learnt vectors at the encoder's input and add learnt vectors to those positions at each layer's input.

    Returns:
        The new parameters by name.

    Raises:
        UsageError: how the model masks padding is not known.
    """
    found = find_encoder(model)
    if found.architecture.mask is None:
        raise UsageError(
            f"prefix needs an encoder whose mask of positions is known, and for {found.architecture.models} it is not; "
            "choose houlsby, adapter_bias, lora or bitfit."
        )
    running = Running()
    like = cast(Tensor, found.linear(0, "q_proj").weight)
    for layer in found.layers:
        place = cast(Any, layer)
        place.prefix = Prefix(config.length, like, running, found.architecture, std=0.0)
        place.prefix.hook = layer.register_forward_pre_hook(_take_off)
        place.forward = types.MethodType(_forward, layer)  # bound to the layer, so a deep copy binds its own
    encoder = cast(Any, found.encoder)
    encoder.prefix = Prefix(config.length, like, running, found.architecture, std=0.02)
    encoder.prefix.hooks = (
        encoder.register_forward_pre_hook(_prepend, with_kwargs=True),
        encoder.register_forward_hook(_finish, always_call=True),
    )
    return parameters_of(model, [encoder.prefix, *(cast(Any, layer).prefix for layer in found.layers)])


def remove(model: nn.Module, config: Config) -> None:
    """Take the prefix away."""
    found = find_encoder(model)
    for layer in found.layers:
        place = cast(Any, layer)
        place.prefix.hook.remove()
        del place.forward, place.prefix
    encoder = cast(Any, found.encoder)
    for hook in encoder.prefix.hooks:
        hook.remove()
    del encoder.prefix


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights: (layers + 1) · length · d."""
    return (dimensions.layers + 1) * config.length * dimensions.width


def _prepend(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put the vectors before the encoder's input [batch, time, width], and mark them as valid in its mask."""
    prefix: Prefix = encoder.prefix
    prefix.running.state = None
    x, *rest = args
    x = torch.cat([prefix.vectors.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
    name = cast(str, prefix.architecture.mask)
    if kwargs.get(name) is not None:
        kwargs = kwargs | {name: _longer(kwargs[name], prefix)}
    elif rest and rest[0] is not None:
        rest[0] = _longer(rest[0], prefix)
    return (x, *rest), kwargs


def _longer(mask: Tensor, prefix: Prefix) -> Tensor:
    valid = mask.new_full((len(mask), prefix.length), int(prefix.architecture.valid))
    return torch.cat([valid, mask], dim=1)


def _take_off(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Take the extra positions off the input of the first layer; the later ones get none."""
    prefix: Prefix = layer.prefix
    if prefix.running.state is not None:
        return None
    prefix.running.state, clip = prefix.split(args[0])
    return (clip, *args[1:])


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run a layer on the extra positions and the clip, and return what belongs to the clip."""
    prefix: Prefix = layer.prefix
    state = cast(Tensor, prefix.running.state)
    vectors = prefix.vectors.to(state.dtype).unsqueeze(1 - prefix.architecture.time)
    whole = torch.cat([state + vectors, x], dim=prefix.architecture.time)
    output = type(layer).forward(layer, whole, *args, **kwargs)
    hidden, *others = output if isinstance(output, tuple) else (output,)
    prefix.running.state, clip = prefix.split(hidden)
    return (clip, *others) if isinstance(output, tuple) else clip


def _finish(encoder: Any, args: tuple[Any, ...], output: Any) -> Any:
    """Forget the extra positions, and take them off the state that was kept before the first layer.

    BEATs returns a list of states; transformers 4 and 5.0 put them into the output of the encoder.
    """
    prefix: Prefix = encoder.prefix
    prefix.running.state = None
    if isinstance(output, list):
        return [prefix.split(output[0])[1], *output[1:]]
    states = getattr(output, "hidden_states", None)
    if states is not None:
        output.hidden_states = (prefix.split(states[0])[1], *states[1:])
    return output
