"""The frame that all pictures share, and curves over training steps; readable in black and white."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import UsageError
from s3prl_ext.writing import written

if TYPE_CHECKING:  # matplotlib is imported where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


@contextmanager
def picture(
    path: str | os.PathLike[str],
    size: tuple[float, float],
    columns: int = 1,
    title: str = "",
    rows: int = 1,
    dpi: int = 110,
    mosaic: str = "",
    **options: Any,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a picture, yield it and its panels row by row, then write it as PNG, which appears only when it is complete.

    Args:
        path: the PNG file.
        size: width and height in inches.
        columns: panels side by side.
        title: above all panels.
        rows: of panels.
        dpi: pixels per inch.
        mosaic: such as ``AB;CC`` in place of `columns` and `rows`: a letter for each panel, which may cover several
            places.
        options: further ones of ``Figure.subplots`` or ``Figure.subplot_mosaic``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10, wrap=True)
    grid = figure.subplot_mosaic(mosaic, **options).values() if mosaic else None
    yield figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat if grid is None else grid)
    with written(path) as temporary:
        figure.savefig(temporary, format="png")


def light_frame(axes: Axes) -> None:
    """Give a panel a light grid and no line at its top and right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


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
    with picture(path, (7, 4.2)) as (_, (axes,)):
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
        light_frame(axes)
        axes.legend(frameon=False)
