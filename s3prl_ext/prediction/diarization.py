"""Speaker diarization: who spoke when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.corpora.overlaps import overlapping, speaker_order
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.diarization_scoring import smoothed
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import SpeakerTurns
from s3prl_ext.prediction.windows import Window

THRESHOLD, MEDIAN = 0.5, 11  # of SUPERB's grid: 0.3 to 0.7, medians 1 and 11


class SpeakerHead(nn.Module):
    """The model of s3prl's diarization, under the names that its checkpoints have."""

    def __init__(self, width: int, section: Mapping[str, Any], speakers: int) -> None:
        from s3prl.downstream.diarization.model import Model

        super().__init__()
        self.model = Model(input_dim=width, output_class_num=speakers, **section)
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the probability that each speaker talks, [frames, speakers], for features [frames, width]."""
        return torch.sigmoid(self.model(features[None])[0])


class TurnDecoder(Decoder):
    """Turns of the head's speakers.

    A recording longer than the task's chunk (``datarc.chunk_size``) is cut into windows that overlap by a quarter or
    more, as an evaluation cuts it. The head numbers the speakers anew in each; they are matched by what both windows
    say of the overlap.
    """

    RESULT = SpeakerTurns
    OPTIONS = ("window", "threshold", "median")

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        data = inputs.section["datarc"]
        self.frame = int(data.get("frame_shift") or inputs.rate)  # samples
        self.head = SpeakerHead(inputs.width, inputs.section["modelrc"], data["num_speakers"])
        chunk = int(data.get("chunk_size", 2000))
        self.chunk = self.longest // self.frame if inputs.options.window else chunk  # frames

    def windows(self, samples: np.ndarray) -> list[Window]:
        frames = len(samples) // self.frame
        if not frames:
            raise DataError(f"shorter than one frame ({self.frame / SAMPLE_RATE:.3f} s)")
        return [(start * self.frame, end * self.frame) for start, end in overlapping(frames, self.chunk)]

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[np.ndarray]:
        frames = [length // self.frame for length in samples]
        return [self.head(_fit(f, count)).cpu().numpy() for f, count in zip(features, frames, strict=True)]

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[np.ndarray]) -> SpeakerTurns:
        scores = pieces[0]
        for (start, _), piece in zip(windows[1:], pieces[1:], strict=True):
            scores = _continued(scores, piece, len(scores) - start // self.frame)
        notes = recording.notes
        if len(windows) > 1:
            notes += (f"cut into {len(windows)} overlapping windows, whose speakers are matched in the overlaps",)
        seconds = self.frame / SAMPLE_RATE
        return SpeakerTurns(recording.name, recording.seconds, notes, self._turns(scores, seconds), scores, seconds)

    def _turns(self, scores: np.ndarray, seconds: float) -> tuple[tuple[str, float, float], ...]:
        threshold = THRESHOLD if self.options.threshold is None else self.options.threshold
        talks = smoothed(scores > threshold, self.options.median or MEDIAN)
        turns = []
        for number, row in enumerate(talks.T, 1):
            (changes,) = np.nonzero(np.diff(np.pad(row, 1)))
            spans = zip(changes[::2], changes[1::2], strict=True)
            turns += [(f"speaker{number}", float(first * seconds), float(last * seconds)) for first, last in spans]
        return tuple(sorted(turns, key=lambda turn: (turn[1], turn[2], turn[0])))


def _fit(features: Tensor, frames: int) -> Tensor:
    """Return exactly `frames` rows, as s3prl matches features to labels: repeated, cut, or the last one repeated."""
    factor = round(frames / len(features))
    if factor > 1:
        features = features.repeat_interleave(factor, dim=0)
    missing = max(0, frames - len(features))
    return torch.cat([features[:frames], features[-1:].expand(missing, -1)])


def _continued(before: np.ndarray, piece: np.ndarray, overlap: int) -> np.ndarray:
    """Append a window's scores to those before, with its speakers in their order.

    Args:
        before: [frames, speakers].
        piece: [frames, speakers]; its first `overlap` frames are the last ones of `before`, which stay.
    """
    order = speaker_order(before[len(before) - overlap :], piece[:overlap])
    return np.concatenate([before, piece[overlap:, order]])
