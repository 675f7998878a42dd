"""Print Table 5 of MAM: target, MAM, FT, MAM + FT and L-MAM + FT on test, next to the paper's figures.

    python recipes/mam/table5.py exp/mam ljspeech
    python recipes/mam/table5.py exp/mam esc50                    # the mean over the folds that all rows have
    python recipes/mam/table5.py exp/mam vctk --keep vctk_table5.json

``--keep`` writes what the table needs as a small file, of which ``recipes/shared/page.py`` makes it again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.papers.figures import mam_tables
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tables import Table, markdown, mean_and_deviation
from s3prl_ext.tasks import named
from s3prl_ext.writing import write_json

CORPORA = ("ljspeech", "vctk", "esc50")
# Row, as the paper's figures name it: folder of its runs.
ARMS = {
    "baseline": "zero_shot/{unit}/target",
    "MAM": "zero_shot/{unit}/merged",
    "FT": "table5/{unit}/ft-[0-9]*",
    "MAM + FT": "table5/{unit}/mam_ft-[0-9]*",
    "L-MAM + FT": "table5/{unit}/{learnt}-[0-9]*",
}
LEARNT = "lmam_ft"  # of every layer, at the recipe's own rate


def results(
    out: Path, unit: str, pattern: str, learnt: str = LEARNT, file: str = "result-test.json"
) -> list[ResultRecord]:
    """Return the results on test of every scored run, or those of its training, sorted by folder."""
    return [read_record(path) for path in sorted(out.glob(f"{pattern.format(unit=unit, learnt=learnt)}/{file}"))]


def fold_of(result: ResultRecord, out: Path) -> str:
    """Return the folder of a result's corpus or fold, such as ``esc50-4``."""
    return result.path.relative_to(out).parts[1]


def units_of(found: list[ResultRecord], out: Path, metric: str) -> list[float]:
    """Return the scores to average: of each run, or where there are several folds the mean over the runs of each.

    That of a run that diverged is NaN, and so is the mean of its fold.
    """
    folds: dict[str, list[float]] = {}
    for result in found:
        score = result.score("test", metric)
        folds.setdefault(fold_of(result, out), []).append(math.nan if score is None else score)
    return [statistics.fmean(values) for values in folds.values()] if len(folds) > 1 else next(iter(folds.values()))


def common_folds(arms: Mapping[str, list[ResultRecord]], out: Path) -> list[str]:
    """Return the folds in which every row that has a run has one; folds differ in how hard they are.

    Raises:
        DataError: there is none.
    """
    folds = {arm: {fold_of(result, out) for result in found} for arm, found in arms.items() if found}
    common = sorted(set.intersection(*folds.values())) if folds else []
    if folds and not common:
        shown = "; ".join(f"{arm}: {', '.join(sorted(names))}" for arm, names in folds.items())
        raise DataError(f"no fold has a run of every row ({shown}): run one fold to its end, or show a single one.")
    return common


def courses(found: list[ResultRecord]) -> dict[str, list[float]]:
    """Return the first values of the learnt lambdas, and over layers and runs the smallest and largest that was scored.

    Raises:
        DataError: the course of a run lacks the step whose checkpoint was scored.
    """
    curves = [(result, file) for result in found if (file := RunFolder(result.path.parent).lambda_curve).is_file()]
    first, scored = set(), []
    for result, file in curves:
        course, step = read_json(file), result.at("step")
        if step not in course["steps"]:
            raise DataError(
                f"{file} lacks step {step}, of which {result.path.name} has the score: train that run again."
            )
        first |= set(course["lambda"][0])
        scored += course["lambda"][course["steps"].index(step)]
    return {"first": sorted(first), "scored": [min(scored), max(scored)]} if scored else {}


def kept(out: Path, unit: str, learnt: str = LEARNT) -> dict[str, Any]:
    """Return what the table needs, without paths.

    Args:
        out: folder of the recipes.
        unit: ljspeech, vctk, a fold of ESC-50 such as esc50-4, or esc50 for the mean over the folds that every row
            with a run has.
        learnt: beginning of the names of the runs with a learnt lambda.
    """
    corpus = unit.partition("-")[0]
    unit = "esc50-*" if unit == "esc50" else unit
    metric, arms = named(corpus).metrics[0], {}
    runs = {arm: results(out, unit, pattern, learnt) for arm, pattern in ARMS.items()}
    common = common_folds(runs, out)
    left_out = sorted({fold_of(result, out) for found in runs.values() for result in found} - set(common))
    runs = {arm: [result for result in found if fold_of(result, out) in common] for arm, found in runs.items()}
    for arm, found in runs.items():
        arms[arm] = {
            "test": units_of(found, out, metric) if found else [],
            "interval": found[0].interval("test", metric) if len(found) == 1 else None,
            "runs": len(found),
            "lambda": courses(found),
        }
    trained = [
        result.at("config.tuning.lambda_lr")
        for result in results(out, unit, ARMS["L-MAM + FT"], learnt, "result.json")
        if fold_of(result, out) not in left_out
    ]
    rates = sorted({float(rate) for rate in trained if rate is not None})
    folds = {"folds": common, "left out": left_out} if unit.endswith("*") else {}
    return {"corpus": corpus, "unit": unit, "metric": metric, "arms": arms, "lambda rates": rates, **folds}


def table(content: Mapping[str, Any]) -> Table:
    """Return the table of what :func:`kept` returned; an arm without a scored run has a dash, a diverged one NaN."""
    paper = mam_tables()["table5"]
    column = paper["columns"].index(content["corpus"])
    rows = []
    for arm, found in content["arms"].items():
        score = mean_and_deviation([math.nan if value is None else value for value in found["test"]])
        if interval := found["interval"]:
            score += " [{:.2f}, {:.2f}]".format(*interval)
        course = found["lambda"]
        first = ", ".join(f"{value:.4g}" for value in course.get("first", ()))
        moved = "{} -> {:.4f} to {:.4f}".format(first, *course["scored"]) if course else ""
        rows.append([arm, score, str(found["runs"]), moved, paper[arm][column]])
    shown = ", ".join(f"{rate:g}" for rate in content["lambda rates"])
    notes = [f"Lambda was learnt at a rate of its own, {shown}; the paper names one rate for everything."]
    notes = notes if shown else []
    if left_out := content.get("left out"):
        notes.append(f"Left out, as not every row with a run has one there: {', '.join(left_out)}.")
    head = ["", f"test {content['metric']} (%)", "runs", "learnt lambda", "paper"]
    name = content["unit"]
    if folds := content.get("folds"):
        name = f"esc50, mean ± deviation over {len(folds)} folds" if len(folds) > 1 else f"{folds[0]}, the only fold"
    return Table(f"Table 5: {name}", head, rows, notes)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the recipes (--out)")
    parser.add_argument(
        "unit", help="ljspeech, vctk, a fold of ESC-50 such as esc50-4, or esc50 for the mean over folds"
    )
    parser.add_argument(
        "--learnt", default=LEARNT, metavar="NAME", help="runs with a learnt lambda (default: %(default)s)"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write what the table needs")
    args = parser.parse_args(argv)
    if args.unit.partition("-")[0] not in CORPORA:
        parser.error(f"{args.unit} is neither ljspeech, vctk nor a fold such as esc50-4")
    content = kept(args.out, args.unit, args.learnt)
    if args.keep is not None:
        write_json(args.keep, content, indent=1)
    sys.stdout.write(markdown(table(content)) + "\n")


if __name__ == "__main__":
    with as_command():
        main()
