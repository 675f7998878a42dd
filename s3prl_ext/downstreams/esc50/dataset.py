"""Clips of ESC-50 as s3prl's Runner takes them: waveforms at 16 kHz, classes, names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.esc50 import Esc50Clip


class ClipDataset(Dataset):
    """Clips of one split; audio is read and resampled when a clip is asked for."""

    def __init__(self, clips: Sequence[Esc50Clip]):
        self.clips = list(clips)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        clip = self.clips[index]
        return read_audio(clip.path), clip.target, clip.name

    @staticmethod
    def collate_fn(samples: Sequence[tuple[np.ndarray, int, str]]) -> tuple[list[np.ndarray], list[int], list[str]]:
        """Return waveforms, targets and names of a batch as lists."""
        wavs, targets, names = map(list, zip(*samples))
        return wavs, targets, names
