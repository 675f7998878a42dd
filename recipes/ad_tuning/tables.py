"""Print AD-TUNING's Tables 1 and 2 from the runs of the recipes, as Markdown: ``tables.py table2 --runs DIR``.

Scores are mean ± sample standard deviation over seeds, in per cent. The paper's number is printed next to them; numbers
of a miniature corpus cannot be compared with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from runs import TASKS, TaskRun, heading, runs_of

from s3prl_ext.errors import as_command, unknown_name
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.papers.figures import ad_tuning_tables
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation
from s3prl_ext.training.racing.early_stop import best_of

PAPER_ROWS = {
    "full": "FT", "frozen": "Baseline", "houlsby": "Houlsby", "adapter_bias": "AdapterBias", "lora": "LoRA",
    "prefix": "Prefix", "cnn_adapter": "CNN adapter", "chapter": "CHAPTER", "weighted_sum": "Weighted-sum",
    "child-0.1": "CHILD-TUNING (P=0.1)", "child-0.01": "CHILD-TUNING (P=0.01)",
    "child-0.001": "CHILD-TUNING (P=0.001)", "ad_tuning": "AD-TUNING",
}  # fmt: skip
CHILDREN = ("child-0.1", "child-0.01", "child-0.001")
BEST_P = "best of the three P on dev, each to the end"


def table2(folder: Path, task: str, rows: Sequence[str]) -> Table:
    """Return a task's column of Table 2 with what each row trains, stores and costs."""
    printed = ad_tuning_tables()["table2"]
    column = printed["columns"].index(task)
    body = []
    for row in rows:
        runs = runs_of(folder, task, row)
        paper = printed[PAPER_ROWS[row]][column] if row in PAPER_ROWS else None
        name = PAPER_ROWS.get(row, row)
        body.append([name, *_cells(runs, folder / task / "cost" / f"{row}.json"), paper or NOTHING])
    if all(runs_of(folder, task, row) for row in CHILDREN):
        body.append([BEST_P, *_cells(best_density(folder, task), Path("-")), NOTHING])
    head = [
        "method", "seeds", "weights trained in the upstream", "file of the task (MB)", "s per step", "peak memory (MB)",
        heading(task, "dev"), heading(task, "test"), "paper, test",
    ]  # fmt: skip
    return Table(f"{task}: methods", head, body, tuple(_notes(folder, task)))


def _cells(runs: Sequence[TaskRun], cost: Path) -> list[str]:
    if not runs:
        return ["0"] + [NOTHING] * 6
    scores = [run.scores for run in runs]
    known = [score for score in scores if score is not None]
    trained = sorted({run.record["trainable"]["Upstream"] for run in runs})
    measured = read_json(cost) if cost.is_file() else {}
    return [
        str(len(known)),
        f"{trained[0]:,}" if len(trained) == 1 else f"{trained[0]:,} - {trained[-1]:,}",
        _size(runs[0]),
        f"{measured['seconds_per_step']:.3f}" if measured else NOTHING,
        f"{measured['peak_bytes'] / 1e6:.0f}" if measured else NOTHING,
        mean_and_deviation([score["dev"] for score in known]),
        mean_and_deviation([score["test"] for score in known]),
    ]


def _size(run: TaskRun) -> str:
    """Return the size of the task's delta, or of a checkpoint's weights where the whole upstream was tuned."""
    delta = run.folder / "delta.safetensors"
    if delta.is_file():
        return f"{delta.stat().st_size / 1e6:.2f}"
    trained = sum(run.record["trainable"].values())
    return f"{4 * trained / 1e6:.1f} (no delta: all of it)"


def best_density(folder: Path, task: str) -> list[TaskRun]:
    """Return for each seed the run of the density whose last score on dev is best.

    Of equal ones the smaller density.
    """
    by_row = [{run.seed: run for run in runs_of(folder, task, row) if run.scores} for row in reversed(CHILDREN)]
    chosen = []
    for seed in sorted(set.intersection(*(set(runs) for runs in by_row))):
        scored = [runs[seed] for runs in by_row]
        (best,) = best_of([run.scores["dev"] for run in scored], TASKS[task][0], keep=1)
        chosen.append(scored[best])
    return chosen


def _notes(folder: Path, task: str) -> list[str]:
    notes = [f"seed {run.seed}: {_race(run)}" for run in runs_of(folder, task, "ad_tuning") if run.race]
    if all(runs_of(folder, task, row) for row in CHILDREN):
        chosen = ", ".join(f"seed {run.seed}: {run.folder.parent.name}" for run in best_density(folder, task))
        notes.append(f"{BEST_P}: {chosen}.")
    return notes


def _race(run: TaskRun) -> str:
    race, metric = run.race, TASKS[run.task][0]
    scores = ", ".join(
        f"{name} {fmean([numbers(row)[metric] for step, row in rows.items() if int(step) <= race['cut']]):.4g}"
        for name, rows in race["scores"].items()
    )
    return (
        f"at step {race['cut']} of {race['total_steps']} {race['metric']} on {race['split']} was {scores}; chosen: "
        f"{race['chosen']}; {race['steps_of_all_candidates']} optimizer steps in all."
    )


def table1(folder: Path, tasks: Sequence[str]) -> Table:
    """Return Table 1: child networks of 10 % drawn at random and by Fisher information."""
    printed = ad_tuning_tables()["table1"]
    body = []
    for row, name in (("random-0.1", "CHILD-TUNING_F"), ("child-0.1", "CHILD-TUNING_D")):
        cells = [name]
        for task in tasks:
            known = [score["test"] for run in runs_of(folder, task, row) if (score := run.scores)]
            paper = dict(zip(printed["columns"], printed[name], strict=True)).get(task)  # it has neither SF nor KS
            cells += [str(len(known)), mean_and_deviation(known), paper or NOTHING]
        body.append(cells)
    head = ["method", *(cell for task in tasks for cell in ("seeds", heading(task, f"{task} test"), "paper"))]
    return Table("CHILD-TUNING_F and CHILD-TUNING_D, 10 % of the eligible weights", head, body)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of the tasks, each with its notes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("table1", "table2"))
    parser.add_argument("--runs", type=Path, required=True, help="folder of the recipe (--out)")
    parser.add_argument("--tasks", default=" ".join(TASKS))
    parser.add_argument("--rows", default=" ".join(PAPER_ROWS))
    flags = parser.parse_args(argv)
    tasks, rows = (text.replace(",", " ").split() for text in (flags.tasks, flags.rows))
    for task in tasks:
        if task not in TASKS:
            raise unknown_name("task", task, TASKS)
    made = [table1(flags.runs, tasks)] if flags.table == "table1" else [table2(flags.runs, t, rows) for t in tasks]
    sys.stdout.write("\n".join(map(markdown, made)))
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
