"""Distribution of Fisher information over an upstream's weights, with the densities as lines (AD-TUNING, Fig. 2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.plots import picture

LINES = ("-", "--", ":")  # of the densities, largest first
TAIL = 1e-3  # share of the weights, those of the lowest scores, too few to be seen in the picture


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of one task, counted in bins.

    Attributes:
        title: the task, and how the scores were made.
        edges: lower edges of the bins, ascending; the first is 0.
        counts: number of weights in each.
    """

    title: str
    edges: Sequence[float]
    counts: Sequence[int]

    @property
    def total(self) -> int:
        """Number of weights."""
        return int(sum(self.counts))

    @property
    def zeros(self) -> float:
        """Share of the weights in the first bin, which holds the scores of zero."""
        return self.counts[0] / self.total

    def threshold(self, density: float) -> float:
        """Return the lower edge of the bin that holds the smallest score inside a child network of a density.

        Raises:
            DataError: there are fewer weights with a score above zero than the child network has.
        """
        from_top = np.cumsum(np.asarray(self.counts)[::-1])
        place = int(np.searchsorted(from_top, max(1, round(density * self.total))))
        edge = float(np.asarray(self.edges)[::-1][place])
        if edge <= 0.0:
            raise DataError(
                f"a density of {density:g} reaches into the {100 * self.zeros:.0f} % of weights whose score is zero."
            )
        return edge


def plot_fisher(
    panels: Sequence[ScoreHistogram], densities: Sequence[float], path: str | os.PathLike[str], title: str
) -> None:
    """Draw histograms of log10 scores side by side into a PNG file, which appears only when it is complete.

    Weights whose score is zero have no place on the axis: their share is written in the panel.

    Args:
        panels: one per task.
        densities: one vertical line each; right of it is the child network. One that reaches into the zeros has none.
        path: the PNG file.
        title: which upstream, how the scores were made.
    """
    with picture(path, (max(5.5, 4.4 * len(panels)), 3.8), len(panels), title) as (_, frame):
        for axes, panel in zip(frame, panels, strict=True):
            centres, shares = _coarse(panel)
            axes.fill_between(centres, shares, step="mid", color="0.75", linewidth=0)
            axes.step(centres, shares, where="mid", color="0.25", linewidth=0.8)
            for density, line in zip(sorted(densities, reverse=True), LINES, strict=False):
                try:
                    place = np.log10(panel.threshold(density))
                except DataError:
                    continue
                axes.axvline(place, color="#D55E00", linestyle=line, linewidth=1.6, label=f"P = {density:g}")
            zeros = f", {100 * panel.zeros:.2g} % of them zero (not shown)" if panel.zeros else ""
            axes.set(title=f"{panel.title}\nn = {panel.total:,} weights{zeros}", ylabel="weights per octave (%)")
            axes.set_xlabel("Fisher information (log10); right of a line: the child network")
            axes.title.set_fontsize(9)
            axes.xaxis.label.set_fontsize(8)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8, loc="upper left")


def _coarse(panel: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (log10) and shares (%) of bins of an octave, without the lowest :data:`TAIL`."""
    edges, counts = np.asarray(panel.edges[1:], float), np.asarray(panel.counts[1:], float)
    used = counts > 0
    if not used.any():
        raise DataError(f"{panel.title}: every score is zero.")
    bins = np.floor(np.log2(edges[used])).astype(int)
    sums = np.bincount(bins - bins.min(), counts[used])
    share = 100 * sums / panel.total
    centres = (np.arange(len(sums)) + bins.min() + 0.5) * np.log10(2)
    keep = np.cumsum(sums) > TAIL * sums.sum()
    return centres[keep], share[keep]
