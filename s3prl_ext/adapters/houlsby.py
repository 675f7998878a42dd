"""Houlsby adapters: a bottleneck with its own skip connection after the feed-forward of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext import settings
from s3prl_ext.adapters.architectures import Dimensions, find_encoder
from s3prl_ext.adapters.insertion import attach, detach, parameters_of, place_like
from s3prl_ext.errors import UsageError

PAPER = "Houlsby et al. 2019, Parameter-Efficient Transfer Learning; AD-TUNING, Table 2, Houlsby"
EQUATION = "h + W_up gelu(W_down h + b_down) + b_up, h: output of the feed-forward"
ACTS_ON = ("the output of the feed-forward",)
CAN_FOLD = False
NAME = "houlsby"


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        bottleneck: inner width of the adapter.
        layers: 0-based layers that get one; None = all.
    """

    bottleneck: Annotated[int, settings.count()] = 32
    layers: Annotated[Any, settings.layers()] = None

    def __post_init__(self) -> None:
        settings.check_fields(self, "houlsby")


class Houlsby(nn.Module):
    """Map [..., width] to the same shape; the identity at the start, because the way up begins at zero.

    Args:
        width: features of a position.
        bottleneck: inner width.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `hidden` with the adapter's contribution added."""
        return hidden + self.up(F.gelu(self.down(hidden)))


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Add an adapter after the feed-forward of each layer, before dropout, residual sum and norm.

    Returns:
        The new parameters by name.

    Raises:
        UsageError: a layer does not exist, or the bottleneck is wider than the layer.
    """
    found = find_encoder(model)
    chosen = found.chosen_layers(config.layers, "houlsby: layers")
    places: list[Any] = [found.linear(layer, "fc2") for layer in chosen]
    width = places[0].out_features
    if config.bottleneck > width:
        raise UsageError(
            f"houlsby: bottleneck {config.bottleneck} is above the width {width} of the upstream; "
            f"choose at most {width}."
        )
    for place in places:
        attach(place, NAME, place_like(Houlsby(width, config.bottleneck), place))
    return parameters_of(model, [place.houlsby for place in places])


def remove(model: nn.Module, config: Config) -> None:
    """Take the adapters away."""
    found = find_encoder(model)
    for layer in found.chosen_layers(config.layers, "houlsby: layers"):
        detach(found.linear(layer, "fc2"), NAME)


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights: per layer 2·d·b + b + d."""
    width, bottleneck = dimensions.width, config.bottleneck
    layers = dimensions.layers if config.layers is None else len(config.layers)
    return layers * (2 * width * bottleneck + bottleneck + width)
