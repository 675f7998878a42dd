"""Jobs of a Slurm cluster, through submitit: job arrays, put back into the queue when they are preempted."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Ended, Process
from s3prl_ext.studies.engines import begin, command, missing, whole_gpus

LARGEST_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
CLUSTER = "S3PRL_EXT_SLURM"  # submitit's executor: slurm, or local to try it without a cluster


@dataclass
class Command:
    """What a job of the cluster runs; submitit stores it in a file and calls it on the node."""

    argv: list[str]
    log: str
    folder: str
    cpus: int

    def __call__(self) -> int:
        """Run the command and return its exit status; a signal of the scheduler is handed on, so that it saves."""
        with open(self.log, "ab") as out:
            process = begin(self.argv, out, self.cpus, self.folder)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()

    def checkpoint(self) -> Any:
        """Return what submitit puts back into the queue after a preemption: the same command, which goes on (-a)."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class SlurmEngine:
    """Submits jobs in arrays.

    Args:
        jobs: at most so many of an array at a time; None leaves it to Slurm.
        resources: of a job; one GPU where they do not say how many, which cannot be seen from here.
        folder: for submitit's files.

    Raises:
        UsageError: submitit is not installed, or there is no Slurm on this machine.
    """

    queues = True

    def __init__(self, jobs: int | None, resources: Resources, folder: Path) -> None:
        gpus = whole_gpus(resources, default=1)
        try:
            import submitit
        except ImportError as error:
            raise missing("submitit", "slurm") from error
        cluster = os.environ.get(CLUSTER, "slurm")
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"--engine slurm: {' '.join(str(error).split())}; run it where sbatch is.") from error
        options: dict[str, Any] = {
            "name": "s3prl_ext", "cpus_per_task": resources.cpus, "gpus_per_node": gpus,
            "timeout_min": max(1, round(60 * resources.hours)) if resources.hours else 24 * 60,
        }  # fmt: skip
        if resources.memory:
            options["mem_gb"] = resources.memory
        if jobs is not None and cluster == "slurm":
            options["slurm_array_parallelism"] = jobs
        self.executor.update_parameters(**options)
        self.cpus = resources.cpus
        self.places = jobs if cluster != "slurm" and jobs is not None else LARGEST_ARRAY
        self.waiting: list[tuple[Process, Path]] = []
        self.running: list[tuple[Any, Process, Path]] = []

    def free(self) -> int:
        """Return how many more jobs fit into the next array."""
        return self.places - len(self.waiting) - (len(self.running) if self.places < LARGEST_ARRAY else 0)

    def start(self, job: Process, log: Path) -> None:
        """Put a job into the next array."""
        self.waiting.append((job, log))

    def ended(self, seconds: float) -> list[Ended]:
        """Submit what waits as one array, and return the jobs that have ended; wait up to `seconds` for the first."""
        self._submit()
        until = time.monotonic() + seconds
        while not (found := [one for one in self.running if one[0].done()]):
            if time.monotonic() >= until:
                return []
            time.sleep(0.2)
        for one in found:
            self.running.remove(one)
        return [Ended(job, _code(handle), log) for handle, job, log in found]

    def stop(self) -> list[Ended]:
        """Cancel all jobs; Slurm sends them SIGTERM, so that a training saves its step. None is waited for."""
        for handle, _, _ in self.running:
            handle.cancel()
        self.running.clear()
        self.waiting.clear()
        return []

    def _submit(self) -> None:
        if not self.waiting:
            return
        given, self.waiting = self.waiting, []
        try:
            with self.executor.batch():
                handles = [
                    self.executor.submit(Command(command(job), str(log.absolute()), str(Path.cwd()), self.cpus))
                    for job, log in given
                ]
        except RuntimeError as error:  # submitit's, with what sbatch has printed
            raise UsageError(
                f"sbatch refuses the jobs ({' '.join(str(error).split())[:160]}): ask for what the cluster has in "
                "resources of the study, such as gpus: 0."
            ) from error
        self.running += [(handle, job, log) for handle, (job, log) in zip(handles, given, strict=True)]


def _code(handle: Any) -> int | None:
    """Return the exit status of a job; None where it was lost."""
    try:
        return int(handle.result())
    except Exception:  # noqa: BLE001  submitit raises what the job raised, or its own for a lost one
        return None
