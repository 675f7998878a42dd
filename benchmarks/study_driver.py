"""The driver of a study with jobs that end at once: time and memory over the number of jobs.

``python -m benchmarks.study_driver`` prints for 100, 1,000 and 10,000 jobs the time of a call that runs all and of one
that finds all done, per job, and the memory that the process has grown by.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from s3prl_ext.studies.config import AxisPoint, Study
from s3prl_ext.studies.driver import Driver
from tests.support.instant_engine import Instant

SIZES = (100, 1000, 10000)


def study_of(jobs: int) -> Study:
    """Return a study of so many jobs: two seeds and ten learning rates in each cell make 13."""
    upstreams = tuple(AxisPoint(f"u{number}", flags={"-u": "fbank"}) for number in range(round(jobs / 13)))
    rates = tuple(AxisPoint(f"1e-{number}", {"optimizer.lr": 10.0**-number}) for number in range(10))
    task = (AxisPoint("ks", flags={"-d": "speech_commands", "-c": "ks/mini"}),)
    axes = {"task": task, "upstream": upstreams, "method": (AxisPoint("stock"),), "lr": rates}
    return Study(axes=axes, seeds=(0, 1), choose=("lr",))


def measure(jobs: int, folder: Path) -> tuple[int, float, float]:
    """Return the number of jobs, and the seconds of a call that runs them and of one that finds them done."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        driver = Driver(study_of(jobs), folder, Instant(lambda job: 0.5, jobs=100), lambda progress: None)
        progress = driver.run()
        seconds.append(time.perf_counter() - start)
        assert len(progress.done) == progress.total
    return progress.total, seconds[0], seconds[1]


def main() -> None:
    """Measure all sizes."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for size in SIZES:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with tempfile.TemporaryDirectory() as folder:
            jobs, run, found = measure(size, Path(folder))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"{jobs:6d} jobs: {1e3 * run / jobs:.2f} ms each to run, {1e3 * found / jobs:.2f} ms to find done; "
            f"+{grown:.0f} MB"
        )


if __name__ == "__main__":
    main()
