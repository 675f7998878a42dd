"""A run that is asked to stop at a step (``args.until``): scored there, and no different in the end."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from tests.support.experiments import make_args, task_config

CONFIG = task_config(total_steps=6, eval_step=3, save_step=100)


def session(folder: Path, until: int | None = None) -> Namespace:
    """Return the arguments of a session that begins a run or goes on with it."""
    args = make_args(folder)
    latest = RunFolder(folder).latest()
    args.past_exp, args.init_ckpt = (str(folder), str(latest)) if latest else (None, None)
    if until is not None:
        args.until = until
    return args


def test_a_run_in_parts_equals_the_whole_and_is_scored_where_it_stops(build, tmp_path):
    build(session(tmp_path / "whole"), CONFIG).train()
    folder = RunFolder(tmp_path / "parts")
    (folder.path).mkdir()
    folder.path.joinpath("result-failed.json").write_text("{}")  # of an earlier attempt
    for until in (2, 3, 5):
        build(session(folder.path, until), CONFIG).train()
        assert [path.name for path in folder.numbered()] == [f"states-{until}.ckpt"]
        assert not folder.result().exists() and not (folder.path / "result-failed.json").exists()
        found = json.loads(folder.stop(until).read_text())
        assert found["step"] == until and found["seconds"] > 0 and 0 <= found["metrics"]["dev"]["acc"] <= 1
        assert "until" not in vars(checkpoint.load(folder.path / f"states-{until}.ckpt")["Args"])
    history = checkpoint.load(folder.path / "states-5.ckpt")["S3prlExt"]["history"]
    assert [row["step"] for row in history] == [3], "stopping adds no evaluation"
    assert json.loads(folder.stop(3).read_text())["metrics"]["dev"]["acc"] == history[0]["acc"]
    with pytest.raises(UsageError, match=r"is at step 5 already, past args.until=4, and cannot be scored"):
        build(session(folder.path, 4), CONFIG).train()
    build(session(folder.path), CONFIG).train()
    ours, theirs = (checkpoint.load(f / "states-6.ckpt") for f in (folder.path, tmp_path / "whole"))
    assert ours["S3prlExt"]["history"] == theirs["S3prlExt"]["history"]
    for part in ("Featurizer", "Downstream"):
        assert all(value.equal(theirs[part][name]) for name, value in ours[part].items())
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (folder.path, tmp_path / "whole"))
    assert ours["metrics"] == theirs["metrics"] and ours["step"] == 6
    compared = ("mode", "config", "data", "splits_sha256", "upstream_sha256")
    assert ours["data"] and ours["upstream_sha256"], "what a race is compared by"
    assert {key: ours[key] for key in compared} == {key: found[key] for key in compared}


def test_a_step_at_or_behind_the_end_is_the_end(build, tmp_path, caplog):
    build(session(tmp_path, 9), task_config(total_steps=2)).train()
    assert "args.until=9 has no effect: the run ends at step 2 before" in caplog.text
    assert (tmp_path / "result.json").is_file() and not list(tmp_path.glob("at-*.json"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"until": 0}, "args.until must be a whole number of at least 1, got 0"),
        ({"until": "soon"}, "args.until must be a whole number"),
        ({"until": 2, "mode": "evaluate"}, "args.until says where a training stops"),
    ],
)
def test_what_cannot_stop_is_refused(build, tmp_path, change, said):
    args = make_args(tmp_path)
    vars(args).update(change)
    with pytest.raises(UsageError, match=said):
        build(args, CONFIG)


def test_a_race_stops_at_its_own_rungs(build, tmp_path):
    config = task_config(tuning={"method": "lora", "rank": [2, 4]}) | {"early_stop": {"rungs": [2]}}
    with pytest.raises(UsageError, match="args.until stops a single run"):
        build(session(tmp_path, 2), config)


def test_the_file_of_a_stop_says_what_its_scores_depend_on(build, hubert_folder, tmp_path):
    args = make_args(tmp_path / "exp", upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    args.until = 1
    runner = build(args, task_config(total_steps=2))
    runner.train()
    stop = json.loads(RunFolder(tmp_path / "exp").stop(1).read_text())
    assert stop["upstream_settings"]["preprocessing.do_normalize"] is True
    assert stop["upstream_settings"] == runner.tuned.settings and len(stop["upstream_sha256"]) == 64
    assert len(stop["data"]["sha256"]) == len(stop["splits_sha256"]) == 64
