"""Choose a learning rate on dev: ``rates.py choose FOLDER --metric acc --dev dev --seed 0``.

FOLDER holds runs ``lr-RATE-sSEED``. A rate's score is the best that its search run reached on dev; of equal ones the
smaller rate wins. The choice is written to ``chosen.json``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.metrics import metric
from s3prl_ext.writing import write_json

CHOSEN = "chosen.json"


def searched(folder: Path, name: str, split: str, seed: int) -> dict[str, float]:
    """Return the best score on a split by learning rate, as the folders name it.

    Raises:
        DataError: there is no finished search run, or the task does not report the metric there.
    """
    ending = f"-s{seed}"
    whole = {
        path.parent.name.removeprefix("lr-").removesuffix(ending): path
        for path in sorted(folder.glob(f"lr-*{ending}/result.json"))
    }
    found = {}
    for rate, path in whole.items():
        values = read_record(path).curve(split, name).values()
        if not values:
            raise DataError(f"{path} has no {name} on {split}.")
        finite = [value for value in values if not math.isnan(value)]
        found[rate] = (max if metric(name).higher_is_better else min)(finite, default=math.nan)
    if not found:
        raise DataError(f"{folder} contains no finished search run: do the stages before this one.")
    return found


def choose(folder: Path, name: str, split: str, seed: int) -> str:
    """Return the learning rate that is best on dev.

    Raises:
        DataError: every rate gave NaN.
    """
    scores = {rate: value for rate, value in searched(folder, name, split, seed).items() if not math.isnan(value)}
    if not scores:
        raise DataError(f"every learning rate in {folder} gave NaN on {split}; search smaller ones.")
    sign = -1 if metric(name).higher_is_better else 1
    return min(scores, key=lambda rate: (sign * scores[rate], float(rate)))


def main(argv: Sequence[str] | None = None) -> int:
    """Choose; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metric", required=True)
    parser.add_argument("--dev", default="dev")
    parser.add_argument("--seed", type=int, default=0, help="of the runs that searched")
    flags = parser.parse_args(argv)
    rate = choose(flags.folder, flags.metric, flags.dev, flags.seed)
    chosen = {"rate": rate, "metric": flags.metric, "split": flags.dev}
    write_json(flags.folder / CHOSEN, chosen, indent=None)
    sys.stdout.write(f"{rate}\n")
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
