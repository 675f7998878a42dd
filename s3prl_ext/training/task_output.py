"""Where a task writes its files: its log, transcripts and predictions."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import nn

# Attributes of the tasks that hold a place, and that place below the folder of the run; the latter two: SD.
PLACES = {"expdir": "", "score_dir": "scoring", "logging": "log.log"}


def write_into(expert: nn.Module, folder: Path) -> None:
    """Set where a task writes from now on; the folders that it expects are made."""
    for name, inside in PLACES.items():
        present = getattr(expert, name, None)
        if isinstance(present, (str, Path)):
            setattr(expert, name, type(present)(folder / inside))
    if isinstance(getattr(expert, "expdir", None), (str, Path)):
        folder.mkdir(parents=True, exist_ok=True)
    if getattr(expert, "save_predictions", False) and hasattr(expert, "score_dir"):
        Path(str(expert.score_dir), "predictions").mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def quietly_into(expert: nn.Module, folder: Path) -> Iterator[None]:
    """Let a task write into another folder for a while, and print nothing: progress bars stay readable.

    What it wrote when it was built, and scoring needs (the ``frame_shift`` of SD), is copied there.
    """
    before = {name: getattr(expert, name) for name in PLACES if hasattr(expert, name)}
    try:
        write_into(expert, folder)
        shift = Path(str(before.get("expdir", "")), "frame_shift")
        if "score_dir" in before and shift.is_file():
            shutil.copy(shift, folder)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, value in before.items():
            setattr(expert, name, value)
