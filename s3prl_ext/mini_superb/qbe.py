"""Query by example: a folder of the form of QUESST14, ``quesst14Database``.

``Audio/quesst14_NNNNN.wav`` are the documents, ``{dev,eval}_queries/quesst14_{dev,eval}_NNNN.wav`` the queries;
``scoring/`` has lists with the language of each, and which document holds which query.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.mini_superb.sentences import phrases, sentences
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

DOCUMENTS = 24
PARTS = ("dev", "eval")

MAPPING = (
    f"{DOCUMENTS} sentences by six synthetic voices are the documents; phrases of them, by other voices, are the "
    "queries, half of them in dev and half in eval."
)


def write(out: Path, source: MiniBuild) -> None:
    """Write documents, queries and lists below `out`."""
    source.note("qbe", "synthesised speech")
    texts = sentences(source.rng("qbe"), DOCUMENTS)
    heard = [phrase for phrase in phrases() if any(phrase in text for text in texts)]
    queries = [(PARTS[i % 2], i // 2 + 1, phrase) for i, phrase in enumerate(heard)]
    speech = [Speech(text, VOICES[i % 6]) for i, text in enumerate(texts)]
    speech += [Speech(phrase, VOICES[6 + i % 4]) for i, (_, _, phrase) in enumerate(queries)]
    spoken = synthesise(speech)
    documents = [f"quesst14_{i:05d}" for i in range(1, DOCUMENTS + 1)]
    lists: dict[str, list[str]] = {"utterances": [], **{part: [] for part in PARTS}}
    truth: dict[str, list[str]] = {part: [] for part in PARTS}
    for name, samples in zip(documents, spoken, strict=False):
        write_audio(out / "Audio" / f"{name}.wav", samples)
        lists["utterances"].append(f"quesst14Database/Audio/{name}.wav nnenglish\n")
    for (part, number, phrase), samples in zip(queries, spoken[DOCUMENTS:], strict=True):
        name = f"quesst14_{part}_{number:04d}"
        write_audio(out / f"{part}_queries" / f"{name}.wav", samples)
        lists[part].append(f"quesst14Database/{part}_queries/{name}.wav nnenglish\n")
        truth[part] += [
            f"LEXEME {document} 1 0.000 1.000 {name} lex <NA> <NA>\n"
            for document, text in zip(documents, texts, strict=True)
            if phrase in text
        ]
    for name, lines in lists.items():
        path = out / "scoring" / f"language_key_{name}.lst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    for part, lines in truth.items():
        path = out / "scoring" / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
