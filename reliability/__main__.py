"""Run the measurements: ``python -m reliability [NAME ...] --minutes 60``, from the root of the repository."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import s3prl_ext

SHARES = {"bitflips": 0.05, "hostile": 0.1, "two_runs": 0.1, "full_disk": 0.2, "kill": 0.55}  # of the minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named measurements, or all; return 1 where a figure is not the wanted one."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SHARES)} (default: all)")
    parser.add_argument("--minutes", type=float, help="for all together, in place of numbers of trials")
    parser.add_argument("--trials", type=int, help="of each (default: 8 to 200)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default 0)")
    parser.add_argument("--work", type=Path, default=Path("build/reliability"), help="folder (default %(default)s)")
    flags = parser.parse_args(arguments)
    names = flags.names or list(SHARES)
    if unknown := set(names) - set(SHARES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    s3prl_ext.install()
    from reliability import shared
    from tests.support.forked import start_server

    start_server()
    bad = 0
    for name in names:
        module = importlib.import_module(f"reliability.{name}")
        share = SHARES[name] / sum(SHARES[other] for other in names)
        trials, minutes = flags.trials or module.TRIALS, sys.maxsize
        if flags.minutes is not None:
            trials, minutes = flags.trials or sys.maxsize, flags.minutes * share
        place = shared.make_place(flags.work, name, trials, minutes, flags.seed)
        figure = module.measure(place)
        print(f"{name}: {figure.text}", flush=True)
        bad += figure.bad
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
