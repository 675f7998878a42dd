"""Where a task writes its files: its log, transcripts and predictions."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from s3prl_ext.tasks import Task


def write_into(expert: nn.Module, task: Task, folder: Path) -> None:
    """Set where a task writes from now on; the folders that it expects are made."""
    for name, inside in task.places.items():
        present = getattr(expert, name, None)
        if isinstance(present, (str, Path)):
            setattr(expert, name, type(present)(folder / inside))
    if isinstance(getattr(expert, "expdir", None), (str, Path)):
        folder.mkdir(parents=True, exist_ok=True)
    if getattr(expert, "save_predictions", False) and hasattr(expert, "score_dir"):
        Path(str(expert.score_dir), "predictions").mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def whole_predictions(expert: Any) -> Iterator[None]:
    """Let a task that writes a file for each recording (SD) replace those of an earlier evaluation at the end alone.

    Where the body ends early, or writes none, the earlier ones stay as they were.
    """
    if not getattr(expert, "save_predictions", False) or not hasattr(expert, "score_dir"):
        yield
        return
    before: str | Path = expert.score_dir
    kept = Path(before) / "predictions"
    scratch = Path(before).parent / f".predictions.{secrets.token_hex(8)}"  # cleared with unfinished files
    (scratch / "predictions").mkdir(parents=True)
    expert.score_dir = type(before)(scratch)
    try:
        yield
        if any((scratch / "predictions").iterdir()):
            kept.parent.mkdir(exist_ok=True)
            if kept.exists():
                os.replace(kept, scratch / "earlier")
            os.replace(scratch / "predictions", kept)
    finally:
        expert.score_dir = before
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def quietly_into(expert: nn.Module, task: Task, folder: Path) -> Iterator[None]:
    """Let a task write into another folder for a while, and print nothing: progress bars stay readable.

    What it wrote when it was built, and reads when it is scored, is copied there.
    """
    before = {name: getattr(expert, name) for name in task.places if hasattr(expert, name)}
    try:
        write_into(expert, task, folder)
        for built in (Path(str(before.get("expdir", "")), name) for name in task.built):
            if built.is_file():
                shutil.copy(built, folder)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, value in before.items():
            setattr(expert, name, value)
