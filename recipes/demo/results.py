"""What both demos print: test accuracies with their intervals, and what was trained for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASSES = 12  # Speech Commands in SUPERB: ten keywords, unknown, silence


def read(path: Path) -> dict[str, Any]:
    """Return the content of a result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def speech(out: Path) -> str:
    """Return what the keywords of the demo are."""
    synthesised = "recordings= " in (out / "settings").read_text(encoding="utf-8")
    return "synthesised speech" if synthesised else "recorded digits"


def accuracy(out: Path, name: str) -> tuple[float, float, float]:
    """Return an experiment's test accuracy and its 95 % interval, in per cent."""
    result = read(out / name / "result-test.json")
    low, high = result["intervals"]["test"]["acc"]
    return 100 * result["metrics"]["test"]["acc"]["value"], 100 * low, 100 * high


def table(out: Path, rows: Mapping[str, str]) -> str:
    """Return one line per experiment: test accuracy with its interval, and how many weights trained.

    Args:
        out: folder of the demo.
        rows: label of each experiment by the name of its folder.
    """
    lines = [f"{'keyword spotting':26s}{'accuracy':9s}95 % interval   weights trained: upstream, head"]
    for name, label in rows.items():
        value, low, high = accuracy(out, name)
        trained = {"Upstream": 0, "Featurizer": 0, "Downstream": 0}
        if name != "untrained":
            trained = read(out / name / "result.json")["trainable"]
        head = trained["Featurizer"] + trained["Downstream"]
        lines.append(f"  {label:24s}{value:5.1f} %   {low:4.1f} - {high:4.1f} %   {trained['Upstream']:9,d}, {head:,d}")
    count = read(out / next(iter(rows)) / "result-test.json")["items"]["test"]
    lines.append(f"  {'chance':24s}{100 / CLASSES:5.1f} %   ({CLASSES} classes, {count} test clips)")
    return "\n".join(lines)
