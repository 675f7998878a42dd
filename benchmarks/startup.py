"""What the start-up hook costs each Python start, by ``-X importtime``: microseconds of ``s3prl_ext`` modules.

``python -m benchmarks.startup``; the goal is below 1 ms, with neither torch nor s3prl imported.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys

from benchmarks import measure


def hook_microseconds() -> tuple[int, set[str]]:
    """Start Python once; return the self times of our modules together, and the names of everything imported.

    Byte code may be written and used, as in an ordinary installation.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", ""], env=environment, capture_output=True, text=True, check=True
    )
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    return sum(int(t) for t, name in rows if name.startswith("s3prl_ext")), {name for _, name in rows}


def main() -> None:
    """Measure repeated starts and print the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="starts of Python (default 40)")
    flags = parser.parse_args()
    hook_microseconds()  # writes the byte code
    runs = [hook_microseconds() for _ in range(flags.runs)]
    times = [microseconds for microseconds, _ in runs]
    imported = runs[0][1]
    row = {
        "median_us": float(statistics.median(times)),
        "min_us": float(min(times)),
        "max_us": float(max(times)),
        "hook_present": "s3prl_ext._autoload" in imported,
        "torch_imported": "torch" in imported,
        "s3prl_imported": "s3prl" in imported,
        "runs": flags.runs,
    }
    measure.report("startup", {"start-up hook": row})


if __name__ == "__main__":
    main()
