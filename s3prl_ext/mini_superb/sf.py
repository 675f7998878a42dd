"""Slot filling: a folder of the form of Audio SNIPS, always synthesised.

``{train,valid,test}/<Speaker>-snips-<split>-<n>.wav``, ``all.iob.snips.txt`` and ``slots.txt``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

# The speakers of SUPERB's split, and how many utterances each one says.
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "valid": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
UTTERANCES = {"train": 8, "valid": 3, "test": 3}

# Every template has at least one slot: s3prl's slot metrics divide by the number of slots.
TEMPLATES = (
    ("PlayMusic", "PLAY SOME {genre} BY {artist}"),
    ("PlayMusic", "PLAY {artist} ON {service}"),
    ("GetWeather", "WILL IT RAIN IN {city} {timeRange}"),
    ("GetWeather", "IS IT {condition_temperature} IN {city}"),
    ("BookRestaurant", "BOOK A {restaurant_type} FOR {party_size_number} IN {city}"),
    ("RateBook", "GIVE THIS BOOK {rating_value} STARS"),
)
VALUES = {
    "artist": ("MILES DAVIS", "NINA SIMONE", "BACH"),
    "city": ("PARIS", "NEW YORK", "BOSTON"),
    "condition_temperature": ("COLD", "WARM"),
    "genre": ("JAZZ", "ROCK", "SOUL"),
    "party_size_number": ("TWO", "FOUR", "SEVEN"),
    "rating_value": ("ONE", "THREE", "FIVE"),
    "restaurant_type": ("BAR", "CAFE", "DINER"),
    "service": ("SPOTIFY", "YOUTUBE"),
    "timeRange": ("TODAY", "TOMORROW", "NEXT WEEK"),
}

MAPPING = (
    "Requests from a few templates with a subset of the slots of SNIPS. SUPERB's speaker names stand for synthetic "
    "voices, each in one split only."
)


def write(out: Path, source: MiniBuild) -> None:
    """Write clips, transcripts and the list of slots below `out`."""
    source.clips("sf")
    rng = source.rng("sf")
    voices = dict(zip([speaker for group in SPEAKERS.values() for speaker in group], VOICES))
    plan = []
    for split, speakers in SPEAKERS.items():
        numbers = [(speaker, number) for speaker in speakers for number in range(UTTERANCES[split])]
        for place, (speaker, number) in enumerate(numbers):
            words, labels, intent = compose(place, rng)
            plan.append((split, f"{speaker}-snips-{split}-{number}", voices[speaker], words, labels, intent))
    spoken = synthesise([Speech(" ".join(words).lower(), voice) for _, _, voice, words, _, _ in plan])
    lines = []
    for (split, name, _, words, labels, intent), samples in zip(plan, spoken):
        write_audio(out / split / f"{name}.wav", samples)
        lines.append(f"{name} BOS {' '.join(words)} EOS\tO {' '.join(labels)} {intent}\n")
    (out / "all.iob.snips.txt").write_text("".join(lines), encoding="utf-8")
    # s3prl skips the first line and would take an empty last line for a slot.
    (out / "slots.txt").write_text("\n".join(["O", *sorted(VALUES)]), encoding="utf-8")


def compose(place: int, rng: np.random.Generator) -> tuple[list[str], list[str], str]:
    """Return words, slot labels (``O`` outside) and intent of a sentence from the template number `place`."""
    intent, template = TEMPLATES[place % len(TEMPLATES)]
    words, labels = [], []
    for part in template.split():
        slot = re.fullmatch(r"\{(\w+)\}", part)
        value = str(rng.choice(VALUES[slot[1]])).split() if slot else [part]
        words += value
        labels += [slot[1] if slot else "O"] * len(value)
    return words, labels, intent
