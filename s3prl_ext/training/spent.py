"""What an experiment has cost over all its sessions: wall time and peak memory, kept in its checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.training import checkpoint, provenance
from s3prl_ext.training.race import FOLDER

KEY = "spent"


class Spent:
    """Count the cost of this session on top of what earlier ones have left in the experiment's folder.

    Args:
        expdir: folder of the experiment.
        resumed: the checkpoint that it goes on from, or an empty mapping.
    """

    def __init__(self, expdir: str | Path, resumed: Mapping[str, Any]) -> None:
        self._started = time.monotonic()
        states = [resumed, *(_candidates(Path(expdir)) if resumed else [])]
        # each checkpoint counts everything before it, so the largest is the whole
        before = [found for one in states if (found := one.get(checkpoint.EXTENSION_KEY, {}).get(KEY))]
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


def _candidates(expdir: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the newest checkpoint of each candidate of a race; one that cannot be read has no say here."""
    for folder in sorted((expdir / FOLDER).glob("*/")):
        with contextlib.suppress(DataError):
            yield from (checkpoint.load(path, mmap=True) for path in checkpoint.numbered(folder)[-1:])
