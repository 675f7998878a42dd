"""The runs of AD-TUNING's recipes as they lie in a folder.

``TASK/UPSTREAM/ROW/seed=N``, with their scores, races and costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext import metrics
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import named

# task -> (metric, dev split, test split), in the order of AD-TUNING's Table 2
TASKS: dict[str, tuple[str, str, str]] = {
    row.name: (row.metrics[0], row.dev, row.test) for row in map(named, ("asr", "pr", "sd", "sid", "sf", "ic", "ks"))
}


@dataclass(frozen=True)
class TaskRun:
    """One run.

    Attributes:
        task: short name of the task.
        seed: its seed.
        record: result of its training.
    """

    task: str
    seed: int
    record: ResultRecord

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.record.path.parent

    @property
    def tested(self) -> ResultRecord:
        """The result on test: of an evaluation of its own, or of the training."""
        path = RunFolder(self.folder).result(TASKS[self.task][2])
        return read_record(path) if path.is_file() else self.record

    @property
    def scores(self) -> dict[str, float] | None:
        """Dev and test of the checkpoint that was tested, in per cent, NaN of one that diverged; None if not tested."""
        metric, _, test = TASKS[self.task]
        tested = self.tested
        if metric not in tested["metrics"].get(test, {}):
            return None
        score = tested.score(test, metric)
        return {"dev": self.curve.get(tested["step"], math.nan), "test": math.nan if score is None else score}

    @property
    def curve(self) -> dict[int, float]:
        """The task's metric on dev by step, in per cent, with the comparison of a race."""
        metric, dev, _ = TASKS[self.task]
        return self.record.curve(dev, metric)

    @property
    def race(self) -> Mapping[str, Any] | None:
        """What the race of candidates decided, or None where there was none."""
        return self.record["race"]


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
    found = [TaskRun(task, int(path.parent.name.removeprefix("seed=")), read_record(path)) for path in paths]
    return sorted(found, key=lambda run: run.seed)


def heading(task: str, what: str) -> str:
    """Return the head of a column: ``test WER (%) ↓``."""
    return metrics.heading(TASKS[task][0], what)
