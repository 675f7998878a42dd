"""Curves of experiments, read from their TensorBoard files and drawn as PNG; readable in black and white."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.run_folder import EVENTS
from s3prl_ext.writing import written

# One row per curve, in this order: colour (Okabe and Ito), line, marker.
STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "D"),
    ("#56B4E9", (0, (1, 1)), "v"),
    ("#E69F00", (0, (8, 2)), "P"),
    ("#000000", (0, (3, 1, 1, 1)), "X"),
    ("#999999", (0, (5, 5)), "*"),
)


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: its name in the legend.
        steps: optimizer steps, ascending.
        values: one value per step.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]


def read_scalar(expdir: str | os.PathLike[str], tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of one scalar of an experiment, such as ``speech_commands/dev-acc``.

    A resumed experiment has several event files: of a step that was done twice the later value counts.

    Raises:
        DataError: the folder contains no event file, or none with that tag.
    """
    files = sorted(Path(expdir).glob(EVENTS))
    if not files:
        raise DataError(f"{expdir} contains no TensorBoard file: train the experiment first.")
    values: dict[int, float] = {}
    tags: set[str] = set()
    for path in files:
        for step, name, value in _scalars(path):
            tags.add(name)
            if name == tag:
                values[step] = value
    if not values:
        raise DataError(f"{expdir} has no scalar '{tag}'; it has: {', '.join(sorted(tags)) or 'none'}.")
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield (step, tag, value) of a TensorBoard file; a last record that was cut short is left out."""
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    start = 0
    while start + 12 <= len(content):  # length (8 bytes), its checksum (4), record, its checksum (4)
        (length,) = struct.unpack_from("<Q", content, start)
        record = content[start + 12 : start + 12 + length]
        if len(record) < length:
            return
        event = Event.FromString(record)
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value
        start += 12 + length + 4


def plot_curves(
    curves: Sequence[Curve],
    path: str | os.PathLike[str],
    title: str,
    y_label: str,
    x_label: str = "optimizer step",
    baseline: tuple[str, float] | None = None,
    y_range: tuple[float, float] | None = None,
    cut: tuple[str, *tuple[float, ...]] | None = None,
) -> None:
    """Draw curves over training steps into a PNG file, which appears only when it is complete.

    Args:
        curves: at most eight, one line style and marker each.
        path: the PNG file.
        title: what is shown, on which data, how many items.
        y_label: quantity and unit.
        x_label: quantity and unit.
        baseline: name and value of a horizontal line, such as chance level.
        y_range: lowest and highest value of the vertical axis; None fits it to the data.
        cut: name and steps of vertical lines, such as the comparisons of a race.

    Raises:
        UsageError: more curves than can be told apart.
    """
    if len(curves) > len(STYLES):
        raise UsageError(f"{len(curves)} curves cannot be told apart in one picture: draw at most {len(STYLES)}.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve, (colour, line, marker) in zip(curves, STYLES, strict=False):
        axes.plot(curve.steps, curve.values, color=colour, linestyle=line, marker=marker, label=curve.label)
    if baseline is not None:
        name, value = baseline
        axes.axhline(value, color="black", linestyle=":", linewidth=1, label=name)
    if cut is not None:
        for place, step in enumerate(cut[1:]):
            axes.axvline(step, color="black", linestyle="--", linewidth=1, label=cut[0] if place == 0 else None)
    axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=y_range)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, Path(path))


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as PNG, which appears only when it is complete."""
    with written(path) as temporary:
        figure.savefig(temporary, format="png")
