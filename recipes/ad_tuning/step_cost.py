"""Measure a training step: ``step_cost.py RESULT.json STUDY.yaml -o CHANGES --only task=ks --only method=full``.

Trains some steps in a scratch folder and writes the median cost of one: CPU seconds of the process (on a GPU wall
seconds, after waiting for the device) and the peak memory while stepping, without start, Fisher pass and scoring.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

import s3prl_ext

s3prl_ext.install()

from s3prl_ext import run_downstream
from s3prl_ext.errors import as_command
from s3prl_ext.studies.plan import cells_of
from s3prl_ext.studies.study_file import read_study
from s3prl_ext.training.train_state import TrainState
from s3prl_ext.writing import write_json

STEPS, WARM_UP = 12, 2  # measured are those after the warm-up


class MeasuredSteps:
    """Time the steps of a :class:`TrainState`, and end the process' peak of memory before the first measured one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before = self.peak = 0
        self._step = TrainState.train_step

    def __call__(self, trial: TrainState, batches: Iterable[tuple[int, Any]]) -> bool:
        """Do one step of `trial` as it would be done without measuring."""
        gpu = torch.device(trial.models.device).type == "cuda"
        if len(self.seconds) == WARM_UP:
            self.before = reset_peak(gpu)
        start = now(gpu)
        done = self._step(trial, batches)
        self.seconds.append(now(gpu) - start)
        self.peak = peak(gpu)
        return done

    def row(self) -> Mapping[str, Any]:
        """Return the figures as plain values."""
        return {
            "seconds_per_step": median(self.seconds[WARM_UP:]),
            "steps": len(self.seconds) - WARM_UP,
            "peak_bytes": self.peak,
            "bytes_before": self.before,
            "clock": "wall, GPU" if torch.cuda.is_available() else "CPU",
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def now(gpu: bool) -> float:
    """Return CPU seconds of this process, or wall seconds after the GPU is done."""
    if gpu:
        torch.cuda.synchronize()
        return perf_counter()
    return process_time()


def reset_peak(gpu: bool) -> int:
    """Begin a new peak of memory; returns what is held now, in bytes."""
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # the peak then includes the start
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM becomes VmRSS
    return peak(gpu)


def peak(gpu: bool) -> int:
    """Return the peak memory in bytes: of torch on the GPU, or resident of this process."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main(argv: Sequence[str]) -> None:
    """Measure the first run of a part of a study, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("study", type=Path)
    parser.add_argument("-o", "--override")
    parser.add_argument("--only", action="append", default=[])
    flags = parser.parse_args(argv)
    short = {"total_steps": STEPS, "eval_step": STEPS, "save_step": STEPS, "evaluate_ratio": 0.01}
    changes = [flags.override or "", *(f"set.runner.{key}={value}" for key, value in short.items())]
    study = read_study(flags.study, ",,".join(filter(None, changes)), flags.only)
    measured = MeasuredSteps()
    TrainState.train_step = lambda trial, batches: measured(trial, batches)  # type: ignore[method-assign]  # noqa: PLW0108  a function, to be bound
    with tempfile.TemporaryDirectory() as folder:
        run_downstream.main(cells_of(study, Path(folder))[0].search[0].flags())
    flags.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.result, measured.row())


if __name__ == "__main__":
    with as_command():
        main(sys.argv[1:])
