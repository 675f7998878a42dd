"""Speech recognition out of domain: a folder of the form of s3prl's preprocessed Common Voice, in Spanish.

``es/{train,dev,test}.tsv`` with path and sentence, ``es/clips/*.wav``, and ``es/char.txt`` with the characters.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import Speech, Voice, synthesise

SPLITS = {"train": 32, "dev": 8, "test": 8}
VOICES = tuple(
    Voice(f"es{variant}", pitch, 160) for variant, pitch in (("", 45), ("+f2", 65), ("+m3", 35), ("+f4", 55))
)
SUBJECTS = ("EL NIÑO", "MI HERMANA", "LA ABUELA", "UN SEÑOR")
VERBS = ("COME", "QUIERE", "ENCONTRÓ")
OBJECTS = ("PAN", "AGUA", "UN CORAZÓN", "LA LLAVE")

MAPPING = "Short Spanish sentences by four synthetic voices, in all splits; `char.txt` has their characters."


def write(out: Path, build: MiniBuild) -> None:
    """Write tables, clips and characters below `out`."""
    build.note("ood", "synthesised speech")
    texts = [" ".join(parts) for parts in product(SUBJECTS, VERBS, OBJECTS)]
    order = build.rng("ood").permutation(len(texts))
    chosen = [texts[index] for index in order]
    speech = [Speech(text.lower(), VOICES[i % len(VOICES)]) for i, text in enumerate(chosen)]
    spoken = list(zip(chosen, synthesise(speech), strict=True))
    folder, first = out / "es", 0
    for split, count in SPLITS.items():
        rows = sorted(
            spoken[first : first + count], key=lambda row: (-len(row[1]), row[0])
        )  # as the preprocessing does
        lines = ["path\tsentence\n"]
        for number, (text, samples) in enumerate(rows):
            name = f"common_voice_es_{first + number:08d}.wav"
            write_audio(folder / "clips" / name, samples)
            lines.append(f"{name}\t{text}\n")
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
        first += count
    characters = sorted({character for text in texts for character in text})
    (folder / "char.txt").write_text("\n".join(characters), encoding="utf-8")
