"""Emotion recognition: a folder of the form of IEMOCAP, five sessions with two speakers each.

``SessionN/sentences/wav/<dialogue>/<utterance>.wav``, ``SessionN/dialog/EmoEvaluation/<dialogue>.txt``, and in
``meta_data/`` the lists of the five folds.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.corpora.audio import SAMPLE_RATE, write_audio
from s3prl_ext.corpora.iemocap import SESSIONS, write_lists
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

TURNS = 3  # of each emotion of each speaker
LONGEST_S = 3.0
# Emotion as IEMOCAP names it -> how much faster (words per minute) and higher (pitch) than neutral it is said.
MANNERS = {"neu": (0, 0), "exc": (45, 25), "ang": (30, -15), "sad": (-55, -5)}

MAPPING = (
    "Sentences by ten synthetic voices, two in each session, said in four manners of speed and pitch: neutral, "
    "excited, angry and sad stand for the emotions. `meta_data/` has the lists of all five folds."
)


def write(out: Path, source: MiniBuild) -> None:
    """Write clips, emotions and lists below `out`."""
    source.note("er", "synthesised speech in four manners")
    texts = iter(sentences(source.rng("er"), len(SESSIONS) * 2 * len(MANNERS) * TURNS))
    plan = [
        (session, number, gender, emotion, turn)
        for number, session in enumerate(SESSIONS, 1)
        for gender in "FM"
        for turn in range(TURNS)
        for emotion in MANNERS
    ]
    speech = [
        Speech(next(texts), VOICES[2 * (number - 1) + (gender == "F")], *MANNERS[emotion])
        for _, number, gender, emotion, _ in plan
    ]
    tables: dict[Path, list[str]] = {}
    for (session, number, gender, emotion, turn), samples in zip(plan, synthesise(speech), strict=True):
        dialogue = f"Ses{number:02d}{gender}_impro01"
        name = f"{dialogue}_{gender}{turn * len(MANNERS) + list(MANNERS).index(emotion):03d}"
        samples = samples[: int(LONGEST_S * SAMPLE_RATE)]
        write_audio(out / session / "sentences" / "wav" / dialogue / f"{name}.wav", samples)
        table = out / session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        tables.setdefault(table, ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"]).append(
            f"[{turn:.4f} - {turn + len(samples) / SAMPLE_RATE:.4f}]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
        )
    for table, lines in tables.items():
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("".join(lines), encoding="utf-8")
    write_lists(out)
