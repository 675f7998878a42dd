"""Print the test accuracies of the demo's experiments and draw their dev curves: ``report.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from s3prl_ext.evaluation.plots import Curve, plot_curves, read_scalar

ROWS = {
    "untrained": "before training",
    "frozen": "merged upstream frozen",
    "child": "child network tuned",
}
CLASSES = 12  # Speech Commands in SUPERB: ten keywords, unknown, silence


def read(path: Path) -> dict[str, Any]:
    """Return the content of a result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def speech(out: Path) -> str:
    """Return what the corpus of the demo consists of."""
    synthesised = "recordings= " in (out / "settings").read_text(encoding="utf-8")
    return "synthesised speech" if synthesised else "recorded digits"


def table(out: Path) -> str:
    """Return one line per experiment: test accuracy with its interval, and how many weights trained."""
    lines = [f"{'test accuracy':26s}{'':9s}95 % interval   weights trained: upstream, head"]
    for name, label in ROWS.items():
        result = read(out / name / "result-test.json")
        share, n = result["metrics"]["test"]["acc"]["value"], result["items"]["test"]
        low, high = result["intervals"]["test"]["acc"]
        if name == "untrained":
            trained = {"Upstream": 0, "Featurizer": 0, "Downstream": 0}
        else:
            trained = read(out / name / "result.json")["trainable"]
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
        f"{speech(out)}, {read(out / 'child' / 'result.json')['items']['dev']} dev clips, {CLASSES} classes, one seed",
        y_label="dev accuracy (%)",
        baseline=(f"chance ({100 / CLASSES:.1f} %)", 100 / CLASSES),
        y_range=(0, 100),
    )
    return out / "demo.png"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(table(folder))
    print(f"  picture: {picture(folder)}")
