"""The output of every transformer block of a model, taken by a forward hook on the block itself.

The hidden states that a model returns are something else in places: those of transformers end after the final norm
in a pre-norm HuBERT, and those of s3prl begin with the input of the first block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext.attention.layouts import Slot, find_attention
from s3prl_ext.errors import DataError
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.randomness import preserved
from s3prl_ext.transformers_models import load_model


def load_encoder(folder: Path, name: str) -> Any:
    """Return the bare model of a transformers folder in float32 and in evaluation mode.

    Raises:
        DataError: transformers cannot load it, or it lacks weights.
    """
    from transformers import AutoModel

    try:
        return load_model(AutoModel, folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"transformers cannot load source {name}: {' '.join(str(error).split())[:300]}.") from error


def find_blocks(model: nn.Module, where: str, prefix: str | None = None) -> list[nn.Module]:
    """Return the transformer blocks of a model in order: the modules that the table of architectures numbers.

    Args:
        where: name of the model, for the error.
        prefix: take the encoder after this prefix, where the model holds several.

    Raises:
        DataError: as :func:`s3prl_ext.attention.layouts.find_attention`.
    """
    keys = find_attention(model.state_dict(), where, prefix)
    numbered = f"{keys.prefix}{keys.architecture.layers}."
    assert all(keys.names[Slot(layer, "q_proj")].startswith(f"{numbered}{layer}.") for layer in range(keys.layers))
    return [model.get_submodule(f"{numbered}{layer}") for layer in range(keys.layers)]


def block_outputs(blocks: Sequence[nn.Module], run: Callable[[], Any], where: str) -> list[Tensor]:
    """Return what each block gives while `run` is called, without gradients.

    Args:
        blocks: as :func:`find_blocks` returns them.
        run: one forward pass of the model that holds the blocks.
        where: name of the model, for the error.

    Raises:
        DataError: a block did not run exactly once, or does not return a tensor of three dimensions.
    """
    seen: dict[int, list[Tensor]] = {index: [] for index in range(len(blocks))}

    def hook(index: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[index].append(output[0] if isinstance(output, (tuple, list)) else output)

        return keep

    handles = [block.register_forward_hook(hook(index)) for index, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for index, outputs in seen.items():
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].dim() != 3:
            raise DataError(
                f"block {index} of {where} gave {len(outputs)} outputs in one pass in place of one tensor "
                "[batch, time, width]: layers of this model cannot be compared."
            )
    return [outputs[0] for outputs in seen.values()]


@contextmanager
def as_found(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Inside, `model` is on `device` in evaluation mode; afterwards it and the random generators are as they were.

    A merged upstream that chooses its layers must leave a training run with the numbers it would otherwise draw.
    """
    home = next(model.parameters()).device
    with preserved(), modes_kept([model]):
        try:
            model.eval().to(device)
            yield
        finally:
            model.to(home)
