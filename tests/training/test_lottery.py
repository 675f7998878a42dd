"""Lottery masks: the weights that a short dense phase moves farthest, everything rewound, resumable, shared."""

from __future__ import annotations

import copy
from collections import defaultdict

import pytest
import torch

from s3prl_ext import randomness
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.errors import StoppedByUser, UsageError
from s3prl_ext.run_folder import FISHER_FILE, MASK_FILE, RunFolder
from s3prl_ext.training.selection.child_selection import choose_mask
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import UtteranceBatches
from s3prl_ext.training.selection.lottery_pass import LotteryPass
from tests.support.experiments import interrupt_at_loss, make_args, task_config

LOTTERY = {"method": "child", "mask": "lottery", "density": 0.1, "lottery": {"steps": 3, "lr": 1e-3}}


@pytest.fixture
def runner(build, tmp_path, hubert_ckpt):
    def make(folder="exp", shared=None, **tuning):
        args = make_args(tmp_path / folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
        args.fisher_scores = shared
        return build(args, task_config(tuning=LOTTERY | tuning, total_steps=2))

    return make


def scores_of(runner, folder=None):
    parameters = eligible_parameters(runner.upstream.model)
    with randomness.preserved(1337):
        kept = RunFolder(folder) if folder else None
        return LotteryPass(Choice(runner.models, parameters, runner.tuning, "train", 1337, kept)).scores()


def test_scores_are_the_changes_of_a_dense_training_by_hand(runner):
    """The oracle trains the three models in a plain loop and subtracts the weights before."""
    ours = runner()
    found = scores_of(ours)
    upstream, featurizer, downstream = (entry.model.train() for entry in runner("by_hand").all_entries)
    parameters = eligible_parameters(upstream)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    config = ours.tuning.lottery
    heads = [*featurizer.parameters(), *downstream.parameters()]
    optimizer = torch.optim.Adam(
        [{"params": [*parameters.values()], "lr": 1e-3}, {"params": heads, "lr": config.head_lr}]
    )
    with randomness.preserved(1337):
        loader = UtteranceBatches(downstream, "train")._loader(batch_size=downstream.datarc["batch_size"], shuffle=True)
        for _, (wavs, *others) in zip(range(3), loader):
            wavs = [torch.as_tensor(wav, dtype=torch.float32) for wav in wavs]
            loss = downstream("train", featurizer(wavs, upstream(wavs)), *others, records=defaultdict(list))
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*parameters.values(), *heads], config.max_norm)
            optimizer.step()
            optimizer.zero_grad()
    assert sum(score.sum() for score in found.values()) > 0
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], (parameter.detach() - before[name]).abs(), rtol=0, atol=0, msg=name)
    mask = choose_mask(Choice(ours.models, eligible_parameters(ours.upstream.model), ours.tuning, "train", 1337))
    expected = masks.top_k(found, 0.1)
    assert all(torch.equal(mask[name], expected[name]) for name in expected) and mask.keys() == expected.keys()


def test_weights_head_and_random_states_are_rewound_bitwise(runner):
    ours = runner()
    weights = [copy.deepcopy(m.state_dict()) for m in ours.models.modules()]
    modes = [m.training for top in ours.models.modules() for m in top.modules()]
    state = torch.get_rng_state()
    first = scores_of(ours)
    for module, before in zip(ours.models.modules(), weights):
        assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert modes == [m.training for top in ours.models.modules() for m in top.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[n], t) for n, t in scores_of(ours).items())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_interrupted_it_goes_on_bitwise_and_leaves_the_weights_alone(runner, tmp_path, at):
    expected = scores_of(runner("whole"))
    parts = runner("parts")
    before = copy.deepcopy(parts.upstream.model.state_dict())
    interrupt_at_loss(parts, at)
    with pytest.raises(StoppedByUser, match=f"in the dense phase of the lottery: {at} of 3 steps are saved"):
        scores_of(parts, tmp_path / "parts")
    assert all(torch.equal(before[n], t) for n, t in parts.upstream.model.state_dict().items())
    other = runner("parts", lottery={"steps": 4, "lr": 1e-3})
    with pytest.raises(UsageError, match=r"lottery\.steps 3 instead of 4"):
        scores_of(other, tmp_path / "parts")
    again = scores_of(runner("parts"), tmp_path / "parts")
    assert all(torch.equal(expected[n], t) for n, t in again.items())


def test_a_run_trains_it_from_the_untouched_weights_and_shares_the_scores(runner, tmp_path, monkeypatch):
    passes, scores = [], LotteryPass.scores
    monkeypatch.setattr(LotteryPass, "scores", lambda self: passes.append(self) or scores(self))
    run = runner(shared=str(tmp_path / "shared"))
    before = copy.deepcopy(run.upstream.model.state_dict())
    run.train()
    moved = {
        n: torch.nonzero((before[n] != t).reshape(-1)).squeeze(1) for n, t in run.upstream.model.state_dict().items()
    }
    assert 0 < sum(map(len, moved.values())) <= len(run.child)
    assert all(set(m.tolist()) <= set(run.child.mask[n].tolist()) for n, m in moved.items() if len(m))
    assert (tmp_path / "exp" / MASK_FILE).is_file() and not (tmp_path / "exp" / FISHER_FILE).exists()
    runner("same", shared=str(tmp_path / "shared")).train()
    assert len(passes) == 1, "made once"
    runner("longer", shared=str(tmp_path / "shared"), lottery={"steps": 4, "lr": 1e-3}).train()
    assert len(passes) == 2, "another dense phase has scores of its own"


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"lottery": {"steps": 0}}, r"tuning\.lottery\.steps must be a whole number of at least 1"),
        ({"lottery": {"step": 5}}, "did you mean 'steps'"),
        ({"mask": "fisher"}, r"tuning\.lottery belongs to mask lottery, not to fisher"),
        ({"fisher": {"max_batches": 2}}, r"tuning\.fisher belongs to mask fisher or snip, not to lottery"),
    ],
)
def test_wrong_settings_are_refused(runner, tuning, message):
    with pytest.raises(UsageError, match=message):
        runner(**tuning)
