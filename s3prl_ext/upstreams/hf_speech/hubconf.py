"""Entry function for s3prl's hub: ``-u hf_speech_custom -k FOLDER``."""

from __future__ import annotations

from typing import Any

import torch

from s3prl_ext.errors import UsageError


def hf_speech_custom(ckpt: str | None = None, **kwargs: Any) -> torch.nn.Module:
    """Build an unmerged speech model from its transformers folder or hub id.

    It takes every family of :data:`s3prl_ext.transformers_models.MODEL_TYPES`. Other than s3prl's ``hf_hubert_custom``
    it returns ``last_hidden_state``, after the model's final norm, which a CTC head of the same folder reads.

    Args:
        ckpt: ``-k``: the folder or hub id.

    Raises:
        UsageError: no `ckpt`, or another kind of model.
        DataError: the model is missing or unreadable.
    """
    from s3prl_ext.attention.files import find_model
    from s3prl_ext.upstreams.hf_speech.expert import check_type
    from s3prl_ext.upstreams.speech_models import speech_model

    if not ckpt:
        raise UsageError("-u hf_speech_custom needs a transformers folder or hub id: -k FOLDER.")
    folder = find_model(str(ckpt))
    check_type(folder)
    return speech_model(folder)
