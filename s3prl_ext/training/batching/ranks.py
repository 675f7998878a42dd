"""The share of the training split that each process reads under ``torchrun``, whether the task divides it or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from s3prl_ext import randomness
from s3prl_ext.errors import UsageError
from s3prl_ext.training import distributed
from s3prl_ext.training.results.evaluation import open_split


class ShareOfRank(DistributedSampler):
    """This process's share of the items that a sampler draws; every process draws the same and gets as many.

    Args:
        sampler: of the whole split; weights and replacement stay its own.
        seed: of what is drawn, with the epoch.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        places: Any = range(len(sampler))
        super().__init__(places, shuffle=False, seed=seed)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of this process's items in an epoch."""
        with randomness.preserved(self.seed + self.epoch):
            drawn = list(self.sampler)
        return iter([drawn[place] for place in super().__iter__()])


def open_training(downstream: Any, split: str, epoch: int = 0, seed: int = 0) -> Any:
    """Return a task's DataLoader of the training split in an epoch: of several processes each gets its share.

    A task whose sampler is a ``DistributedSampler``, or has its attribute ``num_replicas``, has divided the split.

    Args:
        downstream: the task.
        split: name of the training split.
        epoch: its number.
        seed: of the order in which several processes read the split; a ``DistributedSampler`` that a task makes has
            torch's, 0, whatever the run's seed.

    Raises:
        DataError: the split is empty.
        UsageError: there are several processes, and it cannot be divided among them.
    """
    try:
        loader = open_split(downstream, split, epoch=epoch)
    except TypeError as error:
        if "unexpected keyword argument 'epoch'" not in str(error):
            raise
        loader = open_split(downstream, split)
    if distributed.world_size() > 1:
        _divide(loader, split, seed)
    for sampler in _samplers(loader):
        if isinstance(sampler, DistributedSampler):
            sampler.seed = seed
            sampler.set_epoch(epoch)
    return loader


def _samplers(loader: Any) -> list[Any]:
    """Return what decides which items a loader reads."""
    batches = getattr(loader, "batch_sampler", None)
    return [loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def _divide(loader: Any, split: str, seed: int) -> None:
    """Let a DataLoader read this process's share, where it reads the whole split."""
    if any(hasattr(part, "num_replicas") for part in _samplers(loader)):
        return
    batches = getattr(loader, "batch_sampler", None)
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        what = f"the iterable dataset {type(loader.dataset).__name__}"
    elif not isinstance(loader, DataLoader) or batches is None:
        what = f"a loader of its own ({type(loader).__name__})"
    elif type(batches) is not BatchSampler:
        what = f"a batch sampler of its own ({type(batches).__name__})"
    else:
        batches.sampler = ShareOfRank(batches.sampler, seed)  # all else stays the task's
        return
    raise UsageError(
        f"the training split '{split}' has {what}, which several processes would all read whole: train this task in "
        "one process, or let its loader or sampler read a share and say so with an attribute num_replicas, as "
        "DistributedSampler does."
    )
