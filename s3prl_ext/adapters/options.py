"""Checking the options of a method: each returns the value in its proper type or raises one clear sentence."""

from __future__ import annotations

import math
import re
from typing import Any

from s3prl_ext.configs import as_number
from s3prl_ext.errors import UsageError

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def positive_integer(value: Any, where: str) -> int:
    """Return a whole number of at least 1; numeric strings count.

    Raises:
        UsageError: anything else.
    """
    number = as_number(value, where)
    if not math.isfinite(number) or number < 1 or number != int(number):
        raise UsageError(f"{where} must be a whole number of at least 1, but is {number:g}.")
    return int(number)


def positive(value: Any, where: str) -> float:
    """Return a finite number above 0.

    Raises:
        UsageError: anything else.
    """
    number = as_number(value, where)
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f"{where} must be a number above 0, but is {number:g}.")
    return number


def switch(value: Any, where: str) -> bool:
    """Return true or false.

    Raises:
        UsageError: anything else.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{where} must be true or false, but is {value!r}.")
    return value


def names(value: Any, where: str, example: str) -> tuple[str, ...]:
    """Return a name or a list of names as a tuple without repetitions.

    Args:
        value: what stands in the task file.
        where: its key.
        example: a suitable list, for the message.

    Raises:
        UsageError: empty, or anything else.
    """
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(name, str) for name in listed):
        raise UsageError(f"{where} must be a list of names such as {example}, but is {value!r}.")
    return tuple(dict.fromkeys(listed))


def layer_set(value: Any, where: str) -> tuple[int, ...] | None:
    """Return 0-based layer numbers, or None for ``all``.

    Args:
        value: ``all``, a number, ``12-19`` with both ends included, ``0-3,8``, or a list of these.

    Raises:
        UsageError: anything else.
    """
    if value is None or value == "all":
        return None
    items = value if isinstance(value, (list, tuple)) else [value]
    layers: set[int] = set()
    for part in [part.strip() for item in items for part in str(item).split(",")]:
        match = _RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UsageError(f"{where}: '{part}' is no layer and no range: write all, 8-11, 0-3,8 or a list.")
        layers.update(range(first, last + 1))
    if not layers:
        raise UsageError(f"{where} names no layer: write all, 8-11, 0-3,8 or a list.")
    return tuple(sorted(layers))
