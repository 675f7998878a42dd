"""Where a number comes from: commit, package versions, machine, memory and time; no names of hosts or people."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from s3prl_ext.configs import PACKAGE_DIR, Record
from s3prl_ext.errors import DataError
from s3prl_ext.package_versions import versions_of
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import distributed
from s3prl_ext.training.checkpoint import Checkpoint

PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers", "numpy")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide a result; None for one that is not installed."""
    return versions_of(PACKAGES) | {"python": platform.python_version()}


def commit(folder: Path = PACKAGE_DIR.parent) -> str | None:
    """Return the git commit of the plug-in, with ``-dirty`` after it where files were changed.

    None outside a checkout.
    """
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine(device: str | torch.device) -> Record:
    """Return processor, cores, operating system, torch device, the name of its GPU, and how many processes train."""
    on_gpu = str(device).startswith("cuda") and torch.cuda.is_available()
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "processes": distributed.world_size(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory() -> dict[str, int | None]:
    """Return the largest memory so far, in bytes: resident of this process, and what torch held on the GPU."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "process": resident if sys.platform == "darwin" else resident * 1024,
        "gpu": torch.cuda.max_memory_allocated() if gpu else None,
    }


class ResourceUsage:
    """Count the cost of this session on top of what earlier ones have left in the experiment's folder.

    Args:
        folder: of the experiment.
        resumed: the checkpoint that it resumes; empty for a new one.
    """

    def __init__(self, folder: RunFolder, resumed: Checkpoint) -> None:
        self._started = time.monotonic()
        found = [resumed, *(_candidates(folder) if resumed else [])]
        # each checkpoint counts everything before it, so the largest is the whole
        before = [one.extension.usage for one in found if one.extension.usage]
        self._before = {key: max(row[key] or 0 for row in before) for key in before[0]} if before else {}

    @property
    def seconds(self) -> float:
        """Wall time so far, in seconds."""
        return self._before.get("seconds", 0.0) + time.monotonic() - self._started

    @property
    def peak_memory(self) -> dict[str, int | None]:
        """Largest memory so far, in bytes, as :func:`s3prl_ext.training.peak_memory` gives it."""
        now = peak_memory()
        return {key: max(value or 0, self._before.get(key, 0)) or None for key, value in now.items()}

    def state(self) -> Record:
        """Return plain values for a checkpoint."""
        return {"seconds": self.seconds, **self.peak_memory}


def _candidates(folder: RunFolder) -> Iterator[Checkpoint]:
    """Yield the latest checkpoint of each candidate of a race; unreadable ones are skipped."""
    for candidate in folder.candidates():
        with contextlib.suppress(DataError):
            latest = candidate.latest()
            if latest is not None:
                yield Checkpoint.read(latest, mmap=True)
