"""The runs of a study: cells, the jobs of each, and what is chosen in a cell on dev."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord, numbers, read_record
from s3prl_ext.metrics import factor, metric
from s3prl_ext.reading import parse_json
from s3prl_ext.run_flags import preset_path
from s3prl_ext.studies.asha import Arrival, asha_standing
from s3prl_ext.studies.config import FIXED_AXES, AxisPoint, Study
from s3prl_ext.studies.race import Standing, jobs_of, standing
from s3prl_ext.tasks import Task, named
from s3prl_ext.training.early_stop import EarlyStopConfig

FISHER = "fisher"  # in a study: Fisher scores that its runs share


@dataclass(frozen=True)
class JobFailure:
    """How a job failed: its sentence, and whether its gradients were not finite."""

    sentence: str
    diverged: bool = False


class Stop(NamedTuple):
    """What a run had reached where it was stopped: its score on dev, and the wall time until then."""

    metric: str
    score: float
    seconds: float


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

    def point(self, axes: Sequence[str]) -> str:
        """Return its labels on some axes."""
        return ", ".join(self.labels[axis] for axis in axes)

    def flags(self, until: int | None = None) -> list[str]:
        """Return the flags of ``s3prl-ext run`` that train it, or resume it, to its end or to a step."""
        flags = {key: value for point in self._points() for key, value in point.flags.items() if key != "-g"}
        flags |= {"-g": merge} if (merge := self._merge()) else {}
        flags |= self.study.flags
        for one in self.study.adjustments(self.labels):
            flags |= one.flags
        listed = [text for pair in flags.items() for text in pair]
        changes = [f"config.{key}={value!r}".replace(" ", "") for key, value in self.settings().items()]
        given = ",,".join([*changes, *([f"args.until={until}"] if until else [])])
        track = ["--track", self.study.track] if self.study.track else []
        if self.study.share_fisher and self._shares_fisher():
            track += ["--fisher_scores", str(_root(self) / FISHER)]
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

    def points(self) -> dict[str, AxisPoint]:
        """Return its point on each axis."""
        return {axis: self.study.points[axis][label] for axis, label in self.labels.items()}

    def _points(self) -> list[AxisPoint]:
        return list(self.points().values())

    def settings(self) -> dict[str, Any]:
        """Return what it changes in its task file, by dotted key; single keys of ``tuning`` are in the method's section."""
        fixed = [point.settings for axis, point in self.points().items() if axis in FIXED_AXES]
        varied = [point.settings for axis, point in self.points().items() if axis not in FIXED_AXES]
        settings = dict(self.study.settings)
        for part in (*fixed, *(one.settings for one in self.study.adjustments(self.labels)), *varied):
            settings |= part
        if "tuning" not in settings:
            return settings
        tuning = copy.deepcopy(dict(settings["tuning"]))
        for key in [key for key in settings if key.startswith("tuning.")]:
            _place(tuning, key.removeprefix("tuning."), settings.pop(key))
        return settings | {"tuning": tuning}

    def _shares_fisher(self) -> bool:
        """Return whether it needs Fisher scores, and other runs of its upstream, task and seed do as well."""
        study, searches = self.study, self.seed == self.study.seeds[0]
        axes = [axis for axis in study.axes if axis not in FIXED_AXES and (searches or axis not in study.choose)]
        methods = sum(_reads_fisher(point.settings.get("tuning", {})) for point in study.axes["method"])
        runs = methods * math.prod(len(study.axes[axis]) for axis in axes)
        return runs > 1 and _reads_fisher(self.settings().get("tuning", {}))

    def preset(self) -> dict[str, Any]:
        """Return the task file that it begins with."""
        return load_yaml(preset_path(next(point.flags["-c"] for point in self._points() if "-c" in point.flags)))

    def config(self) -> dict[str, Any]:
        """Return its task file with these changes; variables are not replaced."""
        config = self.preset()
        for key, value in self.settings().items():
            _place(config, key, value)
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
            return Stop(name, row[name], float(record["seconds"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is corrupt ({error!r}): delete it, and run the study again.") from error

    def stops(self) -> list[int]:
        """Return the steps at which it was stopped, the first one first."""
        return sorted(int(path.stem.removeprefix("at-")) for path in self.folder.glob("at-[0-9]*.json"))

    def seconds(self) -> float | None:
        """Return the wall time of its training as far as it has got; None where it has got nowhere."""
        record, stops = self.record(), self.stops()
        return record["seconds"] if record is not None else self.stopped(stops[-1]).seconds if stops else None

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

    def at_end(self, record: ResultRecord) -> float:
        """Return the score on dev at its last step."""
        name, _ = self.on_dev(record)
        rows = [row[name] for row in record["history"] or [] if row["split"] == self.task.dev and name in row]
        return math.nan if rows[-1] is None else float(rows[-1])


def _reads_fisher(tuning: Mapping[str, Any]) -> bool:
    return tuning.get("method") == "child" and tuning.get("mask", "fisher") == "fisher"


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
        kind: ``train``, ``rung``: train to a step of a race, ``test``, or ``fetch``: build the run's upstream once, so that
            runs do not download it side by side.
        until: step of a ``rung``.
    """

    run: StudyRun
    kind: str
    until: int | None = None

    @property
    def name(self) -> str:
        """Its name in logs."""
        if self.kind == "fetch":
            return f"fetch/{self.run.labels['upstream']}"
        return f"{self.run.name}/{self.kind}" + (f"={self.until}" if self.until else "")

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
        return self.run.test_flags() if self.kind == "test" else self.run.flags(self.until)

    def is_done(self) -> bool:
        """Return whether it has left what it is for."""
        if self.kind == "fetch":
            return self.marker.is_file()
        if self.until:
            return self.run.stop(self.until).is_file()
        return self.result() is not None

    def result(self) -> ResultRecord | None:
        """Return the result file that it has left, or None; a rung leaves none."""
        if self.until:
            return None
        return self.run.record() if self.kind == "train" else self.run.tested()

    def failure(self) -> JobFailure | None:
        """Return how it failed, as its run has recorded it; None where it has not."""
        if self.kind == "fetch":
            return None
        try:
            record = json.loads(self._failed.read_text(encoding="utf-8"))
            return JobFailure(str(record["error"]), bool(record.get("diverged")))
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def forget_failure(self) -> None:
        """Remove what an earlier attempt has recorded: one that dies without a record would show it as its own."""
        if self.kind != "fetch":
            self._failed.unlink(missing_ok=True)

    @property
    def _failed(self) -> Path:
        name = f"result-{self.run.task.test}-failed.json" if self.kind == "test" else "result-failed.json"
        return self.run.folder / name


@dataclass
class StudyCell:
    """Runs of which one is chosen on dev: everything equal but the axes of ``choose`` and the seed.

    Attributes:
        labels: its point on the other axes.
        search: one run for each point on the axes of ``choose``, with the first seed.
        scores: on dev, by run; NaN of one that diverged. In a race the latest score of each.
        stops: of a race, the score on dev by run and step.
        diverged: runs whose gradients were not finite.
        arrived: of a race, when which run was scored at which step, by the time of its file.
        failures: sentence by run that has no score.
        reported: metric that its runs were judged by, once one has ended.
    """

    study: Study
    labels: Mapping[str, str]
    search: list[StudyRun]
    scores: dict[str, float] = field(default_factory=dict)
    stops: dict[str, dict[int, float]] = field(default_factory=dict)
    diverged: set[str] = field(default_factory=set)
    arrived: set[tuple[int, str, int]] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    reported: str | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return "/".join(self.labels.values())

    # -- the race ----------------------------------------------------------------------------------------------------

    @property
    def race(self) -> EarlyStopConfig | None:
        """When its runs are compared on the way; None where all of them, or its only one, are trained to the end."""
        return self.study.race if len(self.search) > 1 else None

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of its first run; 0 where the task file counts epochs."""
        return self.search[0].total_steps

    @cached_property
    def _densities(self) -> list[float]:
        """Density of each run, where equal scores are told apart by it."""
        if self.study.race is None or self.study.race.rungs:
            return [1.0] * len(self.search)
        return [float((run.config().get("tuning") or {}).get("density", 1.0)) for run in self.search]

    def standing(self) -> Standing:
        """Return how its race stands."""
        assert self.race is not None
        if self.study.scheduler == "asha":
            number = {run.name: place for place, run in enumerate(self.search)}
            arrivals = [Arrival(number[name], step, self.stops[name][step]) for _, name, step in sorted(self.arrived)]
            gone = {number[name] for name in self.diverged}
            return asha_standing(self.race, self.total_steps, self.metric, len(number), arrivals, gone)
        return standing(self.race, self.total_steps, self._densities, self.metric, self.stop_of)

    def stop_of(self, number: int, step: int) -> float | None:
        """Return the score on dev of a search run at a step of its race, NaN where it diverged before."""
        name = self.search[number].name
        found = self.stops.get(name, {}).get(step)
        return math.nan if found is None and name in self.diverged else found

    def due(self) -> list[Job]:
        """Return the jobs that have to end before a run can be chosen, as far as they are known."""
        if self.race is None:
            return [Job(run, "train") for run in self.search]
        return [
            Job(self.search[number], "train") if step >= self.total_steps else Job(self.search[number], "rung", step)
            for number, step in self.standing().due
        ]

    def search_jobs(self) -> int:
        """Return how many jobs choose a run and train it, at the least."""
        race = self.race
        return jobs_of(race, len(self.search), self.total_steps) if race else len(self.search)

    def search_steps(self) -> int:
        """Return how many optimizer steps they take, at the least."""
        race = self.race
        if race is not None:
            return race.budget(len(self.search), self.total_steps)
        return sum(run.total_steps for run in self.search)

    def decides(self, job: Job) -> bool:
        """Return whether a job's outcome decides which run is chosen: that such a run diverged is a result."""
        if self.race is None:
            return job.kind == "train" and job.run.name in {run.name for run in self.search}
        return job.kind == "rung" or (job.kind == "train" and self.standing().winner is None)

    # -- what is chosen ----------------------------------------------------------------------------------------------

    def chosen(self) -> StudyRun | None:
        """Return the run that dev chooses: the winner of the race, or the best once every search run has a score.

        Without a race, of equal ones the smaller value wins.

        Raises:
            DataError: all runs diverged.
        """
        if self.race is not None:
            standing = self.standing()
            if standing.failure is not None:
                raise DataError(f"{self.name}: {standing.failure}")
            return None if standing.winner is None else self.search[standing.winner]
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

    def note_stop(self, run: StudyRun, step: int) -> None:
        """Take the score of a search run where its race stopped it."""
        self.reported, score, _ = run.stopped(step)
        self.scores[run.name] = self.stops.setdefault(run.name, {})[step] = score
        self.arrived.add((run.stop(step).stat().st_mtime_ns, run.name, step))
        self.failures.pop(run.name, None)

    def note(self, run: StudyRun, record: ResultRecord | None, failure: JobFailure | None) -> None:
        """Take the outcome of a search run."""
        if record is not None:
            self.reported, self.scores[run.name] = run.on_dev(record)
            self.stops.setdefault(run.name, {})[self.total_steps] = run.at_end(record)
            if any(run.name == one.name for one in self.search):
                self.arrived.add((record.path.stat().st_mtime_ns, run.name, self.total_steps))
        elif failure is not None and failure.diverged:
            self.scores[run.name] = math.nan
            self.diverged.add(run.name)
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
