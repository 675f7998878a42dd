"""Phoneme recognition on LibriSpeech: transcripts turned into phones by lexica (``corpus.name: libriphone``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.compat.ctc.corpus.bucketing import BucketingDataset
from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError
from s3prl_ext.reading import read_lines

logger = logging.getLogger(__name__)


class LibriPhoneDataset(BucketingDataset):
    """Utterances of LibriSpeech splits with the token ids of their phones.

    Args:
        split: names of splits, folders below `path`.
        tokenizer: s3prl's word-level text encoder over the phones.
        bucket_size: utterances in one item.
        path: LibriSpeech folder, ``<split>/<speaker>/<chapter>/*.flac`` and ``*.trans.txt``.
        lexicon: files with lines ``WORD PHONE PHONE ...``; the first pronunciation of a word counts.
        ascending: shortest first.
        kwargs: further keys of the task's ``corpus`` section, not used here.

    Raises:
        DataError: a split or transcript is missing, or a word is in no lexicon, or a phone not in the vocabulary.
    """

    def __init__(self, split: Sequence[str], tokenizer, bucket_size, path, lexicon, ascending=False, **kwargs):
        self.path = path
        pronunciations = read_lexica(lexicon, tokenizer)
        files = [file for name in split for file in _audio_files(Path(path) / name)]
        transcripts: dict[str, str] = {}
        for folder in sorted({file.parent for file in files}):
            transcripts.update(_read_transcripts(folder))
        utterances = []
        for file in tqdm(files, desc="word -> phonemes", leave=False):
            if not transcripts.get(file.stem, "").strip():
                raise DataError(f"{file.parent} has no transcript of {file.name}: complete its .trans.txt.")
            phones = _phonemize(transcripts[file.stem], pronunciations, file)
            utterances.append((file, tokenizer.encode(" ".join(phones))))
        super().__init__(utterances, bucket_size, ascending)


def read_lexica(lexica: Sequence[str], tokenizer) -> dict[str, list[str]]:
    """Return word -> phones over all `lexica`; of several pronunciations the first one wins."""
    pronunciations: dict[str, list[str]] = {}
    ambiguous = 0
    for lexicon in lexica:
        if not Path(lexicon).is_file():
            raise DataError(
                f"no such lexicon: {lexicon}; s3prl's lexica are in its git repository, s3prl/downstream/ctc/lexicon: "
                "point LIBRISPEECH_LEXICON at that folder, or config.downstream_expert.corpus.lexicon at your own."
            )
        for line in read_lines(lexicon):
            if not line.strip():
                continue
            word, *phones = line.split()
            unknown = [phone for phone in phones if tokenizer.vocab_to_idx(phone) == tokenizer.unk_idx]
            if unknown:
                raise DataError(
                    f"{lexicon}: phone '{unknown[0]}' of {word} is not in the vocabulary (text.vocab_file)."
                )
            ambiguous += word in pronunciations
            pronunciations.setdefault(word, phones)
    logger.info("lexicon of %d words; %d further pronunciations are not used", len(pronunciations), ambiguous)
    return pronunciations


def _audio_files(folder: Path) -> list[Path]:
    files = listed(folder, "**/*.flac")
    if not files:
        raise DataError(f"no .flac files under {folder}; check downstream_expert.corpus.path or its splits.")
    return files


def _read_transcripts(folder: Path) -> dict[str, str]:
    """Return utterance id -> transcript of one chapter's folder."""
    lines = [line for file in listed(folder, "*.trans.txt") for line in read_lines(file)]
    return dict(line.split(" ", 1) for line in lines if " " in line)


def _phonemize(transcript: str, pronunciations: dict[str, list[str]], file: Path) -> list[str]:
    phones: list[str] = []
    for word in transcript.split():
        if word not in pronunciations:
            raise DataError(f"the word {word} of {file.name} is in no lexicon: add a line for it to one of them.")
        phones += pronunciations[word]
    return phones
