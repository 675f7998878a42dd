"""The batches of a Fisher pass: the training split in order, a sample of it, or what the task's own loader gives."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from s3prl_ext import randomness
from s3prl_ext.training.batching.batches import end_with_parent
from s3prl_ext.training.batching.like_length import exchanged, say_padding
from s3prl_ext.training.batching.ranks import open_training
from s3prl_ext.training.results.evaluation import open_split
from s3prl_ext.training.tuning_config import FisherConfig

ORDER = "sorted; a limited pass takes utterances drawn from the whole split"
"""Which utterances a pass reads; stored with its sums, which are not mixed with those of another order."""


EVERY = FisherConfig()  # each utterance of the split, in batches of the task's size


class UtteranceBatches:
    """The training split in the task's own list order, each utterance once, or a seeded sample of it in that order.

    The tasks' own loaders draw with replacement (KS), overlap their buckets (PR, SF) or halve long batches; here the
    dataset is read sequentially, with the task's batch size or batches of one. The lists of all tasks are the same on
    every disk (:mod:`s3prl_ext.compat.listings`), so one seed draws the same utterances anywhere and in every process.
    With ``max_batches`` as many utterances are drawn as fill these batches; ASR hands out whole buckets of clips of
    like length, and of these it draws.

    With ``group_by_length`` every few batches exchange their clips, so that those of like length share one; each group
    is read with random numbers of its own, whole by every rank, and so is the same after a resume and with any number
    of ranks.

    Args:
        downstream: s3prl's downstream expert.
        split: name of the training split.
        config: section ``tuning.fisher``; by default every utterance, in batches of the task's size.
        seed: of the sample.
    """

    def __init__(self, downstream: Any, split: str, config: FisherConfig = EVERY, seed: int = 0) -> None:
        found = open_split(downstream, split)
        self.dataset = copy.copy(found.dataset)  # the task keeps its own as it is
        self._collate, self.batch_size = found.collate_fn, found.batch_size
        bucket = getattr(self.dataset, "bucket_size", 1)
        if bucket > 1 and hasattr(self.dataset, "file_list"):  # PR, SF: item i is the bucket that starts at utterance i
            self.dataset.bucket_size, self.batch_size = 1, bucket
        if isinstance(self._collate, partial) and "split" in self._collate.keywords:
            # PR, SF: "train" would drop half of long batches
            keywords = {**self._collate.keywords, "split": "dev"}
            self._collate = partial(self._collate.func, *self._collate.args, **keywords)
        if config.granularity == "sample":
            buckets = getattr(self.dataset, "X", None)
            if buckets and isinstance(buckets[0], list):  # ASR: item i is a list of files
                self.dataset.X = [[file] for bucket in buckets for file in bucket]
            self.batch_size = 1
        self._workers = found.num_workers
        self._group, self._seed = config.group_by_length, seed
        self.items = self._drawn(config.max_batches, seed)

    def _drawn(self, max_batches: int | None, seed: int) -> list[int]:
        """Return the numbers of the dataset's items that the pass reads, ascending."""
        count = len(self.dataset)
        if max_batches is None or max_batches * self.batch_size >= count:
            return list(range(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return sorted(order[: max_batches * self.batch_size].tolist())

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self.items) / self.batch_size)

    def batches(self, rank: int = 0, ranks: int = 1, done: int = 0) -> Iterator[Any]:
        """Iterate over the batches of a rank without the first `done`, which are not read."""
        numbers = range(rank, len(self), ranks)[done:]
        return (
            iter(self._loader(batch_sampler=self._items_of(numbers))) if self._group is None else self._grouped(numbers)
        )

    def _items_of(self, numbers: range) -> list[list[int]]:
        return [self.items[i * self.batch_size : (i + 1) * self.batch_size] for i in numbers]

    def _grouped(self, numbers: range) -> Iterator[Any]:
        """Yield the batches of some numbers, each of clips of like length."""
        group, every = self._group or 1, range(len(self))
        for start in range(0, len(self), group):
            wanted = [number - start for number in every[start : start + group] if number in numbers]
            if not wanted:
                continue
            with randomness.preserved(self._seed + start):
                read = [
                    tuple(batch) for batch in self._loader(batch_sampler=self._items_of(every[start : start + group]))
                ]
            made = exchanged(read, torch.Generator().manual_seed(self._seed + start))
            if start == 0:
                say_padding("tuning.fisher.group_by_length", read, made)
            yield from (made[number] for number in wanted)

    def endless(self) -> Iterator[Any]:
        """Iterate over the whole split in random order, again and again; equal in every rank."""
        loader = self.shuffled()
        return itertools.chain.from_iterable(iter(loader) for _ in itertools.count())

    def shuffled(self) -> DataLoader:
        """Return a loader of the whole split in random order, another one each time it is iterated over."""
        return self._loader(batch_size=self.batch_size, shuffle=True)

    def _loader(self, **options: Any) -> DataLoader:
        loader = DataLoader(self.dataset, collate_fn=self._collate, num_workers=self._workers, **options)
        return end_with_parent(loader)


class TaskBatches:
    """One epoch of the task's own training loader, shuffled, balanced or bucketed as in training (the released code).

    Its order follows the random state at the start of :meth:`batches`. Of several ranks each reads its own share.

    Args:
        downstream: s3prl's downstream expert.
        split: name of the training split.
        max_batches: end after so many, over all ranks; None = the epoch.
        seed: of the order, where several ranks read a split that the task does not divide.
    """

    def __init__(self, downstream: Any, split: str, max_batches: int | None = None, seed: int = 0) -> None:
        self._loader = open_training(downstream, split, seed=seed)
        found = len(self._loader) * (dist.get_world_size() if dist.is_initialized() else 1)
        self._length = min(found, max_batches or found)

    def __len__(self) -> int:
        """Return the number of batches of all ranks."""
        return self._length

    def batches(self, rank: int = 0, ranks: int = 1, done: int = 0) -> Iterator[Any]:
        """Iterate over the batches of a rank; the first `done` are read and left out."""
        batches = iter(self._loader)
        for _ in range(done):
            next(batches)
        return itertools.islice(batches, len(range(rank, len(self), ranks)) - done)


def open_batches(downstream: Any, split: str, config: FisherConfig, seed: int) -> UtteranceBatches | TaskBatches:
    """Return the batches of a pass.

    Args:
        downstream: s3prl's downstream expert.
        split: name of the training split.
        config: section ``tuning.fisher``.
        seed: of a sample.

    Raises:
        DataError: the split is empty.
    """
    if config.loader == "task":
        return TaskBatches(downstream, split, config.max_batches, seed)
    return UtteranceBatches(downstream, split, config, seed)
