"""Processes that load data end with the run that they load it for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from s3prl_ext.training.batching.batches import EndWithParent, end_with_parent
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
