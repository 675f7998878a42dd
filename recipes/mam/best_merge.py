"""Print the settings of the merge that dev prefers among some sweeps, as ``-g`` takes them: lambda=0.05,,layers=4-11.

python recipes/mam/best_merge.py exp/table1/ljspeech/sweep.json exp/table2/ljspeech/sweep.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tasks import task_of


def best(sweeps: Sequence[StoredSweep]) -> Mapping[str, Any]:
    """Return the row of the summaries with the best score on dev.

    Noise does not count, of equal rows the first wins.

    Raises:
        DataError: the sweeps have chosen lambda by other metrics, splits or data, or on the split that is reported.
    """
    if len({(sweep.metric_name, sweep.content["dev"], _dev_data(sweep)) for sweep in sweeps}) > 1:
        raise DataError(
            f"{' and '.join(str(sweep.path) for sweep in sweeps)} were chosen by different metrics, splits or data: "
            "give sweeps of one task on one corpus."
        )
    settings, split = sweeps[0].content["settings"], sweeps[0].content["dev"]
    if split == task_of(settings["task"], settings["task file"]).test:
        raise DataError(f"{sweeps[0].path} has chosen lambda on {split}, which is reported: sweep with another --dev.")
    rows = [row for sweep in sweeps for row in sweep.content["summary"] if row["noise"] == "none"]
    sign = -1 if sweeps[0].metric.higher_is_better else 1
    return min(rows, key=lambda row: sign * row["dev"]["mean"])


def _dev_data(sweep: StoredSweep) -> str | None:
    """Return the hash of the clips by which lambda was chosen."""
    return sweep.content["data"].get(sweep.content["dev"])


def main() -> None:
    """Read the files and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="sweep.json of finished sweeps")
    row = best([read_sweep(path) for path in parser.parse_args().sweeps])
    layers = "[" + ",".join(map(str, row["layers"])) + "]"
    print(f"lambda={row['lambda']:g},,layers={layers}")


if __name__ == "__main__":
    with as_command():
        main()
