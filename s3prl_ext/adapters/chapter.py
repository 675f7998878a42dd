"""CHAPTER: the CNN adapter in the feature extractor and Houlsby adapters in the transformer layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from s3prl_ext import settings
from s3prl_ext.adapters import cnn_adapter, houlsby
from s3prl_ext.adapters.architectures import Dimensions

PAPER = "Chen et al. 2022, CHAPTER; AD-TUNING, Table 2, CHAPTER"
EQUATION = f"{cnn_adapter.EQUATION}; {houlsby.EQUATION}"
ACTS_ON = (*cnn_adapter.ACTS_ON, *houlsby.ACTS_ON)
CAN_FOLD = False
NEEDS = ("linears", "blocks")  # of the row of a family


@dataclass(frozen=True)
class Config:
    """Options of both parts; see their own.

    Attributes:
        bottleneck, layers: of the Houlsby adapters.
        scale, param_matched: of the CNN adapter.
    """

    bottleneck: Annotated[int, settings.count()] = 32
    layers: Annotated[Any, settings.layers()] = None
    scale: Annotated[float, settings.number(above=0)] = 0.01
    param_matched: Annotated[bool, settings.switch()] = False

    def __post_init__(self) -> None:
        settings.check_fields(self, "chapter")

    @property
    def houlsby(self) -> houlsby.Config:
        """The options of the Houlsby adapters."""
        return houlsby.Config(self.bottleneck, self.layers)

    @property
    def cnn_adapter(self) -> cnn_adapter.Config:
        """The options of the CNN adapter."""
        return cnn_adapter.Config(self.scale, self.param_matched)


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Insert both parts; errors as theirs.

    Returns:
        The new parameters by name.
    """
    inner = houlsby.insert(model, config.houlsby)
    try:
        return cnn_adapter.insert(model, config.cnn_adapter) | inner
    except Exception:
        houlsby.remove(model, config.houlsby)
        raise


def remove(model: nn.Module, config: Config) -> None:
    """Take both parts away."""
    cnn_adapter.remove(model, config.cnn_adapter)
    houlsby.remove(model, config.houlsby)


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights of both parts."""
    return cnn_adapter.count(dimensions, config.cnn_adapter) + houlsby.count(dimensions, config.houlsby)
