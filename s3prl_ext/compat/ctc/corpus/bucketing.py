"""What both corpora share: utterances sorted by the length of their labels, handed out singly or in buckets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from s3prl_ext.errors import DataError

Utterance = tuple[Path, list[int]]  # audio file, token ids


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
