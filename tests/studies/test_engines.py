"""Engines run the processes of jobs; here these are small scripts that leave the result of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Adjustment, Resources
from s3prl_ext.studies.driver import Driver, Engine
from s3prl_ext.studies.engines import local, ray, shown, slurm
from s3prl_ext.studies.jobs import Job
from s3prl_ext.studies.plan import cells_of, resources_of
from tests.studies import test_race
from tests.studies.test_driver import make_study, score
from tests.support.instant_engine import result_of

WRITE = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(sys.argv[2])
"""
SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def writes(job: Job) -> list[str]:
    """Return a command that leaves the result of a job, with the score that it should have."""
    path, text = result_of(job, (test_race.score if job.run.study.race else score)(job))
    return [sys.executable, "-c", WRITE, str(path), text]


@pytest.fixture
def scripts(monkeypatch):
    for module in (local, ray, slurm):
        monkeypatch.setattr(module, "command", writes)


def check_study(tmp_path: Path, engine: Engine) -> None:
    progress = Driver(make_study(), tmp_path, engine, lambda _: None).run()
    assert not progress.failed and len(progress.done) == progress.total == 12
    assert [cell.chosen().labels["lr"] for cell in progress.cells] == ["0.01", "0.01"]
    progress = Driver(test_race.make_study(), tmp_path / "race", engine, lambda _: None).run()
    assert not progress.failed and len(progress.done) == progress.total == 10
    assert [cell.chosen().labels["lr"] for cell in progress.cells] == ["0.001"]


def test_a_study_on_this_machine(scripts, tmp_path):
    check_study(tmp_path, local.LocalEngine(2, Resources(gpus=0)))


def test_a_study_on_ray(scripts, tmp_path, monkeypatch):
    package = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    try:
        check_study(tmp_path, ray.RayEngine(None, Resources(), retries=2))
        package.shutdown()
        with pytest.raises(UsageError, match="a job asks for 7 GPU"):
            ray.RayEngine(None, Resources(gpus=7), retries=2)
        package.shutdown()
        with pytest.raises(UsageError, match=r"a job asks for 1e\+06 memory \(GiB\), but the largest node"):
            ray.RayEngine(None, Resources(memory=1e6), retries=2)
    finally:
        package.shutdown()


def test_a_study_through_submitit(scripts, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv(slurm.CLUSTER, "local")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    check_study(tmp_path, slurm.SlurmEngine(2, Resources(), tmp_path / "slurm"))


def test_without_slurm_or_a_package_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs the package 'ray': pip install 's3prl_ext\[ray\]'"):
        ray.RayEngine(None, Resources(), 2)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"needs the package 'submitit': pip install 's3prl_ext\[slurm\]'"):
        slurm.SlurmEngine(None, Resources(), tmp_path)


@pytest.mark.parametrize(
    ("jobs", "resources", "sentence"),
    [
        (None, Resources(gpus=0.5), "only --engine ray shares a GPU"),
        (None, Resources(gpus=999), r"asks for 999, but this machine has \d+"),
        (None, Resources(cpus=9999), r"asks for 9999, but this machine has \d+"),
    ],
)
def test_more_than_there_is_is_refused(jobs, resources, sentence):
    with pytest.raises(UsageError, match=sentence):
        local.LocalEngine(jobs, resources)


@pytest.mark.parametrize("gpus", [0.5, 1.5])
def test_slurm_gives_no_part_of_a_gpu(gpus, tmp_path):
    with pytest.raises(UsageError, match="only --engine ray shares a GPU"):
        slurm.SlurmEngine(None, Resources(gpus=gpus), tmp_path)


def a_job(tmp_path: Path) -> Job:
    return Job(cells_of(make_study(), tmp_path)[0].search[0], "train")


