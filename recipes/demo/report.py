"""Print the demo's accuracies and transcripts and draw them as one picture: ``report.py FOLDER``."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import CLASSES, accuracy, read, speech, table

from s3prl_ext.evaluation.plots import STYLES, read_scalar, save_figure

ROWS = {
    "frozen": "Whisper frozen",
    "child": "child network tuned",
    "merged": "decoder merged in",
}
CHANCE = 100 / CLASSES


@dataclass(frozen=True)
class Transcripts:
    """Zero-shot transcripts of one model.

    Attributes:
        wer: word error rate in per cent.
        interval: its 95 % interval.
        rows: ``reference``, ``hypothesis`` and ``errors`` of each sentence.
    """

    wer: float
    interval: tuple[float, float]
    rows: list[dict[str, Any]]


def transcripts(folder: Path) -> Transcripts:
    """Return what an evaluation of the test sentences has left in `folder`."""
    result = read(folder / "result-test.json")
    low, high = result["intervals"]["test"]["wer"]
    lines = (folder / "transcripts-test.jsonl").read_text(encoding="utf-8").splitlines()
    return Transcripts(result["metrics"]["test"]["wer"]["value"], (low, high), [json.loads(line) for line in lines])


def merged_lambda(out: Path) -> str:
    """Return λ of the merge."""
    values = read(out / "merged" / "result.json")["merge"]["sources"][0]["lambda"]
    return f"λ = {max(value for of_layers in values.values() for value in of_layers):g}"


def most_changed(before: Transcripts, after: Transcripts) -> int:
    """Return the number of the sentence to which the merge has added most errors; the first where it added none."""
    added = [b["errors"] - a["errors"] for a, b in zip(before.rows, after.rows, strict=True)]
    return added.index(max(added))


def sentences(out: Path) -> list[tuple[str, str]]:
    """Return (label, text) of what was said and of what was written before and after the merge."""
    before, after = transcripts(out / "transcripts"), transcripts(out / "transcripts_merged")
    number = most_changed(before, after)
    return [
        ("said", before.rows[number]["reference"]),
        ("Whisper", before.rows[number]["hypothesis"]),
        ("decoder merged in", after.rows[number]["hypothesis"]),
    ]


def transcript_table(out: Path) -> str:
    """Return the error rates before and after the merge, and the sentence that it changed most."""
    models = {"Whisper": "transcripts", f"decoder merged in, {merged_lambda(out)}": "transcripts_merged"}
    found = {label: transcripts(out / name) for label, name in models.items()}
    count = len(next(iter(found.values())).rows)
    lines = [f"{'zero-shot transcripts':26s}{'word error rate':15s} ({count} sentences)"]
    for label, model in found.items():
        low, high = model.interval
        lines.append(f"  {label:28s}{model.wer:5.1f} %   {low:4.1f} - {high:4.1f} %")
    lines += [f"  {label + ':':28s}{text}" for label, text in sentences(out)]
    return "\n".join(lines)


def picture(out: Path) -> Path:
    """Draw dev accuracies over the steps, test accuracies with intervals, and the transcripts; return the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Whisper on miniature keyword spotting: {speech(out)}, {CLASSES} classes, one seed")
    dev, test, text = figure.subplot_mosaic(
        [["dev", "test"], ["text", "text"]], height_ratios=[3.2, 1.4], width_ratios=[1.15, 1]
    ).values()
    _draw_dev(dev, out)
    _draw_test(test, out)
    _draw_text(text, out)
    save_figure(figure, out / "demo.png")
    return out / "demo.png"


def _draw_dev(axes: Any, out: Path) -> None:
    for (name, label), (colour, line, marker) in zip(ROWS.items(), STYLES, strict=False):
        steps, values = read_scalar(out / name, "speech_commands/dev-acc")
        shares = [100 * value for value in values]
        axes.plot(steps, shares, color=colour, linestyle=line, marker=marker, label=label)
    axes.axhline(CHANCE, color="black", linestyle=":", linewidth=1, label=f"chance ({CHANCE:.1f} %)")
    clips = read(out / "child" / "result.json")["items"]["dev"]
    axes.set(title=f"dev, {clips} clips", xlabel="optimizer step", ylabel="accuracy (%)", ylim=(0, 102))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize="small")


def _draw_test(axes: Any, out: Path) -> None:
    for height, (name, (colour, _, marker)) in enumerate(zip(ROWS, STYLES, strict=False)):
        value, low, high = accuracy(out, name)
        sides = [[max(0.0, value - low)], [max(0.0, high - value)]]  # at 100 % the upper end is off by rounding
        axes.errorbar(value, height, xerr=sides, color=colour, marker=marker, capsize=4)
        axes.annotate(f"{value:.1f} %", (value, height), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.axvline(CHANCE, color="black", linestyle=":", linewidth=1)
    clips = read(out / "child" / "result-test.json")["items"]["test"]
    axes.set(title=f"test, {clips} clips", xlabel="accuracy (%) and its 95 % interval")
    axes.set(xlim=(0, 109), ylim=(len(ROWS) - 0.5, -0.5))
    axes.set_yticks(range(len(ROWS)), [label.replace(" ", "\n", 1) for label in ROWS.values()])
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_text(axes: Any, out: Path) -> None:
    before, after = transcripts(out / "transcripts"), transcripts(out / "transcripts_merged")
    axes.axis("off")
    axes.set_title(
        f"Transcripts of {len(before.rows)} sentences by Whisper's own decoder, nothing trained: {before.wer:.1f} % word "
        f"errors,\n{after.wer:.1f} % with the decoder's attention merged into the encoder ({merged_lambda(out)})",
        loc="left",
        fontsize="medium",
    )
    for row, (label, text) in enumerate(sentences(out)):
        height = 0.75 - 0.33 * row
        axes.text(0.0, height, label, va="center", weight="bold", transform=axes.transAxes)
        lines = textwrap.fill(text or "(nothing)", 90, max_lines=2)
        axes.text(0.2, height, lines, va="center", size="small" if "\n" in lines else None, transform=axes.transAxes)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(table(folder, ROWS))
    print(transcript_table(folder))
    print(f"  picture: {picture(folder)}")
