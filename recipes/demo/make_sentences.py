"""Write the sentences that the demo transcribes, in LJ Speech's layout, all of them test: ``make_sentences.py FOLDER``.

They are synthesised, more slowly than the keywords: at 130 words a minute a model of human speech understands the
voices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.mini_superb.synthesis import Speech, Voice, synthesise
from s3prl_ext.writing import written_folder

VOICES = (Voice("en-us", 45, 130), Voice("en-us+f2", 65, 130), Voice("en-us+m3", 35, 130))
SENTENCES = (
    "The old man put the red book on the kitchen table and went to bed.",
    "My brother saw the river once again.",
    "After dinner we walked to the river and sat near the old bridge.",
    "Please write a long letter to your mother before the end of the week.",
    "A young girl found a small boat near the house this morning.",
    "The captain remembered the storm that came last winter.",
)


def write_sentences(folder: Path) -> None:
    """Write table, audio and split lists to a new `folder`, which appears only when it is complete."""
    speech = [Speech(text, VOICES[number % len(VOICES)]) for number, text in enumerate(SENTENCES)]
    ids = [f"LJ010-{number:04d}" for number in range(1, len(SENTENCES) + 1)]
    with written_folder(folder) as partial:
        for id, samples in zip(ids, synthesise(speech), strict=True):
            write_audio(partial / "wavs" / f"{id}.wav", samples)
        lines = [f"{id}|{text}|{text}\n" for id, text in zip(ids, SENTENCES, strict=True)]
        (partial / "metadata.csv").write_text("".join(lines), encoding="utf-8")
        (partial / "splits.json").write_text(json.dumps({"train": [], "dev": [], "test": ids}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_sentences(Path(sys.argv[1]))
