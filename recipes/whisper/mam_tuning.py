"""Print the tables of ``mam_tuning.sh`` as Markdown and draw them.

    python recipes/whisper/mam_tuning.py mam_tuning_ks.json

A file is a packed study (``recipes/shared/evidence.py``) of one task, whose upstreams are the rows: the model unmerged,
merged, with noise in place of the source, and with a learnt lambda, all of them fine-tuned. Each has the learning rate
that was best on dev, mean ± sample standard deviation over the seeds that are scored on test, in per cent, and its
difference from the unmerged model over the same seeds with the interval of Student's t. A picture is drawn next to the
file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPES / folder) for folder in ("shared", "whisper", "ad_tuning")]
from evidence import LEARNT, laid_out, read_packed
from methods import Row, difference, draw_rows, row_of

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.metrics import heading
from s3prl_ext.papers.figures import mam_tables
from s3prl_ext.studies.outcome import cells_in
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation
from s3prl_ext.tasks import named

# Label of an upstream in the study: how its row is called, and the row of the paper's Table 5.
ROWS = {
    "unmerged": ("FT: fine-tuned, unmerged", "FT"),
    "merged": ("MAM + FT: the decoder merged, fine-tuned", "MAM + FT"),
    "noise": ("N(source) + FT: noise of its statistics merged, fine-tuned", None),
    "learnt": ("L-MAM + FT: λ of each layer learnt with it", "L-MAM + FT"),
}
REFERENCE = "unmerged"


def rows_of(content: Mapping[str, Any]) -> tuple[str, dict[str, Row], list[float]]:
    """Return what a packed study of one task holds.

    Returns:
        The task; by label the rows that have a score on test; the learnt lambdas of all layers and scored runs.

    Raises:
        DataError: it is another study, or has several tasks with scores, or none.
    """
    labels = {axis: list(points) for axis, points in content["study"]["axes"].items()}
    if not set(labels["upstream"]) <= set(ROWS) or len(labels.get("method", [])) > 1:
        raise DataError(
            f"the study is not one of mam_tuning.sh: its upstreams are {', '.join(labels['upstream'])}, which must be "
            f"out of {', '.join(ROWS)}, with one method."
        )
    rows: dict[str, dict[str, Row]] = {}
    learnt: list[float] = []
    with laid_out(content) as folder:
        for cell in cells_in(folder):
            row = row_of(cell, "upstream")
            if row is None:
                continue
            rows.setdefault(cell.labels["task"], {})[row.label] = row
            for run in cell.final_runs():
                learnt += content["results"].get(f"{run.name}/result.json", {}).get(LEARNT, {}).values()
    if len(rows) != 1:
        raise DataError(f"a table is of one task, but the study has scores on test of {', '.join(rows) or 'none'}.")
    return *next(iter(rows.items())), learnt


def table(content: Mapping[str, Any]) -> Table:
    """Return the table of a packed study."""
    task, rows, learnt = rows_of(content)
    paper = mam_tables()["table5"]
    column = paper["columns"].index("ljspeech")
    metric, body = next(iter(rows.values())).metric, []
    for label, (name, printed) in ROWS.items():
        if label not in rows:
            continue
        row = rows[label]
        found = difference(row, rows[REFERENCE]) if label != REFERENCE and REFERENCE in rows else None
        interval = row.tested.interval(named(task).test, metric)
        body.append(
            [
                name,
                row.rate,
                mean_and_deviation(row.dev),
                str(len(row.test)),
                mean_and_deviation(list(row.test.values())),
                "[{:.1f}, {:.1f}]".format(*interval) if interval else NOTHING,
                f"{found[0]:+z.2f} ± {found[1]:.2f}" if found else NOTHING,
                paper[printed][column] if printed else NOTHING,
            ]
        )
    head = ["upstream", "learning rate", heading(metric, "dev"), "seeds", heading(metric, "test"),
            "95 % interval of the first seed over items", "difference from FT, 95 % over seeds",
            "paper: HuBERT large, WER (%) on LJ Speech"]  # fmt: skip
    edges = [f"{ROWS[label][0].partition(':')[0]} ({row.rate})" for label, row in rows.items() if row.at_the_end]
    notes = [f"The chosen rate is at an end of the grid for {', '.join(edges)}."] if edges else []
    if learnt:
        notes.append(
            f"The learnt λ of layers and scored runs lie between {min(learnt):.4f} and {max(learnt):.4f} at the end."
        )
    return Table(f"{task}: fine-tuning after a merge", head, body, notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="packed study of one task")
    flags = parser.parse_args(argv)
    for file in flags.files:
        content = read_packed(file)
        made = table(content)
        sys.stdout.write(markdown(made) + "\n")
        _, rows, _ = rows_of(content)
        shown = [(ROWS[label][0].partition(":")[0], rows[label]) for label in ROWS if label in rows]
        draw_rows(shown, made.title, file.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
