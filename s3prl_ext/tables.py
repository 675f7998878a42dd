"""A table of texts and how it is written: Markdown, CSV, LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

NOTHING = "-"

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "λ": r"$\lambda$", "±": r"$\pm$", "↓": r"$\downarrow$",
    "↑": r"$\uparrow$", "×": r"$\times$", "†": r"$\dagger$", "−": "$-$", "Δ": r"$\Delta$",
}  # fmt: skip


def counted(things: Collection[Any], noun: str) -> str:
    """Return their number with a noun, such as ``1 table`` or ``2 tables``."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows, on which data.
        head: one text per column.
        rows: as many texts each.
        notes: sentences below it.
        values: one mapping per number, for CSV.
        of_texts: all columns hold texts, aligned to the left.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    values: Sequence[Mapping[str, Any]] = field(default=())
    of_texts: bool = False


def markdown(table: Table) -> str:
    """Return the table as Markdown, with its title as a heading; numbers are aligned to the right."""
    rows = [[plain(cell).replace("|", r"\|") for cell in row] for row in table.rows]
    right = () if table.of_texts else range(1, len(table.head))
    lines = [f"## {plain(table.title)}", "", grid(table.head, rows, right)]
    return "\n".join([*lines, "", *(f"- {plain(note)}" for note in table.notes)]).rstrip() + "\n"


def grid(
    head: Sequence[str], rows: Iterable[Sequence[object]], right: Collection[int] = (), padded: bool = False
) -> str:
    """Return a Markdown table without title and notes.

    Args:
        head: one text per column.
        rows: as many cells each.
        right: columns that are aligned to the right.
        padded: fill cells with spaces, so that the columns are even on a terminal too.
    """
    marks = ["---:" if column in right else "---" for column in range(len(head))]
    lines = [list(head), marks, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)] if padded else [0] * len(head)
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def columns(lines: Sequence[Sequence[str]], right: bool = False) -> list[str]:
    """Return lines of cells as texts with even columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [f"{cell:{'>' if right else '<'}{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return ["  ".join(cells).rstrip() for cells in padded]


def plain(text: str) -> str:
    """Return a text in which Markdown sees no HTML: names in results are others' words."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation as text, such as ``9.25 ± 0.12``; a single value alone.

    A value that is not finite, of a model that diverged, has neither: ``NaN``.
    """
    if not values:
        return NOTHING
    if not all(map(math.isfinite, values)):
        return "NaN"
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def latex(table: Table, label: str = "") -> str:
    r"""Return the table for LaTeX; it needs ``\usepackage{booktabs}``."""
    columns = "l" + ("l" if table.of_texts else "r") * (len(table.head) - 1)
    rows = [" & ".join(escape(cell) for cell in row) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}",
            *([rf"\label{{{label}}}"] if label else []),
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(escape(cell) for cell in table.head) + r" \\",
            r"\midrule", *rows, r"\bottomrule", r"\end{tabular}",
            *(rf"\par\footnotesize {escape(note)}" for note in table.notes), r"\end{table}", "",
        ]
    )  # fmt: skip


def escape(text: str) -> str:
    """Return a text for LaTeX."""
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match.group()], text)


def _inert(value: Any) -> Any:
    """Return a text that a spreadsheet does not run as a formula; numbers, and a dash alone, stay as they are."""
    runs = isinstance(value, str) and re.match(r"[=+@\t\r-](?!$)", value) and not re.fullmatch(r"[+-][\d.e+-]+", value)
    return f"'{value}" if runs else value


def csv_text(tables: Iterable[Table]) -> str:
    """Return the numbers of several tables as CSV, one line each; None is an empty field."""
    rows = [
        {key: _inert(item) for key, item in {"table": table.title, **value}.items()}
        for table in tables
        for value in table.values
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
