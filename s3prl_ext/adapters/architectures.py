"""Where the layers, linear maps and convolution blocks of a speech encoder are, by the table of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.architectures import Architecture, known
from s3prl_ext.models.sizes import SIZES


@dataclass(frozen=True)
class EncoderPlaces:
    """A model with the places of its architecture.

    Attributes:
        architecture: the matching row.
        prefix: what comes before the row's names, with its final dot, or empty.
        root: the module that holds the encoder and the feature extractor.
        encoder: positions, layers and final norm.
        layers: the transformer layers.
        blocks: the convolution blocks, empty where there are none.
    """

    architecture: Architecture
    prefix: str
    root: nn.Module
    encoder: nn.Module
    layers: list[nn.Module]
    blocks: list[nn.Module]

    @property
    def encoder_prefix(self) -> str:
        """What the names of the encoder's parameters begin with, with its final dot, or empty."""
        return f"{self.prefix}{self.architecture.encoder}.".lstrip(".") if self.architecture.encoder else self.prefix

    def linear(self, layer: int, projection: str) -> nn.Module:
        """Return a projection of a layer, by its name in :attr:`Architecture.parts`."""
        return self.layers[layer].get_submodule(self.architecture.parts[projection])

    def projections(self) -> tuple[str, ...]:
        """Return the names of the projections that are one matrix in this model."""
        return tuple(
            name
            for name in self.architecture.parts
            if isinstance(_child(self.layers[0], self.architecture.parts[name]), nn.Linear)
        )

    def chosen_layers(self, layers: tuple[int, ...] | None, where: str) -> list[int]:
        """Return the layers to work on, all for None.

        Raises:
            UsageError: a layer does not exist.
        """
        for layer in layers or ():
            if layer >= len(self.layers):
                raise UsageError(
                    f"{where}: the upstream has no layer {layer}; its layers are 0-{len(self.layers) - 1}."
                )
        return list(range(len(self.layers)) if layers is None else layers)


def find_encoder(model: nn.Module) -> EncoderPlaces:
    """Find the speech encoder in `model`.

    Raises:
        UsageError: no row of the table matches (the names seen are listed), or several encoders match.
    """
    modules = dict(model.named_modules())
    rows = [row for row in known() if row.linears]
    for row in rows:
        query = re.escape(f"{row.layers}.0.{row.parts['q_proj']}")
        matches = [re.fullmatch(rf"((?:.*\.)?){query}", name) for name in modules]
        prefixes = [match[1] for match in matches if match and f"{match[1]}{row.front or row.layers}" in modules]
        if len(prefixes) > 1:
            raise UsageError(f"the upstream holds several encoders, after {', '.join(prefixes)}: choose one of them.")
        if prefixes:
            return _locate(modules, row, prefixes[0])
    seen = ", ".join(name for name in list(modules) if name)[:200] or "none"
    listed = "; ".join(row.models for row in rows)
    raise UsageError(
        f"the upstream has no encoder that adapters know; its modules are {seen}; known are {listed}: use frozen, "
        "weighted_sum or full, or another upstream."
    )


def _locate(modules: Mapping[str, nn.Module], row: Architecture, prefix: str) -> EncoderPlaces:
    layers = list(cast("Iterable[nn.Module]", modules[f"{prefix}{row.layers}"]))
    blocks = list(cast("Iterable[nn.Module]", modules[f"{prefix}{row.blocks}"])) if row.blocks else []
    root, encoder = modules[prefix.rstrip(".")], modules[f"{prefix}{row.encoder}".rstrip(".")]
    return EncoderPlaces(row, prefix, root, encoder, layers, blocks)


def _child(module: nn.Module, path: str) -> Any:
    return dict(module.named_modules()).get(path)


@dataclass(frozen=True)
class ConvBlock:
    """Sizes of one convolution block: channels in and out, kernel, and whether it has a bias and an affine norm."""

    channels_in: int
    channels_out: int
    kernel: int
    bias: bool
    norm: bool


def _published_blocks(bias: bool, norms: int) -> tuple[ConvBlock, ...]:
    kernels = (10, 3, 3, 3, 3, 2, 2)
    return tuple(ConvBlock(512 if i else 1, 512, k, bias, i < norms) for i, k in enumerate(kernels))


@dataclass(frozen=True)
class Dimensions:
    """The sizes that decide how many weights a method adds.

    Attributes:
        layers: transformer layers.
        width: features of a position.
        inner: width of the feed-forward.
        blocks: the convolution blocks.
        biases: entries of the encoder's biases.
    """

    layers: int
    width: int
    inner: int
    blocks: tuple[ConvBlock, ...]
    biases: int

    def shape(self, projection: str) -> tuple[int, int]:
        """Return outputs and inputs of a projection."""
        outputs, inputs = {"fc1": (self.inner, self.width), "fc2": (self.width, self.inner)}.get(
            projection, (self.width, self.width)
        )
        return outputs, inputs


def _published(layers: int, width: int, inner: int, blocks: tuple[ConvBlock, ...]) -> Dimensions:
    return Dimensions(layers, width, inner, blocks, layers * (7 * width + inner) + 2 * width)


# wav2vec 2.0 and HuBERT as published: base, and large with a norm and a bias in every convolution block.
_PUBLISHED = (
    _published(12, 768, 3072, _published_blocks(bias=False, norms=1)),
    _published(24, 1024, 4096, _published_blocks(bias=True, norms=7)),
)
DIMENSIONS = dict(zip(SIZES, _PUBLISHED, strict=True))


def dimensions(model: nn.Module) -> Dimensions:
    """Measure the sizes of a model.

    Raises:
        UsageError: as :func:`find_encoder`.
    """
    found = find_encoder(model)
    query, inner = (cast(nn.Linear, found.linear(0, name)) for name in ("q_proj", "fc2"))
    return Dimensions(
        len(found.layers),
        query.in_features,
        inner.in_features,
        tuple(measure_block(block) for block in found.blocks),
        sum(bias.numel() for bias in encoder_biases(model, found).values()),
    )


def encoder_biases(model: nn.Module, found: EncoderPlaces) -> dict[str, nn.Parameter]:
    """Return the biases of the encoder by name, without those of its front end and of adapters."""
    front = tuple(f"{found.encoder_prefix}{name}." for name in found.architecture.convolutions)
    added = {"houlsby", "adapter_bias", "parametrizations"}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(found.encoder_prefix)
        and name.endswith(".bias")
        and not name.startswith(front)
        and added.isdisjoint(name.split("."))
    }


def measure_block(block: nn.Module) -> ConvBlock:
    """Return the sizes of one convolution block."""
    conv, norm = block_parts(block)
    return ConvBlock(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.bias is not None, norm is not None)


def block_parts(block: nn.Module) -> tuple[nn.Conv1d, nn.Module | None]:
    """Return the convolution and the affine norm (or None) of a convolution block.

    Raises:
        DataError: the block has no convolution.
    """
    conv = next(_of_type(block, nn.Conv1d), None)
    if conv is None:
        raise DataError(f"a convolution block of the upstream has no Conv1d: {block}.")
    norm = next(_of_type(block, nn.GroupNorm, nn.LayerNorm), None)
    return cast(nn.Conv1d, conv), norm if norm is not None and norm.weight is not None else None


def _of_type(block: nn.Module, *types: type) -> Iterator[nn.Module]:
    return (module for module in block.modules() if isinstance(module, types))
