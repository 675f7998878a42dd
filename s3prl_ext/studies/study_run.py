"""One run of a study: its folder, its command, and what it has left."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from s3prl_ext.child_tuning.names import PASS_MASKS
from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord, numbers, read_record
from s3prl_ext.metrics import metric
from s3prl_ext.reading import parse_json
from s3prl_ext.run_flags import can_be_passed_on, preset_path
from s3prl_ext.run_folder import states_name
from s3prl_ext.studies.config import FIXED_AXES, AxisPoint, Study
from s3prl_ext.tasks import Task, named
from s3prl_ext.training.results.run_settings import decisive, in_words, scoring_changes, without_variables

FISHER = "fisher"  # in a study: Fisher scores that its runs share


class Stop(NamedTuple):
    """What a run had reached where it was stopped: its score on dev, and the wall time until then; with the file."""

    metric: str
    score: float
    seconds: float
    record: ResultRecord


@dataclass(frozen=True)
class StudyRun:
    """One training, with the test of its checkpoint.

    Attributes:
        study: it belongs to.
        labels: its point on each axis.
        seed: of the run.
        folder: its experiment.
    """

    study: Study
    labels: Mapping[str, str]
    seed: int
    folder: Path

    @cached_property
    def task(self) -> Task:
        """The record of its task, as its task file has it."""
        row = named(self.labels["task"])
        return row.of_file(self.config().get("downstream_expert")) if row.reports else row

    @property
    def name(self) -> str:
        """Its name in tables and logs: the folder within that of the study."""
        parts = [self.labels[axis] for axis in FIXED_AXES]
        varied = ",".join(f"{axis}={label}" for axis, label in self.labels.items() if axis not in FIXED_AXES)
        return "/".join([*parts, *([varied] if varied else []), f"seed={self.seed}"])

    @property
    def study_folder(self) -> Path:
        """The folder of the study."""
        return self.folder.parents[len(Path(self.name).parts) - 1]

    def point(self, axes: Sequence[str]) -> str:
        """Return its labels on some axes."""
        return ", ".join(self.labels[axis] for axis in axes)

    def flags(self, until: int | None = None) -> list[str]:
        """Return the flags of ``s3prl-ext run`` that train it, or resume it, to its end or to a step."""
        listed = [text for pair in self.given_flags().items() for text in pair]
        changes = [f"config.{key}={written(value)}" for key, value in self.settings().items()]
        given = ",,".join([*changes, *([f"args.until={until}"] if until else [])])
        track = ["--track", self.study.track] if self.study.track else []
        place = str(self.study_folder / FISHER)
        if self.study.share_fisher and self._shares_fisher() and can_be_passed_on(place):
            track += ["--fisher_scores", place]
        own = [*track, "--seed", str(self.seed), "-p", str(self.folder), *(["-o", given] if given else [])]
        return ["-m", "train", "-a", *listed, *own]

    def given_flags(self) -> dict[str, str]:
        """Return the flags that its points and the study file give."""
        flags = {key: value for point in self._points() for key, value in point.flags.items() if key != "-g"}
        flags |= {"-g": merge} if (merge := self._merge()) else {}
        flags |= self.study.flags
        for one in self.study.adjustments(self.labels):
            flags |= one.flags
        return flags

    def upstream_flags(self) -> list[str]:
        """Return the flags that name its upstream."""
        flags = next(point.flags for point in self._points() if "-u" in point.flags)
        flags = {key: flags[key] for key in ("-u", "-k") if key in flags} | (
            {"-g": merge} if (merge := self._merge()) else {}
        )
        return [text for pair in flags.items() for text in pair]

    def _merge(self) -> str:
        return ",,".join(point.flags["-g"] for point in self._points() if "-g" in point.flags)

    def points(self) -> dict[str, AxisPoint]:
        """Return its point on each axis."""
        return {axis: self.study.points[axis][label] for axis, label in self.labels.items()}

    def _points(self) -> list[AxisPoint]:
        return list(self.points().values())

    def varied(self) -> Iterator[tuple[str, str, Any]]:
        """Yield axis, key and value of what varies besides task, upstream and method."""
        for axis, point in self.points().items():
            for key, value in point.settings.items() if axis not in FIXED_AXES else ():
                yield axis, key, value

    def settings(self) -> dict[str, Any]:
        """Return what it changes in its task file, by dotted key: a later key is applied to what earlier ones left.

        What all runs share comes first, then its task, upstream and method, the entries of ``adjust``, and the other
        axes. Single keys of ``tuning`` are in the method's section, whose own values count more than what was set for
        it before.
        """
        points = self.points()
        settings: dict[str, Any] = {}
        _apply(settings, self.study.settings)
        for axis in FIXED_AXES:
            _apply(settings, _with_own_section(points[axis].settings, settings))
        for one in self.study.adjustments(self.labels):
            _apply(settings, one.settings)
        for axis, point in points.items():
            _apply(settings, point.settings if axis not in FIXED_AXES else {})
        if "tuning" not in settings:
            return settings
        tuning = copy.deepcopy(dict(settings["tuning"]))
        for key in [key for key in settings if key.startswith("tuning.")]:
            _place(tuning, key.removeprefix("tuning."), settings.pop(key))
        return settings | {"tuning": tuning}

    def _shares_fisher(self) -> bool:
        """Return whether it needs Fisher scores, and other runs of its upstream, task and seed do as well."""
        study, searches = self.study, self.seed in self.study.search_seeds
        axes = [axis for axis in study.axes if axis not in FIXED_AXES and (searches or axis not in study.choose)]
        methods = sum(_has_pass(point.settings.get("tuning", {})) for point in study.axes["method"])
        runs = methods * math.prod(len(study.axes[axis]) for axis in axes)
        return runs > 1 and _has_pass(self.settings().get("tuning", {}))

    def preset(self) -> dict[str, Any]:
        """Return the task file that it begins with."""
        return load_yaml(preset_path(self.preset_name))

    @property
    def preset_name(self) -> str:
        """The task file as its points name it."""
        return next(point.flags["-c"] for point in self._points() if "-c" in point.flags)

    def config(self) -> dict[str, Any]:
        """Return its task file with these changes; variables are not replaced."""
        config = self.preset()
        for key, value in self.settings().items():
            _place(config, key, copy.deepcopy(value))  # a later key may be one of it
        return config

    @cached_property
    def total_steps(self) -> int:
        """Its optimizer steps; 0 where its task file counts epochs."""
        return int(float(self.config()["runner"].get("total_steps") or 0))

    def test_flags(self) -> list[str]:
        """Return the flags that score its checkpoint on test."""
        return ["-m", "evaluate", "-e", str(self.checkpoint()), "-t", self.task.test]

    def checkpoint(self) -> Path:
        """Return the checkpoint that is tested: the best on dev, or the last where there is none or it is asked for."""
        best = self.folder / self.task.best
        last = max(self.folder.glob("states-*.ckpt"), key=lambda path: int(path.stem.split("-")[1]), default=best)
        return last if self.study.checkpoint == "last" or not best.is_file() else best

    def record(self) -> ResultRecord | None:
        """Return the result of its training, or None where it has not ended."""
        return _record(self.folder / "result.json")

    def stop(self, step: int) -> Path:
        """Return the file with its scores where it was stopped at a step."""
        return self.folder / f"at-{step}.json"

    def stopped(self, step: int) -> Stop:
        """Return what it had reached where it was stopped at a step.

        Raises:
            DataError: the file is missing or corrupt.
        """
        path = self.stop(step)
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
            row = numbers(record["metrics"][self.task.dev])
            name = self.task.main_metric(set(row)) or self.task.metrics[0]
            return Stop(name, row[name], float(record["seconds"]), ResultRecord(path, record))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is corrupt ({error!r}): delete it, and run the study again.") from error

    def stops(self) -> list[int]:
        """Return the steps at which it was stopped, the first one first."""
        return sorted(int(path.stem.removeprefix("at-")) for path in self.folder.glob("at-[0-9]*.json"))

    def seconds(self) -> float | None:
        """Return the wall time of its training as far as it has got; None where it has got nowhere."""
        record, stops = self.record(), self.stops()
        return record["seconds"] if record is not None else self.stopped(stops[-1]).seconds if stops else None

    @property
    def test_file(self) -> Path:
        """The file with its result on test."""
        return self.folder / f"result-{self.task.test}.json"

    def tested(self) -> ResultRecord | None:
        """Return its result on test, or None where the checkpoint that is tested was not, or with other settings.

        Such a result may be there: ``s3prl-ext run -m evaluate -e FOLDER`` scores the last, and ``-o`` changes how.
        """
        found = _record(self.test_file)
        return None if found is None or self.record() is None or self._not_counted(found) is not None else found

    def not_counted(self) -> str | None:
        """Return why its file with a result on test does not count; None where it does, or there is none."""
        found = _record(self.test_file)
        return None if found is None else self._not_counted(found)

    def _not_counted(self, found: ResultRecord) -> str | None:
        training = self.record()
        if training is None or not self._is_of_tested(found, training):
            return "is not of the checkpoint that dev chose"
        changes = scoring_changes(training.content, found.content)
        changes = without_variables(changes, decisive(self.config())) if changes else {}
        return f"was scored with other settings than in training ({in_words(changes)})" if changes else None

    def _is_of_tested(self, found: ResultRecord, training: ResultRecord) -> bool:
        """Return whether a result is of the checkpoint that is tested; the folder may have been moved since."""
        kept = training["kept"]  # None: not said by an older version
        last, best = states_name(training["step"]), self.task.best
        steps = {last: {training["step"]}, best: self._best_steps(training)}
        if self.study.checkpoint == "last" or (kept is not None and best not in kept):
            del steps[best]
        elif kept is not None or (self.folder / best).is_file():
            del steps[last]
        ckpt = found.at("args.init_ckpt")
        if ckpt is None:  # a record without the paths of its machine
            return any(found["step"] in of_one for of_one in steps.values())
        depth = len(Path(self.name).parts)
        place, own = (Path(str(path)).parts[-depth:] for path in (Path(ckpt).parent, found.at("args.expdir")))
        return place == own and found["step"] in steps.get(Path(ckpt).name, ())

    def on_dev(self, record: ResultRecord) -> tuple[str, float]:
        """Return metric and score on dev of the checkpoint that is tested: of the evaluation that kept it, or the last.

        The last one where no evaluation beat the score that the task begins with, such as a WER of 100 %.

        Raises:
            DataError: dev was not scored.
        """
        name, by, rows = self._scores_on_dev(record)
        if not rows:
            raise DataError(f"{self.folder} was not scored on {self.task.dev}: add it to runner.eval_dataloaders.")
        kept = record["kept"]  # None: not said by an older version
        if self.study.checkpoint == "last" or (kept is not None and self.task.best not in kept):
            return name, rows[-1][name]
        row = self._best_row(by, rows)
        return name, math.nan if row is None else row[name]

    def _scores_on_dev(self, record: ResultRecord) -> tuple[str, str, list[dict[str, float]]]:
        """Return the metric of its task, the one that the best is kept by, and both at the step of each evaluation.

        Those of a density that ``gradual`` has on its way are left out: no checkpoint of theirs is kept as the best.
        """
        history = [row for row in record["history"] or [] if row["split"] == self.task.dev and "density" not in row]
        name = self.task.main_metric({name for row in history for name in row}) or self.task.metrics[0]
        by = self.task.kept_by or name
        keys = ("step", name, by)
        return name, by, [numbers({key: row[key] for key in keys if key in row}) for row in history if name in row]

    @staticmethod
    def _best_row(by: str, rows: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
        """Return the first evaluation with the best score; None where no score is a number."""
        best = max if metric(by).higher_is_better else min
        return best(
            (row for row in rows if not math.isnan(row.get(by, math.nan))), key=lambda row: row[by], default=None
        )

    def _best_steps(self, record: ResultRecord) -> set[float]:
        """Return the steps of the evaluations with the best score on dev."""
        _, by, rows = self._scores_on_dev(record)
        row = self._best_row(by, rows)
        return set() if row is None else {one["step"] for one in rows if one.get(by) == row[by]}

    def at_end(self, record: ResultRecord) -> float:
        """Return the score on dev at its last step."""
        name, _ = self.on_dev(record)
        rows = [row[name] for row in record["history"] or [] if row["split"] == self.task.dev and name in row]
        return math.nan if rows[-1] is None else float(rows[-1])


def written(value: Any) -> str:
    """Return a value as ``-o`` reads it, without blanks but those of its texts."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{written(key)}:{written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(written, value)) + "]"
    return repr(value)


