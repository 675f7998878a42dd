"""Print Table 5 of MAM: target, MAM, FT, MAM + FT and L-MAM + FT on test, next to the paper's figures.

python recipes/mam/table5.py exp/mam ljspeech
python recipes/mam/table5.py exp/mam esc50       # the mean over the folds that are there
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from s3prl_ext.errors import as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.papers.figures import mam_tables
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tables import NOTHING, Table, markdown, mean_and_deviation
from s3prl_ext.tasks import named

CORPORA = ("ljspeech", "vctk", "esc50")
# Row, as the paper's figures name it: folder of its runs.
ARMS = {
    "baseline": "zero_shot/{unit}/target",
    "MAM": "zero_shot/{unit}/merged",
    "FT": "table5/{unit}/ft-*",
    "MAM + FT": "table5/{unit}/mam_ft-*",
    "L-MAM + FT": "table5/{unit}/lmam_ft-*",
}


def results(out: Path, unit: str, pattern: str, file: str = "result-test.json") -> list[ResultRecord]:
    """Return the results on test of every scored run, or those of its training, sorted by folder."""
    return [read_record(path) for path in sorted(out.glob(f"{pattern.format(unit=unit)}/{file}"))]


def units_of(found: list[ResultRecord], out: Path, metric: str) -> list[float]:
    """Return the scores to average: of each run, or where there are several folds the mean over the runs of each."""
    folds: dict[str, list[float]] = {}
    for result in found:
        folds.setdefault(result.path.relative_to(out).parts[1], []).append(result.score("test", metric))
    return [statistics.fmean(values) for values in folds.values()] if len(folds) > 1 else next(iter(folds.values()))


def moved(found: list[ResultRecord]) -> str:
    """Return the first values of the learnt lambdas and the range of the last ones over layers and runs."""
    files = [RunFolder(result.path.parent).lambda_curve for result in found]
    courses = [read_json(file)["lambda"] for file in files if file.is_file()]
    last = [value for course in courses for value in course[-1]]
    first = ", ".join(f"{value:.4g}" for value in sorted({value for course in courses for value in course[0]}))
    return f"{first} -> {min(last):.4f} to {max(last):.4f}" if last else ""


def rate_of_lambda(out: Path, unit: str) -> list[str]:
    """Return a sentence on the learning rate of lambda, where it was learnt."""
    found = [result.at("config.tuning.lambda_lr") for result in results(out, unit, ARMS["L-MAM + FT"], "result.json")]
    rates = sorted({float(rate) for rate in found if rate is not None})
    shown = ", ".join(f"{rate:g}" for rate in rates)
    return (
        [f"Lambda was learnt at a rate of its own, {shown}; the paper names one rate for everything."] if rates else []
    )


def table(out: Path, unit: str) -> Table:
    """Return the table; an arm without a scored run has a dash.

    Args:
        out: folder of the recipes.
        unit: ljspeech, vctk, a fold of ESC-50 such as esc50-4, or esc50 for the mean over its folds.
    """
    corpus = unit.partition("-")[0]
    unit = "esc50-*" if unit == "esc50" else unit
    metric, paper = named(corpus).metrics[0], mam_tables()["table5"]
    column = paper["columns"].index(corpus)
    name = unit.replace("esc50-*", "esc50, mean ± deviation over folds")
    rows = []
    for arm, pattern in ARMS.items():
        found = results(out, unit, pattern)
        score = mean_and_deviation(units_of(found, out, metric)) if found else NOTHING
        rows.append([arm, score, str(len(found)), moved(found), paper[arm][column]])
    head = ["", f"test {metric} (%)", "runs", "learnt lambda", "paper"]
    return Table(f"Table 5: {name}", head, rows, rate_of_lambda(out, unit))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the recipes (--out)")
    parser.add_argument(
        "unit", help="ljspeech, vctk, a fold of ESC-50 such as esc50-4, or esc50 for the mean over folds"
    )
    args = parser.parse_args()
    if args.unit.partition("-")[0] not in CORPORA:
        parser.error(f"{args.unit} is neither ljspeech, vctk nor a fold such as esc50-4")
    print(markdown(table(args.out, args.unit)))


if __name__ == "__main__":
    with as_command():
        main()
