"""Log-mel spectrograms as Whisper reads them, on the device of the audio and at the length of the clip.

Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
FFT = 400  # samples = 25 ms
HOP = 160  # samples = 10 ms
FLOOR = 1e-10  # least power of a mel band
RANGE = 8.0  # powers of ten below the loudest band of a clip that are kept


class LogMel(nn.Module):
    """Map waveforms to log-mel spectrograms; it has no weights.

    Args:
        bands: mel bands: 80, or 128 for large-v3.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(1 + FFT // 2, bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, "slaney", "slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float().T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor], frames: Sequence[int], longest: int) -> Tensor:
        """Return the spectrograms of a batch, float32 [batch, bands, max(frames)], zero after the frames of a clip.

        The first frames of a clip do not depend on how many are asked for: audio that ends is followed by silence.

        Args:
            wavs: 16 kHz waveforms, each of shape [samples], of at most `longest` samples.
            frames: frames of 10 ms wanted for each clip.
            longest: samples of the window that the model was trained on.
        """
        with torch.autocast(wavs[0].device.type, enabled=False):
            clips = [self._clip(wav.float(), count, longest) for wav, count in zip(wavs, frames, strict=True)]
        most = max(frames)
        return torch.stack([F.pad(clip, (0, most - clip.shape[-1])) for clip in clips])

    def _clip(self, wav: Tensor, frames: int, longest: int) -> Tensor:
        length = min(longest, frames * HOP + FFT)  # a frame reaches FFT / 2 samples to each side of its middle
        wav = F.pad(wav[:length], (0, max(0, length - len(wav))))
        spectrum = torch.stft(wav, FFT, HOP, window=self.window, return_complex=True)[:, :frames]
        power = (self.filters @ (spectrum.abs() ** 2).contiguous()).clamp(min=FLOOR).log10()
        return (torch.maximum(power, power.max() - RANGE) + 4.0) / 4.0
