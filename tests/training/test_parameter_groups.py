"""Learning rates by part of the upstream, and the training of a learnable merge through the Runner."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from s3prl_ext.deltas import TrainedTask
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.merging.learnable import find_lambda, fold
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.parameter_groups import (
    Rate,
    RatesConfig,
    parameter_groups,
    train_only,
    upstream_rates,
)
from s3prl_ext.training.tuning_config import TuningConfig
from tests.support import factories
from tests.support.event_files import read_scalar
from tests.support.experiments import interrupt_at_loss, make_args, record_losses, task_config
from tests.training.test_resume import assert_same, model_states

ADAMW = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1.0e-3, "weight_decay": 0.1}


class Upstream(nn.Module):
    """Two encoder blocks and a projection before them."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(2, 2)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


# -- the pure functions ------------------------------------------------------------------------------------------------


def rates_by_name(config):
    upstream = Upstream()
    names = {parameter: name for name, parameter in upstream.named_parameters()}
    return {names[parameter]: rate for parameter, rate in upstream_rates(upstream, config).items()}


def test_without_keys_there_are_no_rates():
    assert rates_by_name(RatesConfig()) == {}


def test_one_rate_for_the_whole_upstream():
    rates = rates_by_name(RatesConfig(lr=1e-5))
    assert len(rates) == 6 and set(rates.values()) == {Rate(1e-5)}


def test_layer_decay_falls_from_the_last_block_to_what_is_below_the_first():
    rates = rates_by_name(RatesConfig(layer_decay=0.5))
    assert rates["encoder.layers.1.weight"] == Rate(None, 1.0)
    assert rates["encoder.layers.0.bias"] == Rate(None, 0.5)
    assert rates["projection.weight"] == Rate(None, 0.25)


def test_groups_are_divided_and_keep_their_options():
    upstream, head = Upstream(), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*upstream.parameters(), *head.parameters()], lr=0.1, weight_decay=0.3, eps=1e-3)
    groups = parameter_groups(optimizer.param_groups, upstream_rates(upstream, RatesConfig(lr=0.01, layer_decay=0.5)))
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.0025, 0.005, 0.01])
    assert [len(group["params"]) for group in groups] == [2, 2, 2, 2]
    assert all(group["weight_decay"] == 0.3 and group["eps"] == 1e-3 for group in groups)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for m in (upstream, head) for p in m.parameters()}


def test_rates_of_nothing_leave_the_groups():
    optimizer = torch.optim.Adam(Upstream().parameters())
    assert parameter_groups(optimizer.param_groups, {}) == optimizer.param_groups


def test_train_only_freezes_the_rest():
    upstream = Upstream()
    train_only(upstream, "1")
    assert {n for n, p in upstream.named_parameters() if p.requires_grad} == {
        "encoder.layers.1.weight",
        "encoder.layers.1.bias",
    }
    train_only(untouched := Upstream(), "all")
    assert all(p.requires_grad for p in untouched.parameters())
    with pytest.raises(UsageError, match="layer 2 is out of range: 2 layers are numbered 0-1"):
        train_only(upstream, "0-2")
    with pytest.raises(UsageError, match="tuning.train_layers needs an upstream with encoder blocks"):
        train_only(nn.Linear(2, 2), "0")


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"method": "full", "lr": 0}, "tuning.lr must be above 0, got 0"),
        ({"method": "full", "lr": "fast"}, "tuning.lr must be a number"),
        ({"method": "full", "lr": float("inf")}, "tuning.lr must be a finite number"),
        ({"method": "full", "lr": 1e-5, "upstream_lr": 1e-5}, "are the same; keep one"),
        ({"method": "frozen", "lr": 1e-5}, "tuning.lr belongs to method full, child, .* or bitfit, not to frozen"),
        ({"method": "full", "lambda_lr": -1}, "tuning.lambda_lr must be at least 0"),
        ({"method": "full", "layer_decay": 1.2}, r"layer_decay must be in \(0, 1\], got 1.2"),
        ({"method": "full", "layer_decay": 0}, r"layer_decay must be in \(0, 1\], got 0"),
        ({"method": "child", "density": 0.1, "layer_decay": 0.9}, "layer_decay belongs to method full, not to child"),
        ({"method": "frozen", "train_layers": "1"}, "train_layers belongs to method full"),
        ({"method": "full", "train_layers": "6-"}, "neither a layer index nor a range"),
        ({"method": "full", "train_layers": []}, "names no layer"),
        ({"method": "full", "lamda_lr": 1e-3}, "did you mean 'lambda_lr'"),
    ],
)
def test_wrong_keys_are_refused(tuning, message):
    with pytest.raises(UsageError, match=message):
        TuningConfig.from_config({"tuning": tuning}, METHODS)


