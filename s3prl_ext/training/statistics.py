"""State of an upstream that a forward pass changes although no gradient reaches it.

The running statistics of batch norm.

Some models have a batch norm, such as HuBERT with ``conv_pos_batch_norm``. A method that stores a small change of a
frozen upstream must leave them as they are: a checkpoint, a delta, a resumed run and the other candidates of a race
all start from the untouched upstream. Full tuning moves those of the norms that train, and of norms without weights
(MAE-AST has one at its input) where all of the upstream trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext.errors import ExtError
from s3prl_ext.merging.learnable import constant_names


class StateChanged(ExtError):
    """A frozen upstream has changed: its module keeps state that this package does not know."""


def hold_statistics(model: nn.Module, train_layers: Any = None) -> None:
    """Put the modules that keep running statistics into evaluation mode: they use them and leave them as they are.

    Args:
        model: in train mode.
        train_layers: of full tuning, see :class:`s3prl_ext.training.parameter_groups.RatesConfig`: those of which a
            weight trains stay in train mode, of ``all`` also those without weights. None: none does.
    """
    for module in _norms_with_statistics(model):
        weights = [parameter.requires_grad for parameter in module.parameters()]
        if train_layers is None or not (any(weights) or (train_layers == "all" and not weights)):
            module.eval()


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Put the running statistics back as they were, whatever a forward pass in train mode makes of them."""
    before = [(buffer, buffer.clone()) for norm in _norms_with_statistics(model) for buffer in norm.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)


def _norms_with_statistics(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if getattr(module, "track_running_stats", False) and getattr(module, "running_mean", None) is not None:
            yield module


def copy_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's buffers by name, on the CPU.

    The sources' matrices of a learnable merge are left out: only the merge itself reads them, and nothing writes to
    them.
    """
    sources = set(constant_names(model))
    return {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if name not in sources}


@torch.no_grad()
def restore_buffers(model: nn.Module, copies: Mapping[str, Tensor]) -> None:
    """Put the values of :func:`copy_buffers` back; a buffer that is not there, or of another shape, is left alone."""
    for name, buffer in model.named_buffers():
        if name in copies and copies[name].shape == buffer.shape:
            buffer.copy_(copies[name])


def check_buffers(model: nn.Module, copies: Mapping[str, Tensor]) -> None:
    """Compare a model's buffers with what they were; tables that grow with the longest clip may have another shape.

    Raises:
        StateChanged: one has other values.
    """
    for name, buffer in model.named_buffers():
        before = copies.get(name)
        if before is not None and before.shape == buffer.shape and not _same(before, buffer.detach().cpu()):
            raise StateChanged(
                f"the buffer {name} of the upstream changed in training, although the tuning method freezes the "
                "upstream: what would be stored is not the model that was scored. Use tuning.method: full, which "
                "stores the whole upstream, or another upstream."
            )


def _same(a: Tensor, b: Tensor) -> bool:
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return a.dtype == b.dtype and torch.equal(first, second)
