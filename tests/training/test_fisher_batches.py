"""Which clips a Fisher pass reads: a seeded sample of the whole split, or what the released code reads."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_ext import randomness
from s3prl_ext.child_tuning import mask_files, masks
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.fisher import FisherEstimate
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.run_folder import FISHER_FILE, MASK_FILE, RunFolder
from s3prl_ext.training.batching.like_length import padding
from s3prl_ext.training.selection import scoring_pass
from s3prl_ext.training.selection.child_selection import choose_masks
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import TaskBatches, UtteranceBatches
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.tuning_config import FisherConfig
from tests.support.experiments import interrupt_at_loss, make_args, task_config
from tests.training.test_file_order import utterances
from tests.training.test_like_length import Clips, collate, plain

CHILD = {"method": "child", "density": 0.1}


@pytest.fixture
def runner(build, tmp_path, hubert_ckpt):
    """Return a function that builds keyword spotting with a section ``tuning.fisher``."""

    def make(fisher: dict[str, Any], folder: str = "exp", **settings: Any) -> Any:
        args = make_args(tmp_path / folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
        return build(args, task_config(tuning=CHILD | {"fisher": fisher}, **settings))

    return make


def mask_of(runner: Any, expdir: Path | None = None, trained: bool = False) -> masks.Mask:
    parameters, folder = eligible_parameters(runner.upstream.model), RunFolder(expdir) if expdir else None
    choice, density = Choice(runner.models, parameters, runner.tuning, "train", 1337, folder), runner.tuning.density
    return choose_masks(choice, [density], trained=trained).at(density)


def entries(mask: masks.Mask) -> set[tuple[str, int]]:
    return {(name, int(index)) for name, indices in mask.items() for index in indices}


# -- the sample --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TRAINED)
def test_a_limited_pass_reads_utterances_of_the_whole_split(build, tmp_path, mini_superb, task):
    """Of every task: as many as asked for, each once, in the order of the split, the same with the same seed."""
    expert = build(
        make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream), task_config(task)
    ).downstream.model
    for granularity in ("batch", "sample"):
        whole = UtteranceBatches(expert, "train", FisherConfig(granularity))
        assert whole.items == list(range(len(whole.dataset))) and len(whole) > 3
        config = FisherConfig(granularity, max_batches=3)
        drawn, again, other = (UtteranceBatches(expert, "train", config, seed) for seed in (7, 7, 8))
        assert drawn.items == again.items == sorted(set(drawn.items)) != other.items
        assert len(drawn) == 3 and len(drawn.items) == 3 * drawn.batch_size
        assert max(drawn.items) >= 3 * drawn.batch_size, "not the head of the list"
        shares = [list(drawn.batches(rank, 2)) for rank in (0, 1)]
        assert [len(share) for share in shares] == [2, 1]
        everything = UtteranceBatches(expert, "train", FisherConfig(granularity, max_batches=len(whole)), 7)
        assert everything.items == whole.items, "a limit that the split does not reach changes nothing"
    listed = utterances(whole.dataset, mini_superb)
    assert len(set(map(str, listed))) == len(listed), "single utterances, each once"


def test_a_limited_pass_of_keyword_spotting_hears_most_classes(runner):
    """The list is sorted by class: its head is of one or two classes."""
    expert = runner({}).downstream.model
    classes = {word for word, _ in expert.train_dataset.data}
    drawn = UtteranceBatches(expert, "train", FisherConfig("sample", max_batches=3 * len(classes)), 1337)
    heard = {drawn.dataset.data[number][0] for number in drawn.items}
    head = {word for word, _ in drawn.dataset.data[: len(drawn.items)]}
    assert len(heard) > 0.8 * len(classes) > len(head)


def test_a_pass_in_another_order_is_not_continued(runner, tmp_path):
    """What 0.1.0 left behind, which read the head of the list: the same settings, other utterances."""
    parts = runner({"max_batches": 3})
    interrupt_at_loss(parts, 2)
    with pytest.raises(StoppedByUser):
        mask_of(parts, tmp_path / "exp")
    path = tmp_path / "exp" / FISHER_FILE
    saved = torch.load(path, weights_only=True)
    del saved["key"]["order"]
    torch.save(saved, path)
    with pytest.raises(
        UsageError, match="the utterances in another order, as an earlier version read them; .*delete it"
    ):
        mask_of(runner({"max_batches": 3}), tmp_path / "exp")


def test_masks_of_another_order_are_not_mixed(runner, tmp_path, caplog):
    path = tmp_path / "exp" / MASK_FILE
    first = runner({"max_batches": 2})
    expected = mask_of(first, tmp_path / "exp")
    found, origin, histogram = mask_files.load(path)
    del origin["fisher"]["order"]
    mask_files.save(found, path, origin, histogram)
    with caplog.at_level(logging.WARNING):
        again = mask_of(first, tmp_path / "exp")
    assert entries(again) == entries(expected) and "the masks are chosen again" in caplog.text
    mask_files.save(found, path, origin, histogram)
    with pytest.raises(UsageError, match="chosen by an earlier version.*remove it and the folder race to start over"):
        mask_of(first, tmp_path / "exp", trained=True)


# -- the released code -------------------------------------------------------------------------------------------------


def released_mask(runner: Any, accumulation: int, limit: float, density: float) -> set[tuple[str, int]]:
    """Choose a mask as the released ``get_fisher_mask`` does: written anew from its description, no code of ours.

    One epoch of the task's own loader in train mode; the loss divided by the accumulation, each tensor's gradient
    clipped by itself, squared, averaged over the batches; the largest share of all entries together.
    """
    upstream, featurizer, downstream = (entry.model.train() for entry in runner.all_entries)
    parameters = eligible_parameters(upstream)
    loader = downstream.get_dataloader("train")
    scores = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for wavs, *others in loader:
        wavs = [torch.FloatTensor(wav) for wav in wavs]
        loss = downstream("train", featurizer(wavs, upstream(wavs)), *others, records=defaultdict(list))
        (loss / accumulation).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                torch.nn.utils.clip_grad_norm_(parameter, limit)
                scores[name] += parameter.grad**2 / len(loader)
        upstream.zero_grad()
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    names = [(name, index) for name, score in scores.items() for index in range(score.numel())]
    return {names[place] for place in flat.topk(round(density * len(flat))).indices.tolist()}


@pytest.mark.parametrize(
    ("accumulation", "limit"),
    [
        (1, 1.0),
        (4, 1.0),
        (4, 0.05),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0.05), (2, 1.0), (2, 0.05)]),
    ],
)
def test_the_preset_official_chooses_what_the_released_code_does(runner, accumulation, limit):
    settings = {"gradient_accumulate_steps": accumulation, "gradient_clipping": limit}
    ours = entries(mask_of(runner({"preset": "official"}, **settings)))
    other = runner({"preset": "official"}, "oracle", **settings)
    with randomness.preserved(1337):
        theirs = released_mask(other, accumulation, limit, 0.1)
    assert ours == theirs
    if accumulation == 4 and limit < 1:
        undivided = entries(mask_of(runner({"preset": "official", "loss_divisor": 1}, "undivided", **settings)))
        assert len(undivided & theirs) < len(theirs), "the order of division and clipping decides here"


def test_what_the_preset_official_stands_for(runner):
    config = runner({"preset": "official"}, gradient_accumulate_steps=4, gradient_clipping=0.5).tuning.fisher
    assert config == FisherConfig("batch", "tensor", 0.5, "train", "task", None, 4)
    own = runner({"preset": "official", "loader": "split", "granularity": "sample", "mode": "eval"}).tuning.fisher
    assert (own.loader, own.granularity, own.mode, own.clip) == ("split", "sample", "eval", "tensor")
    with pytest.raises(UsageError, match="granularity: sample reads single utterances.*add loader: split"):
        runner({"preset": "official", "granularity": "sample"})


def test_the_task_loader_ends_at_its_limit(runner):
    expert = runner({}).downstream.model
    whole, part = TaskBatches(expert, "train"), TaskBatches(expert, "train", 2)
    assert len(whole) == len(expert.get_dataloader("train")) == len(list(whole.batches())) > len(part) == 2
    assert len(list(part.batches())) == 2 and len(list(part.batches(done=1))) == 1


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_one_sentence_and_loses_nothing(runner, tmp_path, monkeypatch):
    expected = mask_of(runner({"max_batches": 4}, "whole"))
    small = runner({"max_batches": 4})
    loss = type(small.models).loss
    calls: list[int] = []

    def failing(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(type(small.models), "loss", failing)
    advice = (
        r"batch 3 of 4 of the Fisher pass did not fit.*lower the batch size, or set tuning\.fisher to {granularity: "
    )
    with pytest.raises(DataError, match=advice + r"sample}.*kept in .*fisher\.partial: resume with -a") as caught:
        mask_of(small, tmp_path / "exp")
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert all(p.grad is None for p in small.upstream.model.parameters())
    again = runner({"max_batches": 4})
    assert entries(mask_of(again, tmp_path / "exp")) == entries(expected)
    assert len(calls) == 3 + 2, "only what was missing is computed"


@pytest.mark.parametrize("seconds", [0.0, 600.0])
def test_a_backward_pass_that_does_not_fit_says_what_was_saved_before(runner, tmp_path, monkeypatch, seconds):
    small, add_one, calls = runner({"max_batches": 4}), FisherEstimate._add_one, []
    monkeypatch.setattr(scoring_pass, "SAVE_SECONDS", seconds)

    def failing(self: Any, name: str, seen: set[str], parameter: Any) -> None:
        calls.append(self.batches)
        if calls.count(2) == 3:  # the third tensor of the third batch
            raise torch.OutOfMemoryError("CUDA out of memory")
        add_one(self, name, seen, parameter)

    saved = "What was saved before in .*fisher.partial is kept: resume with -a"
    lost = "Nothing was saved in .*fisher.partial: -a starts the pass over"
    with monkeypatch.context() as patch:
        patch.setattr(FisherEstimate, "_add_one", failing)
        with pytest.raises(DataError, match=rf"batch 3 of 4 .*did not fit.*{lost if seconds else saved}"):
            mask_of(small, tmp_path / "exp")
    again = runner({"max_batches": 4})
    assert entries(mask_of(again, tmp_path / "exp")) == entries(mask_of(runner({"max_batches": 4}, "whole")))


def test_a_single_utterance_that_does_not_fit_gets_no_advice_that_it_follows(runner, monkeypatch):
    single = runner({"granularity": "sample", "max_batches": 2})

    def failing(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(single.models), "loss", failing)
    parameters = eligible_parameters(single.upstream.model)
    with pytest.raises(DataError, match="memory; it is a single utterance: leave out the longest ones"):
        FisherPass(Choice(single.models, parameters, single.tuning, "train", 1337)).scores()


# -- batches of like length --------------------------------------------------------------------------------------------


class Expert:
    """Stands for a task whose clips have different lengths and are cut at random places when they are read."""

    def get_dataloader(self, split: str) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(Clips(), batch_size=4, collate_fn=collate)


def names(batches: Any) -> list[str]:
    return [name for batch in batches for name in batch[2]]


def grouped(done: int = 0, rank: int = 0, ranks: int = 1, **settings: Any) -> list[Any]:
    batches = UtteranceBatches(Expert(), "train", FisherConfig(group_by_length=3, **settings), 7)
    return [plain(batch) for batch in batches.batches(rank, ranks, done)]


def test_a_pass_by_length_reads_the_same_clips_with_less_padding():
    before = [tuple(batch) for batch in UtteranceBatches(Expert(), "train").batches()]
    after = grouped()
    assert sorted(map(len, (batch[2] for batch in after))) == sorted(map(len, (batch[2] for batch in before)))
    assert sorted(names(after)) == sorted(names(before)) and sorted(names(after[:3])) == sorted(names(before[:3]))
    assert padding(after) < 0.7 * padding(before)
    assert sorted(names(grouped(max_batches=5))) == sorted(
        names(map(tuple, UtteranceBatches(Expert(), "train", FisherConfig(max_batches=5), 7).batches()))
    )


def test_a_pass_by_length_goes_on_and_is_divided_among_ranks_as_it_was():
    """Also the places where clips are cut, and without an effect on other random numbers."""
    randomness.seed_all(1)
    whole = grouped()
    after = torch.rand(3)
    randomness.seed_all(1)
    assert torch.equal(torch.rand(3), after)
    for done in (1, 3, 4, 8):
        randomness.seed_all(done)
        assert grouped(done) == whole[done:]
    shares = [grouped(rank=rank, ranks=3) for rank in range(3)]
    assert [shares[number % 3][number // 3] for number in range(len(whole))] == whole


def test_a_mask_by_length_is_another_one_of_the_same_clips(runner):
    plainly = mask_of(runner({"max_batches": 8}))
    by_length = mask_of(runner({"max_batches": 8, "group_by_length": 4}, "grouped"))
    assert masks.count(by_length) == masks.count(plainly)
    assert 0.5 < len(entries(by_length) & entries(plainly)) / masks.count(plainly) < 1


@pytest.mark.parametrize("other", [{"granularity": "sample"}, {"loader": "task"}])
def test_what_has_no_batches_of_its_own_has_none_of_like_length(runner, other):
    with pytest.raises(UsageError, match="group_by_length divides a split into batches, and"):
        runner({"group_by_length": 4, **other})


def test_an_unset_key_leaves_what_was_stored_before_as_it_was():
    assert "group_by_length" not in FisherConfig().stored()
    assert FisherConfig(group_by_length=4).stored()["group_by_length"] == 4
