"""From features to transcripts: what a recognition task asks of its head, whichever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from s3prl_ext.configs import Record
from s3prl_ext.downstreams.recognition.head import CtcHead, FrameCounter
from s3prl_ext.evaluation.decoding import Decoded, Vocabulary, greedy


class Recognizer(Protocol):
    """A head with its vocabulary.

    Attributes:
        longest: samples of the longest clip that is decoded as a whole; None for any.
    """

    longest: int | None

    def pad(self, wav: np.ndarray) -> np.ndarray:
        """Return the audio of a clip [samples] as the upstream must read it for this head."""
        ...

    def recognize(
        self, features: Sequence[Tensor], texts: Sequence[str], samples: Sequence[int]
    ) -> tuple[Tensor, list[Decoded]]:
        """Return loss and transcripts of a batch.

        Args:
            features: one matrix [frames, width] per clip.
            texts: references.
            samples: length of each clip at 16 kHz, as :meth:`pad` left it.
        """
        ...

    def decode(self, features: Sequence[Tensor], samples: Sequence[int] | None) -> list[Decoded]:
        """Return the transcripts of a batch; with `samples` None no clip is padded."""
        ...

    def unknown(self, text: str) -> str:
        """Return the characters of `text` that the head cannot write."""
        ...

    def decisive(self) -> Record:
        """Return what decides transcripts besides the weights, as plain values."""
        ...


@dataclass(frozen=True)
class CtcRecognizer:
    """Greedy CTC: the best token of each frame.

    Attributes:
        head: scores of tokens.
        vocabulary: its tokens.
        counter: the frames of a clip in a padded batch.
    """

    head: CtcHead
    vocabulary: Vocabulary
    counter: FrameCounter
    longest: ClassVar[int | None] = None

    def decisive(self) -> Record:
        """Return tokens and frame arithmetic."""
        vocabulary = self.vocabulary
        names = ("tokens", "blank", "delimiter", "lower_case")
        tokens: Record = {name: getattr(vocabulary, name) for name in names} | {"special": sorted(vocabulary.special)}
        return tokens | {"kernels": self.counter.kernels, "strides": self.counter.strides}

    def pad(self, wav: np.ndarray) -> np.ndarray:
        """Return the clip as it is."""
        return wav

    def recognize(
        self, features: Sequence[Tensor], texts: Sequence[str], samples: Sequence[int]
    ) -> tuple[Tensor, list[Decoded]]:
        """Return CTC loss and greedy transcripts of a batch."""
        frames = self._frames(features, samples)
        logits = self.head(features)
        labels = [torch.tensor(self.vocabulary.encode(text)[0], dtype=torch.long) for text in texts]
        loss = nn.functional.ctc_loss(
            torch.log_softmax(logits, dim=-1).transpose(0, 1),
            torch.cat(labels).to(logits.device),
            torch.tensor(frames),
            torch.tensor([len(label) for label in labels]),
            blank=self.vocabulary.blank,
            zero_infinity=True,
        )
        return loss, greedy(logits.detach(), frames, self.vocabulary)

    def decode(self, features: Sequence[Tensor], samples: Sequence[int] | None) -> list[Decoded]:
        """Return the greedy transcripts of a batch."""
        frames = [len(f) for f in features] if samples is None else self._frames(features, samples)
        return greedy(self.head(features).detach(), frames, self.vocabulary)

    def unknown(self, text: str) -> str:
        """Return the characters of `text` without a token."""
        return self.vocabulary.encode(text)[1]

    def _frames(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[int]:
        return [self.counter.frames(length, len(f)) for f, length in zip(features, samples, strict=True)]
