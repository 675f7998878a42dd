"""What a study has found: chosen settings with their scores, every run as CSV, curves over what was chosen among."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.series_panels import Series, SeriesPanel, plot_series_panels
from s3prl_ext.metrics import factor, heading
from s3prl_ext.studies.config import kept_study
from s3prl_ext.studies.jobs import Job
from s3prl_ext.studies.plan import StudyCell, cells_of, number_of
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.studies.view import clock
from s3prl_ext.tables import NOTHING, Table, csv_text, markdown, mean_and_deviation
from s3prl_ext.tasks import named
from s3prl_ext.writing import write_text

MOST_LINES = 8  # of a panel
AXIS_NAMES = {"lr": "learning rate", "lambda": "λ"}


def write_outcome(folder: Path) -> list[Table]:
    """Write ``study.md``, ``runs.csv`` and, where numbers were searched, ``study.png``; return the tables."""
    cells = cells_in(folder)
    tables = _all_tables(cells)
    write_text(folder / "study.md", "\n".join(map(markdown, tables)))
    write_text(folder / "runs.csv", csv_text([_runs(cells)]))
    draw_search(cells, folder / "study.png")
    return tables


def cells_in(folder: Path) -> list[StudyCell]:
    """Return the cells of the study in a folder of which a run has ended; none where there is no study."""
    study = kept_study(folder)
    cells = cells_of(study, folder) if study else []
    for cell in cells:
        for run in cell.search:
            for step in run.stops() if cell.race else ():
                cell.note_stop(run, step)
            cell.note(run, run.record(), Job(run, "train").failure())
    for cell in cells:
        for run in _final(cell):
            for record in (run.record(), run.tested()):
                if record is not None:
                    cell.compare_basis(run, record)
    return [cell for cell in cells if cell.scores or cell.failures or any(run.record() for run in _final(cell))]


def tables_of(folder: Path) -> list[Table]:
    """Return the tables of the study in a folder, as far as it has run."""
    return _all_tables(cells_in(folder))


def _all_tables(cells: Sequence[StudyCell]) -> list[Table]:
    return [table for name, group in _by_metric(cells) for table in _tables(name, group)]


def _by_metric(cells: Sequence[StudyCell]) -> list[tuple[str, list[StudyCell]]]:
    """Return the cells of each task and metric; one whose runs all failed is with others of its task."""
    reported: dict[str, list[str]] = {}
    for cell in cells:
        reported.setdefault(cell.labels["task"], []).extend([cell.reported] if cell.reported else [])
    groups: dict[tuple[str, str], list[StudyCell]] = {}
    for cell in cells:
        known = reported[cell.labels["task"]]
        name = cell.metric if cell.metric in known or not known else known[0]
        groups.setdefault((cell.labels["task"], name), []).append(cell)
    return [(name, group) for (_, name), group in groups.items()]


def _tables(name: str, cells: Sequence[StudyCell]) -> list[Table]:
    """Return the table of a task's cells of one metric, and of what dev gave at each point that was searched."""
    task = cells[0].labels["task"]
    row = named(task)
    axes = [axis for axis in cells[0].labels if axis != "task"]
    choose = cells[0].study.choose
    body: list[list[str]] = []
    failures: dict[str, str] = {}
    for cell in cells:
        final = _final(cell)
        failed = {run.name: said for run in final if (said := _final_failure(cell, run)) is not None}
        failures |= cell.failures | failed
        records = [run.tested() for run in final]
        tested = [score for record in records if record and (score := record.score(row.test, name)) is not None]
        chosen = [final[0].labels[axis] if final else NOTHING for axis in choose]
        dev = _at(cell, final[0], name) if final else NOTHING
        test = mean_and_deviation(tested)
        seeds = f"{len(tested)} of {len(final)}" if failed else str(len(tested))
        body.append([*(cell.labels[axis] for axis in axes), *chosen, dev, seeds, test, _hours(cell)])
    head = [
        *axes,
        *(f"{axis}, chosen" for axis in choose),
        heading(name, "dev"),
        "seeds",
        heading(name, "test"),
        "time",
    ]
    notes = [f"{name}: {said}" for name, said in failures.items()]
    notes += [said for cell in cells if (said := _not_chosen(cell)) is not None]
    notes += _changed(cells)
    tables = [Table(f"{task}: chosen on {row.dev}, scored on {row.test}", head, body, notes, of_texts=True)]
    if choose and cells[0].study.race is not None:
        tables.append(_races(task, cells, name))
    elif choose:
        points = list(dict.fromkeys(run.point(choose) for cell in cells for run in cell.search))
        searched = [
            [*(cell.labels[axis] for axis in axes), *(_at_point(cell, point, name) for point in points)]
            for cell in cells
        ]
        title = f"{task}: {heading(name, row.dev)} by {', '.join(choose)}, {_seeds(cells[0])}"
        tables.append(Table(title, [*axes, *points], searched, of_texts=True))
    return tables


