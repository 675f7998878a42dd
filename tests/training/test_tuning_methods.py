"""What each tuning method trains, bitwise, with weight decay."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from s3prl_ext.child_tuning.eligible import eligible_names, eligible_parameters
from s3prl_ext.errors import DataError, UsageError
from tests.support.experiments import make_args, record_losses, task_config

ADAMW = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1.0e-2, "weight_decay": 0.1}
UPSTREAMS = ["hubert_local", "hf_hubert_custom"]


@pytest.fixture
def upstream(request, hubert_ckpt, hubert_folder):
    name = request.param
    return {"upstream": name, "upstream_ckpt": hubert_ckpt if name == "hubert_local" else hubert_folder}


def tuned(build, tmp_path, upstream, tuning, config=None, **args):
    """Train four steps and return the upstream before, after, and the Runner."""
    config = config or task_config(tuning=tuning, total_steps=4)
    config["optimizer"] = ADAMW
    runner = build(make_args(tmp_path / "exp", **upstream, **args), config)
    before = copy.deepcopy(runner.upstream.model.state_dict())
    runner.train()
    return before, runner.upstream.model.state_dict(), runner


@pytest.mark.parametrize("upstream", UPSTREAMS, indirect=True)
@pytest.mark.parametrize("mask", ["fisher", "random"])
def test_only_the_child_network_changes(build, tmp_path, upstream, mask):
    before, after, runner = tuned(build, tmp_path, upstream, {"method": "child", "mask": mask, "density": 0.02})
    total = sum(before[n].numel() for n in eligible_names([n for n, _ in runner.upstream.model.named_parameters()]))
    chosen = sum(len(i) for i in runner.child.mask.values())
    if mask == "fisher":
        assert chosen == round(0.02 * total)
    else:
        assert abs(chosen - 0.02 * total) < 5 * (0.02 * 0.98 * total) ** 0.5
    moved = 0
    for name in before:
        different = torch.nonzero((before[name] != after[name]).reshape(-1)).squeeze(1)
        allowed = runner.child.mask.get(name, torch.zeros(0, dtype=torch.long))
        assert set(different.tolist()) <= set(allowed.tolist()), name
        moved += len(different)
    assert moved > 0.9 * chosen, "nearly every chosen weight moves under AdamW"


@pytest.mark.parametrize("upstream", UPSTREAMS, indirect=True)
@pytest.mark.parametrize(("mask", "unit"), [("magnitude", "row"), ("fisher", "head"), ("random", "row")])
def test_only_whole_units_change(build, tmp_path, upstream, mask, unit):
    tuning = {"method": "child", "mask": mask, "density": 0.2, "unit": unit}
    before, after, runner = tuned(build, tmp_path, upstream, tuning)
    weights = dict(runner.upstream.model.named_parameters())
    chosen, total = len(runner.child), sum(p.numel() for p in eligible_parameters(runner.upstream.model).values())
    assert 0.1 * total < chosen <= round(0.2 * total)
    for name, indices in runner.child.mask.items():
        columns = weights[name][0].numel() if weights[name].dim() > 1 else 1
        if not (unit == "head" and "out_proj" in name):  # whose columns belong to heads
            assert torch.equal(
                torch.unique(indices // columns, return_counts=True)[1].unique(), torch.tensor([columns])
            )
    moved = {n: torch.nonzero((before[n] != t).reshape(-1)).squeeze(1) for n, t in after.items()}
    assert all(set(m.tolist()) <= set(runner.child.mask[n].tolist()) for n, m in moved.items() if len(m))
    assert sum(map(len, moved.values())) > 0.9 * chosen


@pytest.mark.parametrize("upstream", UPSTREAMS, indirect=True)
@pytest.mark.parametrize("method", ["frozen", "weighted_sum"])
def test_frozen_upstream_stays_bitwise(build, tmp_path, upstream, method):
    before, after, runner = tuned(build, tmp_path, upstream, {"method": method})
    assert all(torch.equal(before[n], after[n]) for n in before)
    states = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)
    assert "Upstream" not in states
    assert hasattr(runner.featurizer.model, "weights") == (method == "weighted_sum")


@pytest.mark.parametrize("upstream", UPSTREAMS, indirect=True)
def test_full_trains_all_but_the_feature_extractor(build, tmp_path, upstream):
    before, after, runner = tuned(build, tmp_path, upstream, {"method": "full"})
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and not any("feature_extractor" in n for n in changed)
    encoder = {n for n, _ in runner.upstream.model.named_parameters() if ".encoder.layers." in f".{n}"}
    still = {n for n in encoder - changed if "k_proj.bias" not in n}
    assert not still, f"untrained encoder weights: {sorted(still)[:5]}"


@pytest.mark.parametrize("upstream", ["hubert_local"], indirect=True)
def test_whole_density_equals_dense_adamw_over_the_eligible_weights(build, tmp_path, upstream):
    """P = 1 is full tuning of the same set with torch's fused AdamW, bitwise."""
    from s3prl_ext.child_tuning.eligible import eligible_parameters

    before, after, _ = tuned(build, tmp_path, upstream, {"method": "child", "mask": "random", "density": 1.0})
    config = task_config(tuning={"method": "weighted_sum"}, total_steps=4)
    config["optimizer"] = ADAMW | {"fused": True}
    dense = build(make_args(tmp_path / "dense", **upstream), config)
    parameters = eligible_parameters(dense.upstream.model)
    for p in parameters.values():
        p.requires_grad_(True)
    dense.upstream.trainable = True
    dense.train()
    for name in parameters:
        assert torch.equal(after[name], dense.upstream.model.state_dict()[name]), name
    assert any(not torch.equal(before[n], after[n]) for n in parameters)


