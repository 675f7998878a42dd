"""Names of a study's engines and what ``--jobs`` takes, which the commands ``study`` and ``sweep`` share."""

from __future__ import annotations

import argparse

ENGINES = ("local", "ray", "slurm")


def count_of_jobs(text: str) -> int:
    """Return the value of ``--jobs``; of another text than a number above 0 argparse makes a sentence."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
