"""Values per layer as a picture: one panel per metric, the chosen layers marked; readable in black and white."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from s3prl_ext.evaluation.plots import light_frame, picture

INK = "#0072B2"


@dataclass(frozen=True)
class LayerPanel:
    """One panel.

    Attributes:
        title: the metric, and which end of it is similar.
        layers: indices of the target's layers, ascending.
        values: one per layer.
        chosen: those of `layers` that are chosen.
    """

    title: str
    layers: Sequence[int]
    values: Sequence[float]
    chosen: Collection[int]


def plot_layer_panels(panels: Sequence[LayerPanel], path: str | os.PathLike[str], title: str) -> None:
    """Draw panels side by side into a PNG file, which appears only when it is complete.

    Chosen layers are filled squares with their index, the others open circles.

    Args:
        panels: one or more.
        path: the PNG file.
        title: which models, on which data, how many samples.
    """
    from matplotlib.ticker import MaxNLocator

    with picture(path, (max(5.5, 3.9 * len(panels)), 3.9), len(panels), title) as (figure, frame):
        handles = None
        for axes, panel in zip(frame, panels, strict=True):
            axes.plot(panel.layers, panel.values, color="0.6", linewidth=1, zorder=1)
            for marker, face, wanted, label in (("o", "white", False, "not chosen"), ("s", INK, True, "chosen")):
                points = [
                    (x, y) for x, y in zip(panel.layers, panel.values, strict=True) if (x in panel.chosen) == wanted
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    axes.scatter(x, y, s=42, marker=marker, facecolor=face, edgecolor=INK, label=label, zorder=2)
            for layer, value in zip(panel.layers, panel.values, strict=True):
                if layer in panel.chosen:
                    axes.annotate(
                        str(layer), (layer, value), (0, 7), textcoords="offset points", ha="center", fontsize=8
                    )
            axes.set(title=panel.title, xlabel="layer (from 0)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(y=0.15)
            light_frame(axes)
            handles = handles or axes.get_legend_handles_labels()
        figure.legend(*(handles or ()), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
