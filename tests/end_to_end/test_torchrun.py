"""``torchrun`` itself: a signal to it, and a worker that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3prl_ext.run_folder import RunFolder, step_of
from s3prl_ext.training import checkpoint
from tests.support.forked import free_port

pytestmark = pytest.mark.slow
LONG = "config.runner.total_steps=1000000,,config.runner.save_step=5,,config.runner.eval_step=1000000"


@pytest.fixture
def torchrun(corpora, tmp_path):
    """Start two ranks that train until they are stopped; the process of ``torchrun`` is ended in any case."""
    started = []

    def start(exp: Path, override: str, *flags: str) -> subprocess.Popen[str]:
        command = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
        command += ["-m", "s3prl_ext.run_downstream", "-m", "train", "-u", "fbank", "-d", "speech_commands"]
        command += ["-c", "ks/mini", "-p", str(exp), "-o", override, *flags]
        log = (tmp_path / "torchrun.log").open("a")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def wait_for_checkpoint(exp: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not RunFolder(exp).numbered() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert RunFolder(exp).numbered()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_resumes(torchrun, tmp_path, number):
    exp = tmp_path / "exp"
    process = torchrun(exp, LONG)
    wait_for_checkpoint(exp, process)
    process.send_signal(number)
    process.wait(60)
    output = (tmp_path / "torchrun.log").read_text()
    (saved,) = RunFolder(exp).numbered()
    step = step_of(saved)
    assert process.returncode != 0 and f"interrupted: step {step} is saved" in output, output[-3000:]
    assert not list(exp.glob(".*"))
    again = torchrun(exp, LONG.replace("1000000", str(step + 2), 1), "-a")
    assert again.wait(150) == 0
    assert checkpoint.load(exp / f"states-{step + 2}.ckpt")["WorldSize"] == 2


def test_a_killed_worker_ends_the_job_with_a_message(torchrun, tmp_path):
    exp = tmp_path / "exp"
    process = torchrun(exp, LONG)
    wait_for_checkpoint(exp, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(90) != 0
    assert time.monotonic() - killed < 60
    # torchrun's own words; it stops the other worker at once, which may get to say a word or not
    assert "SIGKILL" in (tmp_path / "torchrun.log").read_text()
    assert not list(exp.glob(".*"))
