"""Processes that load data end with the run that they load it for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from s3prl_ext.errors import DataError, StoppedByUser
from s3prl_ext.training.batching.batches import EndWithParent, end_with_parent
from s3prl_ext.training.distributed import Interrupted, StopRequest
from s3prl_ext.training.results.evaluation import open_split
from s3prl_ext.training.selection.fisher_batches import UtteranceBatches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")


class Clips:
    """More clips than the pipes between processes hold."""

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        return np.zeros(160_000, np.float32)


class Task:
    """A task with two processes that read."""

    def get_dataloader(self, split):
        return DataLoader(Clips(), batch_size=8, num_workers=2, collate_fn=list)


def killed_while_reading(batches, numbers: Path) -> list[int]:
    """Return the workers of a process that is killed when they have had the time to fill their pipes."""
    process = os.fork()
    if process == 0:
        reading = iter(batches())
        next(reading)
        time.sleep(0.5)
        found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout
        numbers.write_text(found)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    return list(map(int, numbers.read_text().split()))


def runs(process: int) -> bool:
    """Return whether a process runs, and is not merely waiting to be counted."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    "batches",
    [lambda: open_split(Task(), "train"), lambda: UtteranceBatches(Task(), "train").batches()],
    ids=["training", "Fisher pass"],
)
def test_no_worker_outlives_a_killed_run(tmp_path, batches):
    workers = killed_while_reading(batches, tmp_path / "workers")
    assert len(workers) >= 2
    end = time.monotonic() + 5
    while any(map(runs, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    left = [worker for worker in workers if runs(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_what_a_loader_does_in_its_workers_stays():
    started = []
    loader = end_with_parent(end_with_parent(DataLoader(range(4), num_workers=1, worker_init_fn=started.append)))
    assert loader.worker_init_fn.then == started.append
    assert list(loader) and isinstance(loader.worker_init_fn, EndWithParent)
    without = DataLoader(range(4))
    assert end_with_parent(without) is without and without.worker_init_fn is None
    assert end_with_parent([1]) == [1]


def test_a_worker_lost_within_a_step_leaves_nothing_to_save():
    """The gradients of the batches before are in no checkpoint, and a resumed run would go on behind these batches."""
    lost = RuntimeError("DataLoader worker (pid 1) exited unexpectedly with exit code 1")
    for within, stopped in ((False, Interrupted), (True, StoppedByUser)):
        with StopRequest() as stop, pytest.raises(stopped):
            stop.requested = True
            with stop.or_lost_worker(within_step=within):
                raise lost


class Slow(Clips):
    """Clips that take a while to read."""

    def __getitem__(self, index):
        time.sleep(0.001)
        return index


def reads_on_after(said: Path, disturb) -> list[str]:
    """Read with two workers in a group of processes of its own, and call `disturb` with the workers on the way.

    Return what was said of it; the last line is the exit status.
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            with StopRequest() as stop, said.open("w", buffering=1) as out:
                reading = iter(end_with_parent(DataLoader(Slow(), batch_size=4, num_workers=2)))
                for number in range(40):
                    next(reading)
                    if number == 4:  # both have begun
                        disturb(children(os.getpid()))
                out.write(f"requested {stop.requested}\n")
                del reading
                out.write("ended\n")
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return [*said.read_text().splitlines(), str(code)]


def children(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def send(number: int, to: int) -> None:
    """Let another process, out of our group, send a signal to a process or, negative, to a group."""
    subprocess.run(["kill", f"-{int(number)}", "--", str(to)], check=True, start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_a_signal_to_the_whole_group_to_the_run(tmp_path, number):
    """Ctrl-C, scancel and the end of a Slurm job's time reach all processes; the run needs its workers to save."""
    said = reads_on_after(tmp_path / "said", lambda workers: send(number, -os.getpgid(0)))
    assert said == ["requested True", "ended", "0"]


def test_a_signal_that_reaches_the_workers_first_is_survived(tmp_path):
    def signals(workers: list[int]) -> None:
        for worker in workers:
            send(signal.SIGTERM, worker)
        time.sleep(0.3)

    assert reads_on_after(tmp_path / "said", signals) == ["requested False", "ended", "0"]


def hang() -> None:
    EndWithParent()(0)
    time.sleep(600)


def test_a_worker_that_hangs_ends_when_its_run_ends_it():
    worker = multiprocessing.get_context("fork").Process(target=hang, daemon=True)
    worker.start()
    time.sleep(0.3)
    worker.terminate()
    worker.join(10)
    code = worker.exitcode
    worker.kill()
    assert code == 0


def test_after_a_request_to_stop_a_lost_worker_is_part_of_it(tmp_path):
    """Torch would raise an error wherever the run just is, such as in the midst of a step or of saving."""
    reached = []
    with StopRequest() as stop:
        reading = iter(end_with_parent(DataLoader(Slow(), batch_size=4, num_workers=2)))
        next(reading)
        os.kill(os.getpid(), signal.SIGTERM)
        for worker in reading._workers:
            worker.kill()
            worker.join()
        time.sleep(0.1)
        torch.save({"x": torch.zeros(1000)}, tmp_path / "saved")
        with pytest.raises(Interrupted), stop.or_lost_worker():
            while True:
                next(reading)
                reached.append(1)
    handler = signal.getsignal(signal.SIGCHLD)
    assert callable(handler), "torch watches the workers again"


def test_without_a_request_a_lost_worker_is_an_error():
    with StopRequest() as stop:
        reading = iter(end_with_parent(DataLoader(Slow(), batch_size=4, num_workers=2)))
        next(reading)
        with pytest.raises(RuntimeError, match="is killed by signal"), stop.or_lost_worker():
            reading._workers[0].kill()
            time.sleep(5)


def test_a_label_that_the_task_does_not_know_is_a_sentence():
    class Unknowing:
        def get_dataloader(self, split: str) -> None:
            raise KeyError("B-genres" if split == "train" else split)

    with pytest.raises(
        DataError, match=r"split 'train' cannot be read: the task looks up 'B-genres' .* check the corpus"
    ):
        open_split(Unknowing(), "train")
    with pytest.raises(KeyError, match="devv"):  # what calls it says that there is no such split
        open_split(Unknowing(), "devv")
