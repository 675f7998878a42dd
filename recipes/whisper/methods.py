"""Print the tables of the studies of ``ad_tuning.sh`` as Markdown and draw them.

    python recipes/whisper/methods.py heads.json methods_ks.json
    python recipes/whisper/methods.py --head-rate exp/whisper/ad_tuning/heads --tasks ks --row weighted_sum

The files are packed studies (``recipes/shared/evidence.py``), whose rows make one table for each task. Each row has
the learning rates that were best on dev, and mean ± sample standard deviation over the seeds that are scored on test,
in per cent, with the interval of Student's t for its differences from the frozen rows over the same seeds. A picture of
each task, such as ``methods_ks.png``, is drawn next to the last file. ``--head-rate`` prints the rate that was chosen
for a frozen row.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RECIPES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPES / "ad_tuning"), str(RECIPES / "shared")]
from evidence import check_one_basis, laid_out, read_packed
from tables import PAPER_ROWS

from s3prl_ext.errors import DataError, UsageError, as_command
from s3prl_ext.evaluation.plots import picture
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.metrics import factor, heading
from s3prl_ext.papers.figures import ad_tuning_tables
from s3prl_ext.studies.outcome import cells_in
from s3prl_ext.studies.plan import StudyCell
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation
from s3prl_ext.tasks import named

REFERENCE = "weighted_sum"  # whose head rate the trained rows have
REFERENCES = (REFERENCE, "frozen")  # from which the other rows differ
SHORT = ("weights", "seeds", "test", "difference")  # columns of the short table begin so
NAMES = {
    "full": "full fine-tuning", "frozen": "frozen, last hidden state", "weighted_sum": "frozen, weighted sum",
    "houlsby": "Houlsby", "lora": "LoRA", "bitfit": "BitFit", "ad_tuning": "AD-TUNING",
    "full_last": "full fine-tuning, last hidden state",
}  # fmt: skip


def name_of(row: str) -> str:
    """Return how a row is called: ``random-0.1`` is a child network of P = 0.1 with a random mask."""
    kind, _, density = row.partition("-")
    return f"child, {'Fisher' if kind == 'child' else kind}, P = {density}" if density else NAMES.get(row, row)


@dataclass(frozen=True)
class Row:
    """What is known of a method on a task.

    Attributes:
        label: of the method, or of the upstream, in the study.
        metric: that the task is judged by.
        rate: the chosen learning rate.
        at_the_end: whether it is the smallest or the largest of the grid.
        head_rate: learning rate of the head.
        dev: scores on dev of the runs that chose it, in per cent.
        test: score on test by seed, in per cent; NaN of a model that diverged.
        tested: result of the first seed on test.
        trained: numbers of weights that train in the upstream.
    """

    label: str
    metric: str
    rate: str
    at_the_end: bool
    head_rate: float
    dev: Sequence[float]
    test: Mapping[int, float]
    tested: ResultRecord
    trained: Sequence[int]


def rows_of(contents: Sequence[Mapping[str, Any]], task: str) -> list[Row]:
    """Return the rows of a task that have a score on test, in the order of the studies.

    Args:
        contents: packed studies.
        task: its short name.

    Raises:
        DataError: the studies measured on different corpora, divisions or upstreams.
    """
    return _rows(contents, task)[0]


def _rows(contents: Sequence[Mapping[str, Any]], task: str) -> tuple[list[Row], list[str]]:
    """Return the rows, and the methods that diverged at every learning rate."""
    check_one_basis(contents, task)
    rows, diverged = [], []
    for content in contents:
        with laid_out(content) as folder:
            for cell in _cells(folder, task):
                try:
                    rows += [row for row in [row_of(cell)] if row is not None]
                except DataError:
                    if cell.mixed is not None:
                        raise
                    diverged.append(name_of(cell.labels["method"]))
    return rows, diverged


def _cells(folder: Path, task: str) -> list[StudyCell]:
    return [cell for cell in cells_in(folder) if cell.labels["task"] == task]


def head_rate(folder: Path, task: str, row: str = REFERENCE) -> str:
    """Return the learning rate that dev chose for a frozen row.

    Args:
        folder: of the study in which it was searched.
        task: its short name.
        row: label of the method.

    Raises:
        DataError: nothing is chosen yet.
    """
    chosen = [cell.chosen() for cell in _cells(folder, task) if cell.labels["method"] == row]
    if not chosen or chosen[0] is None:
        raise DataError(f"{folder} has not chosen a learning rate of {row} on {task}: run its study first.")
    return chosen[0].labels["lr"]


def row_of(cell: StudyCell, label: str = "method") -> Row | None:
    """Return the row of a cell that has a score on test, named by this label of the cell; else None."""
    final = cell.final_runs()
    tested = {run.seed: record for run in final if (record := run.tested()) is not None}
    if not tested:
        return None
    test, scale = named(cell.labels["task"]).test, factor(cell.metric)
    (axis,) = cell.study.choose
    rate, rates = final[0].labels[axis], sorted({float(run.labels[axis]) for run in cell.search})
    trained = {record["trainable"]["Upstream"] for run in final if (record := run.record()) is not None}
    return Row(
        cell.labels[label],
        cell.metric,
        rate,
        float(rate) in (rates[0], rates[-1]),
        float(final[0].config()["optimizer"]["lr"]),
        [scale * cell.scores[run.name] for run in cell.at(final[0])],
        {
            seed: math.nan if (score := record.score(test, cell.metric)) is None else score
            for seed, record in tested.items()
        },
        tested[min(tested)],
        sorted(trained),
    )


def difference(row: Row, reference: Row) -> tuple[float, float] | None:
    """Return the mean difference of two rows over the seeds of both, and half its 95 % interval.

    The differences of single seeds are taken as independent draws from a normal distribution (Student's t, paired).
    None with fewer than two seeds, or where a model diverged.
    """
    from scipy.stats import t

    seeds = row.test.keys() & reference.test.keys()
    values = [row.test[seed] - reference.test[seed] for seed in sorted(seeds)]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return fmean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def table(contents: Sequence[Mapping[str, Any]], task: str) -> Table:
    """Return the table of a task of packed studies."""
    rows, diverged = _rows(contents, task)
    if not rows:
        raise DataError(f"the studies have no score of {task} on test.")
    printed = ad_tuning_tables()["table2"]
    column = printed["columns"].index(task)
    references = [row for row in rows if row.label in REFERENCES]
    metric, body = rows[0].metric, []
    for row in rows:
        interval = row.tested.interval(named(task).test, metric)
        found = [difference(row, reference) if row is not reference else None for reference in references]
        body.append(
            [
                name_of(row.label),
                " to ".join(f"{count:,}" for count in sorted({min(row.trained), max(row.trained)})),
                f"{row.head_rate:g}",
                row.rate if max(row.trained) else NOTHING,
                mean_and_deviation(row.dev),
                str(len(row.test)),
                mean_and_deviation(list(row.test.values())),
                "[{:.1f}, {:.1f}]".format(*interval) if interval else NOTHING,
                *(f"{one[0]:+z.2f} ± {one[1]:.2f}" if one else NOTHING for one in found),
                printed[PAPER_ROWS[row.label]][column] if row.label in PAPER_ROWS else NOTHING,
            ]
        )
    head = ["method", "weights trained in the upstream", "learning rate of the head", "of the upstream",
            heading(metric, "dev"), "seeds",
            heading(metric, "test"), "95 % interval of the first seed over items",
            *(f"difference from {NAMES[reference.label]}, 95 % over seeds" for reference in references),
            "paper, test"]  # fmt: skip
    edges = [f"{name_of(row.label)} ({row.rate})" for row in rows if row.at_the_end]
    notes = [f"The chosen rate is at an end of the grid for {', '.join(edges)}."] if edges else []
    notes += [f"Every learning rate diverged: {', '.join(diverged)}."] if diverged else []
    return Table(_title(contents, task), head, body, notes)


def model_of(upstreams: Iterable[str]) -> str:
    """Return how titles call the upstreams of a study."""
    return ", ".join("encoder of a Whisper" if name == "whisper_local" else name for name in upstreams)


def _title(contents: Sequence[Mapping[str, Any]], task: str) -> str:
    return f"{task}: {model_of(contents[0]['study']['axes']['upstream'])}"


def short_table(contents: Sequence[Mapping[str, Any]], task: str) -> Table:
    """Return the table of a task without what chose its rows and without the paper's figures."""
    whole = table(contents, task)
    kept = [place for place, name in enumerate(whole.head) if not place or name.startswith(SHORT)]
    head, *rows = ([row[place] for place in kept] for row in (whole.head, *whole.rows))
    return Table(whole.title, head, rows)


def draw_rows(rows: Sequence[tuple[str, Row]], title: str, path: Path) -> None:
    """Draw mean, standard deviation and single seeds of each row on test; seeds that diverged have no point.

    Args:
        rows: how each is called, and the row; all of one metric.
        title: of the picture.
        path: of the PNG file.
    """
    with picture(path, (7.0, 0.9 + 0.32 * len(rows)), dpi=100) as (figure, (axes,)):
        for place, (_, row) in enumerate(rows):
            values = [value for value in row.test.values() if math.isfinite(value)]
            if not values:
                continue  # diverged
            axes.plot(values, [place] * len(values), "o", markersize=4, color="tab:blue", alpha=0.45)
            error = stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(fmean(values), place, xerr=error, fmt="|", markersize=12, color="black", capsize=3)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"{heading(rows[0][1].metric, 'test')}: single seeds, mean, standard deviation")
        figure.suptitle(title)


