"""Single values of a task file, read with their problems collected, so that one message can report them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_ext.configs import as_number
from s3prl_ext.errors import UsageError, unknown_name


def raise_all(problems: list[str]) -> None:
    """Raise one UsageError with all `problems`, if there are any."""
    if problems:
        raise UsageError(" ".join(p if p.endswith((".", "?")) else p + "." for p in problems))


def read_names(value: Any, where: str, problems: list[str]) -> tuple[str, ...]:
    """Return a name or a list of names as a tuple; an empty value gives an empty one."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        problems.append(f"{where} must be a list of names, but is {value!r}.")
        return ()
    return tuple(names)


def read_number(value: Any, where: str, problems: list[str]) -> float | None:
    """Return a number, also from a string such as ``1e-5``."""
    try:
        return as_number(value, where)
    except UsageError as error:
        problems.append(str(error))
        return None


def read_positive(value: Any, where: str, problems: list[str]) -> float | None:
    """Return a number above 0."""
    number = read_number(value, where, problems)
    if number is not None and not number > 0:
        problems.append(f"{where} must be above 0, but is {number:g}.")
    return number


def read_count(value: Any, where: str, problems: list[str], least: int = 1) -> int | None:
    """Return a whole number of at least `least`."""
    number = read_number(value, where, problems)
    if number is None:
        return None
    if number < least or number != int(number):
        problems.append(f"{where} must be a whole number of at least {least}, but is {number:g}.")
        return None
    return int(number)


def read_choice(section: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str, problems: list[str]) -> str:
    """Return one of `choices`, by default the first."""
    value = section.get(key, choices[0])
    if value not in choices:
        problems.append(str(unknown_name(key, str(value), choices, where=where)))
    return value


def read_switch(section: Mapping[str, Any], key: str, default: bool, where: str, problems: list[str]) -> bool:
    """Return true or false."""
    value = section.get(key, default)
    if not isinstance(value, bool):
        problems.append(f"{where}.{key} must be true or false, but is {value!r}.")
    return bool(value)