@pytest.mark.parametrize("upstream", ["hubert_local"], indirect=True)
def test_fisher_pass_leaves_models_and_training_as_found(build, tmp_path, upstream):
    """Choosing a mask draws no random number that training would have drawn, and changes no weight."""
    from s3prl_ext import randomness
    from s3prl_ext.child_tuning.eligible import eligible_parameters
    from s3prl_ext.training.selection.child_selection import choose_mask
    from s3prl_ext.training.selection.choice import Choice

    runner = build(make_args(tmp_path / "exp", **upstream), task_config(tuning={"method": "child", "density": 0.1}))
    model = runner.upstream.model
    weights = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random_before = randomness.get_state()
    mask = choose_mask(Choice(runner.models, eligible_parameters(model), runner.tuning, "train", 1337))
    random_after = randomness.get_state()
    assert random_before["python"] == random_after["python"] and random_before["numpy"] == random_after["numpy"]
    assert torch.equal(random_before["torch"], random_after["torch"])
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(weights[n], model.state_dict()[n]) for n in weights)
    assert all(p.grad is None for m in runner.models.modules() for p in m.parameters())
    again = choose_mask(Choice(runner.models, eligible_parameters(model), runner.tuning, "train", 1337))
    assert all(torch.equal(mask[n], again[n]) for n in mask)


@pytest.mark.parametrize("upstream", ["hubert_local"], indirect=True)
@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_only_the_child_network(build, tmp_path, upstream, amp):
    config = task_config(tuning={"method": "child", "mask": "random", "density": 0.05}, amp=amp, total_steps=4)
    before, after, runner = tuned(build, tmp_path, upstream, None, config=config)
    changed = sum(int((before[n] != after[n]).sum()) for n in before)
    assert 0 < changed <= len(runner.child)
    assert all(v.dtype == before[n].dtype for n, v in after.items())


def test_accumulation_equals_one_large_batch_in_gradient(build, tmp_path):
    """Two accumulated batches give the mean of their gradients: check through SGD's first update."""
    deltas = []
    for accumulate, clip in ((1, 1e9), (2, 1e9)):
        config = task_config(total_steps=1, gradient_accumulate_steps=accumulate, gradient_clipping=clip)
        config["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 1.0}
        runner = build(make_args(tmp_path / str(accumulate)), config)
        before = copy.deepcopy(runner.downstream.model.state_dict())
        losses = record_losses(runner)
        runner.train()
        after = runner.downstream.model.state_dict()
        deltas.append(torch.cat([(after[n] - before[n]).reshape(-1) for n in before if n != "best_score"]))
        assert len(losses) >= accumulate
    assert not torch.equal(deltas[0], deltas[1])
    assert deltas[1].norm() < 2 * deltas[0].norm()


def test_flag_f_against_a_freezing_method_is_refused(build, tmp_path, hubert_ckpt):
    args = make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt, upstream_trainable=True)
    with pytest.raises(UsageError, match="freezes it"):
        build(args, task_config(tuning={"method": "frozen"}))


