"""How much a study is: runs, steps, and hours from runs of the same kind that have ended."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from s3prl_ext.studies.config import Study
from s3prl_ext.studies.driver import total_jobs
from s3prl_ext.studies.engines import shown
from s3prl_ext.studies.plan import StudyCell
from s3prl_ext.training.racing.early_stop import EarlyStopConfig


def dry_run(study: Study, cells: Sequence[StudyCell]) -> list[str]:
    """Return every command that can be known now, and how much all of it is."""
    lines = [shown(job) for cell in cells for job in StudyCell(study, cell.labels, cell.search).due()]
    further = study.further_seeds
    steps = sum(_cell_steps(cell, further) for cell in cells)
    searched, others = sum(cell.search_jobs() for cell in cells), len(cells) * further
    tests = len(cells) * len(study.seeds)
    what = f"{searched} trainings that search" if study.race is None else _race(study.race, cells)
    what += f", {others} with other seeds of what dev chooses"
    if not study.choose:
        what = f"{searched + others} trainings"
    lines += [
        "",
        f"# {len(cells)} cells, {what}, {tests} tests: {total_jobs(study, list(cells))} jobs, "
        f"about {steps:,.0f} optimizer steps.",
        f"# {_hours(study, cells)}",
    ]
    return lines


def _race(race: EarlyStopConfig, cells: Sequence[StudyCell]) -> str:
    """Return how the runs of the cells race; of those whose number or length differs each once."""
    kinds = dict.fromkeys((len(cell.search), cell.total_steps) for cell in cells if cell.race is not None)
    plans = [f"{n} runs race: {race.announcement(n, total)}" for n, total in kinds]
    return f"in each {' or '.join(plans)} ({sum(cell.search_jobs() for cell in cells)} jobs)"


def _cell_steps(cell: StudyCell, further: int) -> float:
    """Return the optimizer steps of a cell: those that choose, and other seeds of an average run."""
    return cell.search_steps() + further * fmean(run.total_steps for run in cell.search)


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
        return "No run has ended yet, so hours are not known: run one cell first (--only)."
    seconds = sum(
        fmean(known.get(cell.name) or known[cell.labels["task"]]) * _cell_steps(cell, study.further_seeds)
        for cell in guessed
    )
    rest = f"; nothing is known of {len(cells) - len(guessed)} cells" if len(guessed) < len(cells) else ""
    return f"About {seconds / 3600:.1f} hours of one job after another, from runs that have ended{rest}."
