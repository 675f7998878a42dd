"""The cells of a study: the jobs of each, and what is chosen in it on dev."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.metrics import factor, metric
from s3prl_ext.studies.asha import Arrival, asha_standing
from s3prl_ext.studies.common_settings import CommonSettings, RunSettings
from s3prl_ext.studies.config import Resources, Study
from s3prl_ext.studies.jobs import Job, JobFailure
from s3prl_ext.studies.race import Standing, jobs_of, standing
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.training import upstream_settings
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from s3prl_ext.training.results.run_settings import in_words

Bases = dict[tuple[str, str], tuple[str, str]]  # (task and other axes, what) -> (name of the first run, hash)
Settings = dict[tuple[str, str], CommonSettings]  # (task and other axes, preset) -> what its runs have in common
Models = dict[tuple[str, ...], dict[int, tuple[str, str]]]  # (task, upstream, flags) -> seed -> (name, hash) as above


@dataclass
class StudyCell:
    """Runs of which one is chosen on dev: everything equal but the axes of ``choose`` and the seed.

    Attributes:
        labels: its point on the other axes.
        search: one run for each point on the axes of ``choose`` and each seed that searches.
        scores: on dev, by run; NaN of one that diverged. In a race the latest score of each.
        stops: of a race, the score on dev by run and step.
        diverged: runs whose gradients were not finite.
        arrived: of a race, when which run was scored at which step, by the time of its file.
        failures: sentence by run that has no score.
        reported: metric that its runs were judged by, once one has ended.
        bases: what the runs of the study were trained on, shared by its cells: name and hash of the first run by what.
        models: the same of their untouched upstreams, by seed.
        settings: what its runs and those of other cells have in common, shared by the cells.
        changed: settings of a run that its task file gives otherwise now, in words.
        mixed: sentence where a run of the cell was trained or tested on something else than others.
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
    bases: Bases = field(default_factory=dict)
    models: Models = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    mixed: str | None = None

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
            gone = {number[name] for name in self.diverged if name in number}
            return asha_standing(self.race, self.total_steps, self.metric, len(number), arrivals, gone)
        return standing(self.race, self.total_steps, self._densities, self.metric, self.stop_of)

    def stop_of(self, number: int, step: int) -> float | None:
        """Return the score on dev of a search run at a step of its race, NaN where it diverged before."""
        name = self.search[number].name
        found = self.stops.get(name, {}).get(step)
        return math.nan if found is None and name in self.diverged else found

    def due(self) -> list[Job]:
        """Return the jobs that have to end before a run can be chosen, as far as they are known.

        Where nothing is chosen, the trainings of all seeds: none waits for another.
        """
        if not self.study.choose:
            return [Job(run, "train") for run in self.final_runs()]
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
        if not self.study.choose:
            return False
        if self.race is None:
            return job.kind == "train" and job.run.name in {run.name for run in self.search}
        return job.kind == "rung" or (job.kind == "train" and self.standing().winner is None)

    # -- what is chosen ----------------------------------------------------------------------------------------------

    def chosen(self) -> StudyRun | None:
        """Return the run that dev chooses: the winner of the race, or the best once every search run has a score.

        The only one where nothing is chosen.

        Without a race the mean over the seeds that search counts, a point where one diverged is out, and of equal ones
        the smaller value wins. With several such seeds the run of the first one is returned.

        Raises:
            DataError: all runs diverged, or runs were trained on different data.
        """
        if self.mixed is not None:
            raise DataError(f"{self.name}: {self.mixed}")
        if not self.study.choose:
            return self.search[0]
        if self.race is not None:
            standing = self.standing()
            if standing.failure is not None:
                raise DataError(f"{self.name}: {standing.failure}")
            return None if standing.winner is None else self.search[standing.winner]
        if any(run.name not in self.scores for run in self.search):
            return None
        sound = [run for run in self._points() if not math.isnan(self.score_at(run))]
        if not sound:
            raise DataError(f"{self.name}: every run diverged; search other values of {', '.join(self.study.choose)}.")
        sign = 1 if metric(self.metric).higher_is_better else -1
        return max(sorted(sound, key=self._values), key=lambda run: sign * self.score_at(run))

    def _points(self) -> list[StudyRun]:
        """Return the search runs of the first seed: one for each point."""
        return self.search if self.race is not None else [run for run in self.search if run.seed == self.search[0].seed]

    def at(self, run: StudyRun) -> list[StudyRun]:
        """Return the search runs at the point of a run, one for each seed that searches."""
        return [one for one in self.search if all(one.labels[axis] == run.labels[axis] for axis in self.study.choose)]

    def score_at(self, run: StudyRun) -> float:
        """Return the mean score on dev at the point of a run over the seeds that search, as far as they have one."""
        return fmean(self.scores[one.name] for one in self.at(run) if one.name in self.scores)

    def _values(self, run: StudyRun) -> tuple[float, ...]:
        """Return the numbers that were chosen among; names keep their order."""
        return tuple(number_of(run.labels[axis]) or 0.0 for axis in self.study.choose)

    def final_runs(self) -> list[StudyRun]:
        """Return the chosen run with every seed; empty before one is chosen."""
        chosen = self.chosen()
        if chosen is None:
            return []
        return [run_of(self.study, chosen.labels, seed, chosen.study_folder) for seed in self.study.seeds]

    @property
    def metric(self) -> str:
        """The metric that its task is judged by: the first that its runs have reported."""
        return self.reported or self.search[0].task.metrics[0]

    def note_stop(self, run: StudyRun, step: int) -> None:
        """Take the score of a search run where its race stopped it."""
        name, score, _, record = run.stopped(step)
        self.compare_basis(run, record)
        self._note_metric(run, name)
        self.scores[run.name] = self.stops.setdefault(run.name, {})[step] = score
        self.arrived.add((run.stop(step).stat().st_mtime_ns, run.name, step))
        self.failures.pop(run.name, None)

    def note(self, run: StudyRun, record: ResultRecord | None, failure: JobFailure | None) -> None:
        """Take the outcome of a search run."""
        if record is not None:
            self.compare_basis(run, record)
            name, self.scores[run.name] = run.on_dev(record)
            self._note_metric(run, name)
            self.stops.setdefault(run.name, {})[self.total_steps] = run.at_end(record)
            if any(run.name == one.name for one in self.search):
                self.arrived.add((record.path.stat().st_mtime_ns, run.name, self.total_steps))
        elif failure is not None and failure.diverged:
            self.scores[run.name] = math.nan
            self.diverged.add(run.name)
        elif failure is not None:
            self.failures[run.name] = failure.sentence

    def _note_metric(self, run: StudyRun, name: str) -> None:
        """Take the metric of a run; scores of another one than the others' cannot be compared with theirs."""
        if self.reported not in (None, name):
            self.mixed = (
                f"{run.name} was judged by {name}, others of its cell by {self.reported}: remove the runs of one of "
                "them, and run the study again."
            )
        self.reported = self.reported or name

    def compare_basis(self, run: StudyRun, record: ResultRecord) -> None:
        """Note where a run had other data, another upstream or other settings than an earlier one of its task.

        A study is often gone on with: the variable of a corpus may then have another value, its folder other files, the
        file of a model other weights, and a task file other settings. A run may have been gone on with by hand, and an
        older version may have run something else than its labels say.
        """
        if record["mode"] == "train":  # the settings of a test are those of its training, or it does not count
            self._compare_settings(run, record)
        self._compare_upstream(run, record)
        place = self._place(run)
        for what, value in (("another corpus", record.at("data.sha256")), ("other splits", record["splits_sha256"])):
            if value is None:
                continue
            first = self.bases.setdefault((place, what), (run.name, value))
            if first[1] != value:
                self.mixed = (
                    f"{run.name} was run on {what} than {first[0]} (by names and sizes of files): set the variable of "
                    "the corpus as then, or remove the runs of one of them, and run the study again."
                )

    def _place(self, run: StudyRun) -> str:
        """Return the axes of which each label has a table row of its own, besides upstream and method."""
        return "/".join(
            label for axis, label in run.labels.items() if axis not in ("upstream", "method", *self.study.choose)
        )

    def expect(self, run: StudyRun) -> None:
        """Note the settings that a run will be trained with, so that finished ones with others are named before."""
        self._compare_with_others(run, RunSettings.of(run, None))

    def _compare_settings(self, run: StudyRun, record: ResultRecord) -> None:
        if not record["config"]:
            return  # an older version kept none
        settings = RunSettings.of(run, record["config"])
        if settings.own:
            self.mixed = (
                f"{run.name} was run with {in_words(settings.own)}, by hand or by a version in which another setting "
                "replaced that of the study: remove its folder, and run the study again."
            )
        for row in record["changed_settings"] or ():
            if resumed := settings.decisive(row["settings"]):
                self.mixed = (
                    f"{run.name} was gone on with at step {row['step']} with {in_words(resumed)}: remove its folder, "
                    "and run the study again."
                )
        if settings.changed:
            self.changed[run.name] = in_words(settings.changed)
        self._compare_with_others(run, settings)

    def _compare_with_others(self, run: StudyRun, settings: RunSettings) -> None:
        common = self.settings.setdefault((self._place(run), run.preset_name), CommonSettings())
        if (found := common.differing(settings)) is not None:
            other, changes = found
            self.mixed = (
                f"{run.name} has other settings than {other} ({in_words(changes)}): their task file has changed in "
                "between, or one was gone on with by hand: remove the folders of one kind, and run the study again."
            )

    def _compare_upstream(self, run: StudyRun, record: ResultRecord) -> None:
        if (found := record["upstream_sha256"]) is None:
            return
        flags = tuple(
            word for flag, value in run.given_flags().items() if flag not in ("-d", "-c") for word in (flag, value)
        )
        by_seed = self.models.setdefault((run.labels["task"], run.labels["upstream"], *flags), {})
        first = by_seed.setdefault(run.seed, (run.name, found))
        fetch = Job(run, "fetch")
        drawn = fetch.draws_weights()
        others = [first] if drawn else by_seed.values()
        other = next((name for name, one in others if one != found), None)
        if other is not None:
            self.mixed = (
                f"{run.name} was run on another upstream than {other} (SHA-256 of its weights): put the file of then "
                "back (-k, or what -g names), or remove the runs of one of them, and run the study again."
            )
            if drawn is None and len(by_seed) > 1:
                self.mixed += f" If it lacks weights, which each seed draws, remove {fetch.marker} instead."
        if (settings := record[upstream_settings.KEY]) is None:
            return
        version = settings.get(upstream_settings.VERSION)
        place = repr((run.labels["task"], run.labels["upstream"], *flags, version))
        before = self.bases.setdefault((place, upstream_settings.KEY), (run.name, json.dumps(settings)))
        if changed := upstream_settings.other_settings(json.loads(before[1]), settings):
            self.mixed = (
                f"{run.name} was run on another upstream than {before[0]} ({', '.join(changed[:3])}): put "
                "the files of then back (-k, with config.json and preprocessor_config.json next to the weights, or "
                "what -g names), or remove the runs of one of them, and run the study again."
            )

    def best(self) -> str:
        """Return the best score on dev so far, as text."""
        scored = [run for run in self._points() if all(one.name in self.scores for one in self.at(run))]
        known = [score for run in scored if not math.isnan(score := self.score_at(run))]
        if not known:
            return "-"
        name = self.metric
        return f"{factor(name) * (max if metric(name).higher_is_better else min)(known):.2f}"


