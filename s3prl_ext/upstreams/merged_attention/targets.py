"""The target of a merge: what it is called, the upstream that it is, and the decoder of a Whisper."""

from __future__ import annotations

from pathlib import Path

import torch

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model, read_attention
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.config import DECODER, TargetConfig
from s3prl_ext.model_settings import model_config
from s3prl_ext.upstreams.speech_models import speech_model
from s3prl_ext.upstreams.whisper.encoder import MODEL_TYPE as WHISPER

# Upstreams for transformers folders. As targets all give way to ours: s3prl's return no last_hidden_state.
TRANSFORMERS_UPSTREAMS = (
    "hf_speech_custom",
    "hf_hubert_custom",
    "hf_wav2vec2_custom",
    "whisper_custom",
    "whisper_local",
)


def build_target(target: TargetConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the unmerged target as an s3prl upstream.

    Raises:
        UsageError: s3prl has no upstream of that name, or it needs a checkpoint.
        DataError: the model is missing or unreadable.
    """
    if target.upstream is None:
        return speech_model(find_model(str(target.model)))
    if target.upstream in TRANSFORMERS_UPSTREAMS:
        if not target.ckpt:
            raise UsageError(f"target.upstream {target.upstream} needs a folder or hub id: set target.ckpt or -k.")
        return speech_model(find_model(target.ckpt))
    ckpt = str(find_model(target.ckpt)) if hub.is_file_reference(target.ckpt) else target.ckpt
    return _build_s3prl_upstream(target.upstream, ckpt, refresh)


def _build_s3prl_upstream(name: str, ckpt: str | None, refresh: bool) -> torch.nn.Module:
    import s3prl.hub

    if name not in s3prl.hub.options():
        raise unknown_name("target.upstream", name, s3prl.hub.options())
    if name.endswith("_local") and not (ckpt and Path(ckpt).is_file()):
        raise UsageError(f"target.upstream {name} needs a checkpoint file, but target.ckpt is {ckpt}.")
    return getattr(s3prl.hub, name)(ckpt=ckpt, model_config=None, refresh=refresh)


def model_of(target: TargetConfig) -> str | None:
    """Return the transformers folder or hub id of a target, None of one that s3prl loads from a checkpoint."""
    return target.model or (target.ckpt if target.upstream in TRANSFORMERS_UPSTREAMS else None)


def target_name(target: TargetConfig) -> str:
    """Return what to call the target in messages and records."""
    name = target.model or " ".join(filter(None, (target.upstream, target.ckpt)))
    return with_prefix(name, target.prefix)


def with_prefix(name: str, prefix: str | None) -> str:
    """Return what to call the part of a model after a prefix, such as ``whisper_base (decoder)``."""
    return name if prefix is None else f"{name} ({prefix})"


def decoder_folder(target: TargetConfig) -> Path:
    """Return the folder of a target with ``prefix: decoder``.

    Raises:
        UsageError: it is not a Whisper.
        DataError: it is missing.
    """
    model = model_of(target)
    folder = find_model(model) if model else None
    kind = target.upstream if folder is None else model_config(folder).get("model_type")
    if folder is None or kind != WHISPER:
        raise UsageError(
            f"target.prefix: decoder belongs to a Whisper, but the target {model or target.upstream} is of type "
            f"{kind!r}: leave target.prefix out."
        )
    return folder


def read_decoder(target: TargetConfig) -> AttentionWeights:
    """Return the attention parameters of a target's decoder in float32, as a task holds them."""
    weights = read_attention(decoder_folder(target), DECODER)
    return {slot: tensor.float() for slot, tensor in weights.items()}
