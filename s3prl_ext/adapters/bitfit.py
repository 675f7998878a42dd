"""BitFit: train the biases of the encoder and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from s3prl_ext.adapters.architectures import Dimensions, encoder_biases, find_encoder

PAPER = "Ben Zaken et al. 2022, BitFit"
EQUATION = "W x + b, b trains"
ACTS_ON = ("the biases of the encoder",)
CAN_FOLD = True
TRAINS_BASE = True


@dataclass(frozen=True)
class Config:
    """BitFit has no options."""


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Let every bias of the encoder train: positions, attention, feed-forward and norms.

    The bias of k_proj is among them, though it cannot change the output (softmax is shift invariant).

    Returns:
        The biases by name.
    """
    found = find_encoder(model)
    biases = encoder_biases(model, found)
    for parameter in biases.values():
        parameter.requires_grad_(True)
    # A plain attribute: it must not appear in the state dict.
    cast(Any, found.encoder).bitfit_base = {name: bias.detach().clone() for name, bias in biases.items()}
    return biases


@torch.no_grad()
def remove(model: nn.Module, config: Config) -> None:
    """Put the biases back, bitwise, and stop them from training."""
    encoder = cast(Any, find_encoder(model).encoder)
    parameters = dict(model.named_parameters())
    for name, base in encoder.bitfit_base.items():
        parameters[name].copy_(base)
        parameters[name].requires_grad_(False)
    del encoder.bitfit_base


def fold(model: nn.Module, config: Config) -> None:
    """Keep the trained biases: they are plain weights already."""
    encoder = cast(Any, find_encoder(model).encoder)
    parameters = dict(model.named_parameters())
    for name in encoder.bitfit_base:
        parameters[name].requires_grad_(False)
    del encoder.bitfit_base


def base_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the biases as they were at insertion."""
    return state | cast(Any, find_encoder(model).encoder).bitfit_base


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights.

    In a HuBERT per layer 7·d + inner, and the encoder's norm and positions.
    """
    return dimensions.biases