def test_numeric_strings_and_lists_are_read():
    section = {"method": "full", "upstream_lr": "1e-5", "layer_decay": "0.9", "train_layers": [0, "2-3"]}
    assert TuningConfig.from_config({"tuning": section}, METHODS).rates == RatesConfig(1e-5, None, 0.9, (0, "2-3"))


# -- through the Runner ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def merge_file(tmp_path_factory, hubert_ckpt):
    folder = tmp_path_factory.mktemp("merge")
    bert = factories.bert_folder(folder / "bert")
    file = folder / "my.yaml"
    file.write_text(
        f"target: {{upstream: hubert_local, ckpt: {hubert_ckpt}}}\nsource: {{model: {bert}}}\nlambda: 0.2\n"
        "learnable: {granularity: layer, constraint: raw}\n"
    )
    return str(file)


@pytest.fixture
def two_sources_file(merge_file, tmp_path, hubert_ckpt):
    first, second = Path(merge_file).parent / "bert", factories.bert_folder(tmp_path / "other", seed=5)
    file = tmp_path / "two.yaml"
    file.write_text(
        f"target: {{upstream: hubert_local, ckpt: {hubert_ckpt}}}\nsources:\n"
        f"- {{model: {first}, lambda: 0.2}}\n- {{model: {second}, lambda: 0.1}}\nlearnable: {{constraint: clamp}}\n"
    )
    return str(file)


def merged_args(expdir, merge_file, options="", **changes):
    return make_args(expdir, upstream="merged_attention", upstream_model_config=f"{merge_file}{options}", **changes)


def learn(build, expdir, merge_file, tuning, options="", optimizer=ADAMW, args=None, **runner):
    config = task_config(tuning=tuning, **({"total_steps": 4} | runner))
    config["optimizer"] = optimizer
    built = build(merged_args(expdir, merge_file, options, **(args or {})), config)
    before = copy.deepcopy(built.upstream.model.state_dict())
    built.train()
    return before, built.upstream.model.state_dict(), built


def optimizer_of(build, expdir, config, **args):
    """The optimizer as the Runner builds it, and the Runner."""
    runner = build(make_args(expdir, **args), config)
    runner.total_steps = 4
    return runner._get_optimizer([entry.model for entry in runner.all_entries if entry.trainable]), runner


@pytest.mark.parametrize("tuning", [None, {"method": "full"}])
def test_without_keys_the_optimizer_is_what_s3prl_builds(build, tmp_path, hubert_ckpt, tuning):
    from s3prl.optimizers import get_optimizer

    config = task_config(tuning=tuning)
    args = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt, "upstream_trainable": tuning is None}
    ours, runner = optimizer_of(build, tmp_path, config, **args)
    theirs = get_optimizer([entry.model for entry in runner.all_entries], 4, config["optimizer"])
    assert ours.state_dict() == theirs.state_dict()
    assert all(a is b for a, b in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize(
    "optimizer",
    [
        ADAMW,
        {"name": "Adam", "lr": 1e-3},
        {"name": "BertAdam_with_schedule", "lr": 1e-3, "warmup_proportion": 0.5},
        {"name": "AdamW_with_schedule", "lr": 1e-3},
    ],
    ids=lambda optimizer: optimizer["name"],
)
def test_every_optimizer_of_s3prl_has_a_group_for_lambda_without_decay(build, tmp_path, merge_file, optimizer):
    from s3prl.optimizers import WarmupLinearSchedule

    before, after, _ = learn(
        build, tmp_path / "exp", merge_file, {"method": "full", "lr": 1e-5, "lambda_lr": 0.02}, optimizer=optimizer
    )
    with torch.serialization.safe_globals([WarmupLinearSchedule]):
        states = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)["Optimizer"]["param_groups"]
    (group,) = [group for group in states if group["lr"] == 0.02]
    assert len(group["params"]) == 1 and group["weight_decay"] == 0.0
    assert {g["lr"] for g in states} == {0.02, 1e-5, 1e-3}
    assert not torch.equal(before["learnable_lambda.values"], after["learnable_lambda.values"])


