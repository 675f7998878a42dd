"""Print the mean over ESC-50's folds of some sweeps (Tables 1 and 2): the figure that others publish.

    python recipes/mam/folds.py exp/mam/table1/esc50-*/sweep.json

Each fold has its own head and its own dev fold; where dev chooses lambda, each fold may choose another. A row counts
the folds in which it was scored on test: give the recipe --test-all to have every row in all of them.

``--keep esc50_table1.json`` writes what the sweeps measured as a small file, of which ``recipes/shared/page.py`` makes
tables (``over_folds``, ``chosen_over_folds``), and draws the means on dev next to it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "shared")]
import lambdas

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.metrics import heading
from s3prl_ext.papers.figures import mam_figure
from s3prl_ext.sweeps.grid import BASELINE, Arm
from s3prl_ext.sweeps.selection import point
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tables import NOTHING, Table, counted, markdown, mean_and_deviation
from s3prl_ext.writing import write_json

TEST = "test"
OF_A_FOLD = ("target", "featurizer", "head")  # weights that may have been trained with the labels of other folds


def check_folds(sweeps: Sequence[StoredSweep]) -> None:
    """Check that the sweeps are of ESC-50, of different folds, and in all else of one kind.

    Raises:
        DataError: they are not; the mean would count one fold twice, or be over different merges or shares of a split.
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
        was, now = _common(sweeps[0]), _common(sweep)
        if different := [name for name in {**was, **now} if was.get(name) != now.get(name)]:
            raise DataError(
                f"{sweeps[0].path} and {sweep.path} differ in {', '.join(different)}: a mean over folds needs the same "
                "in each."
            )


def _common(sweep: StoredSweep) -> dict[str, Any]:
    """Return what the sweeps of all folds must have in common."""
    settings = {name: value for name, value in sweep.content["settings"].items() if name not in OF_A_FOLD}
    section = settings["task file"]
    head = {name: value for name, value in (section.get("head") or {}).items() if name != "ckpt"}
    splits = {name: sweep.content.get(name) for name in ("dev", "test")}
    return settings | {"task file": section | {"fold": None, "head": head}, "metric": sweep.metric_name} | splits


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


def kept(sweeps: Sequence[StoredSweep]) -> dict[str, Any]:
    """Return what ``lambdas.kept`` keeps of each fold's sweep, by the number of the fold.

    Raises:
        DataError: the folds differ in what is merged or in its lambdas.
    """
    folds = {str(sweep.content["settings"]["task file"]["fold"]): lambdas.kept(sweep) for sweep in sweeps}
    first, *others = folds.values()
    for sweep, other in zip(sweeps[1:], others):
        if _grid(first) != _grid(other):
            raise DataError(
                f"{sweeps[0].path} and {sweep.path} differ in what is merged or in the values of lambda: a mean over "
                "folds needs the same in each."
            )
    return {"folds": dict(sorted(folds.items()))}


def _grid(content: Mapping[str, Any]) -> list[Any]:
    return [[column["layers"], column["noise"], sorted(column["dev"])] for column in content["columns"]]


def _on_dev(content: Mapping[str, Any], place: int, value: str) -> list[float]:
    """Return for each fold the mean over draws of a column at a lambda, or the unmerged target at 0."""
    return [
        _mean(fold["columns"][place]["dev"][value] if float(value) else [fold["unmerged"]["dev"]])
        for fold in content["folds"].values()
    ]


def _mean(scores: Sequence[Sequence[float | None]]) -> float:
    """Return the mean of scores; NaN where a model diverged."""
    return fmean(math.nan if score[0] is None else score[0] for score in scores)


def grid_over_folds(content: Mapping[str, Any]) -> Table:
    """Return mean and deviation over folds on dev: a row for each lambda, a column for what is merged, the paper's."""
    folds = list(content["folds"].values())
    first = folds[0]
    places = range(len(first["columns"]))
    rows = [["0", mean_and_deviation(_on_dev(content, 0, "0"))] + [""] * (len(places) - 1)]
    for value in lambdas.lambdas_of(first):
        rows.append([value, *(mean_and_deviation(_on_dev(content, place, value)) for place in places)])
    head = ["λ", *map(lambdas.name_of, first["columns"])]
    lambdas.add_paper(first, head, rows)
    return Table(f"{heading(first['metric'], 'dev')}, {counted(folds, 'fold')}", head, rows)


def chosen_over_folds(content: Mapping[str, Any]) -> Table:
    """Return what dev chose in each fold, mean and deviation over folds, and the change by the merge, fold by fold.

    Raises:
        DataError: a fold was not scored on test.
    """
    folds = list(content["folds"].values())
    for fold in folds:
        lambdas.check_test(fold)
    dev, test = ([_mean([fold["unmerged"][split]]) for fold in folds] for split in lambdas.SPLITS)
    rows = [["unmerged", "0", mean_and_deviation(dev), mean_and_deviation(test), ""]]
    for place, column in enumerate(folds[0]["columns"]):
        of_folds = [fold["columns"][place] for fold in folds]
        values = [one["chosen"] for one in of_folds]
        on_dev = [_on_dev(content, place, value)[number] for number, value in enumerate(values)]
        on_test = [_mean(one["test"]) for one in of_folds]
        change = [after - before for after, before in zip(on_test, test)]
        rows.append(
            [lambdas.name_of(column), ", ".join(values), *map(mean_and_deviation, (on_dev, on_test)), _signed(change)]
        )
    splits = [heading(folds[0]["metric"], split) for split in lambdas.SPLITS]
    head = ["merged", f"λ chosen on dev (fold {', '.join(content['folds'])})", *splits, "change on test by the merge"]
    return Table(f"chosen on dev, {counted(folds, 'fold')}", head, rows)


def _signed(values: Sequence[float]) -> str:
    shown = mean_and_deviation(values)
    return shown if shown.startswith(("-", "NaN")) else f"+{shown}"


def means(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means over folds on dev in the form of one sweep, for the picture."""
    first = next(iter(content["folds"].values()))
    columns = [
        {**column, "dev": {value: [[fmean(_on_dev(content, place, value))]] for value in column["dev"]}}
        for place, column in enumerate(first["columns"])
    ]
    return {**first, "unmerged": {"dev": [fmean(_on_dev(content, 0, "0"))]}, "columns": columns}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="sweep.json of finished sweeps, one per fold")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what the sweeps measured, and its picture")
    parser.add_argument("--title", default="", help="what is merged, for the picture")
    flags = parser.parse_args()
    sweeps = [read_sweep(path) for path in flags.sweeps]
    check_folds(sweeps)
    if flags.keep is not None:
        content = kept(sweeps)
        write_json(flags.keep, content, indent=1)
        lambdas.draw(means(content), flags.keep.with_suffix(".png"), f"{flags.title}, mean over folds".lstrip(", "))
    print(markdown(table(sweeps)))


if __name__ == "__main__":
    with as_command():
        main()
