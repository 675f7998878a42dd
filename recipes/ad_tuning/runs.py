"""The runs of AD-TUNING's recipes as they lie in a folder: ``TASK/UPSTREAM/ROW/seed=N``, with their scores, races and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext import metrics
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.predictions import read_json as read
from s3prl_ext.metrics import factor
from s3prl_ext.tasks import named

# task -> (metric, dev split, test split), in the order of AD-TUNING's Table 2
TASKS: dict[str, tuple[str, str, str]] = {
    row.name: (row.metrics[0], row.dev, row.test) for row in map(named, ("asr", "pr", "sd", "sid", "sf", "ic", "ks"))
}


@dataclass(frozen=True)
class TaskRun:
    """One run.

    Attributes:
        folder: its folder.
        task: short name of the task.
        seed: its seed.
        record: content of ``result.json``.
    """

    folder: Path
    task: str
    seed: int
    record: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float] | None:
        """Dev and test of the checkpoint that was tested, in per cent; None where it was not tested."""
        metric, dev, test = TASKS[self.task]
        file = self.folder / f"result-{test}.json"
        tested = read(file) if file.is_file() else self.record
        if test not in tested["metrics"]:
            return None
        on_dev = {
            row["step"]: row[metric]
            for row in self.record["history"]
            if row["split"] == dev and row[metric] is not None
        }
        scale = factor(metric)
        return {"dev": scale * on_dev.get(tested["step"], float("nan")),
                "test": scale * tested["metrics"][test][metric]["value"]}  # fmt: skip

    @property
    def curve(self) -> dict[float, float]:
        """The task's metric on dev by step, in per cent, with the comparison of a race."""
        metric, dev, _ = TASKS[self.task]
        return {
            row["step"]: factor(metric) * row[metric]
            for row in self.record["history"]
            if row["split"] == dev and row[metric] is not None
        }

    @property
    def race(self) -> Mapping[str, Any] | None:
        """What the race of candidates decided, or None where there was none."""
        return self.record.get("race")


def runs_of(folder: Path, task: str, row: str) -> list[TaskRun]:
    """Return the finished runs of a row of a table, by seed.

    Raises:
        DataError: they are of several upstreams.
    """
    paths = list(folder.glob(f"{task}/*/{row}/seed=*/result.json"))
    upstreams = sorted({path.parents[2].name for path in paths})
    if len(upstreams) > 1:
        raise DataError(
            f"{folder}/{task} contains runs {row} of {', '.join(upstreams)}: give each a folder of its own."
        )
    found = [TaskRun(path.parent, task, int(path.parent.name.removeprefix("seed=")), read(path)) for path in paths]
    return sorted(found, key=lambda run: run.seed)


def heading(task: str, what: str) -> str:
    """Return the head of a column: ``test WER (%) ↓``."""
    return metrics.heading(TASKS[task][0], what)
