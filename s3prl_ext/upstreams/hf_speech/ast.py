"""The Audio Spectrogram Transformer, which reads a window of 10.24 s as patches of a log-mel spectrogram.

Source: Gong et al. 2021, AST: Audio Spectrogram Transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel, as_array
from s3prl_ext.upstreams.kept_frames import kept_frames
from s3prl_ext.upstreams.windows import join, number_of_states

FRAME, HOP = 400, 160  # samples: 25 and 10 ms
SPECIAL = 2  # tokens before the patches: class and distillation


class AstModel(TransformersSpeechModel):
    """An AST: a state is the mean over the patches of one time step, 100 ms in the released models.

    Every window is padded with silence to its full length, as in the model's training, and the states of the padding
    are dropped, so a clip gives the same states alone and in a batch. A clip above the window is read in pieces. Where
    s3prl's featurizer keeps a state more than the model has, of clips of about the window's length, the last is
    repeated.

    Args:
        folder: as for :class:`TransformersSpeechModel`.

    Attributes:
        steps: time steps in a window.

    Raises:
        DataError: also where the spectrogram has another size than the model's input.
    """

    extractor_class = "ASTFeatureExtractor"

    def __init__(self, folder: Path):
        super().__init__(folder)
        config = self.model.config
        for key in ("num_mel_bins", "max_length"):
            made, read = getattr(self.extracter, key), getattr(config, key)
            if made != read:
                raise DataError(
                    f"the preprocessor_config.json of {folder} says {key}: {made}, but its config.json {read}: take "
                    "both files from the same model."
                )
        self.steps = (config.max_length - config.patch_size) // config.time_stride + 1

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per state."""
        return HOP * int(self.model.config.time_stride)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch; behind a clip its last state is repeated.

        Args:
            wavs: 16 kHz waveforms, each of shape [samples].

        Returns:
            ``hidden_states``: the input of the first block and the output of each, the last one after the final norm,
            [batch, steps, width]; ``last_hidden_state``: the last of them.
        """
        arrays = [as_array(window, FRAME) for wav in wavs for window in self._pieces(wav)]
        inputs = self.extracter(arrays, return_tensors="pt", sampling_rate=SAMPLE_RATE).to(wavs[0].device)
        output = self.model(**inputs, output_hidden_states=True)
        parts, owners = self._counts(wavs)
        counts = torch.zeros(len(wavs), dtype=torch.long).index_add(0, torch.tensor(owners), torch.tensor(parts))
        over_time = [self.over_time(state, wavs) for state in output.hidden_states]
        states = kept_frames(over_time, counts.to(wavs[0].device), wavs, self.get_downsample_rates())
        return {"hidden_states": states, "last_hidden_state": states[-1]}

    def over_time(self, state: Tensor, wavs: Sequence[Tensor]) -> Tensor:
        """Return the means over the bands of each time step, [batch, steps, width], zero behind a clip.

        Args:
            state: tokens of all windows of the clips, [windows, tokens, width]; the patches come band by band.
            wavs: the clips.
        """
        counts, owners = self._counts(wavs)
        return join(self._by_band(state).mean(1), counts, owners)

    def patches(self, state: Tensor, wavs: Sequence[Tensor]) -> Tensor:
        """Return the patches of each clip band by band, those of the padding left out, [batch, patches, width].

        Args:
            state: as for :meth:`over_time`.
            wavs: the clips, of equal length.
        """
        counts, owners = self._counts(wavs)
        bands = self._by_band(state)
        return torch.cat([join(bands[:, band], counts, owners) for band in range(bands.shape[1])], dim=1)

    def token_mask(self, wavs: Sequence[Tensor]) -> Tensor:
        """Return which tokens are patches of the clips, and neither special tokens nor padding, [windows, tokens]."""
        counts = torch.tensor(self._counts(wavs)[0], device=wavs[0].device)
        config = self.model.config
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        steps = torch.arange(self.steps, device=counts.device) < counts[:, None]
        return torch.cat([torch.zeros_like(steps[:, :1]).expand(-1, SPECIAL), steps.repeat(1, bands)], dim=1)

    def _by_band(self, state: Tensor) -> Tensor:
        return state[:, SPECIAL:].unflatten(1, (-1, self.steps))

    def _counts(self, wavs: Sequence[Tensor]) -> tuple[list[int], list[int]]:
        """Return for each window of the clips the time steps that are not padding, and the number of its clip."""
        windows = [(owner, len(part)) for owner, wav in enumerate(wavs) for part in self._pieces(wav)]
        rate = self.get_downsample_rates()
        counts = [min(self.steps, number_of_states(samples, rate)) for _, samples in windows]
        return counts, [owner for owner, _ in windows]

    def _pieces(self, wav: Tensor) -> tuple[Tensor, ...]:
        """Return a clip as it is, or in pieces of as many samples as the states of a window stand for."""
        if len(wav) <= self.model.config.max_length * HOP:
            return (wav,)
        return wav.split(self.steps * self.get_downsample_rates())
