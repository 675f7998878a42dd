"""Clips longer than a model's window are read piece by piece, and their states are put one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def number_of_states(samples: int, rate: int) -> int:
    """Return the states of a window, by the rule with which s3prl's featurizer cuts the features of a batch.

    Args:
        rate: samples per state.
    """
    return max(1, round(samples / rate))


def join(state: Tensor, counts: Iterable[int], owners: Sequence[int]) -> Tensor:
    """Return [clips, states, width]: the windows of each clip one after the other, zeros after the clip.

    Args:
        state: [windows, states, width].
        counts: states of each window that are not padding.
        owners: the clip that each window belongs to, ascending.
    """
    clips: list[list[Tensor]] = [[] for _ in range(owners[-1] + 1)]
    for window, count, owner in zip(state, counts, owners, strict=True):
        clips[owner].append(window[:count])
    return pad_sequence([torch.cat(parts) for parts in clips], batch_first=True)
