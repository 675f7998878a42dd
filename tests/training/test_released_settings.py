"""Task files of the released AD-TUNING code run as they are written, with what a user sees of it."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from s3prl_ext import progress
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.mini_superb import ALL, LAYOUTS, variables
from s3prl_ext.run_folder import RACE as FOLDER
from tests.support import forked
from tests.training.test_race_runs import newest

METRICS = {"pr": ["dev", "per"], "ks": ["dev", "acc"]}


def lines_of_bars() -> None:
    """Let every frame of a bar be a line of the log."""
    progress.LOG_SECONDS = 0.0


@pytest.mark.parametrize("task", METRICS)
def test_a_released_file_runs_as_it_is_written(mini_superb, hubert_ckpt, tmp_path, task):
    config = load_yaml(shipped_dir("downstream_configs") / task / "mini.yaml")
    config["runner"] |= {"total_steps": 10, "eval_step": 5, "save_step": 5, "strive_ratio": 0.2}
    config["runner"] |= {"observation": METRICS[task], "evaluate_ratio": 0.3}
    config["optimizer"] = {"name": "ChildnetAdamW", "lr": 3.0e-4, "reserve_p": [0.1, 0.01, 0.001]}
    path, exp = tmp_path / "config.yaml", tmp_path / "exp"
    path.write_text(yaml.safe_dump(config))
    environment = {name: str(value) for name, value in variables(ALL, mini_superb).items()}
    flags = [
        "-m",
        "train",
        "-u",
        "hubert_local",
        "-k",
        hubert_ckpt,
        "-d",
        LAYOUTS[task].task.downstream,
        "-c",
        path,
        "-p",
        exp,
    ]
    command = forked.Command(flags, tmp_path / "log", environment, before=lines_of_bars)
    assert command.wait() == 0, command.output[-3000:]

    assert "runner.evaluate_ratio is 0.3: only that share of the batches of" in command.output
    record = json.loads((exp / FOLDER / "race.json").read_text())
    split, metric = METRICS[task]
    assert (record["split"], record["metric"], record["cut"]) == (split, metric, 2)
    assert record["steps_of_all_candidates"] == 3 * 2 + 8 and len(record["entrants"]) == 3
    states = newest(exp)
    assert states["Step"] == 10 and states["S3prlExt"]["candidate"] == record["chosen"]
    assert sum(len(i) for i in states["UpstreamDelta"]["indices"].values()) <= 1718

    lines = re.split(r"[\r\n]+", command.output)
    (budget,) = [i for i, line in enumerate(lines) if "14 optimizer steps in all, and a Fisher pass of " in line]
    first = next(
        i for i, line in enumerate(lines) if "/10" not in line and re.search(r"race density=0.1 \(1/3\): .*2/2", line)
    )
    assert budget < first, "what it will cost is said before it starts"
    for label in ("race density=0.01 (2/3)", "race density=0.001 (3/3)", f"train {record['chosen']}:"):
        assert any(line.startswith(label) for line in lines[first:]), label
