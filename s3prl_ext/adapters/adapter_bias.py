"""AdapterBias: one shift per layer, with a weight of its own for each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from s3prl_ext import settings
from s3prl_ext.adapters.architectures import Dimensions, find_encoder
from s3prl_ext.adapters.insertion import attach, detach, parameters_of, place_like

PAPER = "Fu et al. 2022, AdapterBias; AD-TUNING, Table 2, AdapterBias"
EQUATION = "h + alpha(h) v, alpha(h) = w h + b, h: output of the feed-forward"
ACTS_ON = ("the output of the feed-forward",)
CAN_FOLD = False
NAME = "adapter_bias"


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        layers: 0-based layers that get a shift; None = all.
    """

    layers: Annotated[Any, settings.layers()] = None

    def __post_init__(self) -> None:
        settings.check_fields(self, "adapter_bias")


class AdapterBias(nn.Module):
    """Shift [..., width] by a vector that each position scales; the identity at the start: the vector begins at zero.

    Args:
        width: features of a position.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))
        self.weight_of_position = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden` with the weighted shift added."""
        return hidden + self.weight_of_position(hidden) * self.vector


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Add a shift to the output of each layer's feed-forward, before dropout, residual sum and norm.

    Returns:
        The new parameters by name.

    Raises:
        UsageError: a layer does not exist.
    """
    found = find_encoder(model)
    chosen = found.chosen_layers(config.layers, "adapter_bias: layers")
    places: list[Any] = [found.linear(layer, "fc2") for layer in chosen]
    for place in places:
        attach(place, NAME, place_like(AdapterBias(place.out_features), place))
    return parameters_of(model, [place.adapter_bias for place in places])


def remove(model: nn.Module, config: Config) -> None:
    """Take the shifts away."""
    found = find_encoder(model)
    for layer in found.chosen_layers(config.layers, "adapter_bias: layers"):
        detach(found.linear(layer, "fc2"), NAME)


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights: per layer 2·d + 1."""
    layers = dimensions.layers if config.layers is None else len(config.layers)
    return layers * (2 * dimensions.width + 1)
