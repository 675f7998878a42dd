"""Jobs as tasks of a Ray cluster, which has its own queue and starts jobs of a lost node again."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Ended, Process
from s3prl_ext.studies.engines import begin, command, missing

GIB = 2**30


class RayEngine:
    """Gives jobs to the cluster at ``RAY_ADDRESS``, or to one that it starts on this machine.

    All nodes need the same folders (a shared disk) and the same packages.

    Args:
        jobs: at most so many at a time; None leaves it to Ray.
        resources: of a job; Ray counts them and does not enforce them.
        retries: how often Ray starts a job again whose worker or node was lost.

    Raises:
        UsageError: Ray is not installed, no cluster answers at the address, or a job asks for more than the cluster
            has.
    """

    queues = True

    def __init__(self, jobs: int | None, resources: Resources, retries: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing("ray", "ray") from error
        self.ray = ray
        _connect(ray)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = min(1, _most("GPU", nodes)) if resources.gpus is None else resources.gpus
        _check_nodes(nodes, dataclasses.replace(resources, gpus=gpus))
        options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": gpus, "max_retries": retries}
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
        return [self._end(handle, *self.running.pop(handle)) for handle in ready]

    def stop(self) -> list[Ended]:
        """Interrupt all jobs and wait for them: a training saves its step. Ray does not say how they end."""
        for handle in self.running:
            self.ray.cancel(handle, force=False)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=120)
        self.running.clear()
        self.ray.shutdown()
        return []

    def _end(self, handle: Any, job: Process, log: Path) -> Ended:
        """Return how a job ended.

        Raises:
            DataError: the node of this process is gone, and with it the connection to the cluster.
        """
        try:
            return Ended(job, int(self.ray.get(handle)), log)
        except self.ray.exceptions.LocalRayletDiedError as error:
            self.running.clear()
            raise DataError(
                "the Ray node of this machine has ended (killed, or out of memory), and its jobs with it: give the "
                "same command again to go on."
            ) from error
        except self.ray.exceptions.RayError as error:  # Ray has tried it again already
            why = " ".join(str(error).split())[:160]
            return Ended(
                job,
                1,
                log,
                f"Ray lost its process and has tried it as often as it may ({type(error).__name__}: {why}).",
            )


def _check_nodes(nodes: Sequence[Mapping[str, float]], resources: Resources) -> None:
    """Refuse a job that no node has room for: Ray would let it wait for ever."""
    wanted = {"CPU": (resources.cpus, 1), "GPU": (resources.gpus or 0, 1), "memory": (resources.memory or 0, GIB)}
    for key, (number, unit) in wanted.items():
        most = _most(key, nodes) / unit
        if number > most:
            name = f"{key} (GiB)" if unit > 1 else key
            raise UsageError(f"a job asks for {number:g} {name}, but the largest node of the Ray cluster has {most:g}.")


def _most(key: str, nodes: Sequence[Mapping[str, float]]) -> float:
    """Return how much of a resource the node has that has most of it."""
    return max((node.get(key, 0) for node in nodes), default=0)


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
        process = begin(argv, out, cpus, folder)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
