"""The runs of a study: cells, the jobs of each, and what is chosen in a cell on dev."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.metrics import factor, metric
from s3prl_ext.run_flags import preset_path
from s3prl_ext.studies.config import FIXED_AXES, AxisPoint, Study
from s3prl_ext.tasks import Task, named


@dataclass(frozen=True)
class Failure:
    """How a job failed: its sentence, and whether its gradients were not finite."""

    sentence: str
    diverged: bool = False


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
        """The record of its task."""
        return named(self.labels["task"])

    @property
    def name(self) -> str:
        """Its name in tables and logs: the folder within that of the study."""
        parts = [self.labels[axis] for axis in FIXED_AXES]
        varied = ",".join(f"{axis}={label}" for axis, label in self.labels.items() if axis not in FIXED_AXES)
        return "/".join([*parts, *([varied] if varied else []), f"seed={self.seed}"])

    def flags(self) -> list[str]:
        """Return the flags of ``s3prl-ext run`` that train it, or go on with it."""
        flags = {key: value for point in self._points() for key, value in point.flags.items() if key != "-g"}
        flags |= {"-g": merge} if (merge := self._merge()) else {}
        flags |= self.study.flags
        for one in self.study.adjustments(self.labels):
            flags |= one.flags
        listed = [text for pair in flags.items() for text in pair]
        given = ",,".join(f"config.{key}={value!r}".replace(" ", "") for key, value in self.settings().items())
        track = ["--track", self.study.track] if self.study.track else []
        own = [*track, "--seed", str(self.seed), "-p", str(self.folder), *(["-o", given] if given else [])]
        return ["-m", "train", "-a", *listed, *own]

    def upstream_flags(self) -> list[str]:
        """Return the flags that name its upstream."""
        flags = next(point.flags for point in self._points() if "-u" in point.flags)
        flags = {key: flags[key] for key in ("-u", "-k") if key in flags} | (
            {"-g": merge} if (merge := self._merge()) else {}
        )
        return [text for pair in flags.items() for text in pair]

    def _merge(self) -> str:
        return ",,".join(point.flags["-g"] for point in self._points() if "-g" in point.flags)

    def _at(self) -> dict[str, AxisPoint]:
        return {axis: self.study.points[axis][label] for axis, label in self.labels.items()}

    def _points(self) -> list[AxisPoint]:
        return list(self._at().values())

    def settings(self) -> dict[str, Any]:
        """Return what it changes in its task file, by dotted key; single keys of ``tuning`` are in the method's section."""
        fixed = [point.settings for axis, point in self._at().items() if axis in FIXED_AXES]
        varied = [point.settings for axis, point in self._at().items() if axis not in FIXED_AXES]
        settings = dict(self.study.settings)
        for part in (*fixed, *(one.settings for one in self.study.adjustments(self.labels)), *varied):
            settings |= part
        if "tuning" not in settings:
            return settings
        tuning = copy.deepcopy(dict(settings["tuning"]))
        for key in [key for key in settings if key.startswith("tuning.")]:
            _place(tuning, key.removeprefix("tuning."), settings.pop(key))
        return settings | {"tuning": tuning}

    def config(self) -> dict[str, Any]:
        """Return its task file with these changes; variables are not replaced."""
        file = next(point.flags["-c"] for point in self._points() if "-c" in point.flags)
        config = load_yaml(preset_path(file))
        for key, value in self.settings().items():
            _place(config, key, value)
        return config

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

    def tested(self) -> ResultRecord | None:
        """Return its result on test, or None where it was not tested."""
        return _record(self.folder / f"result-{self.task.test}.json")

    def on_dev(self, record: ResultRecord) -> tuple[str, float]:
        """Return metric and score on dev: the best of its evaluations, or the last one where the last checkpoint is tested.

        Raises:
            DataError: dev was not scored.
        """
        history = [row for row in record["history"] or [] if row["split"] == self.task.dev]
        name = self.task.main_metric({name for row in history for name in row}) or self.task.metrics[0]
        values = [math.nan if row[name] is None else row[name] for row in history if name in row]
        if not values:
            raise DataError(f"{self.folder} was not scored on {self.task.dev}: add it to runner.eval_dataloaders.")
        if self.study.checkpoint == "last":
            return name, values[-1]
        best = max if metric(name).higher_is_better else min
        return name, best((value for value in values if not math.isnan(value)), default=math.nan)


