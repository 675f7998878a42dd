"""The configuration inside a BEATs checkpoint, and the options of the upstream."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import DataError
from s3prl_ext.overrides import apply_overrides, split_options
from s3prl_ext.settings import choice, load

logger = logging.getLogger(__name__)

PATCH = 16  # frames and mel bands of a patch, in all released models
ACTIVATIONS = ("gelu", "relu")
REQUIRED = ("input_patch_size", "embed_dim", "encoder_layers", "encoder_embed_dim")  # WavLM's files lack the first


@dataclass(frozen=True)
class BeatsConfig:
    """Sizes and switches of a BEATs model, under the names in its checkpoint.

    A checkpoint that leaves a value out means the default here, which is that of the published implementation.
    """

    input_patch_size: int = PATCH
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0  # not applied, see encoder.py
    dropout_input: float = 0.0
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False
    layer_wise_gradient_decay_ratio: float = 1.0
    finetuned_model: bool = False
    predictor_class: int = 527
    predictor_dropout: float = 0.1


def parse_config(content: Any, where: str) -> BeatsConfig:
    """Check the ``cfg`` of a checkpoint and return it; keys without a meaning here are logged and left out.

    Raises:
        DataError: it belongs to another family of models, or to a variant that was never released.
    """
    if not isinstance(content, Mapping) or (missing := [key for key in REQUIRED if key not in content]):
        lack = f"lacks {', '.join(missing)}" if isinstance(content, Mapping) else "is not a mapping"
        raise DataError(
            f"{where} is not a BEATs checkpoint: its cfg {lack}; use the upstream that the file belongs to."
        )
    known = {field.name for field in dataclasses.fields(BeatsConfig)}
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        logger.warning("%s: the entries %s of its cfg are not used.", where, ", ".join(unknown))
    config = BeatsConfig(**{key: value for key, value in content.items() if key in known})
    unsupported = [
        f"{name} {getattr(config, name)!r}"
        for name, values in (
            ("input_patch_size", (PATCH,)),
            ("layer_norm_first", (False,)),
            ("activation_fn", ACTIVATIONS),
        )
        if getattr(config, name) not in values
    ]
    if config.encoder_embed_dim % config.encoder_attention_heads:
        unsupported.append(f"{config.encoder_attention_heads} heads at a width of {config.encoder_embed_dim}")
    if unsupported:
        raise DataError(f"{where} is not a BEATs model of a released kind: its cfg has {', '.join(unsupported)}.")
    return config


@dataclass(frozen=True)
class BeatsOptions:
    """What ``-g`` may set.

    Attributes:
        tokens: ``pooled``: one vector per time step, the mean over its 8 frequency patches, at 2560 samples a step;
            ``all``: every token, time-major, at 320 samples a token.
        gradient_decay: ``none``: true gradients; ``checkpoint``: scale the gradient at each layer by the checkpoint's
            ``layer_wise_gradient_decay_ratio``, as the published implementation does.
    """

    tokens: Annotated[str, choice("pooled", "all")] = "pooled"
    gradient_decay: Annotated[str, choice("none", "checkpoint")] = "none"


def read_options(model_config: str | None) -> BeatsOptions:
    """Read the text given to ``-g``: a YAML file, overrides as in ``tokens=all``, or both with ``,,`` between them.

    Raises:
        UsageError: the file is missing, or a key or value is unknown; all problems are listed.
    """
    file, overrides = split_options(model_config)
    where = file or "-g"
    content = apply_overrides(load_yaml(file) if file else {}, overrides, where)
    return load(BeatsOptions, content, where)
