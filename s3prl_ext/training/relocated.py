"""Checkpoints of folders that were moved, or made on another machine: a run goes on beside the file.

s3prl makes the folder that a checkpoint was made in before it looks at anything else, which fails where it cannot be made,
such as ``/scratch/alice/exp`` of another machine, and otherwise leaves an empty folder there.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

_folders: dict[Path, str] = {}  # checkpoint -> the folder that its experiment is in now


def stay_beside(path: Path) -> None:
    """From now on let ``torch.load`` return a checkpoint as if it had been made in the folder where it lies."""
    _folders[path.resolve()] = str(path.parent)
    if not hasattr(torch.load, "relocates"):
        torch.load = _relocating(torch.load)


def _relocating(load: Any) -> Any:
    @functools.wraps(load)
    def load_here(file: Any, *args: Any, **options: Any) -> Any:
        states = load(file, *args, **options)
        folder = _folders.get(Path(file).resolve()) if isinstance(file, (str, os.PathLike)) else None
        if folder is not None and isinstance(states, dict) and hasattr(states.get("Args"), "expdir"):
            states["Args"].expdir = folder
        return states

    load_here.relocates = True  # type: ignore[attr-defined]
    return load_here
