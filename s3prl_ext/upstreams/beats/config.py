"""The configuration inside a BEATs checkpoint, and the options of the upstream."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_ext.configs import check_keys, load_yaml
from s3prl_ext.errors import DataError, UsageError, nearest
from s3prl_ext.upstreams.merged_attention.config import apply_overrides, split_options

logger = logging.getLogger(__name__)

PATCH = 16  # frames and mel bands of a patch, in all released models
TOKENS = ("pooled", "all")
GRADIENT_DECAY = ("none", "checkpoint")


@dataclass(frozen=True)
class BeatsConfig:
    """Sizes and switches of a BEATs model under the names of the released checkpoints; defaults are those of iter3."""

    input_patch_size: int = PATCH
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    dropout_input: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = True
    num_buckets: int = 320
    max_distance: int = 800
    gru_rel_pos: bool = True
    layer_wise_gradient_decay_ratio: float = 1.0
    finetuned_model: bool = False
    predictor_class: int = 527
    predictor_dropout: float = 0.0