def draw(contents: Sequence[Mapping[str, Any]], task: str, path: Path) -> None:
    """Draw the rows of a task of packed studies (:func:`draw_rows`)."""
    rows = [(name_of(row.label), row) for row in rows_of(contents, task)]
    draw_rows(rows, _title(contents, task), path)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="packed study")
    parser.add_argument("--tasks", help="separated by commas (default: all that have a score on test)")
    parser.add_argument(
        "--head-rate", type=Path, metavar="FOLDER", help="study of the frozen rows; print, draw nothing"
    )
    parser.add_argument("--row", default=REFERENCE, help="of --head-rate (default: %(default)s)")
    flags = parser.parse_args(argv)
    tasks = flags.tasks.split(",") if flags.tasks else []
    if flags.head_rate is not None:
        if flags.files or len(tasks) != 1:
            raise UsageError("--head-rate takes one task (--tasks) and no files.")
        sys.stdout.write(head_rate(flags.head_rate, tasks[0], flags.row) + "\n")
        return 0
    if not flags.files:
        raise UsageError("no packed study: name the files, such as recipes/whisper/heads.json.")
    contents = [read_packed(file) for file in flags.files]
    known = list(dict.fromkeys(task for content in contents for task in content["study"]["axes"]["task"]))
    if unknown := [task for task in tasks if task not in known]:
        raise UsageError(f"no file has a task '{unknown[0]}'; they have {', '.join(known)}.")
    for task in tasks or [task for task in known if rows_of(contents, task)]:
        sys.stdout.write(markdown(table(contents, task)) + "\n")
        draw(contents, task, flags.files[-1].with_name(f"methods_{task}.png"))
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