def _changed(cells: Sequence[StudyCell]) -> list[str]:
    """Return which runs had settings that their task files give otherwise now, a sentence for each such difference."""
    runs: dict[str, list[str]] = {}
    for cell in cells:
        for name, said in cell.changed.items():
            runs.setdefault(said, []).append(name)
    more = {said: f" and {len(names) - 1} more" if len(names) > 1 else "" for said, names in runs.items()}
    return [f"{names[0]}{more[said]}: run with {said}, which the task file has now." for said, names in runs.items()]


def _races(task: str, cells: Sequence[StudyCell], name: str) -> Table:
    """Return the scores of each comparison of a task's races; who is not in the next one has dropped out."""
    study = cells[0].study
    axes = [axis for axis in cells[0].labels if axis != "task"]
    points = list(dict.fromkeys(run.point(study.choose) for cell in cells for run in cell.search))
    body = []
    for cell in cells:
        for step, numbers in _compared(cell).items():
            scores = {cell.search[n].point(study.choose): cell.stop_of(n, step) for n in numbers}
            shown = [_shown(name, score) if (score := scores.get(point)) is not None else NOTHING for point in points]
            body.append([*(cell.labels[axis] for axis in axes), str(step), *shown])
    title = f"{task}: race, {heading(name, named(task).dev)} by {', '.join(study.choose)}, {_seeds(cells[0])}"
    return Table(title, [*axes, "step", *points], body, of_texts=True)


def _compared(cell: StudyCell) -> dict[int, tuple[int, ...]]:
    """Return who was or is compared at each step of a race."""
    if cell.race is None:
        return {}
    standing = cell.standing()
    found = [one for one, _ in standing.compared] + ([standing.now] if standing.now else [])
    return {one.step: one.who for one in found}


def _final(cell: StudyCell) -> list[StudyRun]:
    """Return the chosen run with every seed; empty where none is chosen."""
    return [] if _not_chosen(cell) else cell.final_runs()


def _not_chosen(cell: StudyCell) -> str | None:
    """Return why nothing can be chosen in a cell: all diverged, or they do not go together; None where it can."""
    try:
        cell.chosen()
    except DataError as error:
        return str(error)
    return None


def _failure(run: StudyRun) -> str | None:
    """Return how the training of a run failed; None where it has a result, or has not failed."""
    failure = Job(run, "train").failure() if run.record() is None else None
    return None if failure is None else failure.sentence


def _final_failure(cell: StudyCell, run: StudyRun) -> str | None:
    """Return why a chosen run has no score on test; None where it has one, or may still get one."""
    if run.record() is None:
        return _failure(run)
    if (tested := run.tested()) is not None:
        scored = tested.score(run.task.test, cell.metric) is not None
        return None if scored else f"its {cell.metric} on {run.task.test} is not a number."
    if (failure := Job(run, "test").failure()) is not None:
        return failure.sentence
    if (said := run.not_counted()) is not None:
        return f"{run.test_file} {said} and is not counted: run the study again."
    return None


