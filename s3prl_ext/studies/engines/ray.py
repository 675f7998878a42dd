"""Jobs as tasks of a Ray cluster, which has its own queue and starts jobs of a lost node again."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Ended, Process
from s3prl_ext.studies.engines import command, missing

GIB = 2**30


class RayEngine:
    """Gives jobs to the cluster at ``RAY_ADDRESS``, or to one that it starts on this machine.

    All nodes need the same folders (a shared disk) and the same packages.

    Args:
        jobs: at most so many at a time; None leaves it to Ray.
        resources: of a job; Ray counts them and does not enforce them.
        retries: how often Ray starts a job again whose worker or node was lost.

    Raises:
        UsageError: Ray is not installed, no cluster answers at the address, or a job asks for more than the cluster has.
    """

    queues = True

    def __init__(self, jobs: int | None, resources: Resources, retries: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing("ray", "ray") from error
        self.ray = ray
        _connect(ray)
        has = ray.cluster_resources()
        for key, wanted in (("CPU", resources.cpus), ("GPU", resources.gpus)):
            if wanted > has.get(key, 0):
                raise UsageError(f"a job asks for {wanted:g} {key}, but the Ray cluster has {has.get(key, 0):g}.")
        options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": retries}
        if resources.memory:
            options["memory"] = int(resources.memory * GIB)
        self.submit = ray.remote(**options)(_run)
        self.jobs, self.cpus = jobs, resources.cpus
        self.running: dict[Any, tuple[Process, Path]] = {}

    def free(self) -> int:
        """Return how many more jobs can be given to Ray; without a limit all."""
        return 2**31 if self.jobs is None else self.jobs - len(self.running)

    def start(self, job: Process, log: Path) -> None:
        """Give a job to Ray."""
        self.running[self.submit.remote(command(job), str(log.absolute()), str(Path.cwd()), self.cpus)] = (job, log)

    def ended(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; wait up to `seconds` for the first."""
        if not self.running:
            time.sleep(seconds)
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [Ended(job, self._code(handle), log) for handle in ready for job, log in [self.running.pop(handle)]]

    def stop(self) -> None:
        """Interrupt all jobs and wait for them: a training saves its step."""
        for handle in self.running:
            self.ray.cancel(handle, force=False)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=120)
        self.running.clear()
        self.ray.shutdown()

    def _code(self, handle: Any) -> int:
        """Return the exit status of a job; 1 where its worker was lost more often than Ray tries, so that nobody tries again."""
        try:
            return int(self.ray.get(handle))
        except self.ray.exceptions.RayError:
            return 1


def _connect(ray: Any) -> None:
    """Join the cluster at ``RAY_ADDRESS``, or start one on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here; Ray's own is 15
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdecimal() and "://" not in host:  # Ray itself logs for 20 seconds where nobody answers
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address or "local", logging_level="warning", log_to_driver=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({' '.join(str(error).split())[:120]}): start one with "
            "'ray start --head', or unset the variable to start one on this machine."
        ) from error


def _run(argv: list[str], log: str, folder: str, cpus: int) -> int:
    """Run a command on the node that Ray chose; an interrupt is handed to it."""
    with open(log, "ab") as out:
        env = os.environ | {"OMP_NUM_THREADS": str(cpus)}
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, env=env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
