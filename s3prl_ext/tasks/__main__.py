"""``python -m s3prl_ext.tasks NAME``: what recipes ask of a task, as assignments for a shell."""

from __future__ import annotations

import shlex
import sys

from s3prl_ext.errors import as_command, unknown_name
from s3prl_ext.tasks import known


def assignments(name: str) -> str:
    """Return the assignments for the task of a short name.

    Raises:
        UsageError: there is none.
    """
    tasks = {task.name: task for task in known() if task.preset}
    if name not in tasks:
        raise unknown_name("task", name, tasks)
    task = tasks[name]
    facts = {
        "downstream": task.downstream, "metric": task.metrics[0], "checkpoint": task.best, "dev_split": task.dev,
        "test_split": task.test, "variable": task.variable, "corpus": task.variables[task.variable],
    }  # fmt: skip
    return "\n".join(f"{key}={shlex.quote(value)}" for key, value in facts.items())


if __name__ == "__main__":
    with as_command():
        sys.stdout.write(f"{assignments(sys.argv[1])}\n")
