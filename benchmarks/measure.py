"""Paired process-CPU timings and a JSON record with versions and date."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any

from s3prl_ext.package_versions import versions_of

PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers", "numpy")


def alternate(ours: Callable[[], Any], baseline: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Run two functions in turn, `runs` times each after one warm-up, and compare their process CPU seconds.

    Returns:
        Medians of both in seconds, and median, smallest and largest of the ratios ours / baseline, pair by pair.
    """
    ours()
    baseline()
    pairs = []
    for index in range(runs):
        # Each order as often as the other: the first of a pair may pay for what the second finds warm.
        first, second = (ours, baseline) if index % 2 else (baseline, ours)
        times = (_seconds(first), _seconds(second))
        pairs.append(times if index % 2 else times[::-1])
    ratios = [a / b for a, b in pairs]
    return {
        "ours_s": statistics.median(a for a, _ in pairs),
        "baseline_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "runs": runs,
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = process_time()
    function()
    return process_time() - start


def apart(work: Callable[[], Any]) -> dict[str, float]:
    """Return the CPU seconds of `work`, and how far it raises the peak memory, in a process of its own."""

    def measured() -> dict[str, float]:
        start = process_time()
        extra = raised_mb(work)
        return {"cpu_s": process_time() - start, "extra_mb": extra}

    return forked(measured)


def raised_mb(work: Callable[[], Any]) -> float:
    """Return how far `work` raises the peak memory of this process above what is held now, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
    before = peak_mb()
    work()
    return peak_mb() - before


def forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the plain values that `work` returns in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(work()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (Linux)."""
    return _status_mb("VmHWM")


def resident_mb() -> float:
    """Return the resident memory of this process now, in MB (Linux)."""
    return _status_mb("VmRSS")


def forget_peak() -> None:
    """Let :func:`peak_mb` count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(key))


def report(name: str, rows: dict[str, dict[str, Any]], **facts: Any) -> None:
    """Print the rows as a table and then everything, with versions and date, as one line of JSON."""
    for label, row in rows.items():
        print(
            f"{label:32s}" + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )
    record = {"benchmark": name, "date": date.today().isoformat(), "python": platform.python_version()}
    print(json.dumps(record | {"versions": versions_of(PACKAGES), "rows": rows} | facts))