def test_full_trains_lambda_and_the_target_but_no_source_and_no_front_end(build, tmp_path, merge_file):
    before, after, runner = learn(build, tmp_path / "exp", merge_file, {"method": "full"})
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "learnable_lambda.values" in changed
    assert sum("parametrizations.weight.original" in name for name in changed) == 6
    assert not any("feature_extractor" in name for name in changed)
    moved = (after["learnable_lambda.values"] - before["learnable_lambda.values"]).abs()
    assert (moved > 0).all() and moved.max() < 5e-3, "four steps of Adam at the default 1e-3"
    fresh = build(merged_args(tmp_path / "fresh", merge_file), task_config())
    for name, buffer in fresh.upstream.model.named_buffers():
        if name.endswith(".source"):
            assert torch.equal(buffer, dict(runner.upstream.model.named_buffers())[name])
    record = json.loads((tmp_path / "exp" / "result.json").read_text())
    assert record["merge"]["learnable"]["granularity"] == "layer"


@pytest.mark.parametrize("trainable", [True, False])
def test_flag_f_trains_lambda_and_a_frozen_upstream_says_that_it_stays(build, tmp_path, merge_file, caplog, trainable):
    with caplog.at_level(logging.WARNING, logger="s3prl_ext"):
        before, after, _ = learn(build, tmp_path / "exp", merge_file, None, args={"upstream_trainable": trainable})
    key = "learnable_lambda.values"
    assert torch.equal(before[key], after[key]) != trainable
    assert any("lambda stays at its first values" in r.message for r in caplog.records) != trainable
    assert (tmp_path / "exp" / "lambda.json").exists() == trainable


@pytest.mark.parametrize("method", ["frozen", "weighted_sum"])
def test_lambda_trains_alone_and_the_checkpoint_holds_nothing_else_of_the_upstream(build, tmp_path, merge_file, method):
    before, after, _ = learn(build, tmp_path / "exp", merge_file, {"method": method, "lambda_lr": 0.05})
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"learnable_lambda.values"}
    states = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)
    assert list(states["Upstream"]) == ["learnable_lambda.values"]
    assert json.loads((tmp_path / "exp" / "result.json").read_text())["trainable"]["Upstream"] == 2
    again = build(
        merged_args(tmp_path / "exp", merge_file, mode="evaluate", init_ckpt=str(tmp_path / "exp" / "states-4.ckpt")),
        task_config(tuning={"method": method}),
    )
    assert_same(dict(again.upstream.model.state_dict()), dict(after))


@pytest.fixture
def exchange(merge_file, tmp_path):
    """A merge of its own target, and what gives that other weights outside of the merged matrices."""
    target, file = tmp_path / "target.pt", tmp_path / "own.yaml"
    factories.hubert_local_ckpt(target)
    config = yaml.safe_load(Path(merge_file).read_text())
    file.write_text(yaml.safe_dump(config | {"target": {"upstream": "hubert_local", "ckpt": str(target)}}))

    def exchange():
        states = torch.load(target, weights_only=False)
        next(w for name, w in states["model_weight"].items() if name.endswith("layers.0.fc1.weight")).add_(1.0)
        torch.save(states, target)

    return str(file), exchange


@pytest.mark.parametrize("lambda_lr", [0.05, 0])
def test_lambda_alone_is_of_its_target_as_a_frozen_upstream_is(build, tmp_path, exchange, lambda_lr):
    file, exchange = exchange
    tuning = {"method": "weighted_sum", "lambda_lr": lambda_lr}
    learn(build, tmp_path / "exp", file, tuning, total_steps=1)
    ckpt = tmp_path / "exp" / "states-1.ckpt"
    TrainedTask.read(ckpt).build()
    exchange()
    config = task_config(tuning=tuning, total_steps=2) | {"optimizer": ADAMW}
    for mode, resumed in (("evaluate", None), ("train", None), ("train", str(ckpt))):
        args = merged_args(tmp_path / f"{mode} {bool(resumed)}", file, mode=mode, init_ckpt=str(ckpt), past_exp=resumed)
        with pytest.raises(DataError, match=r"states-1\.ckpt was made from another upstream"):
            build(args, config)
    if lambda_lr:
        with pytest.raises(DataError, match=r"states-1\.ckpt belongs to another upstream"):
            TrainedTask.read(ckpt).build()