def _place(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
    mapping[last] = value


def _record(path: Path) -> ResultRecord | None:
    return read_record(path) if path.is_file() else None


@dataclass(frozen=True)
class Job:
    """A process of a study.

    Attributes:
        run: what it works on.
        kind: ``train``, ``test``, or ``fetch``: build the run's upstream once, so that runs do not download it side by side.
    """

    run: StudyRun
    kind: str

    @property
    def name(self) -> str:
        """Its name in logs."""
        return f"fetch/{self.run.labels['upstream']}" if self.kind == "fetch" else f"{self.run.name}/{self.kind}"

    @property
    def marker(self) -> Path:
        """The file that a fetch leaves."""
        return _root(self.run) / self.name

    def module(self) -> str:
        """Return the module whose command it is."""
        return "s3prl_ext.studies.fetch" if self.kind == "fetch" else "s3prl_ext.run_downstream"

    def flags(self) -> list[str]:
        """Return the flags of its command; of a test they are known once its training has ended."""
        if self.kind == "fetch":
            return [str(self.marker), *self.run.upstream_flags()]
        return self.run.flags() if self.kind == "train" else self.run.test_flags()

    def is_done(self) -> bool:
        """Return whether it has left what it is for."""
        return self.marker.is_file() if self.kind == "fetch" else self.result() is not None

    def result(self) -> ResultRecord | None:
        """Return what it has left, or None."""
        return self.run.record() if self.kind == "train" else self.run.tested()

    def failure(self) -> Failure | None:
        """Return how it failed, as its run has recorded it; None where it has not."""
        if self.kind == "fetch":
            return None
        name = "result-failed.json" if self.kind == "train" else f"result-{self.run.task.test}-failed.json"
        try:
            record = json.loads((self.run.folder / name).read_text(encoding="utf-8"))
            return Failure(str(record["error"]), bool(record.get("diverged")))
        except (OSError, ValueError, KeyError, AttributeError):
            return None


@dataclass
class StudyCell:
    """Runs of which one is chosen on dev: everything equal but the axes of ``choose`` and the seed.

    Attributes:
        labels: its point on the other axes.
        search: one run for each point on the axes of ``choose``, with the first seed.
        scores: on dev, by run; NaN of one that diverged.
        failures: sentence by run that has no score.
        reported: metric that its runs were judged by, once one has ended.
    """

    study: Study
    labels: Mapping[str, str]
    search: list[StudyRun]
    scores: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reported: str | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return "/".join(self.labels.values())

    def chosen(self) -> StudyRun | None:
        """Return the run that dev chooses, once every search run has a score; of equal ones the smaller value wins.

        Raises:
            DataError: all runs diverged.
        """
        if any(run.name not in self.scores for run in self.search):
            return None
        sound = [run for run in self.search if not math.isnan(self.scores[run.name])]
        if not sound:
            raise DataError(f"{self.name}: every run diverged; search other values of {', '.join(self.study.choose)}.")
        sign = 1 if metric(self.metric).higher_is_better else -1
        return max(sorted(sound, key=self._values), key=lambda run: sign * self.scores[run.name])

    def _values(self, run: StudyRun) -> tuple[float, ...]:
        """Return the numbers that were chosen among; names keep their order."""
        return tuple(number_of(run.labels[axis]) or 0.0 for axis in self.study.choose)

    def final_runs(self) -> list[StudyRun]:
        """Return the chosen run with every seed; empty before one is chosen."""
        chosen = self.chosen()
        if chosen is None:
            return []
        return [_run(self.study, chosen.labels, seed, _root(chosen)) for seed in self.study.seeds]

    @property
    def metric(self) -> str:
        """The metric that its task is judged by: the first that its runs have reported."""
        return self.reported or self.search[0].task.metrics[0]

    def note(self, run: StudyRun, record: ResultRecord | None, failure: Failure | None) -> None:
        """Take the outcome of a search run."""
        if record is not None:
            self.reported, self.scores[run.name] = run.on_dev(record)
            self.failures.pop(run.name, None)
        elif failure is not None and failure.diverged:
            self.scores[run.name] = math.nan
        elif failure is not None:
            self.failures[run.name] = failure.sentence

    def best(self) -> str:
        """Return the best score on dev so far, as text."""
        known = [self.scores[run.name] for run in self.search if not math.isnan(self.scores.get(run.name, math.nan))]
        if not known:
            return "-"
        name = self.metric
        return f"{factor(name) * (max if metric(name).higher_is_better else min)(known):.2f}"


def cells_of(study: Study, folder: Path) -> list[StudyCell]:
    """Return the cells of a study, in the order of its axes."""
    cells: dict[tuple[str, ...], StudyCell] = {}
    for labels in combinations(study):
        kept = {axis: label for axis, label in labels.items() if axis not in study.choose}
        cell = cells.setdefault(tuple(kept.values()), StudyCell(study, kept, []))
        cell.search.append(_run(study, labels, study.seeds[0], folder))
    return list(cells.values())


def combinations(study: Study) -> Iterator[dict[str, str]]:
    """Yield the labels of each combination of points that is not excluded."""
    for points in itertools.product(*study.axes.values()):
        labels = {axis: point.label for axis, point in zip(study.axes, points, strict=True)}
        if study.has(labels):
            yield labels


def number_of(label: str) -> float | None:
    """Return a label as a number, or None where it is a name."""
    try:
        return float(label)
    except ValueError:
        return None


def _run(study: Study, labels: Mapping[str, str], seed: int, folder: Path) -> StudyRun:
    run = StudyRun(study, labels, seed, folder)
    return StudyRun(study, labels, seed, folder / run.name)


def _root(run: StudyRun) -> Path:
    return run.folder.parents[len(Path(run.name).parts) - 1]
