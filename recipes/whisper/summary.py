"""Print a task's table of ``ad_tuning.sh`` as Markdown and draw it: ``summary.py --runs DIR --task ks --rows LIST``.

Each row has the learning rate that was best on dev, and mean ± sample standard deviation over seeds at that rate, in
per cent. ``TASK.json`` in DIR holds what the table and the picture show, and the dev score of every rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "ad_tuning")]
import rates
from runs import TASKS, TaskRun, heading
from tables import PAPER_ROWS

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.plots import picture
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.papers.figures import ad_tuning_tables
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation
from s3prl_ext.writing import write_json

NAMES = {
    "full": "full fine-tuning", "frozen": "frozen, last hidden state", "weighted_sum": "frozen, weighted sum",
    "houlsby": "Houlsby", "lora": "LoRA", "ad_tuning": "AD-TUNING",
}  # fmt: skip


def name_of(row: str) -> str:
    """Return how a row is called: ``random-0.1`` is a child network of P = 0.1 with a random mask."""
    kind, _, density = row.partition("-")
    return f"child, {'Fisher' if kind == 'child' else kind}, P = {density}" if density else NAMES.get(row, row)


def summary(folder: Path, task: str, row: str) -> dict[str, Any] | None:
    """Return what is known of a row: chosen rate, dev by rate, and dev and test by seed.

    None before a rate was chosen.
    """
    place = folder / task / row
    if not (place / rates.CHOSEN).is_file():
        return None
    rate, (metric, dev, test) = read_json(place / rates.CHOSEN)["rate"], TASKS[task]
    runs = [
        TaskRun(task, int(path.parent.name.rpartition("-s")[2]), read_record(path))
        for path in sorted(place.glob(f"lr-{rate}-s*/result.json"))
    ]
    first = min(int(path.name.rpartition("-s")[2]) for path in place.glob("lr-*-s*"))
    scored = {run.seed: run.scores for run in runs if run.scores}
    if not scored:
        return None
    return {
        "name": name_of(row),
        "rate": rate,
        "trained": sorted({run.record["trainable"]["Upstream"] for run in runs}),
        "dev by rate": rates.searched(place, metric, dev, first),
        "dev": {seed: scores["dev"] for seed, scores in scored.items()},
        "test": {seed: scores["test"] for seed, scores in scored.items()},
        "items": runs[0].record["items"].get(test),
        "interval": runs[0].tested.interval(test, metric),
    }


def table(task: str, rows: Mapping[str, dict[str, Any] | None]) -> Table:
    """Return the table of a task from the summaries of its rows."""
    printed = ad_tuning_tables()["table2"]
    column = printed["columns"].index(task)
    body, edges = [], []
    for row, known in rows.items():
        paper = printed[PAPER_ROWS[row]][column] if row in PAPER_ROWS else NOTHING
        if known is None:
            body.append([name_of(row)] + [NOTHING] * 6 + [paper])
            continue
        grid = sorted(known["dev by rate"], key=float)
        if known["rate"] in (grid[0], grid[-1]):
            edges.append(f"{known['name']} ({known['rate']})")
        interval = known["interval"]
        dev, test = (mean_and_deviation(list(known[split].values())) for split in ("dev", "test"))
        over_items = "[{:.1f}, {:.1f}]".format(*interval) if interval else NOTHING
        body.append(
            [
                known["name"],
                " to ".join(f"{count:,}" for count in sorted({min(known["trained"]), max(known["trained"])})),
                known["rate"],
                str(len(known["test"])),
                dev,
                test,
                over_items,
                paper,
            ]
        )
    head = ["method", "weights trained in the upstream", "learning rate", "seeds", heading(task, "dev"),
            heading(task, "test"), "95 % interval of the first seed over items", "paper, test"]  # fmt: skip
    notes = (f"The chosen rate is at the end of the grid for {', '.join(edges)}.",) if edges else ()
    return Table(f"{task}: Whisper base", head, body, notes)


def draw(task: str, rows: Mapping[str, dict[str, Any] | None], path: Path) -> None:
    """Draw mean, standard deviation and single seeds of each row on test."""
    known = [row for row in rows.values() if row]
    with picture(path, (7.0, 0.9 + 0.32 * len(known)), dpi=100) as (figure, (axes,)):
        for place, row in enumerate(known):
            values = list(row["test"].values())
            axes.plot(values, [place] * len(values), "o", markersize=4, color="tab:blue", alpha=0.45)
            error = stdev(values) if len(values) > 1 else 0.0
            axes.errorbar(fmean(values), place, xerr=error, fmt="|", markersize=12, color="black", capsize=3)
        axes.set_yticks(range(len(known)), [row["name"] for row in known])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"{heading(task, 'test')}: single seeds, mean, standard deviation")
        figure.suptitle(f"{task}: encoder of Whisper base")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of a task, write its figures as JSON and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the recipe (--out)")
    parser.add_argument("--task", required=True, choices=tuple(TASKS))
    parser.add_argument("--rows", required=True, help="rows of the table, separated by commas")
    flags = parser.parse_args(argv)
    rows = {row: summary(flags.runs, flags.task, row) for row in flags.rows.split(",")}
    if not any(rows.values()):
        raise DataError(
            f"{flags.runs}/{flags.task} contains no row with a chosen learning rate: do the stages before this one."
        )
    write_json(flags.runs / f"{flags.task}.json", rows, indent=1)
    draw(flags.task, rows, flags.runs / f"{flags.task}.png")
    sys.stdout.write(markdown(table(flags.task, rows)))
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
