"""What holds for child networks and races whatever the settings (numbers 9, 10, 15 and 16 of the invariants)."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from s3prl_ext.child_tuning import delta
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.errors import StoppedByUser, UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.methods import resolve_tuning
from s3prl_ext.training.racing.candidate_runs import CandidateRuns
from tests.support.experiments import interrupt_at_loss, make_args, task_config
from tests.training.test_race_runs import CUT, assert_same_run, config_of, newest, resumed, same

OPTIMIZERS = {
    "sgd": {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "adam": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1.0e-2, "weight_decay": 0.1},
    "adamw": {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1.0e-2, "weight_decay": 0.1},
    "released": {"name": "ChildnetAdamW", "lr": 1.0e-2},
}
DENSITY = 0.02


@pytest.fixture
def upstream(hubert_ckpt):
    return {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}


# -- 9: entries outside the child network are bitwise constant ---------------------------------------------------------


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize(  # every optimizer, and every way of making a gradient with another one
    ("optimizer", "extra"),
    [
        *((optimizer, {}) for optimizer in OPTIMIZERS),
        ("adam", {"gradient_accumulate_steps": 2}),
        ("sgd", {"amp": "bf16"}),
        ("released", {"amp": "fp16"}),
    ],
    ids=[*OPTIMIZERS, "two-adam", "bf16-sgd", "fp16-released"],
)
def test_at_most_k_entries_ever_differ_from_the_base_also_after_a_resume(build, tmp_path, upstream, optimizer, extra):
    config = task_config(tuning={"method": "child", "mask": "magnitude", "density": DENSITY}, total_steps=6, **extra)
    config["optimizer"] = OPTIMIZERS[optimizer]
    runner = build(make_args(tmp_path, **upstream), config)
    base = copy.deepcopy(runner.upstream.model.state_dict())
    total = sum(p.numel() for p in eligible_parameters(runner.upstream.model).values())
    interrupt_at_loss(runner, 3 * extra.get("gradient_accumulate_steps", 1))
    with pytest.raises(StoppedByUser):
        runner.train()
    runner = build(resumed(tmp_path, upstream), config)
    runner.train()
    moved = 0
    for name, after in runner.upstream.model.state_dict().items():
        bits, before = (x.flatten().view(torch.int32) for x in (after, base[name]))  # -0.0 is another value than 0.0
        different = (bits != before).nonzero().flatten()
        assert set(different.tolist()) <= set(runner.child.mask.get(name, torch.zeros(0)).tolist()), name
        moved += len(different)
    assert len(runner.child) == round(DENSITY * total)
    assert 0.8 * len(runner.child) < moved <= len(runner.child)


# -- 10: the ends of the range of densities ----------------------------------------------------------------------------


def test_a_density_that_selects_nothing_is_refused_before_anything_is_written(build, tmp_path, upstream):
    config = task_config(tuning={"method": "child", "mask": "magnitude", "density": 1e-6}, total_steps=3)
    with pytest.raises(UsageError, match="less than one weight, .* method weighted_sum to train only the head"):
        build(make_args(tmp_path, **upstream), config)
    assert not list(tmp_path.iterdir())


def test_a_density_of_one_weight_trains_one(build, tmp_path, upstream):
    runner = build(make_args(tmp_path, **upstream), task_config(tuning={"method": "frozen"}))
    total = sum(p.numel() for p in eligible_parameters(runner.upstream.model).values())
    config = task_config(tuning={"method": "child", "mask": "magnitude", "density": 1 / total}, total_steps=3)
    runner = build(make_args(tmp_path / "one", **upstream), config)
    before = copy.deepcopy(runner.upstream.model.state_dict())
    runner.train()
    after = runner.upstream.model.state_dict()
    assert len(runner.child) == 1 == sum(int((after[name] != before[name]).sum()) for name in before)


# -- 15: equal starts, whatever the order ------------------------------------------------------------------------------


def candidate_runs(build, folder, upstream, config):
    """The candidates of a race before its start, and the runs that train them."""
    runner = build(make_args(folder, **upstream), config)
    runner.total_steps = runner.runner_config.total_steps
    runs = CandidateRuns(
        runner._experiment(), None, lambda c: resolve_tuning(runner.config, c.tuning), runner._prepare_candidate
    )
    runs._split, runs._candidates, runs._reported = "dev", runner.task_file.candidates, ["acc"]
    return runs, runner.task_file.candidates


@pytest.mark.parametrize("changes", [{"density": [0.05, 0.01]}, {"density": None, "method": ["lora", "houlsby"]}],
                         ids=["child", "adapters"])  # fmt: skip
def test_in_lock_step_is_one_after_another(build, tmp_path, upstream, changes):
    config = config_of(**changes)
    config["optimizer"] = OPTIMIZERS["adamw"]
    steps = 3
    for name, order in {
        "sequence": [(number, steps) for number in (0, 1)],
        "lock-step": [(number, step) for step in range(1, steps + 1) for number in (0, 1)],
        "crosswise": [(1, 2), (0, 1), (0, 3), (1, 3)],
    }.items():
        runs, entrants = candidate_runs(build, tmp_path / name, upstream, config)
        for number, step in order:
            folder = RunFolder(tmp_path / name / entrants[number].name)
            folder.path.mkdir(exist_ok=True)
            runs._advance(entrants[number], folder, step, "")
    for entrant in entrants:
        expected = newest(tmp_path / "sequence" / entrant.name)
        assert expected["Step"] == steps
        for name in ("lock-step", "crosswise"):
            assert_same_run(newest(tmp_path / name / entrant.name), expected)
    first, second = (newest(tmp_path / "sequence" / entrant.name) for entrant in entrants)
    assert not same(first["Downstream"], second["Downstream"])


def test_a_race_of_one_is_child_tuning(build, tmp_path, upstream):
    build(make_args(tmp_path / "list", **upstream), config_of([0.05])).train()
    build(make_args(tmp_path / "number", **upstream), config_of(0.05, race=None)).train()
    assert_same_run(newest(tmp_path / "list"), newest(tmp_path / "number"))
    assert not (tmp_path / "list" / "race").exists()


# -- 15 and the options of the race, through the Runner ----------------------------------------------------------------


def test_evaluations_and_patience(build, tmp_path, upstream):
    race = {"ratio": 2 / 6, "evaluations": 2, "patience": 2}
    build(make_args(tmp_path, **upstream), config_of([0.05, 0.01], race=race)).train()
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert record["cut"] in (4, 6), "the same candidate has led twice, or the end was reached"
    assert all(sorted(map(int, row)) == list(range(1, record["cut"] + 1)) for row in record["scores"].values())
    assert record["steps_of_all_candidates"] == 2 * record["cut"] + 6 - record["cut"]
    alone = config_of(float(record["chosen"].removeprefix("density=")), race=None)
    build(make_args(tmp_path / "alone", **upstream), alone).train()
    assert_same_run(newest(tmp_path), newest(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("method", "lists", "more"),
    [
        ("child", {"lr": ["1e-2", 1e-4], "density": 0.05}, {"mask": "random"}),
        ("lora", {"upstream_lr": [1e-2, 1e-4]}, {}),
        ("full", {"layer_decay": [0.9, 0.5]}, {"lr": 1e-3}),
        ("full", {"train_layers": [["0"], ["1"], ["0-1"]]}, {}),
    ],
    ids=["child", "lora", "layer_decay", "train_layers"],
)
def test_rates_race_under_a_warm_up(build, tmp_path, upstream, method, lists, more):
    def settings(section, race):
        config = task_config(tuning={"method": method, **section, **more}, total_steps=6, eval_step=3, save_step=3)
        config["optimizer"] = OPTIMIZERS["adamw"]
        config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4}
        return config | ({"early_stop": {"ratio": CUT / 6}} if race else {})

    build(make_args(tmp_path / "race", **upstream), settings(lists, True)).train()
    record = json.loads((tmp_path / "race" / "race" / "race.json").read_text())
    (key,) = (key for key, value in lists.items() if isinstance(value, list))
    assert len(record["entrants"]) == len(lists[key])
    value = lists[key][record["entrants"].index(record["chosen"])]
    build(make_args(tmp_path / "alone", **upstream), settings(lists | {key: value}, False)).train()
    ours, theirs = newest(tmp_path / "race"), newest(tmp_path / "alone")
    assert_same_run(ours, theirs)
    assert same(ours.get("Upstream"), theirs.get("Upstream")) and ours["Scheduler"] == theirs["Scheduler"]
    rates = {group["initial_lr"] for group in ours["Optimizer"]["param_groups"]}
    if key in ("lr", "upstream_lr"):
        assert rates == {1e-2, float(value)}, "the head keeps the rate of the optimizer"
    assert all(group["lr"] <= group["initial_lr"] for group in ours["Optimizer"]["param_groups"])


# -- 16: the size of a tuned task --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "per_entry"), [(0.1, 5.0), (0.01, 5.3), (0.001, 6.0)])
def test_a_delta_takes_about_five_bytes_per_entry(tmp_path, density, per_entry):
    size = 2_000_000
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator)
    indices = (torch.rand(size, generator=generator) < density).nonzero().flatten()
    tuned = weight[indices] + 1e-3 * torch.randn(len(indices), generator=generator)
    bits = delta.difference({"w": weight[indices]}, {"w": tuned})
    made = delta.Delta("0" * 64, {"w": indices}, bits, {"w": size}, {}, {}, {})
    delta.save(made, tmp_path / "delta.safetensors")
    assert (tmp_path / "delta.safetensors").stat().st_size < per_entry * len(indices) + 2000
    assert same(dict(delta.load(tmp_path / "delta.safetensors").bits), dict(bits))
