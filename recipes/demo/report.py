"""Print the test accuracies of the demo's experiments and draw their dev curves: ``report.py FOLDER``."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from s3prl_ext.evaluation.plots import Curve, plot_curves, read_scalar

ROWS = {
    "untrained": "before training",
    "frozen": "merged upstream frozen",
    "child": "child network tuned",
}
CLASSES = 12  # Speech Commands in SUPERB: ten keywords, unknown, silence


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of `n` items (Wilson's score interval)."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def items(folder: Path, split: str) -> int:
    """Return how many clips of `split` the experiment scored last."""
    return len((folder / f"{split}_truth.txt").read_text(encoding="utf-8").splitlines())


def speech(out: Path) -> str:
    """Return what the corpus of the demo consists of."""
    synthesised = (out / "settings").read_text(encoding="utf-8").startswith("recordings= ")
    return "synthesised speech" if synthesised else "recorded digits"


def table(out: Path) -> str:
    """Return one line per experiment: test accuracy with its interval, and how many weights trained."""
    lines = [f"{'test accuracy':26s}{'':9s}95 % interval   weights trained: upstream, head"]
    for name, label in ROWS.items():
        result = json.loads((out / name / "result-test.json").read_text(encoding="utf-8"))
        share, n = result["metrics"]["test"]["acc"]["value"], items(out / name, "test")
        low, high = wilson_interval(share, n)
        if name == "untrained":
            trained = {"Upstream": 0, "Featurizer": 0, "Downstream": 0}
        else:
            trained = json.loads((out / name / "result.json").read_text(encoding="utf-8"))["trainable"]
        head = trained["Featurizer"] + trained["Downstream"]
        lines.append(
            f"  {label:24s}{100 * share:5.1f} %   {100 * low:4.1f} - {100 * high:4.1f} %   "
            f"{trained['Upstream']:9,d}, {head:,d}"
        )
    lines.append(f"  {'chance':24s}{100 / CLASSES:5.1f} %   ({CLASSES} classes, {n} test clips)")
    return "\n".join(lines)


def picture(out: Path) -> Path:
    """Draw the dev accuracies of the trained experiments over the steps; return the file."""
    curves = []
    for name in ("frozen", "child"):
        steps, values = read_scalar(out / name, "speech_commands/dev-acc")
        curves.append(Curve(ROWS[name], steps, [100 * value for value in values]))
    plot_curves(
        curves,
        out / "demo.png",
        title=f"Miniature keyword spotting, HuBERT with MiniLM's attention merged in\n"
        f"{speech(out)}, {items(out / 'child', 'dev')} dev clips, {CLASSES} classes, one seed",
        y_label="dev accuracy (%)",
        baseline=(f"chance ({100 / CLASSES:.1f} %)", 100 / CLASSES),
        y_range=(0, 100),
    )
    return out / "demo.png"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(table(folder))
    print(f"  picture: {picture(folder)}")
