"""Interrupting and resuming: the continued run is bitwise the uninterrupted one; nothing is lost on the way."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from s3prl_ext.child_tuning import child_network
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from tests.support.experiments import interrupt_at_loss, make_args, record_losses, task_config

CHILD = {"method": "child", "mask": "fisher", "density": 0.05, "fisher": {"max_batches": 2}}


def assert_same(a, b, path="states"):
    """Compare nested checkpoint content bitwise."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert set(a) == set(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, Namespace):
        pass
    else:
        assert a == b, path


def model_states(expdir: Path, step: int) -> dict:
    states = torch.load(expdir / f"states-{step}.ckpt", map_location="cpu", weights_only=True)
    states["S3prlExt"].pop("spent")  # wall time is never the same
    return {k: v for k, v in states.items() if k not in ("Args", "Config")}


def resumed_args(expdir: Path, ckpt: str, **changes) -> Namespace:
    return make_args(expdir, past_exp=str(expdir), init_ckpt=str(expdir / ckpt), **changes)


@pytest.mark.parametrize(  # every pair of the three
    ("tuning", "stop_at", "scheduler"),
    [
        (None, 3, None),
        (None, 5, "linear_schedule_with_warmup"),
        (CHILD, 3, "linear_schedule_with_warmup"),
        (CHILD, 5, None),
    ],
    ids=["fine_tuning-3", "fine_tuning-5-scheduler", "child-3-scheduler", "child-5"],
)
def test_resumed_run_equals_uninterrupted(build, tmp_path, hubert_ckpt, tuning, stop_at, scheduler):
    upstream = {
        "upstream": "hubert_local", "upstream_ckpt": hubert_ckpt, "upstream_trainable": tuning is None
    }  # fmt: skip
    config = task_config(tuning=tuning, total_steps=7, eval_step=2, save_step=7)
    if scheduler is not None:
        config["scheduler"] = {"name": scheduler, "num_warmup_steps": 4}
    build(make_args(tmp_path / "whole", **upstream), config).train()

    runner = build(make_args(tmp_path / "parts", **upstream), config)
    interrupt_at_loss(runner, stop_at + (2 if tuning is not None else 0))  # the Fisher pass computes two losses
    with pytest.raises(StoppedByUser, match=r"resume with -a"):
        runner.train()
    (saved,) = (tmp_path / "parts").glob("states-*.ckpt")
    build(resumed_args(tmp_path / "parts", saved.name, **upstream), config).train()
    assert_same(model_states(tmp_path / "whole", 7), model_states(tmp_path / "parts", 7))


@pytest.mark.parametrize("fewest", [(1 << 40, 16), (16, 1 << 40)], ids=["sorted_first", "interleaved_first"])
def test_checkpoint_does_not_depend_on_the_order_in_memory(build, tmp_path, hubert_ckpt, monkeypatch, fewest):
    """What a run with sorted values stored, one with interleaved values resumes, and the other way round."""
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    # The norm of the gradient is summed in the order of the values, so it is kept from clipping.
    config = task_config(tuning=CHILD, total_steps=6, save_step=6, gradient_clipping=1e9)
    build(make_args(tmp_path / "whole", **upstream), config).train()
    monkeypatch.setattr(child_network, "FEWEST", fewest[0])
    first = task_config(tuning=CHILD, total_steps=3, save_step=3, gradient_clipping=1e9)
    build(make_args(tmp_path / "parts", **upstream), first).train()
    monkeypatch.setattr(child_network, "FEWEST", fewest[1])
    runner = build(resumed_args(tmp_path / "parts", "states-3.ckpt", **upstream), config)
    runner.train()
    assert any(runner.child._interleaved) == (fewest[1] == 16)
    whole, parts = (model_states(tmp_path / folder, 6)["Optimizer"]["state"] for folder in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for number, state in whole.items():
        for key, value in state.items():  # the last few entries of a vector are rounded otherwise than the rest
            torch.testing.assert_close(parts[number][key], value, rtol=1e-6, atol=0)


def test_interrupt_during_evaluation_repeats_it_on_resume(build, tmp_path):
    config = task_config(total_steps=4, eval_step=2, save_step=4)
    build(make_args(tmp_path / "whole"), config).train()
    runner = build(make_args(tmp_path / "parts"), config)
    interrupt_at_loss(runner, 4)  # two training batches, then the second batch of the evaluation
    with pytest.raises(StoppedByUser):
        runner.train()
    assert not (tmp_path / "parts" / "dev-best.ckpt").exists()
    build(resumed_args(tmp_path / "parts", "states-2.ckpt"), config).train()
    assert_same(model_states(tmp_path / "whole", 4), model_states(tmp_path / "parts", 4))
    assert (tmp_path / "whole" / "dev-best.ckpt").exists() == (tmp_path / "parts" / "dev-best.ckpt").exists()


def test_resume_continues_the_losses(build, tmp_path):
    config = task_config(total_steps=6, save_step=3, log_step=1)
    runner = build(make_args(tmp_path / "whole"), config)
    whole = record_losses(runner)
    runner.train()
    build(make_args(tmp_path / "parts"), task_config(total_steps=3, save_step=3)).train()
    runner = build(resumed_args(tmp_path / "parts", "states-3.ckpt"), config)
    rest = record_losses(runner)
    runner.train()
    assert rest[:3] == whole[3:6]


def test_existing_experiment_is_not_overwritten(build, tmp_path):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    before = (tmp_path / "exp" / "states-1.ckpt").read_bytes()
    with pytest.raises(UsageError, match="args.overwrite=True"):
        build(make_args(tmp_path / "exp"), task_config(total_steps=1))
    assert (tmp_path / "exp" / "states-1.ckpt").read_bytes() == before
    args = make_args(tmp_path / "exp")
    args.overwrite = True
    build(args, task_config(total_steps=2)).train()
    assert [p.name for p in (tmp_path / "exp").glob("states-*")] == ["states-2.ckpt"]


def test_truncated_checkpoint_is_refused(build, tmp_path):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    path = tmp_path / "exp" / "states-1.ckpt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="states-1.ckpt is truncated"):
        build(resumed_args(tmp_path / "exp", "states-1.ckpt"), task_config())


def test_checkpoint_of_another_upstream_is_refused(build, tmp_path, hubert_ckpt):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    args = make_args(
        tmp_path / "other", mode="evaluate", init_ckpt=str(tmp_path / "exp" / "states-1.ckpt"),
        upstream="hubert_local", upstream_ckpt=hubert_ckpt,
    )  # fmt: skip
    with pytest.raises(DataError, match="was trained with -u fbank, not with -u hubert_local"):
        build(args, task_config())


def test_full_disk_keeps_the_older_checkpoint(build, tmp_path, monkeypatch):
    config = task_config(total_steps=2, save_step=1)
    runner = build(make_args(tmp_path / "exp"), config)
    save, calls = torch.save, []

    def failing(obj, file, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"partial")
            raise OSError(28, "No space left on device")
        return save(obj, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(DataError, match="the disk is full"):
        runner.train()
    assert sorted(p.name for p in (tmp_path / "exp").iterdir() if "ckpt" in p.name) == ["states-1.ckpt"]
    torch.load(tmp_path / "exp" / "states-1.ckpt", weights_only=True)
