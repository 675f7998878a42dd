"""Transformer layers that keep no activations for the backward pass (``runner.checkpoint_upstream``).

The backward pass runs each layer once more, with the random state of the first time, so that all numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from s3prl_ext.adapters.architectures import find_encoder


class Recomputed:
    """The ``forward`` of a layer, run again in the backward pass where one will follow.

    Args:
        forward: bound to the layer; a deep copy of the layer binds its own.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer."""
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def recompute_layers(model: nn.Module) -> None:
    """Let each transformer layer of a speech encoder keep nothing but its inputs until the backward pass.

    Adapters are inserted already; ``prefix``, which hands a state from layer to layer, does not go with it.

    Raises:
        UsageError: `model` has no encoder of a known family.
    """
    for layer in find_encoder(model).layers:
        cast(Any, layer).forward = Recomputed(layer.forward)
