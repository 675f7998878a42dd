"""The training split is divided among the processes of a run, whatever the task's own loader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.training.batching.ranks import ShareOfRank, open_training
from s3prl_ext.training.selection.fisher_batches import TaskBatches
from tests.support.experiments import make_args, task_config

WITH_REPLACEMENT = ("ks",)


def of_rank(rank: int, read: Callable[[], Any], ranks: int = 2) -> Any:
    """Return what a function returns in a process that is one of several."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        return read()
    finally:
        dist.destroy_process_group()


def drawn(loader: Any) -> list[int]:
    """Return the numbers of the items that a loader reads."""
    return [item for batch in loader.batch_sampler for item in batch]


def shares(task: Any, **options: Any) -> list[list[int]]:
    """Return what each of two processes reads of the training split."""
    return [of_rank(rank, lambda: drawn(open_training(task, "train", **options))) for rank in (0, 1)]


class Task:
    """A task with a loader of its training split."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def get_dataloader(self, split: str) -> DataLoader:
        return DataLoader(range(21), **self.options)


@pytest.mark.parametrize("task", TRAINED)
def test_the_ranks_of_a_run_read_different_clips(build, tmp_path, task):
    args = make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream)
    expert = build(args, task_config(task)).downstream.model
    whole = len(expert.get_dataloader("train").dataset)
    first, second = shares(expert)
    assert len(first) == len(second) and first != second
    if task not in WITH_REPLACEMENT:
        assert len(first) + len(second) - whole in (0, 1), "of an odd number one clip comes twice"
        assert set(first) | set(second) == set(range(whole))
        assert len(set(first) & set(second)) == whole % 2
    assert shares(expert, epoch=1)[0] != first
    torch.rand(5)  # processes may have drawn different numbers before
    of_seed = shares(expert, seed=7)
    torch.rand(5)
    assert shares(expert, seed=7) == of_seed != shares(expert, seed=8)


def test_the_order_is_that_of_the_seed_and_the_epoch_alone():
    task = Task(batch_size=4, shuffle=True)
    found = shares(task, epoch=2, seed=7)
    torch.rand(5)
    assert shares(task, epoch=2, seed=7) == found
    assert shares(task, epoch=3, seed=7) != found != shares(task, epoch=2, seed=8)
    states = []
    for _ in range(2):
        states.append(torch.get_rng_state())
        shares(task)
    assert torch.equal(*states), "nothing else draws other numbers"


def test_a_sampler_keeps_its_weights_and_its_size():
    weights = torch.tensor([0.0] * 10 + [1.0] * 11)
    found = shares(Task(batch_size=4, drop_last=True, sampler=WeightedRandomSampler(weights, 40)))
    assert [len(share) for share in found] == [20, 20] and found[0] != found[1]
    assert min(found[0] + found[1]) >= 10


def test_a_loader_that_a_task_keeps_is_divided_once():
    class Keeps(Task):
        def get_dataloader(self, split: str) -> DataLoader:
            self.options.setdefault("loader", DataLoader(range(21), batch_size=4, shuffle=True))
            return self.options["loader"]

    def epochs() -> list[list[int]]:
        return [drawn(open_training(kept, "train", epoch)) for epoch in (0, 1)]

    kept = Keeps()
    zeroth, first = of_rank(0, epochs)
    assert len(zeroth) == len(first) == 11 and zeroth != first


def test_one_process_reads_as_the_task_does():
    task = Task(batch_size=4, shuffle=True)
    found = []
    for read in (task.get_dataloader, lambda split: open_training(task, split)):
        torch.manual_seed(3)
        found.append(drawn(read("train")))
    torch.manual_seed(3)
    one_of_one = of_rank(0, lambda: drawn(open_training(task, "train")), ranks=1)
    assert found[0] == found[1] == one_of_one


def test_epochs_are_counted_in_shares(build, tmp_path):
    """Source separation, 16 clips in batches of 4."""
    runner = build(make_args(tmp_path / "exp", downstream="separation_stft"), task_config("ss"))
    assert runner._steps_of_epochs(3) == 12
    assert of_rank(1, lambda: runner._steps_of_epochs(3)) == 6


def test_a_released_pass_over_the_task_loader_reads_the_split_once():
    task = Task(batch_size=3, shuffle=True)

    def read(rank: int) -> tuple[int, list[int]]:
        batches = TaskBatches(task, "train", seed=5)
        return len(batches), torch.cat(list(batches.batches(rank, 2))).tolist()

    (count, first), (_, second) = (of_rank(rank, lambda rank=rank: read(rank)) for rank in (0, 1))
    assert count == 8 and sorted({*first, *second}) == list(range(21)) and len(first) == len(second) == 11


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(21))


class Own(BatchSampler):
    """Batches that a task makes itself."""


class Streams(Task):
    def get_dataloader(self, split: str) -> Any:
        return DataLoader(Stream(), batch_size=4)


class Lists(Task):
    def get_dataloader(self, split: str) -> Any:
        return [[1, 2], [3]]


OWN = Own(RandomSampler(range(21)), 4, False)


@pytest.mark.parametrize(
    ("task", "named"),
    [
        (Streams(), "the iterable dataset Stream"),
        (Lists(), r"a loader of its own \(list\)"),
        (Task(batch_size=None, shuffle=True), r"a loader of its own \(DataLoader\)"),
        (Task(batch_sampler=OWN), r"a batch sampler of its own \(Own\)"),
    ],
)
def test_what_cannot_be_divided_is_refused(task, named):
    open_training(task, "train")
    with pytest.raises(UsageError, match=rf"split 'train' has {named}, which several processes .* in one process"):
        of_rank(0, lambda: open_training(task, "train"))


def test_a_task_that_divides_its_batches_says_so():
    share = Own(RandomSampler(range(21)), 4, False)
    share.num_replicas = 2
    loader = of_rank(0, lambda: open_training(Task(batch_sampler=share), "train"))
    assert loader.batch_sampler is share and not isinstance(share.sampler, ShareOfRank)
