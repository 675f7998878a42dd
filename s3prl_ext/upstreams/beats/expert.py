"""BEATs with the interface of an s3prl upstream."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.beats.config import PATCH, BeatsOptions
from s3prl_ext.upstreams.beats.frontend import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE, fbank, frame_count
from s3prl_ext.upstreams.beats.model import BANDS, load_checkpoint
from s3prl_ext.upstreams.kept_frames import kept_frames

STEP = PATCH * FRAME_SHIFT  # samples of a time step: 2560 = 160 ms
OVERHANG = FRAME_LENGTH - FRAME_SHIFT  # samples by which the last frame reaches over its shift


class UpstreamExpert(nn.Module):
    """A BEATs checkpoint as an s3prl upstream.

    As in the published implementation a clip is cut to whole patches of 16 frames: what is left at its end is not seen.
    (A clip without a whole patch, below 175 ms, is padded to one.) s3prl's featurizer asks for round(n / 2560) vectors
    of a clip of n samples: none below 80 ms, or one more than it has, where the last is repeated. Each clip is padded
    and masked by itself, so in evaluation mode its features do not depend on what else is in the batch.

    Args:
        ckpt: checkpoint in the released format.
        options: see :class:`BeatsOptions`.

    Raises:
        DataError: as :func:`s3prl_ext.upstreams.beats.model.load_checkpoint`.
    """

    def __init__(self, ckpt: str | Path, options: BeatsOptions | None = None):
        super().__init__()
        self.options = options or BeatsOptions()
        self.model, self.labels = load_checkpoint(ckpt)
        if self.options.gradient_decay == "none":
            self.model.encoder.gradient_decay = 1.0

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per feature vector."""
        return STEP if self.options.tokens == "pooled" else STEP // BANDS

    def feature_options(self) -> dict[str, str]:
        """Return the options of ``-g`` that decide the features."""
        return {"tokens": self.options.tokens}

    def forward(self, wavs: list[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch.

        Args:
            wavs: 16 kHz waveforms in [-1, 1], each of shape [samples].

        Returns:
            ``hidden_states``: the input of the first layer and the output of each, [batch, steps, width];
            ``last_hidden_state``: the last of them.

        Raises:
            DataError: a clip has several channels or is shorter than 25 ms.
        """
        states, steps, _ = self._encode(wavs)
        if self.options.tokens == "pooled":
            states = [state.unflatten(1, (-1, BANDS)).mean(2) for state in states]
        rate = self.get_downsample_rates()
        features = kept_frames(states, steps * (STEP // rate), wavs, rate)
        return {"hidden_states": features, "last_hidden_state": features[-1]}

    def class_probabilities(self, wavs: list[Tensor]) -> Tensor:
        """Return what a fine-tuned model's own classifier says, [batch, classes]; names are in ``labels``.

        Raises:
            DataError: as :meth:`forward`, or the checkpoint is only pre-trained.
        """
        states, _, padding_mask = self._encode(wavs)
        return self.model.class_probabilities(states[-1], padding_mask)

    def _encode(self, wavs: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return all states [batch, tokens, width], the time steps of each clip, and the padding mask."""
        _check(wavs)
        counts = [steps_of(len(wav)) for wav in wavs]
        samples = max(counts) * STEP + OVERHANG
        batch = torch.stack([F.pad(wav[:samples], (0, max(0, samples - len(wav)))) for wav in wavs])
        steps = torch.tensor(counts, device=batch.device)
        padding_mask = torch.arange(max(counts) * BANDS, device=batch.device) >= (steps * BANDS).unsqueeze(1)
        return self.model.encode(fbank(batch), padding_mask), steps, padding_mask


def steps_of(samples: int) -> int:
    """Return the time steps of a clip: its whole patches, at least one."""
    return max(1, frame_count(samples) // PATCH)


def _check(wavs: list[Tensor]) -> None:
    for index, wav in enumerate(wavs):
        if wav.dim() != 1:
            raise DataError(f"clip {index} of the batch has shape {tuple(wav.shape)}: convert it to 16 kHz mono.")
        if len(wav) < FRAME_LENGTH:
            raise DataError(
                f"clip {index} of the batch has {len(wav)} samples ({len(wav) / SAMPLE_RATE:.3f} s), less than one "
                "frame of BEATs (25 ms); remove it from the corpus or pad it."
            )
