"""s3prl's optimizers with a schedule of their own put an object into the checkpoint: it is read back all the same."""

from __future__ import annotations

import pytest

from s3prl_ext.training import checkpoint
from tests.support.experiments import make_args, task_config


@pytest.mark.parametrize("name", ["BertAdam_with_schedule", "AdamW_with_schedule"])
def test_runs_with_a_schedule_inside_the_optimizer_resume(build, tmp_path, name):
    def config(steps):
        made = task_config(total_steps=steps, save_step=1)
        made["optimizer"] = {"name": name, "lr": 1.0e-3, "warmup_proportion": 0.1}
        return made

    build(make_args(tmp_path / "whole"), config(3)).train()
    build(make_args(tmp_path / "parts"), config(3) | {"runner": config(3)["runner"] | {"max_keep": 9}}).train()
    args = make_args(tmp_path / "parts")
    args.init_ckpt, args.past_exp = str(tmp_path / "parts" / "states-2.ckpt"), str(tmp_path / "parts")
    build(args, config(3)).train()
    ours, theirs = (checkpoint.load(tmp_path / n / "states-3.ckpt")["Downstream"] for n in ("parts", "whole"))
    assert all((ours[key] == theirs[key]).all() for key in theirs)
