"""What an experiment has cost over all its sessions: wall time and peak memory, kept in its checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import provenance
from s3prl_ext.training.checkpoint import Checkpoint


class Spent:
    """Count the cost of this session on top of what earlier ones have left in the experiment's folder.

    Args:
        folder: of the experiment.
        resumed: the checkpoint that it goes on from; empty for a new one.
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
        """Largest memory so far, in bytes, as :func:`s3prl_ext.training.provenance.peak_memory` gives it."""
        now = provenance.peak_memory()
        return {key: max(value or 0, self._before.get(key, 0)) or None for key, value in now.items()}

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"seconds": self.seconds, **self.peak_memory}


def _candidates(folder: RunFolder) -> Iterator[Checkpoint]:
    """Yield the latest checkpoint of each candidate of a race; unreadable ones are skipped."""
    for candidate in folder.candidates():
        with contextlib.suppress(DataError):
            latest = candidate.latest()
            if latest is not None:
                yield Checkpoint.read(latest, mmap=True)
