"""Tasks with a transcript: words, phones, words with slots."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.decoding import Decoded
from s3prl_ext.prediction import windows as cuts
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.labels import slots
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import SlotTranscript, Transcript
from s3prl_ext.prediction.windows import Window
from s3prl_ext.tasks.record import LABELS

MARKED_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")


class TranscriptDecoder(Decoder):
    """One text per window. A long recording is cut at pauses, and the texts of its windows are joined by spaces.

    Args:
        inputs: what was trained.
        expert: s3prl's expert of the task, built without its corpus.
    """

    RESULT = Transcript

    def __init__(self, inputs: Inputs, expert: nn.Module) -> None:
        super().__init__(inputs)
        self.expert: Any = expert
        self.head = expert

    def windows(self, samples: np.ndarray) -> list[Window]:
        return cuts.at_pauses(samples, self.longest)

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[str]) -> Transcript:
        notes, segments = recording.notes, list[tuple[float, float, str]]()
        if len(windows) > 1:
            notes += (f"cut at pauses into {len(windows)} windows",)
            rows = zip(windows, pieces, strict=True)
            segments = [(start / SAMPLE_RATE, end / SAMPLE_RATE, piece) for (start, end), piece in rows]
        return Transcript(recording.name, recording.seconds, notes, _joined(pieces), tuple(segments))


class WordDecoder(TranscriptDecoder):
    """``-d asr``: the words that s3prl scores, greedy or by the decoder of the task file."""

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[str]:
        return self.expert.inference(list(features), [])


class RecognitionDecoder(TranscriptDecoder):
    """``-d ljspeech``, ``vctk``, ``librispeech_zeroshot``: as the task decodes, after its text rule.

    What is longer than a Whisper's window of 30 s is cut at pauses, whatever window is given.
    """

    def __init__(self, inputs: Inputs, expert: nn.Module) -> None:
        super().__init__(inputs, expert)
        if self.expert.recognizer.longest is not None:
            self.longest = min(self.longest, self.expert.recognizer.longest)

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        return self.expert.recognizer.pad(samples)

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[Decoded]:
        decoded = self.expert.recognizer.decode(features, samples)
        return [one._replace(text=self.expert.rule.apply(one.text)) for one in decoded]

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[Any]) -> Transcript:
        special = sum(piece.special for piece in pieces)
        if special:
            recording = replace(recording, notes=(*recording.notes, f"{special} special tokens of the head dropped"))
        return super().join(recording, windows, [piece.text for piece in pieces])


class CtcDecoder(TranscriptDecoder):
    """``-d ctc``: the best token of each frame, repeats collapsed, without blanks, as its text encoder writes it."""

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[str]:
        expert = self.expert
        lengths = torch.tensor([len(feature) for feature in features], dtype=torch.int)
        scores, frames = expert.model(expert.projector(pad_sequence(list(features), batch_first=True)), lengths)
        if len(scores) == 1:
            frames = [scores.shape[1]]  # s3prl scores one utterance at a time, and all frames of it
        return [self._text(row[: int(count)]) for row, count in zip(scores.argmax(-1).cpu(), frames, strict=True)]

    def _text(self, tokens: Tensor) -> str:
        encoder = self.expert.tokenizer
        dropped = (encoder.pad_idx, encoder.eos_idx)
        return encoder.decode([token for token in tokens.unique_consecutive().tolist() if token not in dropped])


class SlotDecoder(CtcDecoder):
    """Slot filling: the marks around the value of a slot become pairs of slot and value."""

    RESULT = SlotTranscript

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[str]) -> SlotTranscript:
        spaced = [re.sub(" +", " ", piece) for piece in pieces]
        plain = super().join(recording, windows, [_plain(piece) for piece in spaced])
        found = tuple((name, _plain(value)) for piece in spaced for name, value in MARKED_SLOT.findall(piece))
        return SlotTranscript(
            plain.file, plain.seconds, plain.notes, plain.text, plain.segments, found, _joined(pieces)
        )


def words(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d asr``."""
    return WordDecoder(inputs, _expert("asr", inputs, inputs.section))


def recognition(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d ljspeech``, ``vctk`` and ``librispeech_zeroshot``."""
    return RecognitionDecoder(inputs, _expert(inputs.info["downstream"], inputs, inputs.section, mode="inference"))


def ctc(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d ctc``: phones, or words with slots.

    Raises:
        DataError: slot filling whose slots are not known.
    """
    text = inputs.section["text"]
    if not text.get("slots_file"):
        return CtcDecoder(inputs, _expert("ctc", inputs, inputs.section))
    if text["mode"] != "character-slot":
        raise UsageError(f"text.mode '{text['mode']}' of this run has no decoder; known: character-slot.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slots.txt"
        path.write_text("\n".join(["O", *slots(inputs.section)]), encoding="utf-8")
        section = {**inputs.section, "text": {**text, "slots_file": str(path)}}
        return SlotDecoder(inputs, _expert("ctc", inputs, section))


def characters(inputs: Inputs) -> Decoder:
    """Return the decoder of recognition out of domain, whose characters a run stores.

    Raises:
        DataError: neither the run nor the corpus has them.
    """
    stored = inputs.section.get(LABELS)
    if stored is None:
        return ctc(inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "characters.txt"
        path.write_text("\n".join(stored["characters"]), encoding="utf-8")
        text = {**inputs.section["text"], "vocab_file": str(path)}
        return CtcDecoder(inputs, _expert("ctc", inputs, {**inputs.section, "text": text}))


def _expert(task: str, inputs: Inputs, section: Mapping[str, Any], **more: Any) -> nn.Module:
    """Build s3prl's expert of a task that reads no corpus when it is built."""
    module = importlib.import_module(f"s3prl.downstream.{task}.expert")
    about = {key: value for key, value in inputs.info.items() if key != "config"}
    return module.DownstreamExpert(
        upstream_dim=inputs.width,
        upstream_rate=inputs.rate,
        downstream_expert=dict(section),
        expdir="",
        **about,
        **more,
    )


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(piece for piece in pieces if piece)


def _plain(text: str) -> str:
    """Return a transcript without the marks of slots, as s3prl removes them for its error rates."""
    from s3prl.downstream.ctc.metric import clean

    return " ".join(clean(text).split())
