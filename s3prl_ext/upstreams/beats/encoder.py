"""The transformer of BEATs: deep norm, convolutional positions, gated relative position bias.

Parameter names are those of the released checkpoints. Layerdrop is left out: the featurizer of s3prl needs the output
of every layer in every pass.

Sources: Chen et al., "BEATs" (2022), section 3; Wang et al., "DeepNet" (2022), for deep norm; Chi et al., "XLM-E"
(2021), section 3.1, for the gated relative position bias; Raffel et al., "T5" (2020), for the buckets.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext.upstreams.beats.config import BeatsConfig

GATES = 2  # values by which a query opens the position bias
GATE_UNITS = 4  # outputs of grep_linear that are summed to one gate


class ScaleGradient(torch.autograd.Function):
    """Return the input unchanged; multiply its gradient by `ratio` on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ratio: float) -> Tensor:
        """Return `x`."""
        ctx.ratio = ratio
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient."""
        return gradients[0] * ctx.ratio, None


class PositionalConv(nn.Module):
    """Grouped convolution along the tokens whose kernel has one learnt norm per kernel position (weight norm).

    Args:
        width: channels in and out.
        kernel: number of tokens under the kernel.
        groups: groups of channels.
    """

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (kernel * width)))
        with torch.no_grad():
            self.weight_g.copy_(self.weight_v.norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, width, tokens] to the same shape."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        x = F.conv1d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return x if self.kernel % 2 else x[..., :-1]  # an even kernel gives one token too many


class Attention(nn.Module):
    """Multi-head self-attention with a relative position bias that each query gates."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width = config.encoder_embed_dim
        self.num_heads = config.encoder_attention_heads
        self.head_dim = width // self.num_heads
        self.dropout = config.attention_dropout
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_a = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        if config.relative_position_embedding:
            self.relative_attention_bias = nn.Embedding(self.num_buckets, self.num_heads)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        if self.gated:
            self.grep_linear = nn.Linear(self.head_dim, GATES * GATE_UNITS)

    def position_bias(self, tokens: int) -> Tensor:
        """Return what each head adds for the distance between query and key: [heads, tokens, tokens]."""
        position = torch.arange(tokens, device=self.relative_attention_bias.weight.device)
        distance = position[None, :] - position[:, None]
        return self.relative_attention_bias(buckets(distance, self.num_buckets, self.max_distance)).permute(2, 0, 1)

    def forward(self, x: Tensor, padding: Tensor | None = None, position_bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: [batch, tokens, width].
            padding: additive mask [batch, 1, 1, tokens], -inf at padding; or None.
            position_bias: as :meth:`position_bias` returns it, shared by all layers; or None.
        """
        query, key, value = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        bias = padding
        if position_bias is not None:
            bias = self._gate(query) * position_bias if self.gated else position_bias.unsqueeze(0)
            bias = bias if padding is None else bias + padding
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(
            query, key, value, None if bias is None else bias.to(query.dtype), dropout
        )
        return self.out_proj(context.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to [batch, heads, tokens, head_dim]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _gate(self, query: Tensor) -> Tensor:
        """Return the factor of the position bias for each query: [batch, heads, tokens, 1]."""
        logits = self.grep_linear(query).unflatten(-1, (GATES, GATE_UNITS)).sum(-1)
        update, reset = logits.sigmoid().chunk(GATES, dim=-1)
        return update * (reset * self.grep_a - 1.0) + 2.0


def buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Map distances between tokens to buckets: one half for each direction, exact when near, logarithmic when far.

    Args:
        distance: key position minus query position, integers of any shape.
        num_buckets: number of buckets in all.
        max_distance: from here on every distance is in the last bucket of its direction.
    """
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(far < exact, far, logarithmic)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by a norm of the residual sum (deep norm scales the residual)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation = getattr(F, config.activation_fn)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.residual_scale = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def initialise(self, gain: float | None) -> None:
        """Draw the weights as for pre-training: small normal ones, or those of deep norm with its `gain`."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if gain is not None:
            for linear in (self.self_attn.q_proj, self.self_attn.k_proj):
                nn.init.xavier_normal_(linear.weight)
            for linear in (self.self_attn.v_proj, self.self_attn.out_proj, self.fc1, self.fc2):
                nn.init.xavier_normal_(linear.weight, gain)

    def forward(self, x: Tensor, padding: Tensor | None = None, position_bias: Tensor | None = None) -> Tensor:
        """Map [batch, tokens, width] to the same shape; arguments as of :meth:`Attention.forward`."""
        attended = self.dropout(self.self_attn(x, padding, position_bias))
        x = self.self_attn_layer_norm(x * self.residual_scale + attended)
        inner = self.activation_dropout(self.activation(self.fc1(x)))
        return self.final_layer_norm(x * self.residual_scale + self.dropout(self.fc2(inner)))


class BeatsEncoder(nn.Module):
    """Convolutional positions, a norm, and the layers; all layers share the buckets of the first."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width = config.encoder_embed_dim
        self.pos_conv = nn.Sequential(PositionalConv(width, config.conv_pos, config.conv_pos_groups), nn.GELU())
        layers = [Layer(config) for _ in range(config.encoder_layers)]
        self.layers = nn.ModuleList(layers)
        self.relative_positions = config.relative_position_embedding
        if self.relative_positions:
            for layer in layers[1:]:
                layer.self_attn.relative_attention_bias = layers[0].self_attn.relative_attention_bias
        self.layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_decay = config.layer_wise_gradient_decay_ratio
        for layer in layers:
            layer.initialise((8 * len(layers)) ** -0.25 if config.deep_norm else None)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """Return the input of the first layer and the output of each, all [batch, tokens, width].

        Args:
            x: [batch, tokens, width].
            padding_mask: [batch, tokens], True at padding; or None.
        """
        padding = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
            padding = torch.zeros_like(padding_mask, dtype=x.dtype).masked_fill(padding_mask, -math.inf)[:, None, None]
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.dropout(self.layer_norm(x))
        first = cast(Layer, self.layers[0])
        position_bias = first.self_attn.position_bias(x.shape[1]) if self.relative_positions else None
        states = [x]
        for layer in self.layers:
            if self.gradient_decay != 1.0:
                x = ScaleGradient.apply(x, self.gradient_decay)
            x = layer(x, padding, position_bias)
            states.append(x)
        return states
