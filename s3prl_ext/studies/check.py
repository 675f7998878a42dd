"""Check every run of a study as its training will check itself, before anything is started."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ext.configs import Section, UnsetVariable, expand_variables, value_at, with_numbers
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.overrides import split_options
from s3prl_ext.run_flags import overrides_of
from s3prl_ext.studies.asha import check_ray_tune
from s3prl_ext.studies.config import FIXED_AXES, Study
from s3prl_ext.studies.plan import StudyCell
from s3prl_ext.studies.study_run import StudyRun, written
from s3prl_ext.training.racing.early_stop import EarlyStopConfig

logger = logging.getLogger(__name__)


def check_runs(cells: Sequence[StudyCell], variables: bool = True, models: bool = True) -> None:
    """Check upstream, axes, labels and task file of each run.

    Args:
        cells: of the study.
        variables: whether those of corpora and merges must be set.
        models: whether paths of models must be here; else one that is not is mentioned.

    Raises:
        UsageError: an upstream, flag or setting is wrong or does not fit, dev is not scored, a variable is not set, or
            two labels stand for one run; the message names the first such run.
    """
    from s3prl_ext.training.task_file import TaskFile

    if any(cell.study.scheduler == "asha" for cell in cells):
        check_ray_tune()
    runs = [run for cell in cells for run in cell.search]
    _check_flags(runs, variables, models)
    seen = set()
    for run in runs:
        key = (run.labels["task"], repr(run.settings()))
        if key in seen:
            continue
        seen.add(key)
        _check_passed_on(run)
        _check_keys(run)
        try:
            config = expand_variables(run.config()) if variables else run.config()
            file = TaskFile.read(config, downstream=run.task.downstream)
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
    check_labels(runs)
    for cell in cells:
        if cell.race is not None:
            _check_race(cell, cell.race)


def _check_flags(runs: Sequence[StudyRun], variables: bool, models: bool) -> None:
    """Refuse an upstream or model that there is not, flags that it does not read, and flags that no run has."""
    from s3prl_ext import plugin
    from s3prl_ext.run_checks import check_names
    from s3prl_ext.run_flags import canonical, parser
    from s3prl_ext.training.known_settings import ARGUMENTS
    from s3prl_ext.training.upstream_checks import check_models

    plugin.install()
    seen, mentioned = set(), set()
    for run in runs:
        words = [word for word in run.flags() if word != "-a"]
        words[words.index("-p") + 1] = str(run.folder / "new")  # whatever is in its folder by now
        flags, rest = parser().parse_known_args(canonical(words))
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
            check_names(flags)
            missing = check_models(flags, variables)
        except UsageError as error:
            raise UsageError(f"{run.name}: {error}") from error
        if missing and models:
            raise UsageError(f"{run.name}: {missing[0]}; check the path.")
        for sentence in missing:
            if sentence not in mentioned:
                logger.warning("%s: it must be there where and when the jobs run", sentence)
        mentioned.update(missing)


def _check_passed_on(run: StudyRun) -> None:
    """Refuse a setting that its training would not read from ``-o`` as it is, such as a text with '=' or a date."""
    for key, value in run.settings().items():
        option, text = f"config.{key}", written(value)
        try:
            same = written(overrides_of(f"{option}={text}").get(option)) == text
        except UsageError:
            same = False
        if not same:
            raise UsageError(
                f"{run.name}: {key} {text} cannot be passed on (a text with '=' or ',,', or a value that -o does not "
                "have): put it into a task file (preset)."
            )


def _check_keys(run: StudyRun) -> None:
    """Refuse a key that looks misspelt or is in no section of a task file, and an axis that the task does not know.

    All of its points would be the same run.
    """
    from s3prl_ext.training.known_settings import check_overrides

    preset, task = run.preset(), run.task.downstream
    for axis, key, value in run.varied():
        try:
            remarks = check_overrides({f"config.{key}": value}, preset, task)
        except UsageError as error:
            raise UsageError(f"axis {axis}: {str(error).removeprefix('-o ')}") from error
        if remarks:
            raise UsageError(f"axis {axis}: {remarks[0].removeprefix('-o ')}; name another key, or exclude this task.")
    try:
        check_overrides({f"config.{key}": value for key, value in run.settings().items()}, preset, task)
    except UsageError as error:
        raise UsageError(f"{run.name}: {str(error).removeprefix('-o ')}") from error


def check_labels(runs: Sequence[StudyRun]) -> None:
    """Refuse labels of what is not run: an axis without effect, and two labels of the same run.

    Raises:
        UsageError: the message names such runs.
    """
    _check_methods(runs[0].study)
    configs: dict[tuple[str, str], Section] = {}
    seen: dict[tuple[str, str, int], StudyRun] = {}
    for run in runs:
        kind = (run.labels["task"], repr(run.settings()))
        config = configs[kind] = configs[kind] if kind in configs else run.config()
        for axis, key, value in run.varied():
            if (found := value_at(config, key)) != value:
                raise UsageError(
                    f"{run.name}: {key} is {found!r} in its task file, by another axis than {axis}: remove one of the "
                    "two from axes."
                )
        flags = run.given_flags()
        given = {**flags, "-c": "", "-g": split_options(flags.get("-g"))}
        same = (repr(sorted(given.items())), repr(_sorted(with_numbers(config, config))), run.seed)
        first = seen.setdefault(same, run)
        if first is not run:
            raise UsageError(
                f"{first.name} and {run.name} are the same run: the labels differ, what they set does not, or "
                "something else sets it as well (set, adjust, another axis); remove one of the two."
            )


def _check_methods(study: Study) -> None:
    """Refuse an axis of what tells labels of one tuning method apart: they would stand for values that no run has."""
    keys = {(axis, key) for axis, points in study.axes.items() if axis not in FIXED_AXES for key in points[0].settings}
    for axis, key in sorted(keys):
        first: dict[Any, tuple[str, Any]] = {}
        for point in study.axes["method"]:
            value = point.settings.get(key, value_at(point.settings, key))
            if value is None:
                continue
            label, other = first.setdefault(value_at(point.settings, "tuning.method"), (point.label, value))
            if value != other:
                raise UsageError(
                    f"methods {label} and {point.label} differ in {key}, which axis {axis} sets as well: remove it "
                    f"from the methods, or {axis} from axes."
                )


def _sorted(value: Any) -> Any:
    """Return nested mappings as sorted pairs, so that equal ones have equal texts."""
    if isinstance(value, Mapping):
        return sorted((str(key), _sorted(one)) for key, one in value.items())
    return [_sorted(one) for one in value] if isinstance(value, (list, tuple)) else value


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