def _has_pass(tuning: Mapping[str, Any]) -> bool:
    return tuning.get("method") == "child" and tuning.get("mask", "fisher") in PASS_MASKS


def _apply(settings: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Set dotted keys, each behind a section that it is in; what was set of it before, or of a part of it, is gone."""
    for key, value in changes.items():
        for old in [old for old in settings if old.startswith(f"{key}.")]:
            del settings[old]
        if any(key.startswith(f"{section}.") for section in settings):
            settings.pop(key, None)
        settings[key] = value


def _with_own_section(changes: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a point with single keys of ``tuning`` that were set before, where its section lacks them.

    Such a key may be for several methods, each of which has a section of its own.
    """
    if "tuning" not in changes:
        return changes
    earlier: dict[str, Any] = {}
    for key, value in before.items():
        if key.startswith("tuning."):
            _place(earlier, key.removeprefix("tuning."), copy.deepcopy(value))
    return {**changes, "tuning": _filled(changes["tuning"], earlier)}


def _filled(section: Any, others: Any) -> Any:
    """Return a section, completed by the keys of another one that it lacks."""
    if not isinstance(section, Mapping) or not isinstance(others, Mapping):
        return section
    filled = {key: _filled(value, others[key]) if key in others else value for key, value in section.items()}
    return filled | {key: value for key, value in others.items() if key not in section}


def _place(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
    mapping[last] = value


def _record(path: Path) -> ResultRecord | None:
    return read_record(path) if path.is_file() else None
