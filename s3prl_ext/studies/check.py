"""Check the task file of every run of a study before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from s3prl_ext.configs import UnsetVariable, expand_variables
from s3prl_ext.errors import UsageError
from s3prl_ext.studies.plan import StudyCell


def check_runs(cells: Sequence[StudyCell], variables: bool = True) -> None:
    """Read the task file of each run as its training will.

    Args:
        cells: of the study.
        variables: whether those of the corpora must be set.

    Raises:
        UsageError: a setting is wrong, does not fit the method, dev is not scored, or a variable is not set; the message
            names the first such run.
    """
    from s3prl_ext.training.task_file import TaskFile

    seen = set()
    for run in (run for cell in cells for run in cell.search):
        key = (run.labels["task"], repr(run.settings()))
        if key in seen:
            continue
        seen.add(key)
        try:
            file = TaskFile.read(expand_variables(run.config()) if variables else run.config())
        except UnsetVariable as error:
            raise UsageError(f"{run.name}: {error}") from error
        except UsageError as error:
            raise UsageError(f"{run.name}: {error} Or leave this combination out (exclude).") from error
        if run.task.dev not in file.runner.eval_dataloaders:
            raise UsageError(
                f"{run.name}: runner.eval_dataloaders lacks {run.task.dev}, on which the study chooses; add it (set)."
            )
