"""What each head of a model does with an input: its attention pattern and its output, from query, key and value.

Models do not hand these out: s3prl's compute attention in one call. They follow from what the attention reads, and
whether they are the model's own is checked on one input: passed through its output projection, they must be what its
attention gives. Attention with positions or gates of its own does not pass, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, depth
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment import check_ungrouped
from s3prl_ext.models.architectures import known
from s3prl_ext.upstreams.layer_similarity.encoders import Encoder

TOLERANCE = 1e-3  # of what attention gives, relative to its largest entry


class HeadEncoder:
    """The outputs of heads as the states of an encoder.

    Args:
        inputs: encoder that gives what the attention of each layer reads, every token of it; where it reads long clips
            in windows, its ``window`` is their number of tokens.
        attention: the same encoder, giving what the attention of each layer gives.
        weights: its query, key and value parameters.
        heads: number of heads.
        item: an input to check the outputs on.

    Raises:
        UsageError: the model's attention is something else than query, key and value say, reads padding, or heads
            share keys.
    """

    def __init__(self, inputs: Encoder, attention: Any, weights: AttentionWeights, heads: int, item: Any):
        self.name, self.batch_size = inputs.name, inputs.batch_size
        check_ungrouped(weights, inputs.name)
        if getattr(inputs, "pads", False):
            raise UsageError(
                f"align heads: the attention of {self.name} reads the padding of its fixed input too, so its heads "
                "cannot be computed from a clip alone: take by: weights."
            )
        self._inputs, self._heads, self._causal = inputs, heads, False
        self._window: int | None = getattr(inputs, "window", None)
        self._weights = {slot: tensor.detach().float() for slot, tensor in weights.items()}
        outputs = [_output(module) for module in attention.tap.modules]
        (given,) = attention.states([item])
        if not self._gives(given, outputs, item):
            self._causal = True
            if not self._gives(given, outputs, item):
                raise UsageError(
                    f"align heads: the attention of {self.name} has positions or gates of its own, so that query and "
                    "key do not say what its heads do: take by: weights."
                )

    def states(self, items: Sequence[Any]) -> list[Tensor]:
        """Return the outputs of all heads side by side for each item, [layers, tokens, heads * width of a head]."""
        return [
            torch.stack([self._of_layer(layer, x)[1] for layer, x in enumerate(layers)])
            for layers in self._inputs.states(items)
        ]

    def patterns(self, item: Any) -> list[Tensor]:
        """Return the attention patterns of each layer for an item, [heads, tokens, tokens]."""
        (layers,) = self._inputs.states([item])
        return [self._of_layer(layer, x)[0] for layer, x in enumerate(layers)]

    def _of_layer(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return pattern and output of a layer whose attention reads `x`, [tokens, width]."""
        x = x.float()

        def project(name: str) -> Tensor:
            weight, bias = (self._weights.get(Slot(layer, name, kind)) for kind in ("weight", "bias"))
            assert weight is not None
            rows = linear(x, weight.to(x.device), None if bias is None else bias.to(x.device))
            return rows.unflatten(1, (self._heads, -1)).transpose(0, 1)

        query, key, value = (project(name) for name in ("q_proj", "k_proj", "v_proj"))
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if self._causal:
            scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -math.inf)
        if self._window is not None and len(x) > self._window:  # a longer clip is read window by window
            window = torch.arange(len(x), device=x.device) // self._window
            scores = scores.masked_fill(window[:, None] != window, -math.inf)
        pattern = scores.softmax(-1)
        return pattern, (pattern @ value).transpose(0, 1).flatten(1)

    def _gives(self, given: Tensor, outputs: Sequence[Any], item: Any) -> bool:
        """Return whether the outputs of heads, projected, are what the attention of every layer gives."""
        (own,) = self.states([item])
        assert len(own) == depth(self._weights)
        for head_outputs, output, theirs in zip(own, outputs, given, strict=True):
            if output is None:
                return False
            with torch.no_grad():
                projected = output(head_outputs)
            if projected.shape != theirs.shape or (projected - theirs).abs().max() > TOLERANCE * theirs.abs().max():
                return False
        return True


def _output(attention: nn.Module) -> nn.Module | None:
    """Return the output projection inside a module of attention, the identity where it has none.

    None where that is not clear.
    """
    maps = {name.rpartition(".")[2]: part for name, part in attention.named_modules() if isinstance(part, nn.Linear)}
    others = [module for name, module in maps.items() if not _is_projection(name)]
    if not others:
        return nn.Identity()
    return others[0] if len(others) == 1 else None


def _is_projection(name: str) -> bool:
    """Return whether a module holds query, key or value in one of the known families."""
    return any(name in row.projections if row.projections else row.attention.endswith(f".{name}") for row in known())
