"""Which of the tokens that a speech model computes with belong to a clip; the others are padding.

A model may pad a clip that is alone too: an AST and a Whisper with ``window=30`` to their whole window, s3prl's models
to an even number of frames, w2v-BERT to whole pairs of mel frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3prl_ext.upstreams.beats.expert import BANDS, steps_of
from s3prl_ext.upstreams.beats.expert import UpstreamExpert as BeatsExpert


def frames_of(upstream: nn.Module, samples: int) -> int | None:
    """Return the number of block outputs for a clip, from the strides of the convolutions; None if unknown."""
    if isinstance(upstream, BeatsExpert):
        return steps_of(samples) * BANDS
    extractor = next((m for n, m in upstream.named_modules() if n.split(".")[-1] == "feature_extractor"), None)
    convolutions = [m for m in extractor.modules() if isinstance(m, nn.Conv1d)] if extractor is not None else []
    for convolution in convolutions:
        samples = (samples - convolution.kernel_size[0]) // convolution.stride[0] + 1
    return samples if convolutions else None


def valid_rows(upstream: nn.Module, wav: Tensor) -> dict[int, Tensor]:
    """Return number of tokens -> which of them are not padding, where an upstream pads a single clip to that number.

    Products of another number of tokens have no padding.

    Args:
        upstream: one with a method ``token_mask`` says it itself, [windows, tokens] for a list of clips.
        wav: the clip, [samples] at 16 kHz.
    """
    token_mask = getattr(upstream, "token_mask", None)
    if token_mask is not None:
        mask = token_mask([wav]).flatten()
        return {len(mask): mask}
    frames = frames_of(upstream, len(wav))
    return {} if frames is None else {frames + 1: torch.arange(frames + 1, device=wav.device) < frames}
