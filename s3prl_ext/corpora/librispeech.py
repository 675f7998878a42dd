"""LibriSpeech: parts such as ``test-clean``, with folders ``SPEAKER/CHAPTER`` of FLAC files and one table of texts.

A line of ``1089-134686.trans.txt`` is ``1089-134686-0000 HE HOPED THERE WOULD BE STEW FOR DINNER``. The archives of the
parts unpack into one folder ``LibriSpeech``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from s3prl_ext.corpora.archives import CorpusCard
from s3prl_ext.corpora.listing import listed
from s3prl_ext.corpora.transcribed import TranscribedCorpus, Utterance, match_audio
from s3prl_ext.errors import DataError
from s3prl_ext.reading import read_lines

CARD = CorpusCard(
    name="LibriSpeech",
    licence="CC BY 4.0",
    homepage="https://www.openslr.org/12",
    url="https://www.openslr.org/resources/12/",
    checksum="",
    checksum_from="one archive for each part",
    size=0,
    citation='V. Panayotov, G. Chen, D. Povey and S. Khudanpur, "LibriSpeech: an ASR corpus based on public domain '
    'audio books", ICASSP 2015',
    layout="PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac at 16 kHz, with SPEAKER-CHAPTER.trans.txt",
    folder="LibriSpeech",
    contents=(),
)
TABLES = "*/*/*.trans.txt"  # below a part


def read(root: Path, on_missing: str = "error", parts: Collection[str] | None = None) -> list[Utterance]:
    """Return the utterances, sorted by id; what splits keep together is the part.

    Args:
        root: the folder with the parts, or the one that holds it as ``LibriSpeech``.
        on_missing: ``error`` or ``skip``, for a transcript without audio and the reverse.
        parts: folders to read; those that are not there have no utterances. None: all.

    Raises:
        DataError: no such corpus, a malformed line, an id twice, missing audio or text.
    """
    root = folder_of(Path(root))
    texts: dict[str, str] = {}
    audio: dict[str, Path] = {}
    part_of: dict[str, str] = {}
    for part in sorted(parts) if parts is not None else _parts(root):
        for table in listed(root / part, TABLES):
            _add_texts(texts, table)
        audio |= {path.stem: path for path in listed(root / part, "*/*/*.flac")}
        part_of |= dict.fromkeys([id for id in {**texts, **audio} if id not in part_of], part)
    if not texts and not audio:
        return []
    ids = match_audio(texts, audio, f"{CARD.name} in {root}", on_missing)
    return [Utterance(id, audio[id], texts[id], part_of[id]) for id in ids]


def held_out(parts: Sequence[str]) -> dict[str, list[str]]:
    """Return the dev and test parts among `parts`, clean and other."""
    return {name: [part for part in parts if part.startswith(f"{name}-")] for name in ("dev", "test")}


CORPUS = TranscribedCorpus(CARD, "part", read, held_out, read_groups=read)


def folder_of(root: Path) -> Path:
    """Return the folder of the corpus: `root`, or the ``LibriSpeech`` in it.

    Raises:
        DataError: neither has a part with transcripts.
    """
    for folder in (root, root / CARD.folder):
        if _parts(folder):
            return folder
    raise DataError(
        f"{root} is not a LibriSpeech folder: give the one with parts such as test-clean, with "
        "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt in each."
    )


def _parts(folder: Path) -> list[str]:
    return [part.name for part in listed(folder, "*") if next(part.glob(TABLES), None) is not None]


def _add_texts(texts: dict[str, str], table: Path) -> None:
    """Add the transcripts of one chapter."""
    chapter = table.name.removesuffix(".trans.txt")
    for number, line in enumerate(read_lines(table), 1):
        id, _, text = line.partition(" ")
        if not id.startswith(f"{chapter}-") or not text.strip():
            raise DataError(f"line {number} of {table} must read {chapter}-NNNN TEXT, but is '{line[:60]}'.")
        if id in texts:
            raise DataError(f"line {number} of {table} names {id} a second time: unpack the archive again.")
        texts[id] = text.strip()
