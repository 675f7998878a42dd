"""A training begun with -i takes weights alone: its steps, rates, best score and result are its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from s3prl_ext.child_tuning import delta
from s3prl_ext.errors import UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from tests.support.experiments import make_args, record_losses, task_config

CHILD = {"method": "child", "mask": "random", "density": 0.05}


def states_of(folder):
    return checkpoint.load(RunFolder(folder).numbered()[-1])


@pytest.fixture
def first(build, tmp_path):
    """The folder of a head trained for two steps, whose last checkpoint and delta say that it has scored 1.0."""
    folder = tmp_path / "first"
    build(make_args(folder), task_config(total_steps=2, eval_step=1)).train()
    states = states_of(folder)
    states["Downstream"]["best_score"] = torch.ones(1)
    states["S3prlExt"]["spent"] = {"seconds": 1e6, "process": 1 << 50, "gpu": None}
    checkpoint.save(states, folder / "states-2.ckpt")
    stored = delta.load(folder / "delta.safetensors")
    stored.task["Downstream"]["best_score"] = torch.ones(1)
    delta.save(stored, folder / "delta.safetensors")
    return folder


@pytest.mark.parametrize("file", ["states-2.ckpt", "delta.safetensors"])
def test_steps_history_result_and_best_score_are_its_own(build, tmp_path, first, file):
    folder = tmp_path / "second"
    runner = build(make_args(folder, init_ckpt=str(first / file), seed=7), task_config(total_steps=2, eval_step=1))
    losses = record_losses(runner)
    runner.train()
    ours = states_of(folder)
    assert len(losses) > 4, "two batches, and two evaluations of several"
    assert [row["step"] for row in ours["S3prlExt"]["history"]] == [1, 2]
    assert {float(state["step"]) for state in ours["Optimizer"]["state"].values()} == {2.0}
    record = json.loads((folder / "result.json").read_text())
    assert record["step"] == 2 and record["seconds_per_step"] is not None
    assert record["seconds"] < 1e6 and record["peak_memory"]["process"] < 1 << 50
    assert (folder / "dev-best.ckpt").is_file() and (folder / "delta.safetensors").is_file()


def test_its_batches_begin_at_the_first(build, tmp_path, first):
    config = task_config(total_steps=3)
    positions = []
    for name, begin in (("second", str(first / "states-2.ckpt")), ("fresh", None)):
        build(make_args(tmp_path / name, init_ckpt=begin), config).train()
        positions.append(states_of(tmp_path / name)["S3prlExt"]["position"])
    for key in ("epoch", "taken"):
        assert positions[0][key] == positions[1][key]
    assert torch.equal(*(position["epoch_start"]["torch"] for position in positions))


def test_another_rate_and_another_schedule_are_taken(build, tmp_path):
    config = task_config(total_steps=2)
    config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 1}
    build(make_args(tmp_path / "first"), config).train()
    config["optimizer"] = config["optimizer"] | {"lr": 0.03}
    config["scheduler"] = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 4}
    build(make_args(tmp_path / "second", init_ckpt=str(tmp_path / "first" / "states-2.ckpt")), config).train()
    (group,) = states_of(tmp_path / "second")["Optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.03 * 2 / 4)


@pytest.mark.parametrize("tuning", [CHILD, CHILD | {"reselect_every": 2}], ids=["child", "reselected"])
def test_a_child_network_goes_on_with_its_entries(build, tmp_path, hubert_ckpt, tuning):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    config = task_config(tuning=tuning, total_steps=3)
    trained = build(make_args(tmp_path / "first", **upstream), config)
    trained.train()
    begin = str(tmp_path / "first" / "states-3.ckpt")
    begun = build(make_args(tmp_path / "second", **upstream, init_ckpt=begin, seed=7), config)
    for ours, theirs in zip(begun.all_entries, trained.all_entries, strict=True):
        for name, value in ours.model.state_dict().items():
            assert name == "best_score" or torch.equal(value, theirs.model.state_dict()[name]), name
    begun.train()
    before, after = (states_of(tmp_path / name)["UpstreamDelta"] for name in ("first", "second"))
    for name, entries in before["indices"].items():
        assert torch.isin(entries, after["indices"][name]).all(), "what has changed is stored"
    assert any(not torch.equal(before["values"][name], after["values"][name]) for name in before["values"])
    assert states_of(tmp_path / "second")["Step"] == 3


def test_a_delta_says_which_of_its_entries_train_now(build, tmp_path, hubert_ckpt, caplog):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    tuning = {"method": "child", "mask": "random", "density": 0.05, "reselect_every": 1}
    config = task_config(tuning=tuning, total_steps=3, eval_step=3)
    trained = build(make_args(tmp_path / "first", **upstream), config)
    trained.train()
    path = tmp_path / "first" / "delta.safetensors"
    stored, k = delta.load(path), len(trained.child)
    assert len(stored) > 2 * k, "most have trained before"
    assert sum(int(every.sum()) for every in stored.members.values()) == k
    config["tuning"]["reselect_every"] = 100
    delta.save(replace(stored, info={**stored.info, "config": config, "tuning": config["tuning"]}), path)
    with caplog.at_level("INFO"):
        begun = build(make_args(tmp_path / "second", **upstream, init_ckpt=str(path)), config)
        begun.train()
    for name, indices in stored.indices.items():
        now = begun.child.mask.get(name, torch.zeros(0))
        assert torch.equal(now.long(), indices[stored.members[name]].long()), name
    assert f"child network: {k} of" in caplog.text and f"those of {path}" in caplog.text
    delta.save(replace(delta.load(path), members={}), path)  # as it was written once
    begun = build(make_args(tmp_path / "third", **upstream, init_ckpt=str(path)), config)
    begun.train()
    assert len(begun.child) < 1.2 * k, "chosen anew"
    changed = states_of(tmp_path / "third")["UpstreamDelta"]["indices"]
    assert all(torch.isin(indices, changed[name]).all() for name, indices in stored.indices.items())


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (None, "a run with a frozen upstream would not store it"),
        (CHILD, "a run with tuning.method child would not store it"),
        ({"method": "full", "lr": [1e-3, 1e-4]}, "a race begins at the pre-trained one"),
    ],
    ids=["frozen", "child", "race"],
)
def test_a_whole_upstream_that_would_be_lost_is_refused(build, tmp_path, hubert_ckpt, tuning, reason):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    build(make_args(tmp_path / "first", **upstream), task_config(tuning={"method": "full"}, total_steps=1)).train()
    begin = {"init_ckpt": str(tmp_path / "first" / "states-1.ckpt")}
    config = task_config(tuning=tuning, eval_step=2) | {"early_stop": {"ratio": 0.5}}
    with pytest.raises(UsageError, match=f"holds a tuned upstream, and {reason}: train .* with -k"):
        build(make_args(tmp_path / "second", **upstream, **begin), config)
    build(make_args(tmp_path / "whole", **upstream, **begin, upstream_trainable=True), task_config())


@pytest.mark.parametrize("whole", [{"mask": "random", "density": 0.1, "redraw": True}, {"density": 1}])
def test_a_child_network_that_is_the_whole_upstream_begins_with_it_and_stores_it(build, tmp_path, hubert_ckpt, whole):
    upstream, tuning = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}, {"method": "child", **whole}
    build(make_args(tmp_path / "first", **upstream), task_config(tuning=tuning, total_steps=1)).train()
    begin = {"init_ckpt": str(tmp_path / "first" / "states-1.ckpt")}
    runner = build(make_args(tmp_path / "second", **upstream, **begin), task_config(tuning=tuning, total_steps=1))
    first = checkpoint.load(tmp_path / "first" / "states-1.ckpt")["Upstream"]
    assert all(torch.equal(weight, first[name]) for name, weight in runner.upstream.model.state_dict().items())
    runner.train()
    assert checkpoint.load(tmp_path / "second" / "states-1.ckpt")["Upstream"].keys() == first.keys()


@pytest.mark.parametrize("file", ["states-2.ckpt", "delta.safetensors"])
def test_what_it_began_with_is_still_known_after_a_resume_and_in_evaluations(build, tmp_path, first, file):
    folder, config = tmp_path / "second", task_config(total_steps=2, eval_step=1)
    build(make_args(folder, init_ckpt=str(first / file)), config).train()
    begun = json.loads((folder / "result.json").read_text())
    assert begun["begins_with"].startswith(f"{file} (") and begun["processes"] == 1
    assert json.loads((first / "result.json").read_text())["begins_with"] is None

    latest = str(folder / "states-2.ckpt")
    longer = task_config(total_steps=3, eval_step=1)
    build(make_args(folder, past_exp=str(folder), init_ckpt=latest), longer).train()
    assert json.loads((folder / "result.json").read_text())["begins_with"] == begun["begins_with"]
    for kept in ("states-3.ckpt", "delta.safetensors"):
        given = {"past_exp": str(folder)} if kept.endswith(".ckpt") else {}
        build(make_args(folder, mode="evaluate", init_ckpt=str(folder / kept), **given), longer).evaluate()
        scored = json.loads((folder / "result-test.json").read_text())
        assert scored["begins_with"] == begun["begins_with"], kept
