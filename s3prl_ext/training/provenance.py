"""Where a number comes from: commit, package versions, machine and memory, without names of hosts or people."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.configs import PACKAGE_DIR
from s3prl_ext.training import ranks

PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers", "numpy")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that decide a result; None for one that is not installed."""
    return {package: _version(package) for package in PACKAGES} | {"python": platform.python_version()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(folder: Path = PACKAGE_DIR.parent) -> str | None:
    """Return the git commit of the plug-in, with ``-dirty`` after it where files were changed; None outside a checkout."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine(device: str | torch.device) -> dict[str, Any]:
    """Return processor, cores, operating system, torch device, the name of its GPU, and how many processes train."""
    on_gpu = str(device).startswith("cuda") and torch.cuda.is_available()
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "processes": ranks.world_size(),
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
