"""Trainings cut short in forked processes: few steps, few clips scored, one batch of Fisher information, no workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Shortened:
    """Cut a training short in the process that it is called in, and let it find what the folder of the pages holds.

    Args:
        folder: where the command runs.
        paths: more places to import from, as if an editable install had put them there.
    """

    def __init__(self, folder: Path, paths: tuple[str, ...] = ()) -> None:
        self.folder, self.paths = folder, paths

    def __call__(self) -> None:
        from s3prl_ext import extensions
        from s3prl_ext.training.task_file import TaskFile

        os.chdir(self.folder)
        sys.path[:0] = self.paths
        extensions.load()
        read = TaskFile.read.__func__  # type: ignore[attr-defined]

        def read_shortened(cls: type[TaskFile], config: Mapping[str, Any], **options: Any) -> TaskFile:
            return read(cls, shortened(config), **options)

        TaskFile.read = classmethod(read_shortened)  # type: ignore[method-assign,assignment]


def shortened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task file with few steps, a tenth of the clips in evaluations, one batch of Fisher information."""
    runner = dict(config["runner"])
    if runner.get("total_steps") and runner["total_steps"] > 10:  # else it is shortened already, in a checkpoint
        runner["total_steps"] = min(4, max(1, runner["total_steps"] // 100))
    steps = runner.get("total_steps") or 1
    runner |= {"eval_step": steps, "save_step": steps, "log_step": steps, "evaluate_ratio": 0.1}
    result = {**config, "runner": runner, "downstream_expert": _in_one_process(config["downstream_expert"])}
    tuning = config.get("tuning")
    if isinstance(tuning, Mapping) and "child" in str(tuning.get("method")):
        result["tuning"] = {**tuning, "fisher": {"max_batches": 1}}
        if "reselect_every" in tuning:
            result["tuning"]["reselect_every"] = 1
    return result


def _in_one_process(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {key: 0 if key == "num_workers" else _in_one_process(value) for key, value in section.items()}
