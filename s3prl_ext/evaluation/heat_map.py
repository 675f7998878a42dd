"""A grid of numbers as a picture: shades of grey with every number written; readable in black and white."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import isfinite

import numpy as np

from s3prl_ext.evaluation.plots import picture


def plot_heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    path: str | os.PathLike[str],
    title: str,
    quantity: str,
    higher_is_better: bool,
    axes_labels: tuple[str, str] = ("λ", "layers"),
) -> None:
    """Draw a grid into a PNG file, which appears only when it is complete; the best cell of each row has a frame.

    Dark is bad: the shades reach from the best to the worst value, and what is worse than three times the median
    distance from the best has the darkest one, so that one bad corner does not hide the rest.

    Args:
        rows: names from top to bottom.
        columns: names from left to right.
        values: [rows, columns]; None where nothing was measured.
        path: the PNG file.
        title: what is shown, on which data, how many items.
        quantity: metric and unit.
        higher_is_better: its direction.
        axes_labels: what columns and rows are.
    """
    from matplotlib.patches import Rectangle

    grid = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    size = (max(5.0, 1.6 + 0.85 * len(columns)), max(2.4, 1.5 + 0.42 * len(rows)))
    loss = -grid if higher_is_better else grid
    best = np.nanmin(loss)
    furthest = float(np.nanmax(loss - best))
    limit = min(3 * float(np.nanmedian(loss - best)) or furthest, furthest) or 1.0
    with picture(path, size) as (_, (axes,)):
        axes.imshow(np.clip(loss - best, 0, limit), cmap="Greys", vmin=0, vmax=1.6 * limit, aspect="auto")
        for y, row in enumerate(loss):
            for x, value in enumerate(row):
                if isfinite(value):
                    dark = value - best > 0.8 * limit
                    axes.text(
                        x, y, f"{grid[y, x]:.2f}", ha="center", va="center", color="white" if dark else "black", size=9
                    )
            if np.isfinite(row).any():
                axes.add_patch(Rectangle((int(np.nanargmin(row)) - 0.5, y - 0.5), 1, 1, fill=False, lw=2))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
        axes.set_title(f"{title}\n{quantity}; frame: best of its row", fontsize=10, wrap=True)
