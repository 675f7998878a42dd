"""Enhancement and separation: the estimated speech as audio."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from s3prl_ext.compat import enhancement
from s3prl_ext.corpora.overlaps import overlapping
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import AudioResult
from s3prl_ext.prediction.windows import Window


class MaskHead(nn.Module):
    """The model of s3prl's enhancement and separation, under the names that its checkpoints have.

    Args:
        code: the task's module of s3prl.
        width: features of a frame.
        data: ``datarc`` of the task file.
        section: ``modelrc`` of the task file.
    """

    def __init__(self, code: Any, width: int, data: Mapping[str, Any], section: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = code.SepRNN(
            input_dim=width, num_bins=int(data["n_fft"] / 2 + 1), rnn=section["rnn"], num_spks=data["num_speakers"],
            num_layers=section["rnn_layers"], hidden_size=section["hidden_size"], dropout=section["dropout"],
            non_linear=section["non_linear"], bidirectional=section["bidirectional"],
        )  # fmt: skip
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the mask of each source, [sources, frames, bins], for features [frames, width]."""
        return torch.cat(self.model(pack_sequence([features])))


class SourceDecoder(Decoder):
    """Masks on the spectra of a recording, and the signals that those spectra are of.

    A long recording is cut into windows that overlap by a quarter or more and fade into each other there. A head of
    several sources numbers them anew in each window; they are matched by their signals in the overlap.
    """

    RESULT = AudioResult

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self._code = importlib.import_module(f"s3prl.downstream.{inputs.info['downstream']}.expert")
        data = inputs.section["datarc"]
        self._n_fft = int(data["n_fft"])
        self._form = {"hop_length": inputs.rate} | {key: data[key] for key in ("win_length", "window", "center")}
        self.sources = tuple(str(name) for name in data["tgt"])
        self.head = MaskHead(self._code, inputs.width, data, inputs.section["modelrc"])

    def windows(self, samples: np.ndarray) -> list[Window]:
        return overlapping(len(samples), self.longest)

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[np.ndarray]:
        inside = 0 if self._form["center"] else self._n_fft
        frames = [1 + (length - inside) // self._form["hop_length"] for length in samples]
        return [self.head(one).cpu().numpy() for one in self._code.match_length(list(features), frames)]

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[np.ndarray]) -> AudioResult:
        audio = np.zeros((len(self.sources), 0), np.float32)
        for (start, end), masks in zip(windows, pieces, strict=True):
            audio = _continued(audio, self._signals(recording.samples[start:end], masks), audio.shape[1] - start)
        notes = recording.notes
        if len(windows) > 1:
            notes += (f"cut into {len(windows)} overlapping windows, which fade into each other",)
        return AudioResult(recording.name, recording.seconds, notes, self.sources, audio)

    def _signals(self, samples: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Return the signal of each source, [sources, samples], as the task's evaluation makes it."""
        spectra = enhancement.stft(samples, self._n_fft, **self._form)
        signals = [enhancement.istft(mask.T * spectra, length=len(samples), **self._form) for mask in masks]
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            return np.stack([self._code.postprocess(signal) for signal in signals]).astype(np.float32)


def _continued(before: np.ndarray, piece: np.ndarray, overlap: int) -> np.ndarray:
    """Append a window's signals to those before, with its sources in their order.

    In the overlap one fades into the other.

    Args:
        before: [sources, samples].
        piece: [sources, samples]; its first `overlap` samples are the last ones of `before`.
    """
    if not overlap:
        return np.concatenate([before, piece], axis=1)
    from scipy.optimize import linear_sum_assignment  # a third of a second, which no other task waits for

    likeness = before[:, -overlap:] @ piece[:, :overlap].T
    _, order = linear_sum_assignment(likeness, maximize=True)
    ramp = np.linspace(0.0, 1.0, overlap, dtype=np.float32)
    faded = (1 - ramp) * before[:, -overlap:] + ramp * piece[order, :overlap]
    return np.concatenate([before[:, :-overlap], faded, piece[order, overlap:]], axis=1)
