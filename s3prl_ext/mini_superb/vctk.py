"""VCTK 0.92 in its archive's layout: ``txt/``, ``wav48_silence_trimmed/`` (here at 16 kHz), with ``splits.json``."""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.corpora.audio import read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip
from s3prl_ext.corpora.vctk import MICROPHONE
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

LONGEST_S = 16.0
SPEAKERS, SENTENCES = 4, 10  # synthesised: voices, sentences by each

MAPPING = (
    f"Recordings of VCTK of at most {LONGEST_S:g} s under their own ids, or {SENTENCES} synthesised sentences by each "
    f"of {SPEAKERS} voices; 80/10/10 by the hash of the id (`splits.json`). {DIGIT_MAPPING} {everything.MAPPING}"
)


def write(out: Path, source: MiniBuild) -> None:
    """Write texts, audio, speakers and split lists below `out`."""
    gathered = everything.for_vctk(source) if source.everything else None
    rows = gathered.spoken() if gathered else _few(source)
    for id, one in rows:
        speaker = id.rpartition("_")[0]
        write_audio(out / "wav48_silence_trimmed" / speaker / f"{id}_{MICROPHONE}.flac", one.samples)
        text = out / "txt" / speaker / f"{id}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"{one.text}\n", encoding="utf-8")
    speakers = sorted({id.rpartition("_")[0] for id, _ in rows})
    (out / "speaker-info.txt").write_text("".join(f"{name}\n" for name in ("ID", *speakers)), encoding="utf-8")
    write_splits(out, ((id, one.split) for id, one in rows))
    if gathered:
        everything.write_contents(out, "vctk", gathered, rows, source)


def _few(source: MiniBuild) -> list[tuple[str, Spoken]]:
    spoken = digit_strings(source, "vctk")
    rows = [] if spoken else [_recorded(clip) for clip in recorded(source, "vctk", LONGEST_S)]
    if rows:
        return rows
    voices = [(f"p{301 + index}", voice) for index, voice in enumerate(VOICES[:SPEAKERS])]
    return _numbered(spoken or list(synthesised(source, "vctk", voices, SENTENCES)))


def _recorded(clip: Clip) -> tuple[str, Spoken]:
    return clip.name, Spoken("", clip.speaker, clip.text, read_audio(clip.path))


def _numbered(spoken: list[Spoken]) -> list[tuple[str, Spoken]]:
    """Return utterances under ids ``SPEAKER_NNN``."""
    count: dict[str, int] = {}
    rows = []
    for one in spoken:
        count[one.speaker] = count.get(one.speaker, 0) + 1
        rows.append((f"{one.speaker}_{count[one.speaker]:03d}", one))
    return rows
