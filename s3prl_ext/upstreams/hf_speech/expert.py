"""Run a transformers speech model as an s3prl upstream, with ``last_hidden_state`` in addition to ``hidden_states``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.model_settings import SAMPLE_RATE, model_config
from s3prl_ext.transformers_models import MODEL_TYPES, SPEECH_UPSTREAMS, load_extractor, load_model, use_as_upstream


def check_type(folder: Path) -> None:
    """Raise UsageError where a transformers folder is not of a family that can be an upstream."""
    kind = model_config(folder).get("model_type")
    if kind not in MODEL_TYPES:
        other = f"; -u {SPEECH_UPSTREAMS[kind]} takes it" if kind in SPEECH_UPSTREAMS else ""
        raise UsageError(
            f"target {folder} holds a model of type {kind!r}, but must be one of {', '.join(MODEL_TYPES)}{other}."
        )


class TransformersSpeechModel(torch.nn.Module):
    """A HuBERT or a relative of it with the interface of s3prl's ``hf_*_custom`` upstreams.

    Parameter names, preprocessing and hidden states are those of s3prl's ``hf_hubert_custom``. Layerdrop and
    SpecAugment are off: the featurizer needs every layer's output, also while the upstream is trained.

    Args:
        folder: transformers folder of one of :data:`MODEL_TYPES` with ``config.json``, weights and
            ``preprocessor_config.json`` or ``processor_config.json``.

    Attributes:
        extractor_class: transformers' class for the preprocessing.
        ties_last: whether the last hidden state is the model's own output, after its final norm.

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: a file is missing or unreadable, or the preprocessing does not fit the model.
    """

    extractor_class = "Wav2Vec2FeatureExtractor"
    ties_last = True

    def __init__(self, folder: Path):
        super().__init__()
        from transformers import AutoModel

        check_type(folder)
        self.extracter: Any = load_extractor(folder, self.extractor_class)
        try:
            self.model: Any = load_model(AutoModel, folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:300]}.") from error
        use_as_upstream(self.model, self.ties_last)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per frame: 320 (20 ms) in all released models of these families."""
        return math.prod(self.model.config.conv_stride)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch.

        Args:
            wavs: 16 kHz waveforms, each of shape [samples].

        Returns:
            ``hidden_states``: the input of the first block and the output of each, [batch, frames, width];
            ``last_hidden_state``: the model's own, after its final norm.
        """
        output = self.model(**self.prepare(wavs), output_hidden_states=True)
        return {"hidden_states": output.hidden_states, "last_hidden_state": output.last_hidden_state}

    def prepare(self, wavs: Sequence[Tensor]) -> Any:
        """Return the model's input for a batch.

        The waveforms, normalised as the folder says, and the mask of padding.
        """
        inputs = self.extracter(
            [as_array(wav) for wav in wavs],
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
            sampling_rate=SAMPLE_RATE,
        )
        return inputs.to(wavs[0].device)


def as_array(wav: Tensor, least: int = 0) -> np.ndarray:
    """Return a waveform for transformers' preprocessing; a shorter one than `least` samples is followed by silence."""
    return F.pad(wav.detach().float().cpu(), (0, max(0, least - len(wav)))).numpy()