def test_a_candidate_that_learns_lambda_goes_on_with_its_target_alone(build, tmp_path, merge_file):
    tuning = {"method": "weighted_sum", "lambda_lr": [0.05, 0.01]}
    config = task_config(tuning=tuning, total_steps=4, eval_step=2) | {"early_stop": {"ratio": 0.5}}
    build(merged_args(tmp_path / "exp", merge_file), config).train()
    ckpt = Checkpoint.read(next((tmp_path / "exp" / "race").glob("*/states-*.ckpt")))
    assert ckpt.upstream and not ckpt.holds_upstream
    _, runs = build(merged_args(tmp_path / "other", merge_file), config)._checked(RunFolder(tmp_path / "other"))
    runs._load(ckpt)
    other = replace(ckpt, extension=replace(ckpt.extension, upstream_sha256="f" * 64))
    with pytest.raises(DataError, match="was made from another upstream"):
        runs._load(other)


def test_a_learnt_lambda_is_not_begun_with_where_it_would_not_be_stored(build, tmp_path, merge_file):
    learn(build, tmp_path / "exp", merge_file, {"method": "weighted_sum", "lambda_lr": 0.05}, total_steps=1)
    ckpt = str(tmp_path / "exp" / "states-1.ckpt")
    for number, tuning in enumerate(({"method": "weighted_sum", "lambda_lr": 0}, None)):
        args = merged_args(tmp_path / str(number), merge_file, init_ckpt=ckpt)
        with pytest.raises(UsageError, match="holds a learnt lambda, which a run that does not train it"):
            build(args, task_config(tuning=tuning))
    build(merged_args(tmp_path / "goes", merge_file, init_ckpt=ckpt), task_config(tuning={"method": "weighted_sum"}))


