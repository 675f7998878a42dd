"""Checking the options of a method: each returns the value in its proper type or raises one clear sentence."""

from __future__ import annotations

import math
from typing import Any

from s3prl_ext.configs import as_number
from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers


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
        value: as for :func:`s3prl_ext.layer_sets.parse_layers`; None stands for ``all``.

    Raises:
        UsageError: anything else, or no layer.
    """
    if value is None or value == "all":
        return None
    layers = parse_layers(value, None, where)
    if not layers:
        raise UsageError(f"{where} names no layer: write all, 8-11, 0-3,8 or a list.")
    return layers
