"""Print the demo's accuracies and transcripts and draw them as one picture: ``report.py FOLDER``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import CLASSES, speech, table, tested, trained

from s3prl_ext.evaluation.plots import STYLES, light_frame, picture
from s3prl_ext.evaluation.transcripts import ScoredTranscript, read_transcripts

ROWS = {
    "frozen": "Whisper frozen",
    "child": "child network tuned",
    "merged": "decoder merged in",
}
CHANCE = 100 / CLASSES


def transcripts(out: Path, name: str) -> list[ScoredTranscript]:
    """Return what a model made of the test sentences."""
    return read_transcripts(out / name / "transcripts-test.jsonl")


def merged_lambda(out: Path) -> str:
    """Return λ of the merge."""
    values = trained(out, "merged")["merge"]["sources"][0]["lambda"]
    return f"λ = {max(value for of_layers in values.values() for value in of_layers):g}"


def most_changed(before: Sequence[ScoredTranscript], after: Sequence[ScoredTranscript]) -> int:
    """Return the number of the sentence to which the merge has added most errors; the first where it added none."""
    added = [b.errors - a.errors for a, b in zip(before, after, strict=True)]
    return added.index(max(added))


def sentences(out: Path) -> list[tuple[str, str]]:
    """Return (label, text) of what was said and of what was written before and after the merge."""
    before, after = transcripts(out, "transcripts"), transcripts(out, "transcripts_merged")
    number = most_changed(before, after)
    return [
        ("said", before[number].reference),
        ("Whisper", before[number].hypothesis),
        ("decoder merged in", after[number].hypothesis),
    ]


def transcript_table(out: Path) -> str:
    """Return the error rates before and after the merge, and the sentence that it changed most."""
    models = {"Whisper": "transcripts", f"decoder merged in, {merged_lambda(out)}": "transcripts_merged"}
    count = len(transcripts(out, "transcripts"))
    lines = [f"{'zero-shot transcripts':26s}{'word error rate':15s} ({count} sentences)"]
    for label, name in models.items():
        result = tested(out, name)
        low, high = result.interval("test", "wer")
        lines.append(f"  {label:28s}{result.score('test', 'wer'):5.1f} %   {low:4.1f} - {high:4.1f} %")
    lines += [f"  {label + ':':28s}{text}" for label, text in sentences(out)]
    return "\n".join(lines)


def draw(out: Path) -> Path:
    """Draw dev accuracies over the steps, test accuracies with intervals, and the transcripts; return the file."""
    path = out / "demo.png"
    ratios = {"height_ratios": [3.2, 1.4], "width_ratios": [1.15, 1]}
    with picture(path, (9.6, 5.8), dpi=100, mosaic="AB;CC", **ratios) as (figure, (dev, test, text)):
        figure.suptitle(f"Whisper on miniature keyword spotting: {speech(out)}, {CLASSES} classes, one seed")
        _draw_dev(dev, out)
        _draw_test(test, out)
        _draw_text(text, out)
    return path


def _draw_dev(axes: Any, out: Path) -> None:
    for (name, label), (colour, line, marker) in zip(ROWS.items(), STYLES, strict=False):
        curve = trained(out, name).curve("dev", "acc")
        axes.plot(list(curve), list(curve.values()), color=colour, linestyle=line, marker=marker, label=label)
    axes.axhline(CHANCE, color="black", linestyle=":", linewidth=1, label=f"chance ({CHANCE:.1f} %)")
    clips = trained(out, "child")["items"]["dev"]
    axes.set(title=f"dev, {clips} clips", xlabel="optimizer step", ylabel="accuracy (%)", ylim=(0, 102))
    axes.set_xlim(left=0)
    light_frame(axes)
    axes.legend(frameon=False, loc="lower right", fontsize="small")


def _draw_test(axes: Any, out: Path) -> None:
    for height, (name, (colour, _, marker)) in enumerate(zip(ROWS, STYLES, strict=False)):
        result = tested(out, name)
        value, (low, high) = result.score("test", "acc"), result.interval("test", "acc")
        sides = [[max(0.0, value - low)], [max(0.0, high - value)]]  # at 100 % the upper end is off by rounding
        axes.errorbar(value, height, xerr=sides, color=colour, marker=marker, capsize=4)
        axes.annotate(f"{value:.1f} %", (value, height), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.axvline(CHANCE, color="black", linestyle=":", linewidth=1)
    clips = tested(out, "child")["items"]["test"]
    axes.set(title=f"test, {clips} clips", xlabel="accuracy (%) and its 95 % interval")
    axes.set(xlim=(0, 109), ylim=(len(ROWS) - 0.5, -0.5))
    axes.set_yticks(range(len(ROWS)), [label.replace(" ", "\n", 1) for label in ROWS.values()])
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_text(axes: Any, out: Path) -> None:
    before, after = (tested(out, name).score("test", "wer") for name in ("transcripts", "transcripts_merged"))
    axes.axis("off")
    axes.set_title(
        f"Transcripts of {len(transcripts(out, 'transcripts'))} sentences by Whisper's own decoder, nothing trained: "
        f"{before:.1f} % word errors,\n{after:.1f} % with the decoder's attention merged into the encoder "
        f"({merged_lambda(out)})",
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
    print(f"  picture: {draw(folder)}")
