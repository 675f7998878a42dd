"""Means with their spread over seeds, in panels side by side (AD-TUNING, Figs. 3, 5, 6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.plots import STYLES, light_frame, picture

if TYPE_CHECKING:  # imported where it is used
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Series:
    """One line: several runs of the same thing.

    Attributes:
        label: its name in the legend.
        runs: for each run its values by place on the horizontal axis, such as metric by step.
    """

    label: str
    runs: Sequence[Mapping[float, float]]

    def points(self) -> tuple[list[float], np.ndarray, np.ndarray]:
        """Return places, means and sample standard deviations (zero for one run) over the runs that have a place.

        Raises:
            DataError: no run has a value.
        """
        places = sorted({place for run in self.runs for place in run})
        if not places:
            raise DataError(f"there is no value for '{self.label}'.")
        values = [np.array([run[place] for run in self.runs if place in run]) for place in places]
        spread = [value.std(ddof=1) if len(value) > 1 else 0.0 for value in values]
        return places, np.array([value.mean() for value in values]), np.array(spread)


@dataclass(frozen=True)
class SeriesPanel:
    """One panel.

    Attributes:
        title: task, split, number of items.
        series: at most eight.
        x_label: quantity and unit.
        y_label: quantity, unit, direction.
        cut: name and place of a vertical line, or None.
        log_x: logarithmic horizontal axis, with the places as its ticks.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    cut: tuple[str, float] | None = None
    log_x: bool = False


def plot_series_panels(panels: Sequence[SeriesPanel], path: str | os.PathLike[str], title: str) -> None:
    """Draw panels side by side into a PNG file, which appears only when it is complete.

    Lines join means; bars are one standard deviation over runs, slightly apart so that they can be told from each
    other.

    Args:
        panels: one or more.
        path: the PNG file.
        title: which models, how many runs.

    Raises:
        UsageError: more series than can be told apart.
    """
    with picture(path, (max(6.0, 4.9 * len(panels)), 4.1), len(panels), title) as (_, frame):
        for axes, panel in zip(frame, panels, strict=True):
            if len(panel.series) > len(STYLES):
                raise UsageError(f"{len(panel.series)} lines cannot be told apart: draw at most {len(STYLES)}.")
            _draw(axes, panel)


def _draw(axes: Axes, panel: SeriesPanel) -> None:
    drawn = [series.points() for series in panel.series]
    width = max((max(places) - min(places) for places, _, _ in drawn), default=0.0)
    for number, (series, (places, means, spread)) in enumerate(zip(panel.series, drawn, strict=True)):
        colour, line, marker = STYLES[number]
        aside = number - (len(drawn) - 1) / 2
        shifted = [place * 1.02**aside if panel.log_x else place + 0.006 * width * aside for place in places]
        axes.errorbar(
            shifted, means, yerr=spread if spread.any() else None, color=colour, linestyle=line, marker=marker,
            markersize=5, capsize=2.5, linewidth=1.4, elinewidth=0.9, label=f"{series.label} (n = {len(series.runs)})",
        )  # fmt: skip
    if panel.cut is not None:
        axes.axvline(panel.cut[1], color="black", linestyle="--", linewidth=1, label=panel.cut[0])
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.title.set_fontsize(9)
    if panel.log_x:
        axes.set_xscale("log")
        ticks = sorted({place for places, _, _ in drawn for place in places})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    light_frame(axes)
    axes.legend(frameon=False, fontsize=8)
