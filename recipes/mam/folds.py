"""Print the mean over ESC-50's folds of some sweeps (Tables 1 and 2): the figure that others publish.

    python recipes/mam/folds.py exp/mam/table1/esc50-*/sweep.json

Each fold has its own head and its own dev fold; where dev chooses lambda, each fold may choose another. A row counts
the folds in which it was scored on test: give the recipe --test-all to have every row in all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.papers.figures import mam_figure
from s3prl_ext.sweeps.grid import BASELINE, Arm
from s3prl_ext.sweeps.selection import point
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation

TEST = "test"


def check_folds(sweeps: Sequence[StoredSweep]) -> None:
    """Check that the sweeps are of ESC-50, of different folds, and of one kind of merge.

    Raises:
        DataError: they are not; the mean would count one fold twice, or be over different merges.
    """
    folds = []
    for sweep in sweeps:
        section = sweep.content["settings"]["task file"]
        if "fold" not in section:
            raise DataError(
                f"{sweep.path} is a sweep of {sweep.content['settings']['task']}, which has no folds: leave it out."
            )
        folds.append(section["fold"])
    twice = sorted({fold for fold in folds if folds.count(fold) > 1})
    if twice:
        raise DataError(f"fold {twice[0]} occurs {folds.count(twice[0])} times: give each fold once.")
    for sweep in sweeps[1:]:
        if sweep.otherwise != sweeps[0].otherwise:
            kinds = [", ".join(one.otherwise) or "linear" for one in (sweeps[0], sweep)]
            raise DataError(f"{sweeps[0].path} merges {kinds[0]} and {sweep.path} {kinds[1]}: give sweeps of one kind.")


def mean(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation over folds, with their number."""
    return f"{mean_and_deviation(values)} ({len(values)})" if values else NOTHING


def table(sweeps: Sequence[StoredSweep]) -> Table:
    """Return the table: the unmerged target, what dev chooses, then every lambda."""
    unmerged = scores([(sweep, [BASELINE]) for sweep in sweeps])
    rows = [["-", "-", "0", mean(unmerged), mam_figure("esc50", "all", None, 0.0) or NOTHING]]
    counts = {len(unmerged)}
    otherwise = ", ".join(sweeps[0].otherwise)
    groups = list(dict.fromkeys((group.name, group.noise) for sweep in sweeps for group in sweep.groups))
    for name, noise in groups:
        chosen = [
            row for sweep in sweeps for row in sweep.content["summary"] if (row["group"], row["noise"]) == (name, noise)
        ]
        found = [row["test"]["mean"] for row in chosen if row["test"]]
        lambdas = sorted({row["lambda"] for row in chosen})
        rows.append([name, noise, "dev: " + ", ".join(f"{value:g}" for value in lambdas), mean(found), "-"])
        members = [
            (sweep, group) for sweep in sweeps for group in sweep.groups if (group.name, group.noise) == (name, noise)
        ]
        for value in sorted({value for _, group in members for value in group.lambdas}):
            figure = (mam_figure("esc50", name, noise, value) if not otherwise else None) or NOTHING
            found = scores([(sweep, group.arms(value)) for sweep, group in members])
            counts |= {len(found)} - {0}
            rows.append([name, noise, f"{value:g}", mean(found), figure])
    head = ["layers", "noise", "λ", "test error (%), mean ± deviation over folds (folds)", "paper"]
    title = "ESC-50, mean over folds" + (f" ({otherwise})" if otherwise else "")
    fewer = "Folds differ in how hard they are: only rows of all folds can be compared with each other."
    return Table(title, head, rows, [fewer] if len(counts) > 1 else [], of_texts=True)


def scores(arms: Sequence[tuple[StoredSweep, Sequence[Arm]]]) -> list[float]:
    """Return the mean over draws on test of each fold in which all its arms were scored."""
    points = [point(of_one, TEST, sweep.lookup) for sweep, of_one in arms]
    return [found.mean for found in points if found is not None]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="sweep.json of finished sweeps, one per fold")
    sweeps = [read_sweep(path) for path in parser.parse_args().sweeps]
    check_folds(sweeps)
    print(markdown(table(sweeps)))


if __name__ == "__main__":
    with as_command():
        main()
