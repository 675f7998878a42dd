"""One self-contained HTML page of tables, pictures and sentences: no links, no scripts; fit to be printed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from s3prl_ext.tables import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
table { border-collapse: collapse; border-top: 2px solid #111; border-bottom: 2px solid #111; font-size: .92rem; }
.wide { overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; font-variant-numeric: tabular-nums; vertical-align: top; }
th { border-bottom: 1px solid #111; font-weight: 600; } tr:nth-child(even) td { background: #f5f5f5; }
td { white-space: nowrap; } td:first-child, .texts td { white-space: normal; } /* an interval stays in one line */
th:first-child, td:first-child { text-align: left; } .texts td, .texts th { text-align: left; }
/* names of rows stay in sight where a narrow window scrolls a wide table */
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; box-shadow: 1px 0 #ddd; }
@media (max-width: 40rem) { body { margin: 1rem auto; } table { font-size: .8rem; } th, td { padding: .2rem .4rem; }
  td:first-child { min-width: 7rem; } }
.texts { font-size: .8rem; } .texts td, .texts th { padding: .2rem .45rem; }
.texts td:first-child { overflow-wrap: anywhere; min-width: 14rem; } /* paths: else they push the others off the page */
ul, figcaption { overflow-wrap: anywhere; }
ul { font-size: .88rem; color: #333; padding-left: 1.2rem; } figure { margin: 1rem 0; }
figcaption { font-size: .88rem; color: #333; } img { max-width: 100%; }
.warning { border-left: 4px solid #111; padding-left: .8rem; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file of the report.

    Attributes:
        path: the file.
        caption: what it shows, and where it comes from.
    """

    path: Path
    caption: str


def page(
    title: str, tables: Sequence[Table], pictures: Sequence[Picture], warnings: Sequence[str], sources: Table
) -> str:
    """Return the page.

    Args:
        title: its heading.
        tables: results, in order.
        pictures: PNG files, which are written into the page.
        warnings: what was left out and why; shown first.
        sources: the files that the numbers come from, with their provenance.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if warnings:
        parts += ['<div class="warning">', "<p>Left out or worth knowing:</p>", _list(warnings), "</div>"]
    parts += [_table(table) for table in tables]
    if pictures:
        parts.append("<h2>Figures</h2>")
        parts += [_figure(picture) for picture in pictures]
    parts.append(_table(sources))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    notes = _list(table.notes) if table.notes else ""
    marked = ' class="texts"' if table.of_texts else ""
    return (
        f"<h2>{escape(table.title)}</h2>\n"
        f'<div class="wide"><table{marked}>\n<tr>{head}</tr>\n{rows}\n</table></div>\n{notes}'
    )


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    text = escape(picture.caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}">\n<figcaption>{text}</figcaption></figure>'
