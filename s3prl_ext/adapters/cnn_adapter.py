"""CNN adapter: a parallel copy of each convolution block of the feature extractor.

AD-TUNING's table gives 4.07M weights for a base model, CHAPTER's design as released has 4,200,448: seven whole copies.
``param_matched`` is a device of ours that reaches the table's figure: the copy of the last block fills only the first
three quarters of its channels, 4,069,376 weights (4.07M, and 4.67M with the Houlsby adapters of CHAPTER).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext import settings
from s3prl_ext.adapters.architectures import Dimensions, block_parts, find_encoder
from s3prl_ext.adapters.insertion import parameters_of, place_like
from s3prl_ext.errors import UsageError

PAPER = "Chen et al. 2022, CHAPTER; AD-TUNING, Table 2, CNN adapter"
EQUATION = "block_i(x) + scale copy_i(x)"
ACTS_ON = ("the convolution blocks",)
CAN_FOLD = False
NEEDS = ("linears", "blocks")  # of the row of a family
NO_BLOCKS = "cnn_adapter and chapter need convolution blocks on the waveform, which the upstream does not have"


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        scale: factor of the copies.
        param_matched: narrow the copy of the last block so that the count is the one of AD-TUNING's table.
    """

    scale: Annotated[float, settings.number(above=0)] = 0.01
    param_matched: Annotated[bool, settings.switch()] = False

    def __post_init__(self) -> None:
        settings.check_fields(self, "cnn_adapter")


class AddCopy:
    """A forward hook that adds the scaled output of the parallel block; a deep copy of the model copies it along."""

    def __init__(self, parallel: nn.Module, scale: float) -> None:
        self.parallel = parallel
        self.scale = scale

    def __call__(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return ``output + scale * copy(input)``, [batch, channels, time]."""
        added = self.parallel(inputs[0])
        missing = output.shape[1] - added.shape[1]  # channels that a narrowed copy leaves alone
        return output + self.scale * (F.pad(added, (0, 0, 0, missing)) if missing else added)


def insert(model: nn.Module, config: Config) -> dict[str, nn.Parameter]:
    """Add a parallel copy to each convolution block and let gradients through the feature extractor.

    s3prl's models run their extractor under ``torch.no_grad`` where ``feature_grad_mult`` is 0; it is set to 1, and
    the blocks themselves are kept from training by ``requires_grad``.

    Returns:
        The new parameters by name.

    Raises:
        UsageError: the upstream has no convolution blocks.
    """
    found = find_encoder(model)
    if not found.blocks:
        raise UsageError(
            f"{NO_BLOCKS} ({found.architecture.models}); choose houlsby, adapter_bias, lora, prefix or bitfit."
        )
    extractor, root = cast(Any, found.root).feature_extractor, cast(Any, found.root)
    copies = nn.ModuleList(
        parallel_block(block, config.param_matched and block is found.blocks[-1]) for block in found.blocks
    )
    hooks = [
        block.register_forward_hook(AddCopy(parallel, config.scale))
        for block, parallel in zip(found.blocks, copies, strict=True)
    ]
    for block in found.blocks:
        block.requires_grad_(False)
    cast(Any, copies).hooks = hooks
    if hasattr(root, "feature_grad_mult"):
        cast(Any, copies).feature_grad_mult = root.feature_grad_mult
        root.feature_grad_mult = 1.0
    extractor.cnn_adapter = copies
    return parameters_of(model, [copies])


def remove(model: nn.Module, config: Config) -> None:
    """Take the copies away and put ``feature_grad_mult`` back."""
    root = cast(Any, find_encoder(model).root)
    copies = root.feature_extractor.cnn_adapter
    for hook in copies.hooks:
        hook.remove()
    if hasattr(copies, "feature_grad_mult"):
        root.feature_grad_mult = copies.feature_grad_mult
    del root.feature_extractor.cnn_adapter


def parallel_block(block: nn.Module, narrow: bool) -> nn.Module:
    """Return a trainable copy of a block whose output is zero at the start.

    Where the block has a norm, its scale and shift begin at zero and the convolution as a copy; without a norm the
    convolution begins at zero. Behind a norm, a convolution that began at zero would get a gradient 300 times as large.

    Args:
        narrow: keep three quarters of the output channels.
    """
    parallel = copy.deepcopy(block)
    conv, norm = block_parts(parallel)
    if narrow:
        conv, norm = _narrowed(parallel, conv, norm, block)
    for parameter in norm.parameters() if norm is not None else conv.parameters():
        nn.init.zeros_(parameter)
    return parallel.requires_grad_(True)


def _narrowed(
    parallel: nn.Module, conv: nn.Conv1d, norm: nn.Module | None, block: nn.Module
) -> tuple[nn.Conv1d, nn.Module | None]:
    channels = narrow_channels(conv.out_channels)
    slim = nn.Conv1d(conv.in_channels, channels, conv.kernel_size[0], conv.stride[0], bias=conv.bias is not None)
    place_like(slim, block)
    slim.weight.data.copy_(conv.weight.data[:channels])
    if slim.bias is not None and conv.bias is not None:
        slim.bias.data.copy_(conv.bias.data[:channels])
    _replace(parallel, conv, slim)
    if norm is None:
        return slim, None
    sizes: Sequence[int] = (channels, channels) if isinstance(norm, nn.GroupNorm) else (channels,)
    slim_norm = place_like(cast(Any, type(norm))(*sizes, eps=cast(Any, norm).eps), block)
    _replace(parallel, norm, slim_norm)
    return slim, slim_norm


def _replace(parent: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in parent.modules():
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)
                return


def narrow_channels(channels: int) -> int:
    """Return the output channels of a narrowed copy."""
    return channels * 3 // 4


def count(dimensions: Dimensions, config: Config) -> int:
    """Return the number of trainable weights: those of all convolution blocks, less what ``param_matched`` leaves out.

    Raises:
        UsageError: there are no convolution blocks.
    """
    if not dimensions.blocks:
        raise UsageError(f"{NO_BLOCKS}.")
    total = 0
    for index, block in enumerate(dimensions.blocks):
        last = index == len(dimensions.blocks) - 1
        outputs = narrow_channels(block.channels_out) if config.param_matched and last else block.channels_out
        total += outputs * (block.channels_in * block.kernel + block.bias + 2 * block.norm)
    return total
