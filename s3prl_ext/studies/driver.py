"""The driver of a study: starts the jobs that are due, notes how they ended, and goes on from what the folder holds."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from s3prl_ext.errors import DataError, StoppedByUser
from s3prl_ext.locks import is_in_use
from s3prl_ext.studies.config import Study
from s3prl_ext.studies.jobs import Job, JobFailure
from s3prl_ext.studies.plan import StudyCell, cells_of

logger = logging.getLogger(__name__)

LOGS = "logs"


class Process(Protocol):
    """What an engine runs: a command of this package, ``python -m MODULE FLAGS``."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    def module(self) -> str:
        """Return the module."""

    def flags(self) -> list[str]:
        """Return the flags."""


@dataclass(frozen=True)
class Ended:
    """How the process of a job ended.

    Attributes:
        job: its job.
        code: exit status; None where the process was lost with its machine.
        log: the file with what it printed.
        said: what the engine says of its end, where it knows more than the log.
    """

    job: Process
    code: int | None
    log: Path
    said: str = ""


class Engine(Protocol):
    """Where and when jobs run; it decides nothing else.

    Attributes:
        queues: whether a started job may wait in a queue of the engine's own.
    """

    queues: bool

    def free(self) -> int:
        """Return how many more jobs can be started now."""

    def start(self, job: Process, log: Path) -> None:
        """Start a job; it may wait in the engine's own queue."""

    def ended(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; wait up to `seconds` for the first."""

    def stop(self) -> list[Ended]:
        """Ask all jobs to end: a training saves its step. Return those whose end is known."""


@dataclass
class Progress:
    """What a view shows.

    Attributes:
        cells: all of them.
        done: jobs that have their result.
        running: jobs by the time they were started.
        failed: sentence by job.
        total: jobs in all, chosen ones included.
        began: when the first job of this session was started.
        ended: jobs that ended since then.
        cell_of: name of the cell of each job that is known so far.
        jobs_of: how many jobs each cell has, chosen ones included.
        queues: whether jobs of `running` may still wait in a queue of the engine's.
    """

    cells: list[StudyCell]
    total: int
    done: dict[str, Job] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    began: float | None = None
    ended: int = 0
    cell_of: dict[str, str] = field(default_factory=dict)
    jobs_of: dict[str, int] = field(default_factory=dict)
    queues: bool = False


class Driver:
    """Runs a study in a folder.

    Args:
        study: what to run.
        folder: of the study.
        engine: where jobs run.
        show: is given the progress whenever it has changed.
        retry_failed: run jobs again that failed in an earlier session.
    """

    def __init__(
        self, study: Study, folder: Path, engine: Engine, show: Callable[[Progress], None], retry_failed: bool = False
    ) -> None:
        self.study, self.folder, self.engine, self.show = study, folder, engine, show
        self.retry_failed = retry_failed
        cells = cells_of(study, folder)
        self.progress = Progress(cells, total_jobs(study, cells), queues=engine.queues)
        self.progress.jobs_of = {cell.name: total_jobs(study, [cell]) for cell in cells}
        self.waiting: deque[Job] = deque()
        self.cell_of: dict[str, StudyCell] = {}
        self.lost: dict[str, int] = {}
        self.met = 0
        self.begun: dict[str, int] = {}  # size of a job's log where its present attempt begins

    def run(self) -> Progress:
        """Run all jobs; return when none is left.

        Raises:
            StoppedByUser: Ctrl-C; the jobs have ended first.
        """
        try:
            self._fetch()
            for cell in self.progress.cells:
                if self._upstream_of(cell) not in self.progress.failed:
                    self._go_on(cell)
            self._work()
        except KeyboardInterrupt:
            raise StoppedByUser(self._how_stopped(self.engine.stop())) from None
        except BaseException:
            self.engine.stop()
            raise
        if not self.progress.failed:
            self.progress.total = self.met  # a race in which runs diverge takes fewer jobs
        self.show(self.progress)
        return self.progress

    def _fetch(self) -> None:
        """Build every upstream once; the cells of one that cannot be built are left out, with its sentence."""
        for cell in self.progress.cells:
            for run in cell.search:
                job = Job(run, "fetch")
                if job.name not in self.cell_of and not job.is_done():
                    self.cell_of[job.name] = cell
                    self.progress.cell_of[job.name] = cell.name
                    self.waiting.append(job)
        self._work()

    @staticmethod
    def _upstream_of(cell: StudyCell) -> str:
        return Job(cell.search[0], "fetch").name

    def _work(self) -> None:
        """Start what waits and note what ends, until nothing is left."""
        while self.waiting or self.progress.running:
            for _ in range(min(self.engine.free(), len(self.waiting))):
                self._start(self.waiting.popleft())
            self.show(self.progress)
            for end in self.engine.ended(1.0):
                self._note(end)

    def _meet(self, cell: StudyCell, job: Job) -> None:
        """Take a job into account once: it is done, has failed before, or waits."""
        if job.name in self.cell_of:
            return
        self.cell_of[job.name] = cell
        self.progress.cell_of[job.name] = cell.name
        self.met += 1
        self.progress.total = max(self.progress.total, self.met)  # how many a race takes may be known only at its end
        if job.is_done():
            self._done(job)
            return
        failure = job.failure()
        if failure is not None and (self._is_result(job, failure) or not self.retry_failed):
            self._failed(job, failure)
        else:
            if job.kind == "test" and (said := job.run.not_counted()) is not None:
                logger.warning("%s %s and is not counted: it is scored again", job.run.test_file, said)
            elif job.kind != "test":
                cell.expect(job.run)
            self.waiting.append(job)

    def _start(self, job: Job) -> None:
        """Start a job; it waits longer where a process of an earlier session still ends in its folder."""
        if job.run.folder.is_dir() and is_in_use(job.run.folder):
            self.waiting.append(job)
            return
        log = self.folder / LOGS / f"{job.name.replace('/', '__')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        job.forget_failure()
        self.begun[job.name] = log.stat().st_size if log.is_file() else 0
        self.engine.start(job, log)
        self.progress.running[job.name] = now = time.monotonic()
        self.progress.began = self.progress.began or now

    def _note(self, end: Ended) -> None:
        """Note how a job ended; one whose process was lost waits again, up to the study's number of retries."""
        job = end.job
        assert isinstance(job, Job)
        self.progress.running.pop(job.name)
        self.progress.ended += 1
        if end.code == 0 and job.is_done():
            self._done(job)
        elif (end.code is None or end.code < 0) and self.lost.get(job.name, 0) < self.study.retries:
            self.lost[job.name] = self.lost.get(job.name, 0) + 1
            logger.warning(
                "%s was lost and is started again (%d of %d).", job.name, self.lost[job.name], self.study.retries
            )
            self.waiting.append(job)
        else:
            self._failed(job, job.failure() or JobFailure(self._said_of(job, end)))
        if job.kind != "fetch":
            self._go_on(self.cell_of[job.name])

    def _said_of(self, job: Job, end: Ended) -> str:
        """Return why a job that has ended is not done."""
        if end.code == 0 and job.kind == "test" and (said := job.run.not_counted()) is not None:
            return f"{job.run.test_file} {said} and is not counted."
        return last_sentence(end, self.begun.get(job.name, 0))

    def _how_stopped(self, ends: list[Ended]) -> str:
        """Return how the running jobs have ended, in a sentence that says of none more than is known."""
        trained = [end for end in ends if isinstance(end.job, Job) and end.job.kind in ("train", "rung")]
        saved = [end for end in trained if end.code == StoppedByUser.exit_code]
        others = [end for end in trained if end.code not in (0, StoppedByUser.exit_code, -signal.SIGTERM)]
        said = []
        if saved:
            count = "trainings" if not others else f"{len(saved)} of {len(saved) + len(others)} trainings"
            said.append(f"{count} have saved their step")
        if others:
            how = last_sentence(others[0], self.begun.get(others[0].job.name, 0)).rstrip(".")
            said.append(f"{others[0].job.name} has not ({how})")
        if unknown := len(self.progress.running) - len(ends):
            said.append(f"{unknown} jobs are asked to end, where trainings save their step first")
        left = self.progress.total - len(self.progress.done) - len(self.progress.failed)
        left -= sum(end.code == 0 and isinstance(end.job, Job) and end.job.is_done() for end in ends)
        said.append(f"{left} jobs are left; rerun the same command to resume")
        return f"interrupted: {', '.join(said)}."

    def _done(self, job: Job) -> None:
        if job.kind == "fetch":
            return
        self.progress.done[job.name] = job
        self.progress.failed.pop(job.name, None)
        if job.until:
            self.cell_of[job.name].note_stop(job.run, job.until)
        elif job.kind == "train":
            self.cell_of[job.name].note(job.run, job.result(), None)
        elif (record := job.result()) is not None:
            self.cell_of[job.name].compare_basis(job.run, record)

    def _is_result(self, job: Job, failure: JobFailure) -> bool:
        return failure.diverged and self.cell_of[job.name].decides(job)

    def _failed(self, job: Job, failure: JobFailure) -> None:
        """Note a failure; that a search run diverged is a result, the worst of its cell."""
        if self._is_result(job, failure):
            self.progress.done[job.name] = job
        else:
            self.progress.failed[job.name] = failure.sentence
        if job.kind != "test":
            self.cell_of[job.name].note(job.run, None, failure)

    def _go_on(self, cell: StudyCell) -> None:
        """Take the jobs of a cell that are due now.

        Those that choose, then other seeds of what dev has chosen, then tests.
        """
        try:
            while fresh := [job for job in cell.due() if job.name not in self.cell_of]:
                for job in fresh:
                    self._meet(cell, job)
            for run in cell.final_runs():
                train = Job(run, "train")
                self._meet(cell, train)
                if train.name in self.progress.done:
                    self._meet(cell, Job(run, "test"))
            cell.chosen()  # one of them may not go with those that have chosen
        except DataError as error:
            self.progress.failed[cell.name] = str(error)


def total_jobs(study: Study, cells: list[StudyCell]) -> int:
    """Return how many processes a study takes: search, other seeds, tests."""
    return sum(cell.search_jobs() + study.further_seeds + len(study.seeds) for cell in cells)


def last_sentence(end: Ended, since: int = 0) -> str:
    """Return what a job that left no result said last, in its log from byte `since` on, or what its engine says."""
    try:
        lines = end.log.read_bytes()[since:].decode(errors="replace").splitlines()
    except OSError:
        lines = []
    said = next((line for line in reversed(lines) if line.startswith("s3prl-ext: ")), None)
    if said is not None:
        return said.removeprefix("s3prl-ext: ")
    if end.said:
        return end.said
    how = "its process was lost" if end.code is None else f"ended with code {end.code}"
    return f"{how} without a result; see {end.log}."
