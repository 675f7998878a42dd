"""The frames of each clip that s3prl's featurizer keeps, so that a clip has the same ones alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ext.upstreams.windows import number_of_states


def kept_frames(states: Sequence[Tensor], counts: Tensor, wavs: Sequence[Tensor], rate: int) -> tuple[Tensor, ...]:
    """Return as many frames as the featurizer keeps of the longest clip, which are round(samples / rate).

    A model may have fewer of a clip: its last one is repeated, where the featurizer would keep frames of padding in a
    batch with a longer clip and none alone.

    Args:
        states: [batch, frames, width] each.
        counts: frames of each clip that are not padding, at least one, [batch].
        wavs: the clips, each [samples].
        rate: samples per frame.
    """
    length = number_of_states(max(len(wav) for wav in wavs), rate)
    index = torch.arange(length, device=counts.device).minimum(counts[:, None] - 1)[..., None]
    return tuple(state.gather(1, index.expand(-1, -1, state.shape[-1])) for state in states)
