"""Every recorded utterance with a text (``--all``): which corpus it goes to, which split, and what is left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio
from s3prl_ext.corpora.recordings import Clip, without_repeats
from s3prl_ext.corpora.splits import SPLITS, group_split, hash_split
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.transcribed import Spoken

CONTENTS_FILE = "contents.json"
FIRST_OTHER_SPEAKER = 9001  # number of the first speaker of misc_read in the tree of LibriSpeech
ASTERISK_CHAPTER = "AST"  # of the telephone prompts among the chapters of LJ Speech

MAPPING = (
    f"With `--all`: every recorded utterance with a text, of any length; `{CONTENTS_FILE}` counts the splits and says "
    "of every id which recording it is."
)

Checks = Mapping[str, Callable[[Clip], object]]  # why a clip is left out -> whether one fits

_LIBRISPEECH_ID = re.compile(r"\d+-\d+-\d+")
_LIBRISPEECH_TEXT = re.compile(r"[A-Z']+( [A-Z']+)*")
_VCTK_ID = re.compile(r"[^_]+_\d+")


@dataclass(frozen=True)
class RecordedUtterance:
    """One recorded utterance of a corpus to be written: its id there, its split, its transcript, its recording."""

    id: str
    split: str
    text: str
    clip: Clip


@dataclass
class Gathered:
    """The utterances of one corpus.

    Attributes:
        utterances: in any order.
        rule: how they were divided.
        left_out: why -> the clips of the tables that are in none of the splits.
    """

    utterances: list[RecordedUtterance] = field(default_factory=list)
    rule: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def usable(self, clips: Sequence[Clip], checks: Checks) -> list[Clip]:
        """Return the first clip of each file name that has a text and passes `checks`; the others are left out.

        Args:
            checks: why a clip is left out -> whether one fits.
        """
        first = {clip.path for clip in without_repeats(clips)}
        checks = {
            "another recording has its name": lambda clip: clip.path in first,
            "no text": lambda c: c.text,
            **checks,
        }
        kept = []
        for clip in clips:
            why = next((why for why, fits in checks.items() if not fits(clip)), None)
            if why is None:
                kept.append(clip)
            else:
                self.left_out.setdefault(why, []).append(clip.fields["path"])
        return kept

    def note_left_out(self, task: str, source: MiniBuild) -> None:
        """Say in the README of the corpora what was left out, and why."""
        for why, paths in self.left_out.items():
            source.note(task, f"{len(paths)} left out ({why}), such as {paths[0]}")

    def spoken(self) -> list[tuple[str, Spoken]]:
        """Return id and content of every utterance, sorted by id; the audio is read."""
        return [
            (one.id, Spoken(one.split, one.clip.speaker, one.text, read_audio(one.clip.path)))
            for one in sorted(self.utterances, key=lambda one: one.id)
        ]

    def add(self, id: str, split: str, text: str, clip: Clip) -> None:
        """Take one utterance in; spaces of its text are made single."""
        self.utterances.append(RecordedUtterance(id, split, " ".join(text.split()), clip))


def for_librispeech(source: MiniBuild) -> Gathered:
    """Return the utterances of librispeech and misc_read.

    Speakers of LibriSpeech's own dev and test parts are dev or test, all others train; where the table names no such
    parts, all speakers are divided. Those of misc_read are train.
    """
    gathered = Gathered()
    clips = gathered.usable(_clips(source, "asr, pr", "librispeech"), {**LIBRISPEECH_NAME, **PLAIN_TEXT})
    held_out = Counter(clip.speaker for clip in clips if clip.fields.get("split", "").startswith(("dev", "test")))
    if len(held_out) >= 2:
        speakers = group_split(held_out, train=False)
        gathered.rule = (
            "speaker: those of LibriSpeech's dev and test parts, clean or other, are in dev-clean or test-clean"
        )
        splits = {clip.name: speakers.get(clip.speaker, "train") for clip in clips}
    else:
        splits, gathered.rule = _by_speaker(clips)
    for clip in clips:
        gathered.add(clip.name, splits[clip.name], clip.text.upper(), clip)
    if source.recordings and source.recordings.has("misc_read"):
        others = gathered.usable(_clips(source, "asr, pr", "misc_read"), PLAIN_TEXT)
        names = sorted({clip.speaker for clip in others})
        for index, clip in enumerate(others):
            speaker = FIRST_OTHER_SPEAKER + names.index(clip.speaker)
            gathered.add(f"{speaker}-1-{index:04d}", "train", clip.text.upper(), clip)
        gathered.rule += "; misc_read is in train-clean-100"
    return gathered


def for_ljspeech(source: MiniBuild) -> Gathered:
    """Return the utterances of ljspeech and asterisk_en, divided by the hash of the id: too few chapters are there."""
    gathered = Gathered(rule="hash of the id, 80/10/10: almost all is of one chapter and of one other voice")
    clips = {clip.name: clip for clip in gathered.usable(_clips(source, "ljspeech", "ljspeech"), {})}
    if source.recordings and source.recordings.has("asterisk_en"):
        prompts = gathered.usable(_clips(source, "ljspeech", "asterisk_en"), {})
        clips |= {f"{ASTERISK_CHAPTER}-{clip.name}": clip for clip in prompts}
    for split, ids in hash_split(clips).items():
        for id in ids:
            gathered.add(id, split, clips[id].text.replace("|", " "), clips[id])
    return gathered


def for_vctk(source: MiniBuild) -> Gathered:
    """Return the utterances of vctk, divided by speaker."""
    gathered = Gathered()
    named: Checks = {"its name is not SPEAKER_NUMBER": lambda clip: _named(clip, _VCTK_ID, "_")}
    clips = gathered.usable(_clips(source, "vctk", "vctk"), named)
    splits, gathered.rule = _by_speaker(clips)
    for clip in clips:
        gathered.add(clip.name, splits[clip.name], clip.text, clip)
    return gathered


def write_contents(
    folder: Path, task: str, gathered: Gathered, rows: Sequence[tuple[str, Spoken]], source: MiniBuild
) -> None:
    """Write :data:`CONTENTS_FILE` into the folder of a corpus; log its counts and note them for the README.

    Args:
        rows: id and content of every utterance, as :meth:`Gathered.spoken` gives them.
    """
    parts = {split: [one for _, one in rows if one.split == split] for split in SPLITS}
    trained = {one.text.casefold() for one in parts["train"]}
    counts = {}
    for split, ones in parts.items():
        counts[split] = {
            "utterances": len(ones),
            "words": sum(len(one.text.split()) for one in ones),
            "speakers": len({one.speaker for one in ones}),
            "minutes": round(sum(len(one.samples) for one in ones) / SAMPLE_RATE / 60, 2),
        }
        if split != "train":
            counts[split]["texts_in_train"] = sum(one.text.casefold() in trained for one in ones)
        source.note(
            task, f"{split}: " + ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in counts[split].items())
        )
    source.note(task, f"divided by {gathered.rule}")
    gathered.note_left_out(task, source)
    content = {
        "rule": gathered.rule,
        "splits": counts,
        "left_out": gathered.left_out,
        "recordings": {one.id: one.clip.fields["path"] for one in sorted(gathered.utterances, key=lambda one: one.id)},
    }
    (folder / CONTENTS_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _clips(source: MiniBuild, task: str, name: str) -> list[Clip]:
    if source.recordings is None or not source.recordings.has(name):
        raise UsageError(
            f"--all takes recordings only, and there are none of {name} for {task}: give --recordings with a folder "
            "that holds them, or name the other tasks with --tasks."
        )
    return source.clips(task, name)


def _by_speaker(clips: Sequence[Clip]) -> tuple[dict[str, str], str]:
    """Return the split of each clip's name, and how they were divided: by speaker where there are three or more."""
    sizes = Counter(clip.speaker for clip in clips)
    if len(sizes) < len(SPLITS):
        return {id: split for split, ids in hash_split(clip.name for clip in clips).items() for id in ids}, (
            f"hash of the id, 80/10/10: the recordings are of {len(sizes)} speakers"
        )
    speakers = group_split(sizes)
    rule = "speaker: those with the fewest utterances are dev or test, up to a fifth of all in each"
    return {clip.name: speakers[clip.speaker] for clip in clips}, rule


def _named(clip: Clip, form: re.Pattern[str], separator: str) -> bool:
    """Tell whether the file name has the form of the corpus, with the clip's speaker in front."""
    return bool(form.fullmatch(clip.name)) and clip.name.startswith(clip.speaker + separator)


def _has_plain_text(clip: Clip) -> object:
    return _LIBRISPEECH_TEXT.fullmatch(" ".join(clip.text.upper().split()))


PLAIN_TEXT: Checks = {"characters other than letters and apostrophes": _has_plain_text}
LIBRISPEECH_NAME: Checks = {
    "its name is not SPEAKER-CHAPTER-NUMBER": lambda clip: _named(clip, _LIBRISPEECH_ID, "-"),
}
