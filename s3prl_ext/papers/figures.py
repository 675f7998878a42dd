"""Figures that the papers on MAM and AD-TUNING print, to print next to your own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from s3prl_ext.configs import load_yaml

FIGURES_FILE = Path(__file__).parent / "figures.yaml"


@functools.cache
def mam_tables() -> dict[str, Any]:
    """Return Tables 1, 2, 3, 5 and 6 of MAM; numbers are strings with the digits that are printed."""
    return {name: table for name, table in load_yaml(FIGURES_FILE).items() if name != "ad_tuning"}


@functools.cache
def ad_tuning_tables() -> dict[str, Any]:
    """Return Tables 1 and 2 of AD-TUNING; numbers are strings with the digits that are printed."""
    return load_yaml(FIGURES_FILE)["ad_tuning"]


def mam_figure(corpus: str, layers: str, noise: str | None, lambda_: float) -> str | None:
    """Return the test error (%) of one merge as printed, or None where the paper has none.

    Args:
        corpus: one of :data:`s3prl_ext.papers.names.MAM_CORPORA`.
        layers: ``all``, a block such as ``12-19``, or ``swd top-6``; anything for lambda 0.
        noise: ``source``, ``target``, ``standard``; None or ``none`` for the source itself.
    """
    tables, column = mam_tables(), noise or "none"
    if layers == "all" or lambda_ == 0.0:
        row = next((cells for key, cells in tables["table1"][corpus].items() if abs(key - lambda_) < 1e-9), None)
        return row[tables["table1"]["columns"].index(column)] if row else None
    if column != "none":
        return None
    block = tables["table2"][corpus]
    if layers in block and abs(block["lambda"] - lambda_) < 1e-9:
        return block[layers]
    metric, _, k = layers.partition(" top-")
    chosen = tables["table3"].get(corpus, {})
    if k.isdecimal() and metric in chosen and abs(chosen["lambda"] - lambda_) < 1e-9:
        return chosen[metric].get(int(k))
    return None
