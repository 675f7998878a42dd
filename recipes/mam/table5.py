"""Print Table 5 of MAM: target, MAM, FT, MAM + FT and L-MAM + FT on test, beside the paper's figures.

python recipes/mam/table5.py exp/mam ljspeech
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from s3prl_ext.errors import as_command
from s3prl_ext.evaluation.paper_figures import mam_tables
from s3prl_ext.evaluation.predictions import read_json

METRICS = {"ljspeech": "wer", "vctk": "wer", "esc50": "error"}
# Row, as the paper's figures name it: folder of its runs.
ARMS = {
    "baseline": "zero_shot/{unit}/target",
    "MAM": "zero_shot/{unit}/merged",
    "FT": "table5/{unit}/ft-*",
    "MAM + FT": "table5/{unit}/mam_ft-*",
    "L-MAM + FT": "table5/{unit}/lmam_ft-*",
}


def runs(out: Path, unit: str, pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return folder and result on test of every scored run, sorted by folder."""
    files = sorted(out.glob(f"{pattern.format(unit=unit)}/result-test.json"))
    return [(file.parent, read_json(file)) for file in files]


def shown(values: list[float]) -> str:
    """Return the mean and the sample standard deviation over runs."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def moved(folders: list[Path]) -> str:
    """Return the first value of the learnt lambdas and the range of the last ones over layers and runs."""
    courses = [read_json(file)["lambda"] for folder in folders if (file := folder / "lambda.json").is_file()]
    last = [value for course in courses for value in course[-1]]
    return f"{courses[0][0][0]:.4g} -> {min(last):.4f} to {max(last):.4f}" if last else ""


def table(out: Path, unit: str) -> list[str]:
    """Return the lines of the table in Markdown; an arm without a scored run has a dash.

    Args:
        out: folder of the recipes.
        unit: ljspeech, vctk, or a fold of ESC-50 such as esc50-4.
    """
    corpus = unit.partition("-")[0]
    metric, paper = METRICS[corpus], mam_tables()["table5"]
    column = paper["columns"].index(corpus)
    lines = [f"| {unit} | test {metric} (%) | runs | learnt lambda | paper |", "|---|---|---|---|---|"]
    for arm, pattern in ARMS.items():
        found = runs(out, unit, pattern)
        score = shown([result["metrics"]["test"][metric]["value"] for _, result in found]) if found else "-"
        course = moved([folder for folder, _ in found])
        lines.append(f"| {arm} | {score} | {len(found)} | {course} | {paper[arm][column]} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the recipes (--out)")
    parser.add_argument("unit", help="ljspeech, vctk, or a fold of ESC-50 such as esc50-4")
    args = parser.parse_args()
    if args.unit.partition("-")[0] not in METRICS:
        parser.error(f"{args.unit} is neither ljspeech, vctk nor a fold such as esc50-4")
    print("\n".join(table(args.out, args.unit)))


if __name__ == "__main__":
    with as_command():
        main()
