"""Child networks on a base in bfloat16: the run equals that on a rounded model, is stored, resumed, raced, exported."""

from __future__ import annotations

import json

import pytest
import torch

from s3prl_ext.child_tuning import delta
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.held_weight import HeldWeight, held_matrices, round_base
from s3prl_ext.commands import apply, export, merge
from s3prl_ext.deltas.switch import TaskSwitch
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.methods import prepare_base
from s3prl_ext.training.statistics import StateChanged
from s3prl_ext.training.train_state import TrainState
from s3prl_ext.training.tuned_upstream import TunedUpstream
from tests.support import tuned
from tests.support.experiments import interrupt_at_loss, make_args, record_losses, task_config
from tests.training.test_race_runs import assert_same_run, newest

CHILD = {"method": "child", "density": 0.05}
HELD = CHILD | {"base_dtype": "bfloat16"}
RANDOM = HELD | {"mask": "random"}


def config_of(tuning, **race):
    config = task_config(tuning=tuning, total_steps=4, eval_step=4, save_step=4, max_keep=9)
    config["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1.0e-2, "eps": 1e-4}
    return config | ({"early_stop": race} if race else {})


@pytest.fixture
def upstream(hubert_ckpt):
    return {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}


@pytest.fixture(scope="module")
def rounded_ckpt(hubert_ckpt, tmp_path_factory):
    """The same model as a file, its encoder's matrices rounded by hand."""
    content = torch.load(hubert_ckpt, weights_only=False)
    before = {name: tensor.clone() for name, tensor in content["model_weight"].items()}
    for name, tensor in content["model_weight"].items():
        if name.startswith("encoder.layers.") and tensor.dim() == 2:
            tensor.copy_(tensor.bfloat16())
    assert any(not torch.equal(before[name], t) for name, t in content["model_weight"].items())
    path = tmp_path_factory.mktemp("rounded") / "model.pt"
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("more", [{"fisher": {"max_batches": 2}}, {"mask": "random"}, {"unit": "row", "density": 0.2}])
def test_a_run_equals_that_of_a_model_that_was_rounded(build, tmp_path, upstream, rounded_ckpt, more, monkeypatch):
    held, after = [], TrainState.__init__

    def counting(self, *args):
        after(self, *args)
        held.append(sum(isinstance(p, HeldWeight) for p in args[0].unwrapped().upstream.parameters()))

    monkeypatch.setattr(TrainState, "__init__", counting)
    losses = {}
    for name, args, tuning in (
        ("held", upstream, HELD | more),
        ("plain", upstream | {"upstream_ckpt": rounded_ckpt}, CHILD | more),
    ):
        runner = build(make_args(tmp_path / name, **args), config_of(tuning))
        losses[name] = record_losses(runner)
        runner.train()
    assert held[0] == len(held_matrices(eligible_parameters(runner.upstream.model))) > 10 and held[1] == 0
    assert losses["held"] == pytest.approx(losses["plain"], rel=1e-5)
    ours, theirs = newest(tmp_path / "held"), newest(tmp_path / "plain")
    changes = [state["UpstreamDelta"] for state in (ours, theirs)]
    assert changes[0]["base_sha256"] == changes[1]["base_sha256"]
    for name, indices in changes[0]["indices"].items():
        assert torch.equal(indices, changes[1]["indices"][name])
        ours_values, theirs_values = (change["values"][name] for change in changes)
        assert ours_values.dtype == torch.float32
        torch.testing.assert_close(ours_values, theirs_values, rtol=0, atol=2e-5)
    moments = [value for state in ours["Optimizer"]["state"].values() for value in state.values() if value.dim()]
    assert moments and all(value.dtype == torch.float32 for value in moments)
    record = json.loads((tmp_path / "held" / "result.json").read_text())
    assert record["config"]["tuning"]["base_dtype"] == "bfloat16"


def test_resumed_it_is_the_same_run_bitwise(build, tmp_path, upstream):
    build(make_args(tmp_path / "whole", **upstream), config_of(RANDOM)).train()
    runner = build(make_args(tmp_path / "parts", **upstream), config_of(RANDOM))
    interrupt_at_loss(runner, 2)
    with pytest.raises(StoppedByUser):
        runner.train()
    args = make_args(tmp_path / "parts", **upstream)
    args.init_ckpt, args.past_exp = str(RunFolder(tmp_path / "parts").numbered()[-1]), str(tmp_path / "parts")
    build(args, config_of(RANDOM)).train()
    assert_same_run(newest(tmp_path / "whole"), newest(tmp_path / "parts"))


def test_candidates_share_the_rounded_base_and_the_winner_is_as_alone(build, tmp_path, upstream):
    config = config_of(HELD | {"density": [0.05, 0.01], "mask": "random"}, ratio=0.5)
    build(make_args(tmp_path / "race", **upstream), config).train()
    winner = newest(tmp_path / "race")["S3prlExt"]["candidate"]
    alone = HELD | {"mask": "random", "density": float(winner.rpartition("=")[2])}
    build(make_args(tmp_path / "alone", **upstream), config_of(alone)).train()
    ours, theirs = (newest(tmp_path / name)["UpstreamDelta"]["values"] for name in ("race", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def trained(build, tmp_path, upstream):
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(HELD | {"mask": "magnitude"}))
    runner.train()
    runner.upstream.model.eval()
    return tmp_path / "exp", tuned.features(runner.upstream.model)


def test_what_is_stored_makes_the_model_that_was_scored(build, tmp_path, upstream, trained, hubert_ckpt):
    folder, expected = trained
    for kind in ("delta.safetensors", "states-4.ckpt"):
        model = TrainedTask.read(folder / kind).build()
        assert tuned.same(tuned.features(model), expected), kind
    scores = json.loads((folder / "result.json").read_text())["metrics"]["dev"]
    for kind in ("delta.safetensors", "states-4.ckpt"):
        args = make_args(tmp_path / f"check-{kind}", **upstream, mode="evaluate", evaluate_split="dev")
        args.init_ckpt = str(folder / kind)
        build(args, config_of(HELD | {"mask": "magnitude"})).evaluate()
        again = json.loads((tmp_path / f"check-{kind}" / "result-dev.json").read_text())["metrics"]["dev"]
        assert {n: row["value"] for n, row in again.items()} == pytest.approx(
            {n: row["value"] for n, row in scores.items()}
        )

    export.main(["--delta", str(folder), "--out", str(tmp_path / "out")])
    exported = tuned.build("hubert_local", tmp_path / "out" / "hubert.pt")
    assert tuned.same(tuned.features(exported), expected)
    flags = ["--delta", str(folder / "delta.safetensors")]
    apply.main([*flags, "--model", hubert_ckpt, "--out", str(tmp_path / "applied")])
    file = tmp_path / "applied"
    assert tuned.same(tuned.features(tuned.build("hubert_local", file)), expected)
    with pytest.raises(DataError, match="already: there is nothing to apply"):
        apply.main([*flags, "--model", str(file), "--out", str(tmp_path / "twice")])
    apply.revert_main([*flags, "--model", str(file), "--out", str(tmp_path / "reverted")])
    base = tuned.build("hubert_local", hubert_ckpt)
    round_base(eligible_parameters(base))
    reverted = tuned.build("hubert_local", tmp_path / "reverted").state_dict()
    assert all(torch.equal(reverted[name], tensor) for name, tensor in base.state_dict().items())


def test_the_switch_takes_a_rounded_upstream_and_says_so(trained, hubert_ckpt):
    folder, expected = trained
    upstream = tuned.build("hubert_local", hubert_ckpt)
    with pytest.raises(DataError, match="rounded to bfloat16"):
        TaskSwitch(upstream, {"ks": folder})
    prepare_base(upstream, TrainedTask.read(folder).tuning)
    switch = TaskSwitch(upstream, {"ks": folder})
    switch.switch("ks")
    assert tuned.same(tuned.features(upstream), expected)


def test_what_needs_the_base_as_it_was_is_refused(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(UsageError, match="tuned with base_dtype bfloat16.*would make another model"):
        export.main(["--delta", str(folder), "--format", "task_vector", "--out", str(tmp_path / "vector")])
    with pytest.raises(UsageError, match="tuned with base_dtype bfloat16, on a base of its own"):
        merge.main(["--deltas", str(folder), "--lambda", "1", "--out", str(tmp_path / "merged")])


def test_writing_to_a_held_weight_or_beside_it_is_noticed(build, tmp_path, upstream):
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(HELD | {"mask": "magnitude"}))
    tracked = TunedUpstream(runner.upstream.model)
    tracked.check_untouched()
    forward = runner.downstream.model.forward

    def writing(*inputs, **kwargs):
        with torch.no_grad():
            runner.upstream.model.model.feature_extractor.conv_layers[0][0].weight.add_(1e-3)
        return forward(*inputs, **kwargs)

    runner.downstream.model.forward = writing
    with pytest.raises(StateChanged, match="outside the child network or adapter changed in training"):
        runner.train()


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (HELD | {"density": 1.0}, "holds weights that do not train"),
        (HELD | {"mask": "random", "redraw": True}, "holds weights that do not train"),
        (HELD | {"reselect_every": 2}, "cannot hold the float32 value of a weight that leaves the child network"),
        (HELD | {"clip_scope": "all"}, "clip_scope all needs the gradient of every eligible weight"),
        (HELD | {"base_dtype": "float16"}, "base_dtype 'float16'"),
        ({"method": "lora", "base_dtype": "bfloat16"}, "tuning.base_dtype belongs to method child"),
    ],
)
def test_what_cannot_be_is_one_sentence(build, tmp_path, upstream, tuning, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(make_args(tmp_path / "exp", **upstream), config_of(tuning))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tuning",
    [
        CHILD | {"base_dtype": ["float32", "bfloat16"]},
        HELD | {"method": ["child", "lora"]},
    ],
)
def test_candidates_on_other_bases_are_refused(build, tmp_path, upstream, tuning):
    with pytest.raises(UsageError, match="base_dtype bfloat16 rounds the upstream, which all candidates start from"):
        build(make_args(tmp_path / "exp", **upstream), config_of(tuning, ratio=0.5))


def test_a_delta_of_a_rounded_base_says_so(trained):
    folder, _ = trained
    found = delta.load(folder / "delta.safetensors")
    assert found.info["tuning"]["base_dtype"] == "bfloat16"
