"""Sets of layers as they are written everywhere: ``all``, ``12-19``, ``0-3,8``, a list; 0-based, both ends included."""

from __future__ import annotations

import re
from typing import Any

from s3prl_ext.errors import UsageError

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def parse_layers(value: Any, depth: int | None, where: str = "layers") -> tuple[int, ...]:
    """Return the layer indices that `value` names, sorted: 0-based, ranges inclusive, as in the paper's Table 2.

    Args:
        value: ``all``, ``none``, an index, a range ``12-19``, a mixture ``0-3,8``, or a list of these.
        depth: number of layers; None checks the form only and takes ``all`` for no layers.

    Raises:
        UsageError: malformed, a range that runs backwards, or a layer that is not there.
    """
    if value == "all":
        return tuple(range(depth or 0))
    if value in ("none", []):
        return ()
    items = value if isinstance(value, (list, tuple)) else [value]
    layers: set[int] = set()
    for part in [part.strip() for item in items for part in str(item).split(",")]:
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(
                f"{where}: '{part}' is neither a layer index nor a range: write all, 12-19, 0-3,8 or a list."
            )
        if depth is not None and last >= depth:
            raise UsageError(f"{where}: layer {last} is out of range: {depth} layers are numbered 0-{depth - 1}.")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))
