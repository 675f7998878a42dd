"""LJ Speech in its archive's layout.

``metadata.csv`` and ``wavs/``, here at 16 kHz, with ``splits.json`` next to them.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.corpora.audio import read_audio, write_audio
from s3prl_ext.corpora.ljspeech import DEV_CHAPTERS, TEST_CHAPTERS
from s3prl_ext.corpora.recordings import Clip
from s3prl_ext.mini_superb import everything
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES
from s3prl_ext.mini_superb.transcribed import (
    DIGIT_MAPPING,
    Spoken,
    digit_strings,
    recorded,
    synthesised,
    write_splits,
)

LONGEST_S = 10.0
SENTENCES = 40
CHAPTERS = {"train": "LJ001", "dev": DEV_CHAPTERS[0], "test": TEST_CHAPTERS[0], "": "LJ001"}

MAPPING = (
    f"Recordings of LJ Speech under their own ids, or {SENTENCES} synthesised sentences of one voice; 80/10/10 by the "
    f"hash of the id (`splits.json`). {DIGIT_MAPPING} {everything.MAPPING}"
)


def write(out: Path, source: MiniBuild) -> None:
    """Write table, audio and split lists below `out`."""
    gathered = everything.for_ljspeech(source) if source.everything else None
    rows = gathered.spoken() if gathered else _few(source)
    lines = []
    for id, one in sorted(rows, key=lambda row: row[0]):
        write_audio(out / "wavs" / f"{id}.wav", one.samples)
        lines.append(f"{id}|{one.text}|{one.text}\n")
    (out / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    write_splits(out, ((id, one.split) for id, one in rows))
    if gathered:
        everything.write_contents(out, "ljspeech", gathered, rows, source)


def _few(source: MiniBuild) -> list[tuple[str, Spoken]]:
    spoken = digit_strings(source, "ljspeech")
    rows = [] if spoken else [_recorded(clip) for clip in recorded(source, "ljspeech", LONGEST_S)]
    return rows or _numbered(spoken or list(synthesised(source, "ljspeech", [("", VOICES[1])], SENTENCES)))


def _recorded(clip: Clip) -> tuple[str, Spoken]:
    return clip.name, Spoken("", "", clip.text.replace("|", " "), read_audio(clip.path))


def _numbered(spoken: list[Spoken]) -> list[tuple[str, Spoken]]:
    """Return utterances under ids whose chapter belongs to their split."""
    count = dict.fromkeys(CHAPTERS.values(), 0)
    rows = []
    for one in spoken:
        chapter = CHAPTERS[one.split]
        count[chapter] += 1
        rows.append((f"{chapter}-{count[chapter]:04d}", one))
    return rows
