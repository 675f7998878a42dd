"""Transcribed speech for miniature LJ Speech and VCTK.

Recordings, strings of spoken digits, or synthesised sentences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio
from s3prl_ext.corpora.recordings import Clip, digit_take, without_repeats
from s3prl_ext.corpora.splits import SPLITS, hash_split
from s3prl_ext.corpora.transcribed import SPLIT_FILE
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild, require
from s3prl_ext.mini_superb.synthesis import Speech, Voice, synthesise

# Takes of spoken digits by split: 0-4 are the official test set, of which dev takes two.
TAKES: dict[str, tuple[int, ...]] = {"train": tuple(range(5, 50)), "dev": (0, 1), "test": (2, 3, 4)}
SHARES = {"train": 60, "dev": 20, "test": 20}  # of all strings, in per cent
DIGITS_IN_STRING = (2, 5)  # fewest and most
PAUSE_S = (0.1, 0.4)  # between digits and at both ends
NOISE = 1e-3  # standard deviation, -60 dBFS

DIGIT_MAPPING = (
    f"With `--digits N`: N strings of {DIGITS_IN_STRING[0]} to {DIGITS_IN_STRING[1]} digits said by one speaker of the "
    "Free Spoken Digit Dataset, with pauses and faint noise. Takes 5 and up are train, 0-1 dev, 2-4 test, so no clip "
    "is in two splits, but the six speakers are."
)


@dataclass(frozen=True)
class Spoken:
    """One utterance: split, speaker, transcript, samples at 16 kHz."""

    split: str
    speaker: str
    text: str
    samples: np.ndarray


def digit_strings(source: MiniBuild, task: str) -> list[Spoken]:
    """Return ``source.digit_strings`` strings of spoken digits, or an empty list where none are asked for.

    Raises:
        UsageError: the recordings lack the corpus fsdd, or fewer strings than splits are asked for.
    """
    if not source.digit_strings:
        return []
    if source.recordings is None or not source.recordings.has("fsdd"):
        raise UsageError(
            "--digits needs recordings of spoken digits: give --recordings with a folder that holds fsdd/."
        )
    if source.digit_strings < 5:
        raise UsageError(f"--digits {source.digit_strings} is too few for three splits: ask for 5 or more strings.")
    clips = source.clips(task, "fsdd")
    usable = {split: [clip for clip in clips if digit_take(clip).take in takes] for split, takes in TAKES.items()}
    rng = source.rng(f"{task} digits")
    return [
        _string(split, usable[split], rng)
        for split, count in split_sizes(source.digit_strings).items()
        for _ in range(count)
    ]


def split_sizes(strings: int) -> dict[str, int]:
    """Return how many of `strings` strings each split gets: its share, rounded by the method of largest remainders."""
    sizes = {split: strings * SHARES[split] // 100 for split in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda split: -(strings * SHARES[split] % 100))
    for split in by_remainder[: strings - sum(sizes.values())]:
        sizes[split] += 1
    return sizes


def recorded(source: MiniBuild, task: str, longest_s: float) -> list[Clip]:
    """Return the recorded utterances of the corpus `task` that have a transcript and are at most `longest_s` long."""
    clips = source.clips(task, task)
    if not clips:
        return []
    usable = [clip for clip in without_repeats(clips) if clip.text and clip.duration <= longest_s]
    require(len(usable), 3, task, f"utterances of at most {longest_s:g} s with text")
    return usable


def synthesised(source: MiniBuild, task: str, voices: Sequence[tuple[str, Voice]], each: int) -> Iterator[Spoken]:
    """Yield `each` different sentences by each of `voices` (name, voice); their split is left open."""
    texts = sentences(source.rng(f"{task} sentences"), each * len(voices))
    plan = [(voices[index % len(voices)], f"{text.capitalize()}.") for index, text in enumerate(texts)]
    for ((name, _), text), samples in zip(plan, synthesise([Speech(text, voice) for (_, voice), text in plan])):
        yield Spoken("", name, text, samples)


def write_splits(folder: Path, named: Iterable[tuple[str, str]]) -> None:
    """Write ``splits.json`` from pairs of id and split; where the split is open, by hash."""
    named = list(named)
    lists = {split: sorted(id for id, of in named if of == split) for split in SPLITS}
    if not any(lists.values()):
        lists = hash_split(id for id, _ in named)
    (folder / SPLIT_FILE).write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")


def _string(split: str, clips: Sequence[Clip], rng: np.random.Generator) -> Spoken:
    """Return digits of one speaker, drawn from the clips of `split`."""
    speakers = sorted({clip.speaker for clip in clips})
    require(len(speakers), 1, "fsdd", f"speakers with takes for {split}")
    speaker = speakers[rng.integers(len(speakers))]
    own = [clip for clip in clips if clip.speaker == speaker]
    chosen = [
        own[index] for index in rng.integers(len(own), size=rng.integers(DIGITS_IN_STRING[0], DIGITS_IN_STRING[1] + 1))
    ]
    pieces = [_pause(rng)]
    for clip in chosen:
        pieces += [read_audio(clip.path), _pause(rng)]
    samples = np.concatenate(pieces)
    samples = samples + rng.normal(0.0, NOISE, len(samples)).astype(np.float32)
    return Spoken(split, speaker, " ".join(clip.text for clip in chosen), samples)


def _pause(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(int(rng.uniform(*PAUSE_S) * SAMPLE_RATE), dtype=np.float32)
