"""An engine of studies whose jobs are forked processes: real runs that start in a fraction of a second."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path

from s3prl_ext.studies.driver import Ended
from s3prl_ext.studies.jobs import Job
from tests.support.forked import Command


class Forked:
    """Runs up to `jobs` processes at a time.

    Args:
        jobs: how many.
        variables: of their environment.
    """

    queues = False

    def __init__(self, jobs: int, variables: Mapping[str, str]) -> None:
        self.jobs, self.variables = jobs, variables
        self.running: list[tuple[Job, Command, Path]] = []
        self.most = 0

    def free(self) -> int:
        return self.jobs - len(self.running)

    def start(self, job: Job, log: Path) -> None:
        main = importlib.import_module(job.module()).main
        self.running.append((job, Command(job.flags(), log, self.variables, main=main), log))
        self.most = max(self.most, len(self.running))

    def ended(self, seconds: float) -> list[Ended]:
        until = time.monotonic() + seconds
        while not (found := [one for one in self.running if one[1].process.exitcode is not None]):
            if time.monotonic() >= until:
                return []
            time.sleep(0.05)
        for one in found:
            self.running.remove(one)
        return [Ended(job, command.process.exitcode, log) for job, command, log in found]

    def stop(self) -> None:
        for _, command, _ in self.running:
            command.kill()
