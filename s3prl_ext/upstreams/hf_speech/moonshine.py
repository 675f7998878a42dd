"""Moonshine's encoder: convolutions on the waveform, rotary positions, one state in 24 ms.

Source: Jeffries et al. 2024, Moonshine: Speech Recognition for Live Transcription and Voice Commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel, as_array
from s3prl_ext.upstreams.kept_frames import kept_frames


class MoonshineModel(TransformersSpeechModel):
    """The encoder of a Moonshine; the decoder is not part of it.

    The convolutions read each clip by itself, because their group norm would see the padding, so that a clip gives the
    same states alone and in a batch.

    Args:
        folder: as for :class:`TransformersSpeechModel`.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        del self.model.decoder

    @property
    def feature_extractor(self) -> nn.ModuleList:
        """The convolutions, which no tuning method trains (AD-TUNING, section 4.1)."""
        encoder = self.model.encoder
        return nn.ModuleList([encoder.conv1, encoder.groupnorm, encoder.conv2, encoder.conv3])

    @property
    def _convolutions(self) -> tuple[nn.Conv1d, ...]:
        encoder = self.model.encoder
        return encoder.conv1, encoder.conv2, encoder.conv3

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per state: 384."""
        first, second, third = (convolution.stride[0] for convolution in self._convolutions)
        return first * second * third

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch, see :meth:`TransformersSpeechModel.forward`.

        Behind a clip its last state is repeated.
        """
        clips = [self._embed(wav) for wav in wavs]
        counts = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
        inputs = pad_sequence(clips, batch_first=True)
        mask = torch.arange(inputs.shape[1], device=inputs.device) < counts[:, None]
        states = kept_frames(self._states(inputs, mask), counts, wavs, self.get_downsample_rates())
        return {"hidden_states": states, "last_hidden_state": states[-1]}

    def _embed(self, wav: Tensor) -> Tensor:
        """Return the convolved frames of a clip, [frames, width]."""
        least = 1
        for convolution in reversed(self._convolutions):
            least = (least - 1) * convolution.stride[0] + convolution.kernel_size[0]
        inputs = self.extracter(as_array(wav, least), return_tensors="pt", sampling_rate=SAMPLE_RATE)
        encoder = self.model.encoder
        samples = inputs["input_values"].to(device=wav.device, dtype=encoder.conv1.weight.dtype)
        first = encoder.groupnorm(torch.tanh(encoder.conv1(samples[:, None])))
        return F.gelu(encoder.conv3(F.gelu(encoder.conv2(first))))[0].T

    def _states(self, inputs: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the input of the first block and the output of each, the last one after the final norm."""
        encoder, hidden, states = self.model.encoder, inputs, [inputs]
        bias = None
        if not bool(mask.all()):
            bias = torch.zeros(mask.shape, dtype=inputs.dtype, device=mask.device)
            bias = bias.masked_fill_(~mask, torch.finfo(inputs.dtype).min)[:, None, None]
        ids = torch.arange(inputs.shape[1], device=inputs.device)[None]
        places = encoder.rotary_emb(inputs, position_ids=ids)
        for layer in encoder.layers:
            output: Any = layer(hidden, attention_mask=bias, position_ids=ids, position_embeddings=places)
            hidden = output[0] if isinstance(output, tuple) else output
            states.append(hidden)
        states[-1] = encoder.layer_norm(hidden)
        return states
