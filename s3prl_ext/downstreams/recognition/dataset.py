"""Waveforms and transcripts of one split, in the form that s3prl's Runner passes on to an expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.transcribed import Utterance

Item = tuple[np.ndarray, str, str]  # samples at 16 kHz, text, id


class RecognitionDataset(Dataset):
    """The utterances of a split.

    Args:
        utterances: what the split holds.
        rule: text rule, applied to every transcript.
        pad: makes the audio of a clip as long as the head needs it.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        rule: Callable[[str], str],
        pad: Callable[[np.ndarray], np.ndarray] = lambda wav: wav,
    ) -> None:
        self.utterances = list(utterances)
        self._rule = rule
        self._pad = pad

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Item:
        utterance = self.utterances[index]
        return self._pad(read_audio(utterance.audio)), self._rule(utterance.text), utterance.id


def collate(items: Sequence[Item]) -> tuple[list[np.ndarray], list[str], list[int], list[str]]:
    """Return waveforms, transcripts, lengths in samples, and ids of a batch."""
    wavs, texts, ids = (list(column) for column in zip(*items, strict=True))
    return wavs, texts, [len(wav) for wav in wavs], ids
