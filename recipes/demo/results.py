"""What both demos print: test accuracies with their intervals, and what was trained for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.run_folder import RunFolder

CLASSES = 12  # Speech Commands in SUPERB: ten keywords, unknown, silence


def trained(out: Path, name: str) -> ResultRecord:
    """Return the result of an experiment's training."""
    return read_record(RunFolder(out / name).result())


def tested(out: Path, name: str) -> ResultRecord:
    """Return the result of an experiment on test."""
    return read_record(RunFolder(out / name).result("test"))


def speech(out: Path) -> str:
    """Return what the keywords of the demo are."""
    synthesised = "recordings= " in (out / "settings").read_text(encoding="utf-8")
    return "synthesised speech" if synthesised else "recorded digits"


def table(out: Path, rows: Mapping[str, str]) -> str:
    """Return one line per experiment: test accuracy with its interval, and how many weights trained.

    Args:
        out: folder of the demo.
        rows: label of each experiment by the name of its folder.
    """
    lines = [f"{'keyword spotting':26s}{'accuracy':9s}95 % interval   weights trained: upstream, head"]
    for name, label in rows.items():
        result = tested(out, name)
        low, high = result.interval("test", "acc")
        weights = {"Upstream": 0, "Featurizer": 0, "Downstream": 0}
        if name != "untrained":
            weights = trained(out, name)["trainable"]
        head = weights["Featurizer"] + weights["Downstream"]
        score = f"{result.score('test', 'acc'):5.1f} %   {low:4.1f} - {high:4.1f} %"
        lines.append(f"  {label:24s}{score}   {weights['Upstream']:9,d}, {head:,d}")
    count = tested(out, next(iter(rows)))["items"]["test"]
    lines.append(f"  {'chance':24s}{100 / CLASSES:5.1f} %   ({CLASSES} classes, {count} test clips)")
    return "\n".join(lines)
