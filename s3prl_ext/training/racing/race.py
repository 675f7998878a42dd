"""A race: train every candidate a while, compare, continue the best.

:mod:`s3prl_ext.training.racing.early_stop` says how far.

Candidates run one after another on the same model. Each is an ordinary resumable run in a folder of its own below
``race/``; what a candidate needs while another one runs is its checkpoint there, so only one model, one optimizer and
one head are in memory. ``race/race.json`` holds every score, so that an interrupted race is resumed where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import fmean

from s3prl_ext.configs import Record
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.metrics import METRICS
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import Task
from s3prl_ext.training import distributed
from s3prl_ext.training.racing.candidates import Candidate
from s3prl_ext.training.racing.early_stop import Comparison, EarlyStopConfig, best_of, winner_of
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

# trains a candidate in its folder from where it stands up to a step, with a label for the progress bar; returns the
# metrics of the split there
Advance = Callable[[Candidate, RunFolder, int, str], dict[str, float]]


def judged_by(wanted: str | None, task: Task, reported: Sequence[str]) -> str:
    """Return the metric to compare candidates by.

    Args:
        wanted: ``early_stop.metric``, or None for the task's own.
        task: its record.
        reported: metrics that the task has reported for the split.

    Raises:
        UsageError: the task does not report it; the message names those it does.
    """
    options = (wanted,) if wanted else task.metrics
    name = next((name for name in options if name in reported), None)
    if name is not None:
        return name
    known = ", ".join(name for name in reported if name in METRICS) or "none that is known"
    raise UsageError(
        f"the task {task.name} does not report {' or '.join(options)} on this split; "
        f"set early_stop.metric to one of: {known}."
    )


class Race:
    """Compare candidates and choose those that continue.

    Args:
        config: section ``early_stop``.
        candidates: at least two.
        total_steps: T, optimizer steps of a whole run.
        folder: of the experiment.
        task: its record, which says what candidates are judged by.
        advance: trains one candidate up to a step and scores it.
        split: where it is scored.
        passes: what the choice of masks costs, for the announcement.
    """

    def __init__(
        self,
        config: EarlyStopConfig,
        candidates: Sequence[Candidate],
        total_steps: int,
        folder: RunFolder,
        task: Task,
        advance: Advance,
        split: str = "dev",
        passes: str = "",
    ) -> None:
        self.config = config
        self.candidates = list(candidates)
        self.total_steps = total_steps
        self.task = task
        self.split = split
        self.passes = passes
        self._advance = advance
        self._compared: list[tuple[Comparison, list[int]]] = []
        self.folder = folder
        self.metrics: dict[str, dict[int, dict[str, float]]] = {c.name: {} for c in self.candidates}
        config.check_length(total_steps)
        self._read()

    def choose(self) -> Candidate:
        """Run the race; return the winner, whose checkpoint is in its own folder.

        It stands at the last comparison: at T where several were kept to the end.
        """
        count = len(self.candidates)
        logger.info(
            "race of %d candidates (%s): %s%s", count, "; ".join(c.name for c in self.candidates),
            self.config.announcement(count, self.total_steps), self.passes and f", and {self.passes}",
        )  # fmt: skip
        self._compared = []
        winner = winner_of(self.config.comparisons(count, self.total_steps), self._compare)
        assert winner is not None
        self._write(chosen=self.candidates[winner].name, cut=self._compared[-1][0].step)
        return self.candidates[winner]

    def _compare(self, comparison: Comparison) -> list[int]:
        """Advance the candidates of a comparison; return the best of them."""
        for number in comparison.who:
            for step in comparison.points:
                self._run(number, step, comparison.name)
        leaders = self._best(comparison)
        self._compared.append((comparison, leaders))
        logger.info(
            "%s, step %d: %s; %s leads" if len(leaders) == 1 else "%s, step %d: %s; %s lead",
            comparison.name, comparison.step, self._standing(comparison), "; ".join(self._names(leaders)),
        )  # fmt: skip
        return leaders

    def _run(self, number: int, step: int, phase: str) -> None:
        candidate = self.candidates[number]
        if step in self.metrics[candidate.name]:
            return
        folder = self.folder.candidate(candidate.name)
        folder.path.mkdir(parents=True, exist_ok=True)
        logger.info(
            "%s: candidate %d of %d, %s, to step %d", phase, number + 1, len(self.candidates), candidate.name, step
        )
        label = f"{phase} {candidate.name} ({number + 1}/{len(self.candidates)})"
        self.metrics[candidate.name][step] = self._advance(candidate, folder, step, label)
        self._write()

    def _metric(self) -> str:
        reported = list(next(iter(next(iter(self.metrics.values())).values())))
        return judged_by(self.config.metric, self.task, reported)

    def _best(self, comparison: Comparison) -> list[int]:
        name, rows = self._metric(), [self.metrics[self.candidates[n].name] for n in comparison.who]
        scores = [fmean(row[step][name] for step in comparison.points) for row in rows]
        densities = [self.candidates[n].density for n in comparison.who] if comparison.by_density else None
        return [comparison.who[place] for place in best_of(scores, name, comparison.keep, densities)]

    def _names(self, numbers: Sequence[int]) -> list[str]:
        return [self.candidates[number].name for number in numbers]

    def _standing(self, comparison: Comparison) -> str:
        name = self._metric()
        unit = {"%": " %"}.get(METRICS[name].unit, "")
        return ", ".join(
            f"{one} {name} {self.metrics[one][comparison.step][name]:.4g}{unit}" for one in self._names(comparison.who)
        )

    # -- race.json -------------------------------------------------------------------------------------------------

    def _settings(self) -> Record:
        first = {"entrants": [c.name for c in self.candidates], "total_steps": self.total_steps}
        return first | self.config.stored(self.total_steps, self.split)

    def record(self, chosen: str | None = None, cut: int | None = None) -> Record:
        """Return settings, scores and outcome as plain values."""
        scores = {name: {str(step): row for step, row in rows.items()} for name, rows in self.metrics.items()}
        known = any(rows for rows in self.metrics.values())
        spent = sum(max(rows, default=0) for rows in self.metrics.values())
        compared = [
            {"step": one.step, "compared": self._names(one.who), "best": self._names(leaders)}
            for one, leaders in self._compared
        ]
        return (
            self._settings()
            | ({"comparisons": compared} if self.config.rungs else {})
            | {
                "metric": self._metric() if known else None,
                "scores": scores,
                "chosen": chosen,
                "cut": cut,
                "steps_of_all_candidates": spent + (self.total_steps - cut if chosen and cut is not None else 0),
            }
        )

    def _write(self, chosen: str | None = None, cut: int | None = None) -> None:
        if distributed.is_leader():
            write_json(self.folder.race_record, self.record(chosen, cut))

    def _read(self) -> None:
        path = self.folder.race_record
        if not path.is_file():
            return
        try:
            stored = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not readable ({error}): start a new experiment in another folder.") from error
        for key, value in self._settings().items():
            if stored.get(key) != value:
                raise DataError(
                    f"{path} belongs to a race with {key}: {stored.get(key)}, but now it is {value}: resume with the "
                    "same settings, or start a new experiment."
                )
        for name, rows in stored["scores"].items():
            self.metrics[name] = {int(step): numbers(row) for step, row in rows.items()}
