"""Which file of a run's folder stands for the run, and what to do with folders that are not runs."""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.errors import DataError
from s3prl_ext.reading import EXPORT_FILE
from s3prl_ext.tasks import best_checkpoints
from s3prl_ext.training import checkpoint

DELTA_FILE = "delta.safetensors"
MERGE_FILE, SWEEP_FILE = "merge.json", "sweep.json"

# what other folders are, and what to do with them; the first whose file is there
OTHERS = {
    EXPORT_FILE: "is a folder of s3prl-ext export, a plain model with the head of its task: s3prl-ext predict takes it, and its "
    "README.md has the command that scores it",
    MERGE_FILE: "is a folder of s3prl-ext merge, a model without a task: train one on it as its README.md says",
    SWEEP_FILE: "is the folder of a sweep, which keeps scores and not weights: read sweep.md, or give it to s3prl-ext report",
}


def other_kind(folder: Path) -> str | None:
    """Return what a folder that is not a run's is, and what to do with it; None where that is not known."""
    return next((text for name, text in OTHERS.items() if (folder / name).is_file()), None)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, its best ones first, then the latest."""
    best = [folder / name for name in best_checkpoints() if (folder / name).is_file()]
    return list(dict.fromkeys([*best, *sorted(folder.glob("*best*.ckpt")), *reversed(checkpoint.numbered(folder))]))


def file_of(folder: Path, prefer_delta: bool = False) -> Path:
    """Return the checkpoint or delta of a run that stands for it: its best checkpoint, else the latest, else its delta.

    Args:
        folder: of the run.
        prefer_delta: take the delta, which has the weights of the best checkpoint, where there is one.

    Raises:
        DataError: the folder holds none.
    """
    delta = [folder / DELTA_FILE] if (folder / DELTA_FILE).is_file() else []
    found = [*delta, *checkpoints(folder)] if prefer_delta else [*checkpoints(folder), *delta]
    if found and other_kind(folder) is None:
        return found[0]
    kind = other_kind(folder)
    raise DataError(
        f"{folder} {kind}."
        if kind
        else f"{folder} holds no checkpoint and no {DELTA_FILE}: name the folder of a run (its -p), a checkpoint or a delta."
    )


def missing(path: Path) -> str:
    """Return the sentence for a file that is not there; of a run without a delta it names the checkpoint in its place."""
    others = checkpoints(path.parent) if path.name == DELTA_FILE and path.parent.is_dir() else []
    if not others:
        return f"no such checkpoint, delta or folder of a run: {path}."
    return (
        f"no such delta: {path}. A run that tunes the whole upstream or learns lambda writes none, nor does one without a "
        f"best checkpoint: name {others[0]}."
    )