def test_stopping_ends_the_processes(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    monkeypatch.setattr(local, "command", lambda job: [sys.executable, "-c", SLEEP, str(begun)])
    engine = local.LocalEngine(1, Resources())
    engine.start(a_job(tmp_path), tmp_path / "log")
    process = engine.running[0].process
    until(begun.is_file)
    assert engine.free() == 0 and engine.ended(0.0) == []
    [end] = engine.stop()
    assert process.returncode == end.code == -signal.SIGTERM and engine.free() == 1


SAVES = """
import pathlib, signal, subprocess, sys, time
loads = subprocess.Popen(["sleep", "600"])
def save(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[2]).write_text(f"{loads.pid} {loads.poll()}")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


def test_a_training_that_is_stopped_keeps_the_processes_that_load_its_data_until_it_has_saved(tmp_path, monkeypatch):
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    monkeypatch.setattr(local, "command", lambda job: [sys.executable, "-c", SAVES, str(begun), str(saved)])
    engine = local.LocalEngine(1, Resources())
    engine.start(a_job(tmp_path), tmp_path / "log")
    until(begun.is_file)
    [end] = engine.stop()
    loads, how = saved.read_text().split()
    assert end.code == 130 and how == "None"
    until(lambda: not Path(f"/proc/{loads}").exists() or "zombie" in Path(f"/proc/{loads}/status").read_text(), 5.0)


def test_a_killed_process_is_lost_not_failed(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    monkeypatch.setattr(local, "command", lambda job: [sys.executable, "-c", SLEEP, str(begun)])
    engine = local.LocalEngine(1, Resources())
    engine.start(a_job(tmp_path), tmp_path / "log")
    until(begun.is_file)
    os.kill(engine.running[0].process.pid, signal.SIGKILL)
    [end] = engine.ended(10.0)
    assert end.code == -signal.SIGKILL and engine.free() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_jobs_end_with_a_killed_driver(tmp_path):
    """Else the same command, given again, would meet them in their folders."""
    begun = tmp_path / "begun"
    driver = f"""
import pathlib, sys, time
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.engines import local
from tests.studies.test_engines import a_job
local.command = lambda job: [sys.executable, "-c", "import os, pathlib, time; pathlib.Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(600)"]
local.LocalEngine(1, Resources()).start(a_job(pathlib.Path({str(tmp_path)!r})), pathlib.Path({str(tmp_path / "log")!r}))
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", driver], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    until(lambda: begun.is_file() and begun.read_text())
    child = int(begun.read_text())
    process.kill()
    process.wait()
    until(lambda: not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text())


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, GPU-0a", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-0a"]),
        ("MIG-7d2f,MIG-8e3a,MIG-9f4b", ["MIG-7d2f", "MIG-8e3a"]),  # torch sees two
        ("3,1", ["3", "1"]),
        (None, ["0", "1"]),
    ],
)
def test_gpus_are_named_as_they_were_given(given, devices, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    show = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    files = [tmp_path / "0", tmp_path / "1"]
    engine, job = local.LocalEngine(None, Resources(gpus=1)), a_job(tmp_path)
    for file in files:
        monkeypatch.setattr(local, "command", lambda job, file=file: [sys.executable, "-c", show, str(file)])
        engine.start(job, tmp_path / "log")
    until(lambda: engine.ended(1.0) and not engine.running)
    assert [file.read_text() for file in files] == devices and sorted(engine.devices) == sorted(devices)


@pytest.mark.parametrize(
    ("seen", "resources", "jobs", "given"),
    [
        (8, Resources(), None, [str(number) for number in range(8)]),
        (8, Resources(gpus=2), None, ["0,1", "2,3", "4,5", "6,7"]),
        (8, Resources(), 2, ["0", "1"]),
        (8, Resources(gpus=0), 2, [None, None]),
        (0, Resources(), None, [None]),
        (0, Resources(), 2, [None, None]),
    ],
)
def test_each_job_has_a_gpu_of_its_own_unless_the_study_asks_for_none(
    seen, resources, jobs, given, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "command", lambda job: [])
    begun: list[dict[str, str]] = []
    monkeypatch.setattr(local, "begin", lambda argv, out, cpus, **env: begun.append(env))
    engine, job = local.LocalEngine(jobs, resources), a_job(tmp_path)
    for _ in range(engine.free()):
        engine.start(job, tmp_path / "log")
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in begun] == given


def test_more_jobs_than_gpus_are_refused_with_the_way_to_share_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"has 1: give --jobs 1, or in a study resources: \{gpus: 0\}"):
        local.LocalEngine(2, Resources())


@pytest.mark.parametrize(
    ("flags", "adjust", "gpus"),
    [
        ({}, (), None),
        ({"--device": "cuda"}, (), None),
        ({"--device": "cpu"}, (), 0),
        ({"--device": "cuda:1"}, (), 0),  # which a job with one GPU of its own would not see
        ({}, (Adjustment({}, flags={"--device": "cpu"}),), 0),
        ({}, (Adjustment({"lr": ("0.01",)}, flags={"--device": "cpu"}),), None),
    ],
)
def test_a_study_whose_runs_name_their_device_takes_no_gpu(flags, adjust, gpus, tmp_path):
    cells = cells_of(make_study(flags=flags, adjust=adjust), tmp_path)
    assert resources_of(cells).gpus == gpus
    asked = cells_of(make_study(flags=flags, adjust=adjust, resources=Resources(gpus=2)), tmp_path)
    assert resources_of(asked).gpus == 2


SBATCH = """#!/bin/sh
grep '^#SBATCH' "$1" > "$0.asked"
echo "sbatch: error: Invalid generic resource (gres) specification" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        (Resources(), ["--gpus-per-node=1", "--time=1440"]),
        (Resources(gpus=0, hours=2.3), ["--gpus-per-node=0", "--time=138"]),
        (Resources(hours=0.001), ["--gpus-per-node=1", "--time=1"]),
    ],
)
def test_slurm_is_asked_for_a_gpu_and_what_it_refuses_is_said(resources, asked, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text(SBATCH)
        (tmp_path / name).chmod(0o755)
    monkeypatch.delenv(slurm.CLUSTER, raising=False)
    engine = slurm.SlurmEngine(None, resources, tmp_path / "slurm")
    engine.start(a_job(tmp_path), tmp_path / "log")
    with pytest.raises(UsageError, match="sbatch refuses the jobs .*Invalid generic resource.*such as gpus: 0"):
        engine.ended(0.0)
    lines = (tmp_path / "sbatch.asked").read_text().split()
    assert set(asked) <= set(lines)


def test_the_printed_command_is_the_one_that_runs(tmp_path):
    job = a_job(tmp_path)
    assert shown(job).startswith("s3prl-ext run -m train -a -d speech_commands -c ks/mini -u fbank --seed 0 -p")


def until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
