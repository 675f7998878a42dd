"""What a merge did: one row per merged tensor and source, and its rendering as a table for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s3prl_ext.tables import columns


@dataclass(frozen=True)
class MergeRow:
    """One tensor of one source.

    Attributes:
        layer: 0-based index in the target.
        projection: ``q_proj``, ``k_proj`` or ``v_proj``, with ``.bias`` for a bias.
        lambda_: weight of the source.
        relative_change: ||merged - target|| / ||target||, Frobenius norm, with all sources merged.
        source: name of the source.
        source_layer: its layer.
        kept: Frobenius norm of the source's tensor after its projection over that before; None where it was not
            projected.
    """

    layer: int
    projection: str
    lambda_: float
    relative_change: float
    source: str
    source_layer: int
    kept: float | None = None


def format_table(rows: Sequence[MergeRow]) -> str:
    """Return the rows as an aligned text table; one sentence where nothing was merged.

    Sources are shown where there are several, their layers where they are not the target's, what is kept of their norm
    where they were projected.
    """
    if not rows:
        return "nothing merged: lambda is 0 everywhere, or no layer is chosen"
    shown = {"layer": [str(row.layer) for row in rows], "projection": [row.projection for row in rows]}
    if len({row.source for row in rows}) > 1:
        shown["source"] = [row.source for row in rows]
    if any(row.source_layer != row.layer for row in rows):
        shown["source layer"] = [str(row.source_layer) for row in rows]
    shown["lambda"] = [f"{row.lambda_:g}" for row in rows]
    shown["relative change"] = [f"{row.relative_change:.4f}" for row in rows]
    if any(row.kept is not None for row in rows):
        shown["norm kept"] = ["" if row.kept is None else f"{row.kept:.4f}" for row in rows]
    return "\n".join(columns([tuple(shown), *zip(*shown.values(), strict=True)], right=True))
