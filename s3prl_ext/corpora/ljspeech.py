"""LJ Speech 1.1: 13,100 clips of one reader, about 24 hours at 22.05 kHz (``s3prl-ext prepare ljspeech``).

``metadata.csv`` has lines ``LJ001-0001|text as printed|text as read`` without a header; the third column, with numbers
and abbreviations written out, is the transcript. ``wavs/LJ001-0001.wav`` is the audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.corpora.archives import CorpusCard
from s3prl_ext.corpora.listing import listed
from s3prl_ext.corpora.transcribed import TranscribedCorpus, Utterance, corpus_folder, match_audio, prepare
from s3prl_ext.errors import DataError

CARD = CorpusCard(
    name="LJSpeech-1.1",
    licence="public domain",
    homepage="https://keithito.com/LJ-Speech-Dataset/",
    url="https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    checksum="sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
    checksum_from="as torchaudio and TensorFlow Datasets record it",
    size=2_748_572_632,
    citation='K. Ito and L. Johnson, "The LJ Speech Dataset", 2017',
    layout="metadata.csv (id|text|normalised text), wavs/ID.wav at 22.05 kHz",
    folder="LJSpeech-1.1",
    contents=("metadata.csv", "wavs"),
)

# Chapters held out of the fifty; the authors give no split.
DEV_CHAPTERS = ("LJ005", "LJ015", "LJ025", "LJ035", "LJ045")
TEST_CHAPTERS = ("LJ010", "LJ020", "LJ030", "LJ040", "LJ050")


def read(root: Path, on_missing: str = "error") -> list[Utterance]:
    """Return the utterances, sorted by id.

    Args:
        root: the folder ``LJSpeech-1.1``, or the one that holds it.
        on_missing: ``error`` or ``skip``, for a transcript without audio and the reverse.

    Raises:
        DataError: no such corpus, a malformed line, an id twice, missing audio or text.
    """
    root = folder_of(root)
    texts = _transcripts(root / "metadata.csv")
    audio = {path.stem: path for path in listed(root / "wavs", "*.wav")}
    ids = match_audio(texts, audio, f"{CARD.name} in {root}", on_missing)
    return [Utterance(id, audio[id], texts[id], group=id.partition("-")[0]) for id in ids]


def held_out(chapters: Sequence[str]) -> dict[str, list[str]]:
    """Return the dev and test chapters among `chapters`."""
    return {
        "dev": [chapter for chapter in chapters if chapter in DEV_CHAPTERS],
        "test": [chapter for chapter in chapters if chapter in TEST_CHAPTERS],
    }


def folder_of(root: Path) -> Path:
    """Return the folder of the corpus: `root`, or the ``LJSpeech-1.1`` in it; DataError where neither is one."""
    return corpus_folder(root, CARD)


CORPUS = TranscribedCorpus(CARD, "chapter", read, held_out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare ljspeech``; return the exit status."""
    return prepare(CORPUS, "ljspeech", argv)


def _transcripts(table: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    try:
        lines = table.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text ({error}): unpack the archive again.") from error
    for number, line in enumerate(lines, 1):
        fields = line.split("|")
        if len(fields) != 3 or not fields[0]:
            raise DataError(f"line {number} of {table} must read id|text|normalised text, got '{line[:60]}'.")
        if fields[0] in texts:
            raise DataError(f"line {number} of {table} names {fields[0]} a second time: unpack the archive again.")
        texts[fields[0]] = fields[2].strip()
    return texts
