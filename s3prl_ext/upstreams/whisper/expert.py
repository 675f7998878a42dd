"""Run Whisper's encoder as an s3prl upstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from s3prl_ext.upstreams.whisper.encoder import load_encoder
from s3prl_ext.upstreams.whisper.frontend import HOP, LogMel
from s3prl_ext.upstreams.windows import join, number_of_states

DOWNSAMPLE_RATE = 2 * HOP  # samples per state = 20 ms: the second convolution has stride 2


class UpstreamExpert(nn.Module):
    """Whisper's encoder with the interface of s3prl's upstreams: 20 ms per state, as many states as the clip is long.

    A clip above 30 s is read in windows of 30 s. The decoder is not part of it. SpecAugment and layerdrop are off.

    Args:
        folder: transformers folder of a Whisper of any size.
        padded: pad every window to 30 s, as in the model's training, and drop the states of the padding. Otherwise a
            clip is read at its own length, which costs 50 states a second in place of 1500 in all.

    Attributes:
        positions: states in a window.

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: it is incomplete or unreadable.
    """

    def __init__(self, folder: Path, padded: bool = False) -> None:
        super().__init__()
        self.model = load_encoder(folder)
        self.padded = padded
        self.positions: int = self.model.config.max_source_positions
        self.frontend = LogMel(self.model.config.num_mel_bins)

    @property
    def feature_extractor(self) -> nn.ModuleList:
        """The convolutions, which no tuning method trains (AD-TUNING, section 4.1)."""
        encoder = cast(Any, self.model.encoder)
        return nn.ModuleList([encoder.conv1, encoder.conv2])

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per state."""
        return DOWNSAMPLE_RATE

    def feature_options(self) -> dict[str, str | int]:
        """Return the options of ``-g`` that decide the features."""
        return {"window": 30 if self.padded else "clip"}

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch.

        Args:
            wavs: 16 kHz waveforms, each of shape [samples].

        Returns:
            ``hidden_states``: the input of the first block and the output of each, the last one after the final norm,
            [batch, states, width], zero behind a clip; ``last_hidden_state``: the last of them.
        """
        parts, counts = self._windows(wavs)
        owners = [index for index, wav in enumerate(wavs) for _ in wav.split(self.positions * DOWNSAMPLE_RATE)]
        states = self._encode(parts, [self.positions] * len(parts) if self.padded else counts)
        clips = [join(state, counts, owners) for state in states]
        return {"hidden_states": tuple(clips), "last_hidden_state": clips[-1]}

    def token_mask(self, wavs: Sequence[Tensor]) -> Tensor:
        """Return which states belong to the clips, [windows, states]; the others are padding."""
        counts = torch.tensor(self._windows(wavs)[1], device=wavs[0].device)
        length = self.positions if self.padded else int(counts.max())
        return torch.arange(length, device=counts.device) < counts[:, None]

    def _windows(self, wavs: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Return the windows of all clips, and the states of each."""
        parts = [window for wav in wavs for window in wav.split(self.positions * DOWNSAMPLE_RATE)]
        return parts, [number_of_states(len(wav), DOWNSAMPLE_RATE) for wav in parts]

    def _encode(self, windows: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Return all states of windows of at most 30 s, each [windows, max(counts), width]."""
        encoder = cast(Any, self.model.encoder)
        mel = self.frontend(windows, [2 * count for count in counts], self.positions * DOWNSAMPLE_RATE)
        mask = torch.arange(max(counts), device=mel.device) < torch.tensor(counts, device=mel.device)[:, None]
        return encoder(encoder.embed(mel, counts), mask)
