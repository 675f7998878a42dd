"""Which of our upstreams runs a speech model in a transformers folder, by the ``model_type`` in its ``config.json``."""

from __future__ import annotations

from pathlib import Path

import torch

from s3prl_ext.model_settings import model_config
from s3prl_ext.upstreams.hf_speech.ast import AstModel
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel
from s3prl_ext.upstreams.hf_speech.moonshine import MoonshineModel
from s3prl_ext.upstreams.hf_speech.sew import SqueezedSpeechModel
from s3prl_ext.upstreams.hf_speech.w2v_bert import W2vBertModel
from s3prl_ext.upstreams.whisper.encoder import MODEL_TYPE as WHISPER
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert as WhisperUpstream

# "model_type" of config.json -> upstream, for the families that read audio in their own way
EXPERTS: dict[str, type[TransformersSpeechModel]] = {
    "audio-spectrogram-transformer": AstModel,
    "moonshine": MoonshineModel,
    "sew": SqueezedSpeechModel,
    "sew-d": SqueezedSpeechModel,
    "wav2vec2-bert": W2vBertModel,
}


def is_whisper(folder: Path) -> bool:
    """Return whether a transformers folder holds a Whisper."""
    return model_config(folder).get("model_type") == WHISPER


def speech_model(folder: Path) -> torch.nn.Module:
    """Return the upstream of a transformers folder; a Whisper's reads clips at their own length.

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: a file is missing or unreadable.
    """
    kind = str(model_config(folder).get("model_type"))
    return WhisperUpstream(folder) if kind == WHISPER else EXPERTS.get(kind, TransformersSpeechModel)(folder)