def cells_of(study: Study, folder: Path) -> list[StudyCell]:
    """Return the cells of a study, in the order of its axes."""
    cells: dict[tuple[str, ...], StudyCell] = {}
    bases: Bases = {}
    models: Models = {}
    settings: Settings = {}
    for labels in combinations(study):
        kept = {axis: label for axis, label in labels.items() if axis not in study.choose}
        new = StudyCell(study, kept, [], bases=bases, models=models, settings=settings)
        cell = cells.setdefault(tuple(kept.values()), new)
        cell.search += [run_of(study, labels, seed, folder) for seed in study.search_seeds]
    return list(cells.values())


def resources_of(cells: Sequence[StudyCell]) -> Resources:
    """Return what a job of a study needs: no GPU where that is left open and every run names a device of its own."""
    resources = cells[0].study.resources
    devices = {run.given_flags().get("--device", "cuda") for cell in cells for run in cell.search}
    return dataclasses.replace(resources, gpus=0) if resources.gpus is None and "cuda" not in devices else resources


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


def run_of(study: Study, labels: Mapping[str, str], seed: int, folder: Path) -> StudyRun:
    """Return the run of a combination and a seed, in the folder of its study."""
    run = StudyRun(study, labels, seed, folder)
    return StudyRun(study, labels, seed, folder / run.name)
