"""Engines of a study: where and when its jobs run."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.driver import Engine, Process


def command(job: Process) -> list[str]:
    """Return the command of a job for a process on any machine with the same folders and environment."""
    return [sys.executable, "-m", job.module(), *job.flags()]


def begin(
    argv: Sequence[str], out: IO[bytes], cpus: int, folder: str | None = None, **env: str
) -> subprocess.Popen[bytes]:
    """Start the process of a job; it gets SIGTERM, and so saves its step, when the one that starts it ends (Linux).

    Args:
        argv: its command.
        out: takes what it prints.
        cpus: its threads.
        folder: where it runs; None for here.
        **env: further variables of its environment.
    """
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": str(cpus)} | env,
        preexec_fn=_end_with_parent,  # noqa: PLW1509  one call of prctl, before any thread
    )  # fmt: skip


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def shown(job: Process) -> str:
    """Return the command of a job as one types it."""
    return " ".join(map(_quoted, ["s3prl-ext", "run", *job.flags()]))


def _quoted(word: str) -> str:
    """Return a word quoted for a shell.

    In double quotes where it has single ones and nothing that the shell replaces.
    """
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def whole_gpus(resources: Resources, default: int) -> int:
    """Return how many GPUs a job needs, where an engine cannot share one.

    Args:
        resources: of a job.
        default: where they do not say how many.

    Raises:
        UsageError: a part of one is asked for.
    """
    if resources.gpus is None:
        return default
    if int(resources.gpus) != resources.gpus:
        raise UsageError(f"resources.gpus is {resources.gpus:g}: only --engine ray shares a GPU; ask for whole ones.")
    return int(resources.gpus)


def open_engine(name: str, jobs: int | None, resources: Resources, retries: int, folder: Path) -> Engine:
    """Return an engine.

    Args:
        name: out of :data:`s3prl_ext.studies.names.ENGINES`.
        jobs: how many run at a time; None for what the engine has room for.
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
