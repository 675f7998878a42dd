"""Jobs as processes of this machine: one for each GPU, or a number of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Ended, Process
from s3prl_ext.studies.engines import begin, command, whole_gpus

PATIENCE = 120.0  # seconds that jobs have for saving their step when they are asked to end


@dataclass
class _Process:
    job: Process
    log: Path
    process: subprocess.Popen[bytes]
    devices: tuple[str, ...]


class LocalEngine:
    """Runs up to `jobs` processes at a time; each has its own GPUs, and all end when the driver does.

    Args:
        jobs: None for as many as the GPUs allow, or one where jobs take no GPU.
        resources: of a job; memory and hours are not enforced.

    Raises:
        UsageError: a job asks for a part of a GPU, or for more GPUs or cores than there are.
    """

    queues = False

    def __init__(self, jobs: int | None, resources: Resources) -> None:
        devices = [] if resources.gpus == 0 else _devices()
        wanted = whole_gpus(resources, default=min(1, len(devices)))
        if wanted > len(devices):
            raise UsageError(f"resources.gpus asks for {wanted}, but this machine has {len(devices)}.")
        cores = os.cpu_count() or 1
        if resources.cpus > cores:
            raise UsageError(f"resources.cpus asks for {resources.cpus}, but this machine has {cores}.")
        places = len(devices) // wanted if wanted else 1
        if jobs is not None and wanted and jobs > places:
            raise UsageError(
                f"--jobs {jobs} with {wanted} GPUs each needs {jobs * wanted}, but this machine has {len(devices)}: "
                f"give --jobs {places}, or in a study resources: {{gpus: 0}}, with which jobs share them."
            )
        self.jobs = places if jobs is None else jobs
        self.cpus, self.gpus = resources.cpus, wanted
        self.devices = devices
        self.running: list[_Process] = []

    def free(self) -> int:
        """Return how many more jobs can be started now."""
        return self.jobs - len(self.running)

    def start(self, job: Process, log: Path) -> None:
        """Start the process of a job."""
        devices, self.devices = tuple(self.devices[: self.gpus]), self.devices[self.gpus :]
        env = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        with log.open("ab") as out:
            process = begin(command(job), out, self.cpus, **env)
        self.running.append(_Process(job, log, process, devices))

    def ended(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; wait up to `seconds` for the first."""
        until = time.monotonic() + seconds
        while not (found := [one for one in self.running if one.process.poll() is not None]):
            if time.monotonic() >= until:
                return []
            time.sleep(0.05)
        for one in found:
            self.running.remove(one)
            self.devices += one.devices
        return [Ended(one.job, one.process.returncode, one.log) for one in found]

    def stop(self) -> list[Ended]:
        """Ask all jobs to end and wait for them; what does not end in time is killed.

        The processes that a job has started for itself are left to it: it needs those that load data for its step.
        """
        for one in self.running:
            one.process.terminate()
        until = time.monotonic() + PATIENCE
        for one in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):  # what the job has left, or all of it
                os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        ended, self.running = self.running, []
        return [Ended(one.job, one.process.returncode, one.log) for one in ended]


def _devices() -> list[str]:
    """Return the GPUs that this process may use as ``CUDA_VISIBLE_DEVICES`` names them: by number, or as ``GPU-…``."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return [name.strip() for name in given.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]
