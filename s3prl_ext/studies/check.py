"""Check the task file of every run of a study before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s3prl_ext.configs import UnsetVariable, expand_variables
from s3prl_ext.errors import UsageError
from s3prl_ext.studies.asha import check_ray_tune
from s3prl_ext.studies.plan import StudyCell, StudyRun

if TYPE_CHECKING:
    from s3prl_ext.training.task_file import TaskFile


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

    if any(cell.study.scheduler == "asha" for cell in cells):
        check_ray_tune()
    seen = set()
    for cell, run in [(one, run) for one in cells for run in one.search]:
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
        if cell.race is not None:
            _check_race(cell, run, file)


def _check_race(cell: StudyCell, run: StudyRun, file: TaskFile) -> None:
    """Refuse a run that cannot take part in the race of its cell."""
    assert cell.race is not None
    if file.early_stop is not None:
        raise UsageError(
            f"{run.name} races candidates of its own (a list in its method): move the list to axes, or remove race."
        )
    if run.total_steps == 0 or run.total_steps != cell.total_steps:
        raise UsageError(
            f"{run.name}: runs that race need the same runner.total_steps; it has {run.total_steps or 'epochs'}, "
            f"{cell.search[0].name} has {cell.total_steps or 'epochs'}."
        )
    cell.race.check_length(cell.total_steps, "race")
    if cell.race.keep > len(cell.search):
        raise UsageError(f"race.keep is {cell.race.keep}, but {cell.name} has only {len(cell.search)} runs.")
