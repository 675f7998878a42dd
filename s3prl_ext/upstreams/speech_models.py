"""Which of our upstreams runs a speech model in a transformers folder, by the ``model_type`` in its ``config.json``."""

from __future__ import annotations

from pathlib import Path

import torch

from s3prl_ext.model_settings import model_config
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.merged_attention.model import TransformersSpeechModel
from s3prl_ext.upstreams.whisper.encoder import MODEL_TYPE as WHISPER
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert as WhisperUpstream


def is_speech_model(folder: Path) -> bool:
    """Return whether :func:`speech_model` runs the model in a folder."""
    return model_config(folder).get("model_type") in SPEECH_UPSTREAMS


def is_whisper(folder: Path) -> bool:
    """Return whether a transformers folder holds a Whisper."""
    return model_config(folder).get("model_type") == WHISPER


def upstream_name(folder: Path) -> str:
    """Return the name on s3prl's hub of the upstream that :func:`speech_model` builds."""
    return "whisper_custom" if is_whisper(folder) else "hf_speech_custom"


def speech_model(folder: Path) -> torch.nn.Module:
    """Return the upstream of a transformers folder; a Whisper's reads clips at their own length.

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: a file is missing or unreadable.
    """
    if is_whisper(folder):
        return WhisperUpstream(folder)
    return TransformersSpeechModel(folder)
