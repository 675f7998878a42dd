"""What is predicted for one recording, by kind of task, and how it is written as text, JSON and table rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Result:
    """What all results hold.

    Attributes:
        file: path of the recording as given.
        seconds: its duration.
        notes: what was done to it, such as resampling or cutting, one sentence each.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ()  # of a table, after ``file``

    file: str
    seconds: float
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        content = self._content()
        return {"file": self.file, "seconds": round(self.seconds, 4), **content, "notes": list(self.notes)}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of a table, with :attr:`COLUMNS` and ``file``."""
        return [{"file": self.file, **{name: self._content()[name] for name in self.COLUMNS}}]

    def _content(self) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class LabelResult(Result):
    """One of several classes.

    Attributes:
        label: the most probable one; of an intent its values joined by " / ".
        probability: of the label.
        top: the most probable labels with their probabilities, falling.
        slots: of an intent: value and probability of each slot; else empty.
        windows: of a recording that was cut: first and last second, label and probability of each window.
        top_slots: slots of each label of `top`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("label", "probability")

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    slots: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    windows: tuple[tuple[float, float, str, float], ...] = ()
    top_slots: tuple[Mapping[str, tuple[str, float]], ...] = ()

    def __str__(self) -> str:
        shown = self.top if len(self.top) > 1 else ((self.label, self.probability),)
        return "\t".join([self.file, *(f"{label}\t{probability:.4f}" for label, probability in shown)])

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"label": self.label, "probability": round(self.probability, 6)}
        if len(self.top) > 1:
            content["top"] = [{"label": label, "probability": round(p, 6)} for label, p in self.top]
        if self.slots:
            content["slots"] = {k: {"value": v, "probability": round(p, 6)} for k, (v, p) in self.slots.items()}
        if self.windows:
            keys = ("start", "end", "label", "probability")
            content["windows"] = [
                dict(zip(keys, (*map(_short, row[:2]), row[2], round(row[3], 6)), strict=True)) for row in self.windows
            ]
        return content

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per label of :attr:`top`, with its rank; an intent has its slots as further columns."""
        rows = []
        every = self.top_slots or ({},) * len(self.top)
        for rank, ((label, probability), slots) in enumerate(zip(self.top, every, strict=True), 1):
            row = {"file": self.file, "rank": rank, "label": label, "probability": round(probability, 6)}
            rows.append(row | {slot: value for slot, (value, _) in slots.items()})
        return rows


@dataclass(frozen=True)
class VoiceResult(Result):
    """The embedding of a voice.

    Attributes:
        embedding: [size], of length 1.
        score: its cosine with that of the first recording of the call, which verification thresholds; -1 to 1.
        against: that recording.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("score", "against")

    embedding: np.ndarray = field(repr=False, compare=False)
    score: float = 1.0
    against: str = ""

    def likeness(self, other: VoiceResult) -> float:
        """Return the cosine of two embeddings."""
        return float(self.embedding @ other.embedding)

    def __str__(self) -> str:
        return f"{self.file}\t{self.score:.4f}\t{self.against}"

    def _content(self) -> dict[str, Any]:
        embedding = [round(float(value), 6) for value in self.embedding]
        return {"score": round(self.score, 6), "against": self.against, "embedding": embedding}


@dataclass(frozen=True)
class Transcript(Result):
    """A transcript.

    Attributes:
        text: words, or phones, with spaces between.
        segments: of a recording that was cut: first and last second, and text of each window.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("text",)

    text: str
    segments: tuple[tuple[float, float, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.file}\t{self.text}"

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"text": self.text}
        if self.segments:
            content["segments"] = [{"start": _short(a), "end": _short(b), "text": text} for a, b, text in self.segments]
        return content


@dataclass(frozen=True)
class SlotTranscript(Transcript):
    """A transcript with its slots.

    Attributes:
        slots: name and value of each slot, in order.
        marked: the transcript with the marks ``B-SLOT`` and ``E-SLOT``, as the task scores it.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("text", "slots")

    slots: tuple[tuple[str, str], ...] = ()
    marked: str = ""

    def __str__(self) -> str:
        return f"{self.file}\t{self.text}\t{self._joined()}"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row with the slots as ``name=value; name=value``."""
        return [{"file": self.file, "text": self.text, "slots": self._joined()}]

    def _joined(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.slots)

    def _content(self) -> dict[str, Any]:
        slots = [{"slot": name, "value": value} for name, value in self.slots]
        return super()._content() | {"slots": slots, "marked": self.marked}


@dataclass(frozen=True)
class SpeakerTurns(Result):
    """Who spoke when.

    Attributes:
        turns: speaker, first and last second, by time.
        scores: probability that a speaker talks, float32 [frames, speakers].
        frame_seconds: duration of a frame.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("speaker", "start", "end")

    turns: tuple[tuple[str, float, float], ...]
    scores: np.ndarray = field(repr=False, compare=False)
    frame_seconds: float

    def __str__(self) -> str:
        return self.rttm()

    def rttm(self, name: str | None = None) -> str:
        """Return the turns as lines of RTTM.

        Args:
            name: of the recording; None takes the file's, without folder and suffix.
        """
        name = rttm_name(Path(self.file).stem if name is None else name)
        return "\n".join(
            f"SPEAKER {name} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>"
            for speaker, start, end in self.turns
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per turn."""
        return [{"file": self.file, **turn} for turn in self._content()["turns"]]

    def _content(self) -> dict[str, Any]:
        return {"turns": [{"speaker": name, "start": _short(a), "end": _short(b)} for name, a, b in self.turns]}


def rttm_name(name: str) -> str:
    """Return a name as RTTM can hold it, whose fields end at blanks: with underscores in their place."""
    return re.sub(r"\s", "_", name)


@dataclass(frozen=True)
class AudioResult(Result):
    """The speech that was estimated from a recording.

    Attributes:
        sources: name of each estimate, as the task's lists call it: ``clean``; ``s1`` and ``s2``.
        audio: float32 [sources, samples] at 16 kHz, as long as the recording.
        written: the files of ``--write-audio`` that hold them.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("source", "written")

    sources: tuple[str, ...]
    audio: np.ndarray = field(repr=False, compare=False)
    written: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\t".join([self.file, *self.written])

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per source."""
        return [{"file": self.file, **row} for row in self._content()["sources"]]

    def _content(self) -> dict[str, Any]:
        files = self.written or (None,) * len(self.sources)
        return {"sources": [{"source": name, "written": path} for name, path in zip(self.sources, files, strict=True)]}


@dataclass(frozen=True)
class SearchResult(Result):
    """How well each query matches somewhere in a recording.

    Attributes:
        scores: query and score, in the order of the queries: the number of standard deviations that the match is better
            than the mean over the recordings of the call.
        features: what the recording is searched by, [frames, width]; None once it was.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("query", "score")

    scores: tuple[tuple[str, float], ...] = ()
    features: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join(f"{self.file}\t{query}\t{score:.4f}" for query, score in self.scores)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per query."""
        return [{"file": self.file, **row} for row in self._content()["queries"]]

    def _content(self) -> dict[str, Any]:
        return {"queries": [{"query": query, "score": round(score, 4)} for query, score in self.scores]}


@dataclass(frozen=True)
class Failure:
    """A recording without a result.

    Attributes:
        file: path as given.
        error: one sentence.
    """

    file: str
    error: str

    def record(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return {"file": self.file, "error": self.error}


def _short(seconds: float) -> float:
    return round(seconds, 3)
