"""A race whose candidates train in processes of a study equals the race in one process."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from s3prl_ext.studies.config import AxisPoint, Resources, Study
from s3prl_ext.studies.driver import Driver, Engine
from s3prl_ext.studies.engines.local import LocalEngine
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from tests.support.experiments import make_args, task_config
from tests.support.forked_engine import Forked
from tests.training.test_race_runs import assert_same_run, newest

DENSITIES = [0.05, 0.01, 0.2]
METHOD = {"method": "child", "mask": "fisher", "fisher": {"max_batches": 2}}
LENGTHS = {"total_steps": 6, "eval_step": 3, "save_step": 3, "log_step": 2}
RACE = {"rungs": [2, 4], "eta": 2}


def study_of(hubert_ckpt: str) -> Study:
    axes = {
        "task": (AxisPoint("ks", flags={"-d": "speech_commands", "-c": "ks/mini"}),),
        "upstream": (AxisPoint("hubert", flags={"-u": "hubert_local", "-k": hubert_ckpt}),),
        "method": (AxisPoint("child", {"tuning": METHOD}),),
        "density": tuple(AxisPoint(f"{d:g}", {"tuning.density": d}) for d in DENSITIES),
    }
    settings = {f"runner.{key}": value for key, value in LENGTHS.items()}
    race = EarlyStopConfig.read(RACE, "race")
    return Study(axes, (1337,), ("density",), race, settings=settings, flags={"--device": "cpu"})


@pytest.mark.parametrize("engine", ["forked", pytest.param("local", marks=pytest.mark.slow)])
def test_two_jobs_at_a_time_end_as_the_race_in_one_process(build, tmp_path, hubert_ckpt, monkeypatch, engine):
    variables = {name: os.environ[name] for name in os.environ if re.match("SPEECH|OMP", name)}
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder = tmp_path / "study"
    running: Engine = Forked(2, variables) if engine == "forked" else LocalEngine(2, Resources(gpus=0))
    progress = Driver(study_of(hubert_ckpt), folder, running, lambda _: None).run()
    assert not progress.failed, progress.failed
    assert len(progress.done) == progress.total == 7
    (cell,) = progress.cells
    winner = cell.chosen()

    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    config = task_config(tuning=METHOD | {"density": DENSITIES}, **LENGTHS) | {"early_stop": RACE}
    alone = tmp_path / "alone"
    build(make_args(alone, **upstream), config).train()
    record = json.loads((alone / "race" / "race.json").read_text())
    assert f"density={winner.labels['density']}" == record["chosen"]
    for run in cell.search:
        scores = record["scores"][f"density={run.labels['density']}"]
        assert {str(step): json.loads(run.stop(step).read_text())["metrics"]["dev"] for step in run.stops()} == scores
    assert_same_run(newest(winner.folder), newest(alone))
    args = make_args(alone, mode="evaluate", **upstream)
    args.init_ckpt, args.past_exp = str(alone / winner.checkpoint().name), str(alone)
    build(args, config).evaluate()
    for name in ("result.json", "result-test.json"):
        ours, theirs = (json.loads((place / name).read_text()) for place in (winner.folder, alone))
        assert ours["metrics"] == theirs["metrics"] and ours["step"] == theirs["step"], name
    if isinstance(running, Forked):
        assert running.most == 2
