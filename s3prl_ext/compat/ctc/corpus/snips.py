"""Slot filling on Audio SNIPS: character transcripts with slot marks (``corpus.name: snips``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.compat.ctc.corpus.bucketing import BucketingDataset, check_known
from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError
from s3prl_ext.reading import read_lines

logger = logging.getLogger(__name__)


class SnipsDataset(BucketingDataset):
    """Utterances of Audio SNIPS splits with the token ids of their text and slots.

    Args:
        split: names of splits, folders below `path`; the first one chooses the speakers.
        tokenizer: s3prl's text encoder; one with slots reads ``all.iob.snips.txt``, others ``all-trans.txt``.
        bucket_size: utterances in one item.
        path: folder with ``<split>/<Speaker>-....wav`` and the file of transcripts.
        ascending: shortest first.
        kwargs: further keys of the task's ``corpus`` section; of these ``<split>_speakers`` are used.

    Raises:
        DataError: no transcripts, or no clip of one of the speakers in a split.
    """

    def __init__(self, split: Sequence[str] | str, tokenizer, bucket_size, path, ascending=False, **kwargs):
        self.path = path
        splits = [split] if isinstance(split, str) else list(split)
        self.speaker_list = kwargs[f"{splits[0]}_speakers"]
        with_slots = "-slot" in tokenizer.token_type
        transcripts = _read_transcripts(Path(path) / ("all.iob.snips.txt" if with_slots else "all-trans.txt"))
        files = [file for name in splits for file in self._files(Path(path) / name, transcripts)]
        utterances = [
            (file, tokenizer.encode(transcripts[file.stem])) for file in tqdm(files, desc="tokenizing", leave=False)
        ]
        check_known(utterances, tokenizer, Path(path) / splits[0])
        super().__init__(utterances, bucket_size, ascending)

    def _files(self, folder: Path, transcripts: dict[str, str]) -> list[Path]:
        """Return the clips of `folder` that have a transcript and belong to the wanted speakers."""
        audio = listed(folder, "**/*.wav")
        files = [file for file in audio if file.stem in transcripts]
        if len(files) < len(audio):
            logger.warning("%d clips of %s have no transcript and are left out", len(audio) - len(files), folder)
        files = [file for file in files if file.stem.startswith(tuple(self.speaker_list))]
        absent = [name for name in self.speaker_list if not any(file.stem.startswith(name) for file in files)]
        if absent or not files:
            raise DataError(
                f"no clip of the speakers {', '.join(absent) or '(none are listed)'} in {folder}: "
                "check downstream_expert.corpus.path or its lists of speakers."
            )
        logger.info("%d clips of %d speakers in %s", len(files), len(self.speaker_list), folder)
        return files


def _read_transcripts(file: Path) -> dict[str, str]:
    """Return utterance id -> the rest of its line."""
    if not file.is_file():
        raise DataError(f"the transcripts {file} do not exist: check downstream_expert.corpus.path.")
    lines = read_lines(file)
    return dict(line.strip().split(" ", 1) for line in lines if " " in line.strip())
