"""VCTK 0.92: 110 speakers of English, about 44 hours at 48 kHz (``s3prl-ext prepare vctk``).

``txt/p225/p225_001.txt`` is a transcript, ``wav48_silence_trimmed/p225/p225_001_mic1.flac`` its audio from the first of
two microphones. The archive has no text for speaker p315, and not all audio of p362; p280 lacks the second microphone
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.corpora.archives import CorpusCard
from s3prl_ext.corpora.listing import listed
from s3prl_ext.corpora.transcribed import TranscribedCorpus, Utterance, corpus_folder, match_audio, prepare
from s3prl_ext.errors import DataError

CARD = CorpusCard(
    name="VCTK-Corpus-0.92",
    licence="CC BY 4.0",
    homepage="https://doi.org/10.7488/ds/2645",
    url="https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
    checksum="sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
    checksum_from="as torchaudio and TensorFlow Datasets record it; the repository states the MD5 "
    "8a6ba2946b36fcbef0212cad601f4bfa",
    size=11_747_302_977,
    citation="J. Yamagishi, C. Veaux and K. MacDonald, CSTR VCTK Corpus (version 0.92), University of Edinburgh, 2019",
    layout="txt/SPEAKER/SPEAKER_NNN.txt, wav48_silence_trimmed/SPEAKER/SPEAKER_NNN_mic1.flac at 48 kHz, "
    "speaker-info.txt",
    folder="VCTK-Corpus-0.92",
    contents=("txt", "wav48_silence_trimmed", "speaker-info.txt"),
    unread="_mic2.flac",  # about half of the archive
)

MICROPHONE = "mic1"
OLDER = "wav48"  # the folder with the audio of version 0.80 and before: SPEAKER/SPEAKER_NNN.wav
INCOMPLETE = ("p315", "p362")  # speakers whose text, or some of whose audio, the archive lacks itself


def read(root: Path, on_missing: str = "error") -> list[Utterance]:
    """Return the utterances of the first microphone, sorted by id.

    Args:
        root: the folder with ``txt/`` and ``wav48_silence_trimmed/``, or the one that holds it as ``VCTK-Corpus-0.92``.
        on_missing: ``error`` or ``skip``, for a transcript without audio and the reverse; p315 and p362 are left out
            with a note where the official archive is incomplete.

    Raises:
        DataError: no such corpus, an unreadable text, missing audio or text (an empty text counts as missing).
    """
    root = folder_of(Path(root))
    suffix = f"_{MICROPHONE}.flac"
    audio = {path.name.removesuffix(suffix): path for path in listed(root / CARD.contents[1], f"*/*{suffix}")}
    texts = {path.stem: text for path in listed(root / "txt", "*/*.txt") if (text := _text(path))}
    expected = [id for id in {*audio, *texts} if _speaker(id) in INCOMPLETE]
    ids = match_audio(texts, audio, f"{CARD.name} in {root}", on_missing, expected)
    return [Utterance(id, audio[id], texts[id], _speaker(id)) for id in ids]


def folder_of(root: Path) -> Path:
    """Return the folder of the corpus.

    Raises:
        DataError: it is not there, or holds an older version, whose audio is not trimmed and has one microphone.
    """
    try:
        return corpus_folder(root, CARD)
    except DataError:
        older = [folder for folder in (root, *sorted(root.glob("VCTK-Corpus*"))) if (folder / OLDER).is_dir()]
        if not older:
            raise
    raise DataError(
        f"{older[0]} is an older version of VCTK (0.80: {OLDER}, one microphone, silences not trimmed), and the splits "
        f"and recipes are those of 0.92: get {CARD.name} with s3prl-ext prepare vctk --download."
    )


def held_out(speakers: Sequence[str]) -> dict[str, list[str]]:
    """Return the dev speakers (index 8, 18, ...) and test speakers (index 9, 19, ...) of the sorted `speakers`."""
    return {"dev": list(speakers[8::10]), "test": list(speakers[9::10])}


CORPUS = TranscribedCorpus(CARD, "speaker", read, held_out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare vctk``; return the exit status."""
    return prepare(CORPUS, "vctk", argv)


def _speaker(id: str) -> str:
    return id.rpartition("_")[0]


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): unpack the archive again.") from error