def test_child_of_an_upstream_without_weights_is_refused(build, tmp_path):
    with pytest.raises(UsageError, match="no encoder layers"):
        build(make_args(tmp_path / "exp"), task_config(tuning={"method": "child", "density": 0.1}))


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"method": "chld", "density": 0.1}, "did you mean 'child'"),
        ({"method": "child"}, "density is missing"),
        ({"method": "child", "density": 0}, r"\(0, 1\]"),
        ({"method": "child", "density": 1.5}, r"\(0, 1\]"),
        ({"method": "child", "density": "lots"}, "must be a number"),
        ({"method": "child", "density": 0.1, "mask": "fischer"}, "did you mean 'fisher'"),
        ({"method": "child", "density": 0.1, "densty": 0.1}, "did you mean 'density'"),
        ({"method": "child", "density": 0.1, "eligible": ["nothing.*"]}, "matches no weight"),
        ({"method": "frozen", "density": 0.1}, "belongs to method child"),
        ("child", "must be a mapping"),
    ],
)
def test_wrong_tuning_sections(build, tmp_path, hubert_ckpt, tuning, message):
    with pytest.raises(UsageError, match=message):
        build(
            make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt), task_config(tuning=tuning)
        )


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ({"total_steps": 0}, "at least 1"),
        ({"total_stps": 5}, "did you mean 'total_steps'"),
        ({"amp": "int8"}, "unknown amp .int8.. Known: bf16, fp16"),
        ({"epochs": 1}, "either total_steps or epochs"),
    ],
)
def test_wrong_runner_sections(build, tmp_path, runner, message):
    with pytest.raises(UsageError, match=message):
        build(make_args(tmp_path / "exp"), task_config(**runner))


def test_epochs_in_place_of_steps(build, tmp_path):
    config = task_config(total_steps=None, epochs=1)
    runner = build(make_args(tmp_path / "exp"), config)
    batches = len(runner.downstream.model.get_dataloader("train"))
    runner.train()
    assert (tmp_path / "exp" / f"states-{batches}.ckpt").is_file()


@pytest.mark.parametrize(
    ("upstream", "ckpt", "error", "message"),
    [
        ("hubert_local", None, UsageError, "-u hubert_local cannot be built without a model.*-k"),
        ("hubert_local", "nothing.pt", UsageError, "-k nothing.pt: no such file"),
        ("hf_hubert_custom", "./nothing", DataError, "no such model folder: ./nothing"),
    ],
)
def test_upstream_without_its_model(build, tmp_path, upstream, ckpt, error, message):
    with pytest.raises(error, match=message):
        build(make_args(tmp_path / "exp", upstream=upstream, upstream_ckpt=ckpt), task_config())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {}, "cfg": {}}, "lacks task_cfg"),
        ({"task_state": Path("x")}, "contains pickled objects of another library"),
    ],
)
def test_checkpoint_as_fairseq_writes_it(build, tmp_path, content, reason):
    torch.save(content, tmp_path / "fairseq.pt")
    flags = {"upstream": "wav2vec2_local", "upstream_ckpt": str(tmp_path / "fairseq.pt")}
    with pytest.raises(
        DataError, match=rf"fairseq\.pt is not a converted.*{reason}.*s3prl\.upstream\.wav2vec2\.convert"
    ):
        build(make_args(tmp_path / "exp", **flags), task_config())


def test_upstream_that_cannot_be_downloaded(build, tmp_path, monkeypatch):
    from s3prl import hub

    def offline(**kwargs):
        raise OSError("Failed to resolve host")

    monkeypatch.setattr(hub, "hubert", offline)
    with pytest.raises(DataError, match=r"'hubert' could not be downloaded or read \(Failed to resolve host"):
        build(make_args(tmp_path / "exp", upstream="hubert"), task_config())
