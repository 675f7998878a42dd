"""An upstream with batch norm: what was scored is what is stored, resumed, and raced; frozen is frozen."""

from __future__ import annotations

import copy

import pytest
import torch

from s3prl_ext.child_tuning import delta
from s3prl_ext.errors import StoppedByUser
from s3prl_ext.training import checkpoint
from s3prl_ext.training.statistics import StateChanged, check_buffers, copy_buffers, restore_buffers
from tests.adapters.models import clips
from tests.merging.test_learnable import learnable
from tests.support import factories
from tests.support.experiments import interrupt_at_loss, make_args, task_config
from tests.training.test_race_runs import assert_same_run, newest, resumed, same

SMALL = {
    "child": {"method": "child", "mask": "random", "density": 0.1},
    "houlsby": {"method": "houlsby"},
    "lora": {"method": "lora"},
    "bitfit": {"method": "bitfit"},
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """A HuBERT whose positional convolution has a batch norm."""
    folder = factories.hubert_folder(tmp_path_factory.mktemp("norm") / "hubert", conv_pos_batch_norm=True)
    return {"upstream": "hf_speech_custom", "upstream_ckpt": str(folder)}


def _features(runner):
    runner.upstream.model.eval()
    with torch.no_grad():
        return runner.upstream.model(clips(8000))["last_hidden_state"]


def _state(runner):
    return copy.deepcopy(runner.upstream.model.state_dict())


@pytest.mark.parametrize("method", [*SMALL, "full"])
def test_the_checkpoint_is_the_model_that_was_trained(build, tmp_path, upstream, method):
    config = task_config(tuning=SMALL.get(method, {"method": method}))
    config["optimizer"] |= {"lr": 1.0e-2}
    runner = build(make_args(tmp_path, **upstream), config)
    base = _state(runner)
    statistics = [name for name in base if "running_" in name or "num_batches" in name]
    assert len(statistics) == 3
    runner.train()
    after = runner.upstream.model.state_dict()
    assert method == "full" or all(torch.equal(after[name], base[name]) for name in statistics)
    assert method != "full" or not any(torch.equal(after[name], base[name]) for name in statistics)
    again = build(resumed(tmp_path, upstream), config)
    again.train()  # nothing is left to do
    assert torch.equal(_features(runner), _features(again))


def test_full_tuning_of_some_layers_moves_no_statistics_of_the_others(build, tmp_path):
    """Also of a race, whose candidates freeze other layers one after another."""
    folder = factories.speech_family_folder(tmp_path / "conformer", family="Wav2Vec2Conformer")
    conformer = {"upstream": "hf_speech_custom", "upstream_ckpt": str(folder)}
    config = task_config(tuning={"method": "full", "train_layers": [["0"], ["1"], "all"]}, eval_dataloaders=["dev"])
    runner = build(make_args(tmp_path, **conformer), config | {"early_stop": {"ratio": 0.5, "keep": 3}})
    base = _state(runner)
    runner.train()
    for candidate, trains in (("0", {"0"}), ("1", {"1"}), ("all", {"0", "1"})):
        after = newest(tmp_path / "race" / f"train_layers={candidate}")["Upstream"]
        moved = {name for name in base if not torch.equal(after[name], base[name])}
        statistics = {name for name in moved if "running_" in name or "num_batches" in name}
        assert {name.split("layers.")[1][0] for name in statistics} == trains and len(statistics) == 3 * len(trains)
        assert candidate == "all" or all(f"layers.{candidate}." in name for name in moved)


@pytest.mark.parametrize(
    ("tuning", "moves"),
    [({"method": "full"}, True), ({"method": "full", "train_layers": "1"}, False)],
    ids=["full", "train_layers"],
)
def test_a_norm_without_weights_moves_with_all_of_the_upstream_alone(build, tmp_path, upstream, tuning, moves):
    """Such as MAE-AST's, at its input."""
    runner = build(make_args(tmp_path, **upstream), task_config(tuning=tuning))
    model = runner.upstream.model
    model.norm = torch.nn.BatchNorm1d(1, affine=False)
    model.register_forward_pre_hook(lambda module, given: (module.norm(given[0][0][:, None]), None)[1])
    runner.train()
    assert bool(model.norm.num_batches_tracked) == moves


@pytest.mark.parametrize("method", [*SMALL, "full"])
def test_resumed_is_uninterrupted(build, tmp_path, upstream, method):
    config = task_config(tuning=SMALL.get(method, {"method": method}))
    build(make_args(tmp_path / "whole", **upstream), config).train()
    runner = build(make_args(tmp_path / "cut", **upstream), config)
    interrupt_at_loss(runner, 3)
    with pytest.raises(StoppedByUser):
        runner.train()
    build(resumed(tmp_path / "cut", upstream), config).train()
    assert_same_run(newest(tmp_path / "whole"), newest(tmp_path / "cut"))
    assert same(newest(tmp_path / "whole").get("Upstream"), newest(tmp_path / "cut").get("Upstream"))


@pytest.mark.parametrize("section", [{"method": "full", "lr": [0.01, 0.001]}, SMALL["child"] | {"lr": [0.01, 0.001]}],
                         ids=["full", "child"])  # fmt: skip
def test_a_race_leaves_nothing_of_one_candidate_in_the_next(build, tmp_path, upstream, section):
    config = task_config(tuning=section) | {"early_stop": {"ratio": 0.5, "keep": 2}}
    build(make_args(tmp_path / "race", **upstream), config).train()
    for lr in section["lr"]:
        build(make_args(tmp_path / f"{lr}", **upstream), task_config(tuning=section | {"lr": lr})).train()
        found, expected = newest(tmp_path / "race" / "race" / f"lr={lr:g}"), newest(tmp_path / f"{lr}")
        assert_same_run(found, expected)
        assert same(found.get("Upstream"), expected.get("Upstream"))


def test_state_that_nobody_knows_ends_the_run_before_it_is_stored(build, tmp_path, upstream):
    """A module of the upstream counts its passes in a buffer: a delta would not hold it."""
    runner = build(make_args(tmp_path, **upstream), task_config(tuning=SMALL["bitfit"]))
    model = runner.upstream.model
    model.model.register_buffer("passes", torch.zeros(()))
    runner.tuned._buffers["model.passes"] = torch.zeros(())
    model.register_forward_hook(lambda module, *_: module.model.passes.add_(1) and None)
    with pytest.raises(StateChanged, match="buffer model.passes of the upstream changed .* Use tuning.method: full"):
        runner.train()
    assert not list(tmp_path.glob("*.ckpt")) and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("method", SMALL)
def test_a_weight_that_should_be_frozen_and_changes_ends_the_run_before_its_last_step_is_stored(
    build, tmp_path, upstream, method
):
    """A module of the upstream writes to a weight that neither the method nor the task trains."""
    runner = build(make_args(tmp_path, **upstream), task_config(tuning=SMALL[method]))
    model = runner.upstream.model
    model.register_forward_hook(lambda module, *_: (module.model.masked_spec_embed.data.add_(1), None)[1])
    with pytest.raises(StateChanged, match="weights of the upstream outside the child network or adapter changed"):
        runner.train()
    assert not (tmp_path / "states-4.ckpt").exists() and not (tmp_path / "delta.safetensors").exists()


@pytest.mark.parametrize("method", SMALL)
def test_the_comparison_with_the_untouched_upstream_changes_no_bit(build, tmp_path, upstream, method):
    config = task_config(tuning=SMALL[method])
    config["optimizer"] |= {"lr": 1.0e-2}
    runner = build(make_args(tmp_path, **upstream), config)
    runner.train()
    before = _state(runner)
    runner.tuned.check_untouched()
    after = runner.upstream.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_matrices_of_a_learnable_merge_are_not_copied_and_statistics_come_back():
    model, _, _ = learnable()
    model.norm = torch.nn.BatchNorm1d(2)
    names = {name for name, _ in model.named_buffers()}
    copies = copy_buffers(model)
    assert copies.keys() == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert sum(name.endswith((".source", ".present")) for name in names) == len(names) - 3 > 1
    model.norm(torch.randn(4, 2))
    with pytest.raises(StateChanged, match="the buffer norm"):
        check_buffers(model, copies)
    restore_buffers(model, copies)
    check_buffers(model, copies)
    assert model.norm.num_batches_tracked == 0


def test_the_delta_is_the_model_that_was_scored(build, tmp_path, upstream):
    config = task_config(tuning=SMALL["child"], eval_step=2)
    config["optimizer"] |= {"lr": 1.0e-2}
    runner = build(make_args(tmp_path, **upstream), config)
    base = _state(runner)
    runner.train()
    file = delta.load(tmp_path / "delta.safetensors")
    file.toggle(base)
    best = checkpoint.load(tmp_path / "dev-best.ckpt")["UpstreamDelta"]
    tuned = build(make_args(tmp_path / "again", **upstream), config).upstream.model
    tuned.load_state_dict(base)
    for name, indices in best["indices"].items():
        assert torch.equal(tuned.get_parameter(name).detach().view(-1)[indices.long()], best["values"][name])


def test_a_fisher_pass_in_train_mode_leaves_them_to_a_resumed_one(upstream):
    from s3prl_ext.training.forward import TaskModels
    from s3prl_ext.training.selection.scoring_pass import train_mode

    norms = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    models = TaskModels(torch.nn.Sequential(norms[0], torch.nn.Dropout()), torch.nn.Identity(), norms[1], "cpu")
    with train_mode(models):
        models.upstream(torch.randn(4, 2))
        assert models.upstream[1].training and norms[1].training
    assert norms[0].num_batches_tracked == 0
