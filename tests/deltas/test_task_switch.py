"""Several tasks on one upstream: each switch is bitwise, nothing of one task is left in another."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.deltas import TaskSwitch, TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.training.upstream_settings import KEY, stated_settings
from tests.support import tuned as made

LORA = {"method": "lora", "rank": 2}
HOULSBY = {"method": "houlsby", "bottleneck": 3}


@pytest.fixture
def ckpt(tmp_path):
    return made.write_model("hubert_local", tmp_path)


@pytest.fixture
def tasks(tmp_path, ckpt):
    """Write tasks of four kinds; name -> (file, features of the upstream that was tuned)."""
    tasks = {}
    for seed, name in enumerate(("ks", "asr")):
        model = made.build("hubert_local", ckpt)
        tuned = made.tune(model, seed=seed)
        info = made.about("hubert_local", ckpt, {"method": "child", "density": 0.05})
        path = made.save_delta(tuned, info, tmp_path / name / "delta.safetensors")
        tasks[name] = (path.parent if name == "ks" else path, made.features(model))
    for tuning in (LORA, HOULSBY):
        model = made.build("hubert_local", ckpt)
        tuned = made.tune_adapter(model, tuning)
        info = made.about("hubert_local", ckpt, tuning)
        tasks[tuning["method"]] = (made.save_delta(tuned, info, tmp_path / f"{tuning['method']}.safetensors"),
                                   made.features(model))  # fmt: skip
    model = made.build("hubert_local", ckpt)
    tuned = made.tune(model, seed=5)
    info = made.about("hubert_local", ckpt, {"method": "child", "density": 0.05})
    path = made.save_checkpoint(made.delta_state(tuned), info, tmp_path / "dev-best.ckpt")
    return tasks | {"checkpoint": (path, made.features(model))}


def test_every_switch_is_bitwise(ckpt, tasks):
    upstream = made.build("hubert_local", ckpt)
    flags = {name: p.requires_grad for name, p in upstream.named_parameters()}
    base, hash_ = made.features(upstream), state_sha256(upstream.state_dict())
    switch = TaskSwitch(upstream, {name: path for name, (path, _) in tasks.items()})
    assert switch.names == tuple(tasks) and switch.active is None and switch.info == {}
    for name in [*tasks, *reversed(tasks), "lora", "ks", "houlsby"]:
        switch.switch(name)
        assert switch.active == name
        assert made.same(made.features(upstream), tasks[name][1]), name
        assert not made.same(made.features(upstream), base)
    switch.switch(None)
    assert made.same(made.features(upstream), base) and state_sha256(upstream.state_dict()) == hash_
    assert {name: p.requires_grad for name, p in upstream.named_parameters()} == flags


def test_a_task_is_added_while_another_is_on(ckpt, tasks):
    upstream = made.build("hubert_local", ckpt)
    switch = TaskSwitch(upstream, {"ks": tasks["ks"][0]})
    switch.switch("ks")
    switch.add("asr", TrainedTask.read(tasks["asr"][0]))
    assert switch.active == "ks" and made.same(made.features(upstream), tasks["ks"][1])
    with pytest.raises(DataError, match="no such checkpoint, delta or folder"):
        switch.add("third", "missing.safetensors")
    with pytest.raises(UsageError, match="'ks' already"):
        switch.add("ks", tasks["asr"][0])
    with pytest.raises(UsageError, match="unknown task 'asd'; did you mean 'asr'"):
        switch.switch("asd")
    assert switch.active == "ks" and made.same(made.features(upstream), tasks["ks"][1])


def test_the_head_of_the_task_that_is_on(ckpt, tasks):
    switch = TaskSwitch(made.build("hubert_local", ckpt), {"ks": tasks["ks"][0]})
    with pytest.raises(UsageError, match="no task is active"):
        switch.weights("Downstream")
    switch.switch("ks")
    assert torch.equal(switch.weights("Downstream")["model.weight"], made.HEAD["Downstream"]["model.weight"])
    assert switch.info["metrics"]["dev"]["acc"] == 0.75


def test_a_task_that_won_a_race(tmp_path, ckpt):
    model = made.build("hubert_local", ckpt)
    tuned = made.tune_adapter(model, {"method": "lora", "rank": 4})
    race = {"method": "lora", "rank": [2, 4]}
    info = made.about("hubert_local", ckpt, race, candidate="rank=4")
    path = made.save_delta(tuned, info, tmp_path / "d.safetensors")
    assert TrainedTask.read(path).info["tuning"] == {"method": "lora", "rank": 4}
    upstream = made.build("hubert_local", ckpt)
    switch = TaskSwitch(upstream, {"x": path})
    switch.switch("x")
    assert made.same(made.features(upstream), made.features(model))
    lost = made.save_delta(tuned, info | {"candidate": "rank=8"}, tmp_path / "lost.safetensors")
    with pytest.raises(DataError, match="candidate rank=8, which tuning does not make"):
        TrainedTask.read(lost)


def test_another_base_is_refused(tmp_path, tasks):
    other = made.build("hubert_local", made.factories.hubert_local_ckpt(tmp_path / "other.pt", seed=9))
    for name in ("ks", "checkpoint", "lora"):
        with pytest.raises(DataError, match="belongs to another upstream"):
            TaskSwitch(other, {name: tasks[name][0]})


@pytest.mark.parametrize("active", [None, "asr", "houlsby"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_an_upstream_that_was_cast_since_is_left_as_it_is(ckpt, tasks, dtype, active):
    upstream = made.build("hubert_local", ckpt)
    switch = TaskSwitch(upstream, {name: path for name, (path, _) in tasks.items()})
    switch.switch(active)
    before = {name: tensor.clone() for name, tensor in upstream.to(dtype).state_dict().items()}
    with pytest.raises(DataError, match=f"which is {dtype} here"):
        switch.switch("ks")
    after = upstream.state_dict()
    assert switch.active == active and list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    if dtype == torch.float64:
        upstream.float()
        switch.switch("ks")
        assert made.same(made.features(upstream), tasks["ks"][1])


def test_a_whole_upstream_is_no_delta(tmp_path, ckpt):
    model = made.build("hubert_local", ckpt)
    info = made.about("hubert_local", ckpt, {"method": "full"})
    path = made.save_checkpoint({"Upstream": model.state_dict()}, info, tmp_path / "dev-best.ckpt")
    with pytest.raises(DataError, match="whole upstream"):
        TaskSwitch(model, {"ks": path})


def test_weights_of_another_adapter_leave_the_upstream_as_it_was(tmp_path, ckpt):
    model = made.build("hubert_local", ckpt)
    tuned = made.tune_adapter(model, LORA)
    wrong = made.about("hubert_local", ckpt, {"method": "lora", "rank": 4})
    path = made.save_delta(tuned, wrong, tmp_path / "d.safetensors")
    upstream = made.build("hubert_local", ckpt)
    hash_ = state_sha256(upstream.state_dict())
    switch = TaskSwitch(upstream, {"x": path})
    with pytest.raises(DataError, match="do not belong to lora"):
        switch.switch("x")
    assert switch.active is None and state_sha256(upstream.state_dict()) == hash_
    assert all(p.requires_grad for p in upstream.parameters())


@pytest.mark.parametrize("kind", ["file", "task", "delta"])
def test_a_task_of_other_settings_is_refused(kind, tmp_path):
    """The same weights, but the number of attention heads or ``normalize`` was another in training."""
    ckpt = made.write_model("wavlm_local", tmp_path)
    upstream = made.build("wavlm_local", ckpt)
    stated = stated_settings(upstream)
    for name, settings in (("fits", stated), ("other", stated | {"normalize": True})):
        about = made.about("wavlm_local", ckpt, {"method": "child", "density": 0.05}, **{KEY: settings})
        tuned = made.tune(made.build("wavlm_local", ckpt))
        made.save_delta(tuned, about, tmp_path / name / "delta.safetensors")
    task = {name: TrainedTask.read(tmp_path / name) for name in ("fits", "other")}
    given = {name: {"file": one.path, "task": one, "delta": one.delta}[kind] for name, one in task.items()}
    switch = TaskSwitch(upstream, {"fits": given["fits"]})
    switch.switch("fits")
    now = made.features(upstream)
    with pytest.raises(DataError, match=r"other settings of the upstream \(normalize False instead of True\)"):
        switch.add("other", given["other"])
    assert switch.names == ("fits",) and made.same(made.features(upstream), now)
