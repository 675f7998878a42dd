"""Engines of a study: where and when its jobs run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Engine
from s3prl_ext.studies.plan import Job

ENGINES = ("local", "ray", "slurm")


def command(job: Job) -> list[str]:
    """Return the command of a job for a process on any machine with the same folders and environment."""
    return [sys.executable, "-m", job.module(), *job.flags()]


def shown(job: Job) -> str:
    """Return the command of a job as one types it."""
    import shlex

    return shlex.join(["s3prl-ext", "run", *job.flags()])


def open_engine(name: str, jobs: int | None, resources: Resources, retries: int, folder: Path) -> Engine:
    """Return an engine.

    Args:
        name: out of :data:`ENGINES`.
        jobs: how many run at a time; None for what the engine has place for.
        resources: of a job.
        retries: how often a lost job is started again.
        folder: of the study.

    Raises:
        UsageError: its package is missing, there is no such cluster, or a job asks for more than there is.
    """
    from s3prl_ext.studies.engines import local, ray, slurm

    openers: dict[str, Callable[[], Engine]] = {
        "local": lambda: local.LocalEngine(jobs, resources),
        "ray": lambda: ray.RayEngine(jobs, resources, retries),
        "slurm": lambda: slurm.SlurmEngine(jobs, resources, folder / "slurm"),
    }
    return openers[name]()


def missing(package: str, extra: str) -> UsageError:
    """Return the error for an engine whose package is not installed."""
    return UsageError(f"--engine {extra} needs the package '{package}': pip install 's3prl_ext[{extra}]'.")
