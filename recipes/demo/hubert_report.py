"""Print the accuracies of the demo without Whisper and draw its dev curves: ``hubert_report.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from results import CLASSES, speech, table, trained

from s3prl_ext.evaluation.plots import Curve, plot_curves

ROWS = {
    "untrained": "before training",
    "frozen": "merged upstream frozen",
    "child": "child network tuned",
}


def picture(out: Path) -> Path:
    """Draw the dev accuracies of the trained experiments over the steps; return the file."""
    curves = []
    for name in ("frozen", "child"):
        curve = trained(out, name).curve("dev", "acc")
        curves.append(Curve(ROWS[name], list(curve), list(curve.values())))
    plot_curves(
        curves,
        out / "demo.png",
        title=f"Miniature keyword spotting, HuBERT with MiniLM's attention merged in\n"
        f"{speech(out)}, {trained(out, 'child')['items']['dev']} dev clips, {CLASSES} classes, one seed",
        y_label="dev accuracy (%)",
        baseline=(f"chance ({100 / CLASSES:.1f} %)", 100 / CLASSES),
        y_range=(0, 100),
    )
    return out / "demo.png"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(table(folder, ROWS))
    print(f"  picture: {picture(folder)}")
