"""The output of every transformer block of a model, or what its attention reads, taken by hooks.

The hidden states that a model returns are something else in places: those of transformers end after the final norm
in a pre-norm HuBERT, and those of s3prl begin with the input of the first block. What query, key and value are applied
to comes after a norm in pre-norm models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from s3prl_ext.attention.layouts import Slot, find_attention
from s3prl_ext.errors import DataError
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.randomness import preserved
from s3prl_ext.transformers_models import load_model

POINTS = BLOCKS, INPUTS, ATTENTION = "blocks", "inputs", "attention"  # where a model can be listened to


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


def find_attention_modules(model: nn.Module, where: str, prefix: str | None = None) -> list[nn.Module]:
    """Return the modules that apply query, key and value, one for each layer.

    The projections themselves may never be called.

    Args:
        where, prefix: as for :func:`find_blocks`.

    Raises:
        DataError: as :func:`s3prl_ext.attention.layouts.find_attention`.
    """
    keys = find_attention(model.state_dict(), where, prefix)
    queries = [keys.names[Slot(layer, "q_proj")] for layer in range(keys.layers)]
    return [model.get_submodule(name.rsplit(".", 2)[0]) for name in queries]


class Tap:
    """Where a model is listened to.

    Args:
        model: holds the blocks.
        where: name of the model, for errors.
        prefix: as for :func:`find_blocks`.
        point: one of :data:`POINTS`: the outputs of blocks, the inputs of their attention (what query, key and value
            are applied to), or its outputs.

    Raises:
        DataError: as :func:`find_blocks`, or query and key read something else than what the attention is given.
    """

    def __init__(self, model: nn.Module, where: str, prefix: str | None = None, point: str = BLOCKS):
        self.where, self.point = where, point
        self.modules = (find_blocks if point == BLOCKS else find_attention_modules)(model, where, prefix)
        # conformers of transformers rotate what query and key read, and leave what the value reads
        if point == INPUTS and any(getattr(m, "position_embeddings_type", None) == "rotary" for m in self.modules):
            raise DataError(
                f"{where} has rotary positions that change what query and key read, so that they cannot be aligned by "
                "paired inputs or merged by regmean: leave these out, or take align: heads by weights."
            )

    def listen(self, run: Callable[[], Any]) -> list[Tensor]:
        """Return one tensor for each layer while `run` is called, without gradients.

        Args:
            run: one forward pass of the model.

        Raises:
            DataError: as :func:`block_outputs` and :func:`attention_inputs`.
        """
        return (attention_inputs if self.point == INPUTS else block_outputs)(self.modules, run, self.where)


def block_outputs(blocks: Sequence[nn.Module], run: Callable[[], Any], where: str) -> list[Tensor]:
    """Return what each block gives while `run` is called, without gradients.

    Args:
        blocks: as :func:`find_blocks` returns them.
        run: one forward pass of the model that holds the blocks.
        where: name of the model, for the error.

    Raises:
        DataError: a block did not run exactly once, or does not return a tensor of three dimensions.
    """

    def hook(block: nn.Module, keep: Callable[[Any], None]) -> RemovableHandle:
        return block.register_forward_hook(
            lambda module, inputs, output: keep(output[0] if isinstance(output, (tuple, list)) else output)
        )

    return _heard(blocks, hook, run, f"block {{}} of {where} gave", "outputs")


def attention_inputs(modules: Sequence[nn.Module], run: Callable[[], Any], where: str) -> list[Tensor]:
    """Return what query, key and value of each layer are applied to while `run` is called, without gradients.

    Args:
        modules: as :func:`find_attention_modules` returns them.
        run: one forward pass of the model that holds them.
        where: name of the model, for the error.

    Raises:
        DataError: a module did not run exactly once, or is not called with a tensor of three dimensions.
    """

    def hook(attention: nn.Module, keep: Callable[[Any], None]) -> RemovableHandle:
        def first(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            keep(next((item for item in (*inputs, *named.values()) if isinstance(item, Tensor)), None))

        return attention.register_forward_pre_hook(first, with_kwargs=True)

    return _heard(modules, hook, run, f"the attention of layer {{}} of {where} was given", "inputs")


def _heard(
    modules: Sequence[nn.Module],
    hook: Callable[[nn.Module, Callable[[Any], None]], RemovableHandle],
    run: Callable[[], Any],
    said: str,
    what: str,
) -> list[Tensor]:
    """Return what the hooks of the modules keep in one pass, one tensor for each."""
    seen: list[list[Any]] = [[] for _ in modules]
    handles = [hook(module, kept.append) for module, kept in zip(modules, seen, strict=True)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for index, kept in enumerate(seen):
        if len(kept) != 1 or not isinstance(kept[0], Tensor) or kept[0].dim() != 3:
            raise DataError(
                f"{said.format(index)} {len(kept)} {what} in one pass in place of one tensor "
                "[batch, time, width]: layers of this model cannot be compared."
            )
    return [kept[0] for kept in seen]


@contextmanager
def as_found(model: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Inside, `model` is on `device` in evaluation mode; afterwards it and the random generators are as they were.

    A merged upstream that chooses its layers must leave a training run with the numbers it would otherwise draw. Its
    tensors are in the same memory again, so that views of them, such as those of a sweep, still reach the model.
    """
    home = next(model.parameters()).device
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module.named_buffers(recurse=False))) for module in model.modules()]
    with preserved(), modes_kept([model]):
        try:
            model.eval().to(device)
            yield
        finally:
            model.to(home)
            for parameter, data in parameters:
                parameter.data = data
            for module, own in buffers:
                module._buffers.update(own)