def test_lambda_of_zero_that_is_frozen_is_plain_fine_tuning_bitwise(build, tmp_path, merge_file, hubert_ckpt):
    _, _, runner = learn(build, tmp_path / "zero", merge_file, {"method": "full", "lambda_lr": 0}, options=",,lambda=0")
    assert json.loads((tmp_path / "zero" / "lambda.json").read_text())["lambda"][-1] == [0.0, 0.0]
    config = task_config(tuning={"method": "full"})
    config["optimizer"] = ADAMW
    plain = build(make_args(tmp_path / "plain", upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
    losses = record_losses(plain)
    plain.train()
    fold(runner.upstream.model)
    assert len(losses) > 4
    assert_same(dict(runner.upstream.model.state_dict()), dict(plain.upstream.model.state_dict()))
    assert_same(dict(runner.downstream.model.state_dict()), dict(plain.downstream.model.state_dict()))


def test_folding_a_trained_model_changes_no_feature(build, tmp_path, merge_file):
    _, _, runner = learn(build, tmp_path / "exp", merge_file, {"method": "full", "lambda_lr": 0.05})
    model, wavs = runner.upstream.model.eval(), [torch.randn(16000)]
    expected = model(wavs)["last_hidden_state"]
    fold(model)
    torch.testing.assert_close(model(wavs)["last_hidden_state"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["full", "weighted_sum"])
@pytest.mark.parametrize("constraint", ["raw", "clamp"])
def test_resumed_run_equals_uninterrupted_with_its_curve(build, tmp_path, merge_file, method, constraint):
    options = f",,learnable.constraint={constraint},,lambda=0.01"
    config = task_config(
        tuning={"method": method, "lambda_lr": 0.02}, total_steps=7, eval_step=3, save_step=7, log_step=2
    )
    build(merged_args(tmp_path / "whole", merge_file, options), config).train()
    runner = build(merged_args(tmp_path / "parts", merge_file, options), config)
    interrupt_at_loss(runner, 5)
    with pytest.raises(StoppedByUser):
        runner.train()
    (saved,) = (tmp_path / "parts").glob("states-*.ckpt")
    resume = {"past_exp": str(tmp_path / "parts"), "init_ckpt": str(saved)}
    build(merged_args(tmp_path / "parts", merge_file, options, **resume), config).train()
    assert_same(model_states(tmp_path / "whole", 7), model_states(tmp_path / "parts", 7))
    curves = [json.loads((tmp_path / name / "lambda.json").read_text()) for name in ("whole", "parts")]
    assert curves[0] == curves[1] and curves[0]["steps"] == [0, 2, 3, 4, 6, 7]
    values = torch.tensor(curves[0]["lambda"])
    assert values.shape == (6, 2) and (values[1:] != values[0]).any()
    assert constraint == "raw" or (values >= 0).all()
    assert all((tmp_path / name / "lambda.png").stat().st_size > 5000 for name in ("whole", "parts"))
    assert not list((tmp_path / "parts").glob(".lambda*"))


def test_tensorboard_has_a_curve_for_each_lambda(build, tmp_path, merge_file):
    learn(build, tmp_path / "exp", merge_file, {"method": "full"}, ",,learnable.granularity=projection", log_step=1)
    written = json.loads((tmp_path / "exp" / "lambda.json").read_text())
    assert written["names"][4] == "layer_01/k_proj" and written["granularity"] == "projection"
    steps, values = read_scalar(tmp_path / "exp", "lambda/layer_01/k_proj")
    assert steps == written["steps"] == [0, 1, 2, 3, 4]
    assert values == pytest.approx([row[4] for row in written["lambda"]], abs=1e-6)


@pytest.mark.parametrize("method", ["full", "weighted_sum"])
def test_two_sources_learn_a_lambda_each_and_resume(build, tmp_path, two_sources_file, method):
    config = task_config(tuning={"method": method, "lambda_lr": 0.3}, total_steps=6, eval_step=3, log_step=2)
    runner = build(merged_args(tmp_path / "whole", two_sources_file), config)
    runner.train()
    shared = find_lambda(runner.upstream.model)
    assert (shared.values >= 0).all() and shared.values.sum(0).max() <= 1 + 1e-6
    runner = build(merged_args(tmp_path / "parts", two_sources_file), config)
    interrupt_at_loss(runner, 4)
    with pytest.raises(StoppedByUser):
        runner.train()
    (saved,) = (tmp_path / "parts").glob("states-*.ckpt")
    resume = {"past_exp": str(tmp_path / "parts"), "init_ckpt": str(saved)}
    build(merged_args(tmp_path / "parts", two_sources_file, **resume), config).train()
    assert_same(model_states(tmp_path / "whole", 6), model_states(tmp_path / "parts", 6))
    curves = [json.loads((tmp_path / name / "lambda.json").read_text()) for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert curves[0]["names"] == [f"source_{source}/layer_0{layer}" for source in (0, 1) for layer in (0, 1)]
    assert curves[0]["sources"] == list(shared.sources) and len(set(shared.sources)) == 2
    assert curves[0]["lambda"][0] == pytest.approx([0.2, 0.2, 0.1, 0.1])
    assert curves[0]["lambda"][-1] == pytest.approx(shared.current().tolist(), abs=1e-6)
    _, values = read_scalar(tmp_path / "whole", "lambda/source_1/layer_01")
    assert values == pytest.approx([row[3] for row in curves[0]["lambda"]], abs=1e-6)
    assert (tmp_path / "whole" / "lambda.png").stat().st_size > 5000
    stored = torch.load(tmp_path / "whole" / "states-6.ckpt", weights_only=True)["Upstream"]
    assert stored["learnable_lambda.values"].shape == (2, 2, 1, 1)
    assert (list(stored) == ["learnable_lambda.values"]) == (method == "weighted_sum")
    again = build(
        merged_args(
            tmp_path / "whole", two_sources_file, mode="evaluate", init_ckpt=str(tmp_path / "whole/states-6.ckpt")
        ),
        config,
    )
    assert torch.equal(find_lambda(again.upstream.model).current(), shared.current())


def test_a_raw_lambda_that_leaves_its_range_warns_once(build, tmp_path, merge_file, caplog):
    with caplog.at_level(logging.WARNING, logger="s3prl_ext"):
        learn(build, tmp_path / "exp", merge_file, {"method": "full", "lambda_lr": 0.5}, ",,lambda=1", log_step=1)
    warnings = [r.message for r in caplog.records if "lambda has left [0, 1]" in r.message]
    assert len(warnings) == 1


def test_clamped_lambda_stays_in_its_range(build, tmp_path, merge_file):
    options = ",,lambda=1,,learnable.constraint=clamp"
    learn(build, tmp_path / "exp", merge_file, {"method": "full", "lambda_lr": 0.5}, options, log_step=1)
    values = torch.tensor(json.loads((tmp_path / "exp" / "lambda.json").read_text())["lambda"])
    assert ((values >= 0) & (values <= 1)).all() and (values != 1).any()


def test_checkpoint_of_another_merge_is_refused_before_its_weights_are_read(build, tmp_path, merge_file):
    learn(build, tmp_path / "exp", merge_file, {"method": "full"})
    args = merged_args(
        tmp_path / "exp",
        merge_file,
        ",,learnable=false",
        mode="evaluate",
        init_ckpt=str(tmp_path / "exp/states-4.ckpt"),
    )
    with pytest.raises(DataError, match="made with learnable: {granularity: layer.*now it is learnable: false"):
        build(args, task_config(tuning={"method": "full"}))


def test_lambda_lr_without_lambda_and_a_method_without_lambda_are_refused(build, tmp_path, merge_file, hubert_ckpt):
    args = make_args(tmp_path / "a", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    with pytest.raises(UsageError, match="lambda_lr needs a merged upstream with learnable: true"):
        build(args, task_config(tuning={"method": "full", "lambda_lr": 1e-3}))
    with pytest.raises(UsageError, match="tuning.method 'child' does not train lambda; use full"):
        build(merged_args(tmp_path / "b", merge_file), task_config(tuning={"method": "child", "density": 0.1}))


def test_the_upstreams_own_rate_moves_it_less(build, tmp_path, hubert_ckpt):
    moved = {}
    for lr in (None, 1e-5):
        config = task_config(tuning={"method": "full"} | ({"lr": lr} if lr else {}))
        config["optimizer"] = ADAMW | {"weight_decay": 0.0}
        runner = build(make_args(tmp_path / str(lr), upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
        before = copy.deepcopy(runner.upstream.model.state_dict())
        runner.train()
        after = runner.upstream.model.state_dict()
        moved[lr] = max((after[n] - before[n]).abs().max().item() for n in before if n.endswith("fc1.weight"))
    assert moved[1e-5] < 4.1e-5
    assert moved[None] > 1e-3


def test_the_flat_parameter_of_a_child_network_has_the_upstreams_rate(build, tmp_path, hubert_ckpt):
    config = task_config(tuning={"method": "child", "mask": "random", "density": 0.05, "lr": 1e-5}, total_steps=1)
    config["optimizer"] = ADAMW
    runner = build(make_args(tmp_path, upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
    runner.train()
    groups = torch.load(tmp_path / "states-1.ckpt", weights_only=True)["Optimizer"]["param_groups"]
    assert sorted(group["lr"] for group in groups) == [1e-5, 1e-3]
    assert len(next(group for group in groups if group["lr"] == 1e-5)["params"]) == 1


def test_layer_decay_and_train_layers_through_the_runner(build, tmp_path, merge_file):
    tuning = {"method": "full", "train_layers": "1", "layer_decay": 0.5, "lr": 1e-4}
    before, after, _ = learn(build, tmp_path / "exp", merge_file, tuning)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".layers.1." in name or name == "learnable_lambda.values" for name in changed)
    groups = torch.load(tmp_path / "exp" / "states-4.ckpt", weights_only=True)["Optimizer"]["param_groups"]
    assert sorted({group["lr"] for group in groups}) == pytest.approx([2.5e-5, 5e-5, 1e-4, 1e-3])


def test_linear_warm_up_of_s3prl_acts_on_every_group(build, tmp_path, merge_file):
    config = task_config(tuning={"method": "full", "lr": 1e-4, "lambda_lr": 1e-2}, total_steps=2, save_step=1)
    config["runner"]["max_keep"] = 9
    config["optimizer"] = ADAMW
    config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4}
    build(merged_args(tmp_path / "exp", merge_file), config).train()
    for step in (1, 2):
        states = torch.load(tmp_path / "exp" / f"states-{step}.ckpt", weights_only=True)
        rates = {group["initial_lr"]: group["lr"] for group in states["Optimizer"]["param_groups"]}
        assert rates == pytest.approx({lr: lr * step / 4 for lr in (1e-3, 1e-4, 1e-2)})


def test_several_granularities_train_through_transformers_too(build, tmp_path, merge_file, hubert_folder):
    options = f",,target={{model: {hubert_folder}}},,learnable.granularity=head,,learnable.constraint=sigmoid"
    before, after, runner = learn(build, tmp_path / "exp", merge_file, {"method": "full", "lambda_lr": 0.05}, options)
    assert find_lambda(runner.upstream.model).values.shape == (2, 1, 2)
    assert (before["learnable_lambda.values"] != after["learnable_lambda.values"]).all()
    assert not any("feature_extractor" in n for n in before if not torch.equal(before[n], after[n]))
