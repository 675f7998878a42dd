"""``runner.group_by_length``: the same clips in batches of like length, and the same ones after a resume."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from s3prl_ext import randomness
from s3prl_ext.training.batching.batches import TrainingBatches
from s3prl_ext.training.batching.like_length import LikeLength, exchanged, padding
from tests.support.experiments import interrupt_at_loss, make_args, record_losses, task_config


class Clips:
    """30 clips of different lengths, each cut at a random place when it is read, as KS and SID do."""

    def __len__(self):
        return 30

    def __getitem__(self, index):
        length = 100 + 37 * index % 301
        start = random.randint(0, 9) + np.random.randint(10) + int(torch.randint(10, ()))
        return np.arange(start, start + length), index, f"clip-{index}"


def collate(samples):
    return zip(*samples, strict=True)


def loader(epoch=0, batch_size=4):
    sampler = WeightedRandomSampler(torch.arange(1.0, 31.0), 30)
    return DataLoader(Clips(), batch_size=batch_size, sampler=sampler, collate_fn=collate)


def plain(batch):
    return [[*map(np.ndarray.tolist, batch[0])], list(batch[1]), list(batch[2])]


def test_the_clips_are_those_of_the_loader_with_less_padding():
    found = []
    for make in (loader, lambda: LikeLength(loader(), 4)):
        randomness.seed_all(3)
        found.append([tuple(batch) for batch in make()])
    before, after = found
    assert sorted(len(batch[0]) for batch in after) == sorted(len(batch[0]) for batch in before) == [2] + 7 * [4]
    drawn = [sorted(name for batch in batches for name in batch[2]) for batches in (before[:4], after[:4])]
    assert len(drawn[0]) == len(drawn[1]) == 16 and len(LikeLength(loader(), 4)) == 8
    assert padding(after) < 0.4 * padding(before)
    for wavs, numbers, names in after:
        assert [f"clip-{number}" for number in numbers] == list(names)
        assert [100 + 37 * number % 301 for number in numbers] == list(map(len, wavs))


def test_the_order_of_the_batches_is_drawn():
    group = [tuple(batch) for batch in loader()]
    orders = {tuple(batch[2] for batch in exchanged(group, torch.Generator().manual_seed(seed))) for seed in range(5)}
    assert len(orders) > 1 and len({frozenset(order) for order in orders}) == 1


@pytest.mark.parametrize(
    "batch", [(["a"] * 1, ["x"]), ([[1, 2], [3]], "name"), ([[1], [2]], [[1]]), ([[1], [2]], torch.zeros(2))]
)
def test_batches_of_other_kinds_are_left_alone(batch):
    group = [batch, ([[5], [6]], ["c", "d"])] if len(batch[0]) > 1 else [batch]
    assert exchanged(group, torch.Generator()) == group


@pytest.mark.parametrize("taken", [1, 3, 4, 5, 7, 8, 9, 11])
def test_a_resumed_run_gets_the_batches_of_the_uninterrupted_one(taken):
    """Training draws from all random states between the batches."""

    def use(batch):
        return plain(batch), random.random(), float(np.random.rand()), float(torch.rand(()))

    randomness.seed_all(11)
    batches = TrainingBatches(loader, group=4)
    iterator, seen, position = iter(batches), [], None
    for number in range(14):
        seen.append(use(next(iterator)))
        if number + 1 == taken:
            position = batches.position()
    randomness.seed_all(99)
    resumed = iter(TrainingBatches(loader, position, group=4))
    assert [use(next(resumed)) for _ in range(14 - taken)] == seen[taken:]


def test_a_run_is_resumed_bitwise(build, tmp_path):
    losses = {}
    for name, stop in (("whole", None), ("parts", 3)):
        args, config = (
            make_args(tmp_path / name),
            task_config("sid", total_steps=5, group_by_length=3, eval_dataloaders=[]),
        )
        args.downstream = "voxceleb1"
        config["downstream_expert"]["datarc"] |= {"num_workers": 0, "train_batch_size": 2}
        config["runner"]["gradient_accumulate_steps"] = 1
        runner = build(args, config)
        losses[name] = record_losses(runner)
        if stop:
            interrupt_at_loss(runner, stop)
            with pytest.raises(Exception, match="resume|stopped"):
                runner.train()
            args.init_ckpt = args.past_exp = str(next((tmp_path / name).glob("states-*.ckpt")))
            runner = build(args, config)
            again = record_losses(runner)
            runner.train()
            losses[name] += again
        else:
            runner.train()
    assert losses["whole"] == losses["parts"] and len(losses["whole"]) == 5
