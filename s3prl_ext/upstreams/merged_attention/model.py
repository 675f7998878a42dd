"""Run a transformers speech model as an s3prl upstream, with ``last_hidden_state`` in addition to ``hidden_states``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.model_settings import model_config
from s3prl_ext.transformers_models import MODEL_TYPES, SPEECH_UPSTREAMS, load_extractor, load_model, use_as_upstream

SAMPLE_RATE = 16000
DOWNSAMPLE_RATE = 320  # samples per frame = 20 ms, in all released models of these families


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

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: a file is missing or unreadable.
    """

    def __init__(self, folder: Path):
        super().__init__()
        from transformers import AutoModel

        check_type(folder)
        self.extracter = load_extractor(folder)
        try:
            self.model = load_model(AutoModel, folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:300]}.") from error
        use_as_upstream(self.model)

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per frame."""
        return DOWNSAMPLE_RATE

    def forward(self, wavs: list[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch.

        Args:
            wavs: 16 kHz waveforms, each of shape [samples].

        Returns:
            ``hidden_states``: the input of the first block and the output of each, [batch, frames, width];
            ``last_hidden_state``: the model's own, after its final norm.
        """
        inputs = self.extracter(
            [wav.detach().cpu().numpy() for wav in wavs],
            return_tensors="pt",
            padding=True,
            return_attention_mask=True,
            sampling_rate=SAMPLE_RATE,
        ).to(wavs[0].device)
        output = self.model(**inputs, output_hidden_states=True)
        return {"hidden_states": output.hidden_states, "last_hidden_state": output.last_hidden_state}
