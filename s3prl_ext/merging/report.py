"""What a merge did: one row per merged tensor, and its rendering as a table for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADER = ("layer", "projection", "lambda", "relative change")


@dataclass(frozen=True)
class MergeRow:
    """One merged tensor.

    Attributes:
        layer: 0-based index.
        projection: ``q_proj``, ``k_proj`` or ``v_proj``, with ``.bias`` for a bias.
        lambda_: weight of the source.
        relative_change: ||merged - target|| / ||target||, Frobenius norm.
    """

    layer: int
    projection: str
    lambda_: float
    relative_change: float


def format_table(rows: Sequence[MergeRow]) -> str:
    """Return the rows as an aligned text table; one sentence where nothing was merged."""
    if not rows:
        return "nothing merged: lambda is 0 everywhere, or no layer is chosen"
    cells = [HEADER]
    cells += [(str(r.layer), r.projection, f"{r.lambda_:g}", f"{r.relative_change:.4f}") for r in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)
