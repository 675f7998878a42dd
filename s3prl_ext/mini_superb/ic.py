"""Intent classification: a folder of the form of Fluent Speech Commands.

``data/{train,valid,test}_data.csv`` with action, object, location; ``wavs/speakers/<speaker>/<id>.wav``.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip
from s3prl_ext.errors import DataError
from s3prl_ext.mini_superb.source import MiniBuild, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise
from s3prl_ext.tasks.ic import SLOTS

BARISTA_SLOTS = ("numberOfShots", "roast", "size")  # stand for action, object, location
LONGEST_S = 8.5  # longer recordings are left out
NO_VALUE = "none"
HELD_OUT = 0.15  # fraction of the clips in each of valid and test

# Sentence -> action, object, location.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "turn on the lights in the kitchen": ("activate", "lights", "kitchen"),
    "turn off the lights in the kitchen": ("deactivate", "lights", "kitchen"),
    "switch on the bedroom lights": ("activate", "lights", "bedroom"),
    "switch off the bedroom lights": ("deactivate", "lights", "bedroom"),
    "make it warmer in the washroom": ("increase", "heat", "washroom"),
    "make it cooler in the washroom": ("decrease", "heat", "washroom"),
    "turn the volume up": ("increase", "volume", NO_VALUE),
    "turn the volume down": ("decrease", "volume", NO_VALUE),
    "play the music": ("activate", "music", NO_VALUE),
    "stop the music": ("deactivate", "music", NO_VALUE),
    "bring me the newspaper": ("bring", "newspaper", NO_VALUE),
    "bring me my shoes": ("bring", "shoes", NO_VALUE),
}

MAPPING = (
    f"Three slots per clip. From recorded drink orders of at most {LONGEST_S:g} s: "
    + ", ".join(f"{there} is labelled {here}" for there, here in zip(BARISTA_SLOTS, SLOTS))
    + ", an absent one is `none`; transcripts and speakers are unknown there. "
    "Every slot value of valid and test occurs in train."
)

Row = tuple[str, str, tuple[str, ...], np.ndarray]  # speaker, transcript, slot values, samples


def write(out: Path, source: MiniBuild) -> None:
    """Write tables and clips below `out`."""
    for split, rows in (_recorded(source) or _spoken()).items():
        lines = []
        for index, (speaker, text, values, samples) in enumerate(rows):
            path = f"wavs/speakers/{speaker}/{split}{index:04d}.wav"
            write_audio(out / path, samples)
            lines.append((index, path, speaker, text, *values))
        table = out / "data" / f"{split}_data.csv"
        table.parent.mkdir(exist_ok=True)
        with open(table, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("", "path", "speakerId", "transcription", *SLOTS), *lines])


def _recorded(source: MiniBuild) -> dict[str, list[Row]]:
    """Return per split the recorded drink orders; a clip with a slot value unseen in training goes to training."""
    clips = source.clips("ic", "picovoice_barista")
    if not clips:
        return {}
    source.note("ic", ", ".join(f"{there} is labelled {here}" for there, here in zip(BARISTA_SLOTS, SLOTS)))
    clips = [clip for clip in clips if clip.duration <= LONGEST_S]
    require(len(clips), 20, "picovoice_barista", f"clips of at most {LONGEST_S:g} s")
    order = [clips[index] for index in source.rng("ic").permutation(len(clips))]
    count = int(HELD_OUT * len(order))
    train = order[2 * count :]
    splits: dict[str, list[Clip]] = {"valid": [], "test": []}
    for place, clip in enumerate(order[: 2 * count]):
        seen = [{_slots(other)[slot] for other in train} for slot in range(len(SLOTS))]
        known = all(value in seen[slot] for slot, value in enumerate(_slots(clip)))
        (splits["valid" if place < count else "test"] if known else train).append(clip)
    return {
        split: [("unknown", "", _slots(clip), read_audio(clip.path)) for clip in members]
        for split, members in {"train": train, **splits}.items()
    }


def _slots(clip: Clip) -> tuple[str, ...]:
    """Return the values that stand for action, object and location."""
    try:
        values = json.loads(clip.fields["slots"])
        return tuple(str(values.get(slot, NO_VALUE)).strip() for slot in BARISTA_SLOTS)
    except (ValueError, AttributeError):
        raise DataError(
            f"the slots of the clip {clip.path} are not a JSON object: fix its line in the table."
        ) from None


def _spoken() -> dict[str, list[Row]]:
    """Return per split synthesised commands: each command by each voice, the voices of a split are its own."""
    voices = {"train": VOICES[:8], "valid": VOICES[8:10], "test": VOICES[10:12]}
    plan = [(split, voice, text) for split, group in voices.items() for voice in group for text in COMMANDS]
    rows: dict[str, list[Row]] = {split: [] for split in voices}
    for (split, voice, text), samples in zip(plan, synthesise([Speech(text, voice) for _, voice, text in plan])):
        rows[split].append((f"voice{VOICES.index(voice):02d}", text, COMMANDS[text], samples))
    return rows
