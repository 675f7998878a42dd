"""The race of AD-TUNING, successive halving with one rung: train every candidate a while, compare, continue the best.

Train n candidates for k = max(1, round(r T)) steps, score each on dev with the task's own metric, continue the c best
to T (AD-TUNING, section 2.3 and Algorithm 1): n k + c (T - k) steps in all.

Candidates run one after another on the same model. Each is an ordinary resumable run in a folder of its own below
``race/``; what a candidate needs while another one runs is its checkpoint there, so only one model, one optimizer and
one head are in memory. ``race/race.json`` holds every score, so that an interrupted race is resumed where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

from s3prl_ext import settings
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.metrics import METRICS
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.settings import choice, count, load, raise_all
from s3prl_ext.tasks import task_of
from s3prl_ext.training import distributed
from s3prl_ext.training.candidates import Candidate, select
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

# trains a candidate in its folder from where it stands up to a step, with a label for the progress bar; returns the
# metrics of the split there
Advance = Callable[[Candidate, RunFolder, int, str], dict[str, float]]


@dataclass(frozen=True)
class EarlyStopConfig:
    """Section ``early_stop`` of a task file.

    Attributes:
        ratio: r, share of the run's steps after which candidates are compared, in (0, 1].
        keep: c, how many candidates continue.
        metric: what they are compared by; None = the task's own, see :mod:`s3prl_ext.tasks`.
        split: where it is measured; None = the first of ``runner.eval_dataloaders``.
        evaluations: a candidate's score is the mean of this many evaluations, evenly spaced up to the comparison.
        patience: compare again every k steps until the same candidates have led for this many consecutive comparisons.
    """

    ratio: Annotated[float, settings.number(above=0, most=1)] = 0.1
    keep: Annotated[int, count()] = 1
    metric: Annotated[str | None, choice(METRICS)] = None
    split: Annotated[str | None, settings.name()] = None
    evaluations: Annotated[int, count()] = 1
    patience: Annotated[int, count()] = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any], candidates: int) -> EarlyStopConfig | None:
        """Check section ``early_stop``; None where there is nothing to race.

        Args:
            config: the whole task file.
            candidates: number of candidates that its section ``tuning`` makes.

        Raises:
            UsageError: with all problems; also where there are candidates but no section, and the reverse.
        """
        if "early_stop" not in config:
            if candidates > 1:
                raise UsageError(
                    f"tuning makes {candidates} candidates, but there is no section early_stop to race them by: add "
                    "early_stop: {ratio: 0.1, keep: 1}, or give one value instead of a list."
                )
            return None
        problems: list[str] = []
        example = "{ratio: 0.1, keep: 1}"
        race = load(cls, config["early_stop"] or {}, "early_stop", example=example, problems=problems)
        if race.keep > candidates > 1:
            problems.append(f"early_stop.keep is {race.keep}, but there are only {candidates} candidates.")
        raise_all(problems)
        if candidates == 1:
            return None  # plain child-tuning
        if race.split is None and not (config.get("runner") or {}).get("eval_dataloaders", ["dev"]):
            raise UsageError(
                "a race compares candidates on a split: name it in early_stop.split or runner.eval_dataloaders."
            )
        return race

    def steps_before_cut(self, total_steps: int) -> int:
        """Return k = max(1, round(r T)), at most T."""
        return min(total_steps, max(1, round(self.ratio * total_steps)))


def budget(config: EarlyStopConfig, count: int, total_steps: int) -> int:
    """Return the optimizer steps of all candidates together: n k + c (T - k).

    With `patience` p the comparison is the p-th at the earliest, so that k stands for p k and this is the least number.
    """
    k = min(total_steps, config.patience * config.steps_before_cut(total_steps))
    return count * k + min(config.keep, count) * (total_steps - k)


def judged_by(wanted: str | None, task: str, reported: Sequence[str]) -> str:
    """Return the metric to compare candidates by.

    Args:
        wanted: ``early_stop.metric``, or None for the task's own.
        task: name for ``-d``.
        reported: metrics that the task has reported for the split.

    Raises:
        UsageError: the task does not report it; the message names those it does.
    """
    options = (wanted,) if wanted else task_of(task).metrics
    name = next((name for name in options if name in reported), None)
    if name is not None:
        return name
    known = ", ".join(name for name in reported if name in METRICS) or "none that is known"
    raise UsageError(
        f"the task {task} does not report {' or '.join(options)} on this split; set early_stop.metric to one of: {known}."
    )


class Race:
    """Compare candidates and choose those that continue (AD-TUNING, Algorithm 1).

    Args:
        config: section ``early_stop``.
        candidates: at least two.
        total_steps: T, optimizer steps of a whole run.
        folder: of the experiment.
        task: name for ``-d``, which says what candidates are judged by.
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
        task: str,
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
        self.folder = folder
        self.metrics: dict[str, dict[int, dict[str, float]]] = {c.name: {} for c in self.candidates}
        self._read()

    def choose(self) -> Candidate:
        """Run the race; return the winner, whose checkpoint is in its own folder.

        With ``keep: 1`` the winner stands at the comparison; otherwise all that were kept have run to T.
        """
        k = self.config.steps_before_cut(self.total_steps)
        logger.info(
            "race of %d candidates (%s): %d steps each, then the best %d to step %d; %s optimizer steps in all%s",
            len(self.candidates), "; ".join(c.name for c in self.candidates), k, self.config.keep, self.total_steps,
            self._budget(), self.passes and f", and {self.passes}",
        )  # fmt: skip
        leaders, cut = self._leaders(k)
        logger.info("step %d: %s; going on with %s", cut, self._standing(cut), "; ".join(self._names(leaders)))
        if self.config.keep > 1:
            for number in leaders:
                self._run(number, self.total_steps, phase="kept")
            leaders = self._best(self.total_steps, leaders, 1, [self.total_steps])
            cut = self.total_steps
        winner = self.candidates[leaders[0]]
        self._write(chosen=winner.name, cut=cut)
        return winner

    def _budget(self) -> str:
        least = budget(self.config, len(self.candidates), self.total_steps)
        most = len(self.candidates) * self.total_steps  # the leaders change to the end
        return f"{least}" if self.config.patience == 1 or least == most else f"{least} to {most}"

    def _leaders(self, k: int) -> tuple[list[int], int]:
        """Advance all candidates until the same ones have led often enough; return them and the step."""
        led, previous, cut, everyone = 0, None, 0, list(range(len(self.candidates)))
        while True:
            start, cut = cut, min(self.total_steps, cut + k)
            points = sorted({start + max(1, (cut - start) * (j + 1) // self.config.evaluations)
                             for j in range(self.config.evaluations)})  # fmt: skip
            for number in everyone:
                for step in points:
                    self._run(number, step, phase="race")
            leaders = self._best(cut, everyone, self.config.keep, points)
            led = led + 1 if leaders == previous else 1
            previous = leaders
            if led >= self.config.patience or cut >= self.total_steps:
                return leaders, cut

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

    def _score(self, number: int, points: Sequence[int]) -> float:
        row = self.metrics[self.candidates[number].name]
        return fmean(row[step][self._metric()] for step in points)

    def _best(self, cut: int, numbers: Sequence[int], keep: int, points: Sequence[int]) -> list[int]:
        scores = [self._score(number, points) for number in numbers]
        chosen = select(scores, [self.candidates[n] for n in numbers], self._metric(), keep)
        return [numbers[i] for i in chosen]

    def _names(self, numbers: Sequence[int]) -> list[str]:
        return [self.candidates[number].name for number in numbers]

    def _standing(self, step: int) -> str:
        name = self._metric()
        unit = {"%": " %"}.get(METRICS[name].unit, "")
        return ", ".join(f"{c.name} {name} {self.metrics[c.name][step][name]:.4g}{unit}" for c in self.candidates)

    # -- race.json -------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "entrants": [c.name for c in self.candidates],
            "total_steps": self.total_steps,
            "steps_before_cut": self.config.steps_before_cut(self.total_steps),
            "split": self.split,
            "keep": self.config.keep,
            "evaluations": self.config.evaluations,
            "patience": self.config.patience,
        }

    def record(self, chosen: str | None = None, cut: int | None = None) -> dict[str, Any]:
        """Return settings, scores and outcome as plain values."""
        scores = {name: {str(step): row for step, row in rows.items()} for name, rows in self.metrics.items()}
        known = any(rows for rows in self.metrics.values())
        spent = sum(max(rows, default=0) for rows in self.metrics.values())
        return self._settings() | {
            "metric": self._metric() if known else None,
            "scores": scores,
            "chosen": chosen,
            "cut": cut,
            "steps_of_all_candidates": spent + (self.total_steps - cut if chosen and cut is not None else 0),
        }

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
