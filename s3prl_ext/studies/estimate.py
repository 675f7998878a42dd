"""How much a study is: runs, steps, and hours from runs of the same kind that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from s3prl_ext.studies.config import Study
from s3prl_ext.studies.driver import total_jobs
from s3prl_ext.studies.engines import shown
from s3prl_ext.studies.plan import Job, StudyCell, StudyRun


def dry_run(study: Study, cells: Sequence[StudyCell]) -> list[str]:
    """Return every command that can be known now, and how much all of it is."""
    lines = [shown(Job(run, "train")) for cell in cells for run in cell.search]
    searched = len(lines)
    seeds = len(study.seeds)
    trained = searched + len(cells) * (seeds - 1)
    steps = sum(_steps(run) * (1 + (seeds - 1) / len(cell.search)) for cell in cells for run in cell.search)
    lines += [
        "",
        f"# {len(cells)} cells, {searched} trainings that search, {trained - searched} with other seeds of what dev chooses, "
        f"{len(cells) * seeds} tests: {total_jobs(study, list(cells))} jobs, about {steps:,.0f} optimizer steps.",
        f"# {_hours(study, cells)}",
    ]
    return lines


def _hours(study: Study, cells: Sequence[StudyCell]) -> str:
    """Return an estimate of hours from the finished runs of each cell, or of its task."""
    known: dict[str, list[float]] = {}
    for cell in cells:
        for run in cell.search:
            if (record := run.record()) is not None and record["seconds_per_step"] is not None:
                for key in (cell.name, cell.labels["task"]):
                    known.setdefault(key, []).append(record["seconds"] / max(1, record["step"]))
    guessed = [cell for cell in cells if cell.name in known or cell.labels["task"] in known]
    if not guessed:
        return "No run has ended yet, so hours are not known: run one cell first (exclude the others)."
    seconds = sum(
        fmean(known.get(cell.name) or known[cell.labels["task"]])
        * _steps(run)
        * (1 + (len(study.seeds) - 1) / len(cell.search))
        for cell in guessed
        for run in cell.search
    )
    rest = f"; nothing is known of {len(cells) - len(guessed)} cells" if len(guessed) < len(cells) else ""
    return f"About {seconds / 3600:.1f} hours of one job after another, from runs that have ended{rest}."


def _steps(run: StudyRun) -> int:
    """Return the optimizer steps of a run; 0 where its task file counts epochs."""
    return int(run.config()["runner"].get("total_steps") or 0)
