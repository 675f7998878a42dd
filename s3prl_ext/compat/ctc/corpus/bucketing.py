"""What both corpora share: utterances sorted by the length of their labels, handed out singly or in buckets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from s3prl_ext.errors import DataError

logger = logging.getLogger(__name__)

Utterance = tuple[Path, list[int]]  # audio file, token ids
MOST_UNKNOWN = 0.1  # share of a split's characters that a vocabulary of its language may lack


def check_known(utterances: Sequence[Utterance], tokenizer, where: object) -> None:
    """Warn of characters that the vocabulary lacks.

    References have them as unknown, so calling them unknown counts as right.

    Args:
        utterances: of a split.
        tokenizer: s3prl's text encoder.
        where: the file or folder that they are from.

    Raises:
        DataError: they are more than :data:`MOST_UNKNOWN` of all.
    """
    unknown = sum(ids.count(tokenizer.unk_idx) for _, ids in utterances)
    every = sum(len(ids) - ids.count(tokenizer.eos_idx) for _, ids in utterances)
    if unknown > MOST_UNKNOWN * every:
        raise DataError(
            f"{where}: {unknown} of {every} characters are not in text.vocab_file, and calling them unknown would "
            "count as right: give the vocabulary of this language, and texts in its case."
        )
    if unknown:
        logger.warning("%s: %d characters are not in text.vocab_file and count as one unknown", where, unknown)


class BucketingDataset(Dataset):
    """Utterances sorted by number of tokens.

    Attributes:
        file_list: audio files, tuple of ``Path``.
        text: token ids of each file, tuple of lists.
        bucket_size: utterances in one item; 1 gives single utterances.

    An epoch of a bucketed dataset holds as many overlapping buckets as utterances: each is seen about
    `bucket_size` times.

    Raises:
        DataError: fewer utterances than `bucket_size`.
    """

    def __init__(self, utterances: Sequence[Utterance], bucket_size: int, ascending: bool | None):
        if len(utterances) < max(1, bucket_size):
            raise DataError(
                f"a bucket takes {bucket_size} utterances, but only {len(utterances)} were found: "
                "lower downstream_expert.corpus.batch_size or add data."
            )
        ordered = list(utterances)  # as they are given, for None
        if ascending is not None:
            ordered.sort(key=lambda utterance: len(utterance[1]), reverse=not ascending)
        self.file_list, self.text = zip(*ordered)
        self.bucket_size = bucket_size

    def __getitem__(self, index: int) -> Utterance | list[Utterance]:
        """Return one utterance, or the bucket of neighbours that starts at `index` or, near the end, before it."""
        if self.bucket_size <= 1:
            return self.file_list[index], self.text[index]
        start = min(len(self.file_list) - self.bucket_size, index)
        bucket = slice(start, start + self.bucket_size)
        return list(zip(self.file_list[bucket], self.text[bucket]))

    def __len__(self) -> int:
        return len(self.file_list)
