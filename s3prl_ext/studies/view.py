"""What a study shows while it runs: a table that is drawn anew on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
import time

from s3prl_ext.studies.driver import Progress
from s3prl_ext.studies.plan import StudyCell

logger = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class View:
    """Shows a study; call it with the progress whenever it may have changed."""

    def __init__(self) -> None:
        self.height = 0
        self.last = (-1, -1)
        self.time = 0.0

    def __call__(self, progress: Progress) -> None:
        """Draw the table, or write a line where something has ended or half a minute has passed."""
        state = (len(progress.done), len(progress.failed))
        if sys.stderr.isatty():
            self._draw(lines(progress))
        elif state != self.last or time.monotonic() - self.time > LINE_EVERY:
            self.last, self.time = state, time.monotonic()
            logger.info("%s", summary(progress))

    def _draw(self, rows: list[str]) -> None:
        width, height = shutil.get_terminal_size()
        rows = [row[: width - 1] for row in rows[-(height - 1) :]]
        up = f"\x1b[{self.height}A" if self.height else ""
        sys.stderr.write(up + "".join(f"\x1b[2K{row}\n" for row in rows) + "\x1b[J")
        sys.stderr.flush()
        self.height = len(rows)


def lines(progress: Progress) -> list[str]:
    """Return the table: a line for each cell with its jobs and its best score on dev, then the failures and the sum."""
    width = max(len(cell.name) for cell in progress.cells)
    rows = [f"{'':{width}}  waiting  running  done  failed  best on dev (%)"]
    for cell in progress.cells:
        names = {name for name, of in progress.cell_of.items() if of == cell.name}
        running, done, failed = (
            len(names & set(group)) for group in (progress.running, progress.done, progress.failed)
        )
        waiting = max(0, progress.jobs_of.get(cell.name, 0) - running - done - failed)
        rows.append(
            f"{cell.name:{width}}  {waiting:7d}  {running:7d}  {done:4d}  {failed:6d}  {cell.best()}{_race(cell)}"
        )
    rows += [f"{name}: {sentence}" for name, sentence in list(progress.failed.items())[-3:]]
    return [*rows, summary(progress)]


def _race(cell: StudyCell) -> str:
    """Return where the race of a cell stands."""
    if cell.race is None:
        return ""
    standing = cell.standing()
    if standing.winner is not None:
        return f"  {cell.search[standing.winner].point(cell.study.choose)} won"
    return f"  {standing.said}" if standing.said else ""


def summary(progress: Progress) -> str:
    """Return one line: jobs in all states and the time that is left."""
    done, running, failed = len(progress.done), len(progress.running), len(progress.failed)
    left = max(0, progress.total - done - failed)
    state = "blocked by the failed ones" if failed and not running else "waiting"
    at_work = "running or queued" if progress.queues else "running"
    text = f"{done} of {progress.total} jobs done, {running} {at_work}, {failed} failed, {left - running} {state}"
    if progress.began is not None and progress.ended and running:
        text += f"; about {clock(left * (time.monotonic() - progress.began) / progress.ended)} left"
    return text


def clock(seconds: float) -> str:
    """Return a time as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
