"""A paper's table as it is printed, with ours before each of its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from s3prl_ext.evaluation.result_rows import Row
from s3prl_ext.evaluation.result_tables import number
from s3prl_ext.metrics import heading
from s3prl_ext.papers.tables import Cell, PaperTable
from s3prl_ext.tables import NOTHING, Table


def pivot(table: PaperTable, task: str | None, cells: Mapping[Cell, Sequence[Row]]) -> Table:
    """Return a paper's table as it is printed, ours before the paper's figure: ``8.71 (8.63)``.

    Args:
        table: the paper's.
        task: of a table with one grid per task; None where the columns are the tasks.
        cells: our rows by cell; of several in one cell the number is shown, they are listed one by one elsewhere.
    """
    kept = [cell for cell in with_ours(table, cells) if task in (None, cell.task)]
    of: Callable[[Cell], str] = (lambda cell: cell.task) if task is None else (lambda cell: cell.column)
    columns = list(dict.fromkeys(of(cell) for cell in kept))
    body = []
    for name in dict.fromkeys(cell.row for cell in kept):
        body.append([name])
        for column in columns:
            cell = next((c for c in kept if c.row == name and of(c) == column), None)
            known = cell is not None and (cells.get(cell) or table.figures.get(cell))
            body[-1].append(
                f"{_brief(cells.get(cell, ()))} ({table.figures.get(cell) or NOTHING})" if cell and known else ""
            )
    head = ["", *(f"{c} {heading(table.metrics[c])}" if task is None else c for c in columns)]
    title = f"{table.title}: ours (the paper's)"
    return Table(f"{title}, {task} {heading(table.metrics[task])}" if task else title, head, body)


def with_ours(table: PaperTable, cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of a paper's table in its order, and behind them those of ours that it has not."""
    return [*table.figures, *sorted(cell for cell in cells if cell not in table.figures)]


def _brief(rows: Sequence[Row]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} rows"
    return number(rows[0].mean, rows[0].metric) if rows else NOTHING
