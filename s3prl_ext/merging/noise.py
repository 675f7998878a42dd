"""Noise controls: random matrices in place of a source's (MAM, section 4 and Table 1).

``source`` has mean and standard deviation of the source's parameters, ``target`` those of the target's, ``standard``
is N(0, 1). Each tensor has a generator of its own, so that its sample depends neither on the other layers nor on the
global random state, which stays as it is. The kinds have streams of their own too: draw d of one says nothing about
draw d of another. (Up to 0.1.0 they shared them, and were one matrix rescaled.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.merging.layers import align
from s3prl_ext.merging.merge import check_finite
from s3prl_ext.merging.names import NOISE_KINDS
from s3prl_ext.randomness import generator_of
from s3prl_ext.settings import choice, count, load, with_kind

STREAMS = "by kind"  # kept in records and sweeps, so that numbers of earlier versions are not taken for these
STATISTICS = ("tensor", "projection", "global")


@dataclass(frozen=True)
class NoiseConfig:
    """What is drawn.

    Attributes:
        kind: whose mean and standard deviation the noise has: ``source``, ``target``, or ``standard`` for N(0, 1).
        draw: number of the draw; report the mean over several.
        seed: seed common to all draws.
        statistics: what shares mean and standard deviation: each ``tensor``; all layers of a ``projection``; or
            ``global``, all matrices (with biases merged: all biases apart from them).
    """

    kind: Annotated[str, choice(*NOISE_KINDS)]
    draw: Annotated[int, count(0)] = 0
    seed: Annotated[int, count(0)] = 0
    statistics: Annotated[str, choice(*STATISTICS)] = "tensor"

    @property
    def needs_source(self) -> bool:
        """Whether a source model is read."""
        return self.kind == "source"


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (population, that is divided by the count) of `count` values."""

    mean: float
    std: float
    count: int = 1


def parse_noise(value: Any, where: str = "noise") -> NoiseConfig | None:
    """Check a noise section: a kind, or a mapping such as ``{kind: source, draw: 0}``; None stays None.

    Raises:
        UsageError: with one line for every problem found.
    """
    if value is None:
        return None
    forms = f"one of {', '.join(NOISE_KINDS)}, or a mapping with kind and draw"
    return load(NoiseConfig, with_kind(value, where, forms, NOISE_KINDS), where)


def moments(weights: AttentionWeights, statistics: str, name: str = "the model") -> dict[Slot, Moments]:
    """Return mean and standard deviation for every slot of a model, over all its layers where they are shared.

    Args:
        statistics: one of :data:`STATISTICS`.
        name: what the model is called in the message.

    Raises:
        DataError: a tensor holds NaN or infinity.
    """
    check_finite(weights, weights, name)
    single = {slot: _moments(tensor) for slot, tensor in weights.items()}
    groups: dict[Any, list[Moments]] = {}
    for slot, item in single.items():
        groups.setdefault(_group(slot, statistics), []).append(item)
    pooled = {group: _pool(items) for group, items in groups.items()}
    return {slot: pooled[_group(slot, statistics)] for slot in weights}


def noise_moments(
    config: NoiseConfig, target: AttentionWeights, source: AttentionWeights | None, layer_map: list[int | None]
) -> dict[Slot, Moments] | None:
    """Return what :func:`sample` needs for noise of this kind, by the target's slots; None for N(0, 1).

    Args:
        source: the source's parameters, for noise of their statistics; its depth may differ from the target's.
        layer_map: source layer for each target layer.

    Raises:
        DataError: a tensor holds NaN or infinity.
    """
    if config.kind == "standard":
        return None
    if config.kind == "target" or source is None:
        return moments(target, config.statistics, "the target")
    return align(moments(source, config.statistics, "the source"), layer_map)


def sample(
    shapes: Mapping[Slot, torch.Size], statistics: Mapping[Slot, Moments] | None, config: NoiseConfig, source: int = 0
) -> AttentionWeights:
    """Return a float32 sample of N(mean, std^2) for each slot, on the CPU.

    Args:
        shapes: the target's slots to draw for, with their shapes.
        statistics: mean and standard deviation by the target's slots; None for N(0, 1).
        config: gives kind, seed and draw, which together choose the stream.
        source: position of the source that the noise replaces, so that two of them differ.
    """
    samples: dict[Slot, Tensor] = {}
    for slot, shape in shapes.items():
        noise = torch.randn(shape, generator=generator_of(config.kind, config.seed, config.draw, source, *slot))
        samples[slot] = noise if statistics is None else noise.mul_(statistics[slot].std).add_(statistics[slot].mean)
    return samples


def _group(slot: Slot, statistics: str) -> Any:
    return {"tensor": slot, "projection": (slot.projection, slot.kind), "global": slot.kind}[statistics]


def _moments(tensor: Tensor) -> Moments:
    std, mean = torch.std_mean(tensor.detach().float(), correction=0)
    return Moments(mean.item(), std.item(), tensor.numel())


def _pool(items: Iterable[Moments]) -> Moments:
    items = list(items)
    if len(items) == 1:
        return items[0]
    count = sum(item.count for item in items)
    mean = math.fsum(item.count * item.mean for item in items) / count
    variance = math.fsum(item.count * (item.std**2 + (item.mean - mean) ** 2) for item in items) / count
    return Moments(mean, math.sqrt(variance), count)