def _seeds(cell: StudyCell) -> str:
    """Return the seeds that search, in words."""
    seeds = cell.study.search_seeds
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"mean over the seeds {', '.join(map(str, seeds))}"


def _at_point(cell: StudyCell, point: str, name: str) -> str:
    run = next((run for run in cell.search if run.point(cell.study.choose) == point), None)
    return NOTHING if run is None else _at(cell, run, name)


def _at(cell: StudyCell, run: StudyRun, name: str) -> str:
    """Return the scores on dev of the search runs at the point of a run: mean, and deviation over their seeds."""
    scores = [cell.scores[one.name] for one in cell.at(run) if one.name in cell.scores]
    return _shown(name, *scores) if scores else NOTHING


def _shown(name: str, *scores: float) -> str:
    return "diverged" if any(map(math.isnan, scores)) else mean_and_deviation([factor(name) * one for one in scores])


def _hours(cell: StudyCell) -> str:
    """Return the wall time of a cell's trainings."""
    runs = {run.name: run for run in (*cell.search, *_final(cell))}
    return clock(sum(run.seconds() or 0.0 for run in runs.values()))


def _stopped(cell: StudyCell, run: StudyRun) -> float | None:
    """Return the score of a run where a race has left it."""
    score = cell.scores.get(run.name)
    return None if score is None or math.isnan(score) else score


def _runs(cells: Sequence[StudyCell]) -> Table:
    """Return every run as the values of a table for CSV."""
    values = []
    for cell in cells:
        final = {run.name: run for run in _final(cell)}
        for run in {**{run.name: run for run in cell.search}, **final}.values():
            record, tested, row = run.record(), run.tested(), run.task
            name, dev = run.on_dev(record) if record else (cell.metric, _stopped(cell, run))
            steps = record["step"] if record else max(cell.stops.get(run.name, {}), default=None)
            values.append({
                **run.labels, "seed": run.seed, "metric": name,
                "dev": dev,
                "test": tested["metrics"].get(row.test, {}).get(name, {}).get("value") if tested else None,
                "steps": steps, "seconds": run.seconds(),
                "seconds_per_step": record["seconds_per_step"] if record else None,
                "failed": _final_failure(cell, run) if run.name in final else _failure(run), "folder": str(run.folder),
            })  # fmt: skip
    return Table("runs", [], [], values=values)


def draw_search(cells: Sequence[StudyCell], path: Path) -> None:
    """Draw the scores on dev over the one axis of numbers that was searched, a panel for each task and metric.

    Else draw nothing.
    """
    choose = cells[0].study.choose if cells and cells[0].study.race is None else ()  # of a race, steps differ
    if len(choose) != 1 or not all((number_of(run.labels[choose[0]]) or 0) > 0 for c in cells for run in c.search):
        return
    panels = []
    for name, group in _by_metric(cells):
        series = [
            Series("/".join(label for axis, label in cell.labels.items() if axis != "task"), curves)
            for cell in group
            if (curves := _curves(cell, choose[0]))
        ]
        task = group[0].labels["task"]
        for first in range(0, len(series), MOST_LINES):
            title = f"{task}, {named(task).dev}, {_seeds(cells[0])}"
            shown = series[first : first + MOST_LINES]
            panels.append(
                SeriesPanel(title, shown, AXIS_NAMES.get(choose[0], choose[0]), heading(name, "dev"), log_x=True)
            )
    if panels:
        plot_series_panels(panels, path, f"{AXIS_NAMES.get(choose[0], choose[0])}: scores on dev")


def _curves(cell: StudyCell, axis: str) -> list[dict[float, float]]:
    """Return the scores on dev by the searched value, for each seed that has one."""
    scale = factor(cell.metric)
    curves: dict[int, dict[float, float]] = {}
    for run in cell.search:
        if not math.isnan(score := cell.scores.get(run.name, math.nan)):
            curves.setdefault(run.seed, {})[float(run.labels[axis])] = scale * score
    return list(curves.values())
