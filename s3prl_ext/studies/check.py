"""Check every run of a study as its training will check itself, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence

from s3prl_ext.configs import UnsetVariable, expand_variables
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.studies.asha import check_ray_tune
from s3prl_ext.studies.config import FIXED_AXES
from s3prl_ext.studies.plan import StudyCell
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.training.racing.early_stop import EarlyStopConfig


def check_runs(cells: Sequence[StudyCell], variables: bool = True) -> None:
    """Check upstream, axes and task file of each run.

    Args:
        cells: of the study.
        variables: whether those of the corpora must be set.

    Raises:
        UsageError: an upstream, flag or setting is wrong or does not fit, dev is not scored, or a variable is not set;
            the message names the first such run.
    """
    from s3prl_ext.training.task_file import TaskFile

    if any(cell.study.scheduler == "asha" for cell in cells):
        check_ray_tune()
    runs = [run for cell in cells for run in cell.search]
    _check_flags(runs)
    seen = set()
    for run in runs:
        key = (run.labels["task"], repr(run.settings()))
        if key in seen:
            continue
        seen.add(key)
        _check_keys(run)
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
        if file.early_stop is not None and run.study.race is not None:
            raise UsageError(
                f"{run.name} races candidates of its own (a list in its method): move the list to axes, or remove race."
            )
    for cell in cells:
        if cell.race is not None:
            _check_race(cell, cell.race)


def _check_flags(runs: Sequence[StudyRun]) -> None:
    """Refuse an upstream that there is not, flags that it does not read, and flags that no run has."""
    from s3prl_ext import plugin
    from s3prl_ext.run_checks import check_names
    from s3prl_ext.run_flags import own_flags_as_overrides, parser
    from s3prl_ext.training.known_settings import ARGUMENTS

    plugin.install()
    seen = set()
    for run in runs:
        words = [word for word in run.flags() if word != "-a"]
        words[words.index("-p") + 1] = str(run.folder / "new")  # whatever is in its folder by now
        flags, rest = parser().parse_known_args(own_flags_as_overrides(words))
        key = (*run.upstream_flags(), run.labels["task"], *rest)
        if key in seen:
            continue
        seen.add(key)
        known = [f"--{name}" for name in ARGUMENTS]
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown is not None:
            raise unknown_name("flag", unknown, known, where="flags of the study")
        if rest:
            raise UsageError(
                f"flags of the study: a flag before '{rest[0]}' takes no value; set it in the task file (set)."
            )
        try:
            check_names(flags, {})
        except UsageError as error:
            raise UsageError(f"{run.name}: {error}") from error


def _check_keys(run: StudyRun) -> None:
    """Refuse a key that looks misspelt, and an axis that the task does not know.

    All of its points would be the same run.
    """
    from s3prl_ext.training.known_settings import check_overrides
    from s3prl_ext.training.task_file import TOP_LEVEL

    preset, task = run.preset(), run.task.downstream
    try:
        check_overrides([f"config.{key}" for key in run.settings()], preset, task)
    except UsageError as error:
        raise UsageError(f"{run.name}: {error}") from error
    for axis, point in run.points().items():
        for key in point.settings if axis not in FIXED_AXES else ():
            if key.split(".")[0] not in TOP_LEVEL:
                raise unknown_name("section of a task file", key.split(".")[0], TOP_LEVEL, where=f"axis {axis}")
            if remarks := check_overrides([f"config.{key}"], preset, task):
                raise UsageError(
                    f"axis {axis}: {remarks[0].removeprefix('-o ')}; name another key, or exclude this task."
                )


def _check_race(cell: StudyCell, race: EarlyStopConfig) -> None:
    """Refuse a race whose runs are of different lengths, or too few."""
    for run in cell.search:
        if run.total_steps == 0 or run.total_steps != cell.total_steps:
            raise UsageError(
                f"{run.name}: runs that race need the same runner.total_steps; it has {run.total_steps or 'epochs'}, "
                f"{cell.search[0].name} has {cell.total_steps or 'epochs'}."
            )
    race.check_length(cell.total_steps, "race")
    if race.keep > len(cell.search):
        raise UsageError(f"race.keep is {race.keep}, but {cell.name} has only {len(cell.search)} runs.")
