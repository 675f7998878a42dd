"""Share of the weights that trained, by encoder layer and by module (AD-TUNING, Fig. 7)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.plots import STYLES, light_frame, picture
from s3prl_ext.models.architectures import PARTS, encoder_layers, part_of

MODULE_NAMES = ("biases", "norms", *PARTS.values(), "other")  # names in the picture


@dataclass(frozen=True)
class LayerShares:
    """Trained weights of one task.

    Attributes:
        title: the task.
        changed: number of trained weights, by tensor name.
        sizes: number of weights of every eligible tensor, also of those without a trained one.
    """

    title: str
    changed: Mapping[str, int]
    sizes: Mapping[str, int]

    @property
    def density(self) -> float:
        """Share of all eligible weights that trained."""
        return sum(self.changed.values()) / sum(self.sizes.values())

    def by_layer(self) -> list[float]:
        """Return for each encoder layer the share of its weights that trained.

        Raises:
            DataError: no tensor belongs to a numbered layer.
        """
        table = self._table(lambda rest: "all")
        return [row["all"] for row in table]

    def by_module(self) -> tuple[list[str], np.ndarray]:
        """Return the modules that there are, and shares [modules, layers]; NaN where a layer lacks one."""
        table = self._table(module_of)
        names = [name for name in MODULE_NAMES if any(name in row for row in table)]
        return names, np.array([[row.get(name, np.nan) for row in table] for name in names])

    def _table(self, group: Any) -> list[dict[str, float]]:
        changed: dict[tuple[int, str], int] = {}
        sizes: dict[tuple[int, str], int] = {}
        for name, (layer, rest) in encoder_layers(self.sizes).items():
            key = layer, group(rest)
            sizes[key] = sizes.get(key, 0) + self.sizes[name]
            changed[key] = changed.get(key, 0) + self.changed.get(name, 0)
        if not sizes:
            raise DataError(f"{self.title}: no tensor is named like layers.0...., so there are no layers to draw.")
        table: list[dict[str, float]] = [{} for _ in range(1 + max(layer for layer, _ in sizes))]
        for (layer, part), size in sizes.items():
            table[layer][part] = changed[layer, part] / size
        return table


def module_of(rest: str) -> str:
    """Return the module of :data:`MODULE_NAMES` that a tensor belongs to, by its name within its layer."""
    if rest.endswith(".bias"):
        return "biases"
    if "norm" in rest:
        return "norms"
    part = part_of(rest)
    return PARTS[part] if part else "other"


def plot_layer_shares(tasks: Sequence[LayerShares], path: str | os.PathLike[str], title: str) -> None:
    """Draw share by layer for all tasks, and by module and layer for each, into a PNG file.

    Args:
        tasks: at most eight.
        path: the PNG file, which appears only when it is complete.
        title: which upstream, which density.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    widths = [1.15] + [1.0] * len(tasks)
    with picture(path, (4.6 + 3.6 * len(tasks), 4.0), len(widths), title, width_ratios=widths) as (figure, parts):
        for task, (colour, line, marker) in zip(tasks, STYLES, strict=False):
            shares = 100 * np.array(task.by_layer())
            parts[0].plot(range(len(shares)), shares, color=colour, linestyle=line, marker=marker, label=task.title)
        parts[0].axhline(100 * tasks[0].density, color="black", linestyle=":", linewidth=1, label="mean")
        parts[0].set(title="by layer", xlabel="encoder layer (from 0)", ylabel="weights that trained (%)")
        parts[0].set_ylim(bottom=0)
        parts[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        light_frame(parts[0])
        parts[0].legend(frameon=False, fontsize=8)
        tables = [task.by_module() for task in tasks]
        positive = np.concatenate([100 * table[table > 0] for _, table in tables])
        scale = LogNorm(positive.min(), positive.max()) if positive.size else None
        for axes, task, (names, table) in zip(parts[1:], tasks, tables, strict=True):
            shades = axes.imshow(np.where(table > 0, 100 * table, np.nan), cmap="gray_r", norm=scale, aspect="auto")
            axes.set(title=f"{task.title}, by module", xlabel="encoder layer (from 0)")
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if positive.size:
            figure.colorbar(shades, ax=parts[1:], label="weights that trained (%), white: none")
