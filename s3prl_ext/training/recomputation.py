"""Transformer layers that keep no activations for the backward pass (``runner.checkpoint_upstream``).

The backward pass runs each layer once more, with the random state of the first time and without a second effect on
running statistics, so that all numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.training.statistics import statistics_kept


class Recomputed:
    """The ``forward`` of a layer, run again in the backward pass where one will follow.

    Args:
        layer: whose ``forward`` it replaces; a deep copy of the layer has its own.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.forward: Callable[..., Any] = layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[Any, Any]:
        """Return the contexts of the first run and of the second."""
        return nullcontext(), statistics_kept(self.layer)


def recompute_layers(model: nn.Module) -> None:
    """Let each transformer layer of a speech encoder keep nothing but its inputs until the backward pass.

    Adapters are inserted already; ``prefix``, which hands a state from layer to layer, does not go with it.

    Raises:
        UsageError: `model` has no encoder of a known family.
    """
    for layer in find_encoder(model).layers:
        cast(Any, layer).forward = Recomputed(layer)
