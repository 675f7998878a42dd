"""The input of BEATs: normalised Kaldi filter banks.

Source: Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2022), section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE = 16000
MEL_BANDS = 128
FRAME_LENGTH = 400  # samples = 25 ms
FRAME_SHIFT = 160  # samples = 10 ms

# Statistics of AudioSet with which all released models were trained.
FBANK_MEAN = 15.41663
FBANK_STD = 6.55582


def frame_count(samples: int) -> int:
    """Return how many whole frames fit into a number of samples."""
    return max(0, (samples - FRAME_LENGTH) // FRAME_SHIFT + 1)


def fbank(wavs: Tensor) -> Tensor:
    """Compute the filter banks of equally long clips in one call; a clip's result does not depend on the others.

    Computed in float32, also under autocast.

    Args:
        wavs: 16 kHz audio in [-1, 1], [batch, samples], at least one frame long.

    Returns:
        [batch, frames, 128], ``(fbank - mean) / (2 * std)``.
    """
    import torchaudio.compliance.kaldi  # here, so that the model itself needs torch alone

    batch, samples = wavs.shape
    frames = frame_count(samples)
    # End to end, with each clip padded to whole frame shifts: frames that reach into the next clip are left out below.
    joined = F.pad(wavs.float(), (0, -samples % FRAME_SHIFT)).flatten()
    joined = F.pad(joined, (0, FRAME_LENGTH - FRAME_SHIFT))
    with torch.autocast(wavs.device.type, enabled=False):
        features = torchaudio.compliance.kaldi.fbank(
            joined.unsqueeze(0) * 2**15,
            num_mel_bins=MEL_BANDS,
            sample_frequency=SAMPLE_RATE,
            frame_length=1000 * FRAME_LENGTH / SAMPLE_RATE,
            frame_shift=1000 * FRAME_SHIFT / SAMPLE_RATE,
        )
    features = features.view(batch, -1, MEL_BANDS)[:, :frames]
    return (features - FBANK_MEAN) / (2 * FBANK_STD)
