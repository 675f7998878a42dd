"""Settings as data: a frozen dataclass whose fields carry their checks, and one function that reads it from a mapping.

::

    @dataclass(frozen=True)
    class EarlyStopConfig:
        ratio: Annotated[float, number(above=0, most=1)] = 0.1
        keep: Annotated[int, count()] = 1

    load(EarlyStopConfig, {"ratio": 2, "kep": 1}, "early_stop")
    # UsageError: early_stop: unknown key 'kep'; did you mean 'keep'? ... early_stop.ratio must be in (0, 1], got 2.

Every rule has one wording, and one error names everything that is wrong. ``null`` means the default. Numbers may be
strings, because YAML reads ``1e-4`` as one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from s3prl_ext.errors import UsageError, nearest, unknown_name
from s3prl_ext.layer_sets import parse_layers

T = TypeVar("T")
P = TypeVar("P")

Check = Callable[[Any, str], Any]
"""Takes a value and its place, such as ``tuning.density``; returns the value in its type or raises a UsageError."""


class Problems(list[str]):
    """Sentences about what is wrong, collected so that one error reports all of them."""

    def attempt(self, parse: Callable[..., P], *arguments: Any) -> P | None:
        """Return what `parse` returns, or None where it complains."""
        try:
            return parse(*arguments)
        except UsageError as error:
            self.append(str(error))
            return None

    def raise_lines(self) -> None:
        """Raise all of them, one per line and each once, if there are any."""
        if self:
            raise UsageError("\n".join(dict.fromkeys("\n".join(self).splitlines())))


def number(*, above: float | None = None, least: float | None = None, most: float | None = None) -> Check:
    """Return the check for a finite number within bounds."""

    def read(value: Any, where: str) -> float:
        found = as_number(value, where)
        low = (above is None or found > above) and (least is None or found >= least)
        if not low or not (most is None or found <= most):
            raise UsageError(f"{where} must be {_bounds(above, least, most)}, got {found:g}.")
        return found

    return read


def count(least: int = 1, most: int | None = None) -> Check:
    """Return the check for a whole number of at least `least`, and at most `most`."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(value: Any, where: str) -> int:
        rule = f"{where} must be a whole number {bounds}"
        try:
            found = as_number(value, where)
        except UsageError:
            raise UsageError(f"{rule}, got {value!r}.") from None
        if found < least or found != int(found) or not (most is None or found <= most):
            raise UsageError(f"{rule}, got {found:g}.")
        return int(found)

    return read


def choice(*names: str | Collection[str]) -> Check:
    """Return the check for one of some names, or of those of one table, which may still grow."""
    known = cast(Collection[str], names[0] if len(names) == 1 and not isinstance(names[0], str) else names)

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise UsageError(f"{where} must be one of {', '.join(sorted(known))}, got {value!r}.")
        if value not in known:
            place, _, key = where.rpartition(".")
            raise unknown_name(key, str(value), known, where=place)
        return value

    return read


def switch() -> Check:
    """Return the check for true or false."""

    def read(value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise UsageError(f"{where} must be true or false, got {value!r}.")
        return value

    return read


def name() -> Check:
    """Return the check for a single name."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise UsageError(f"{where} must be a name, got {value!r}.")
        return value

    return read


def names(example: str = "", least: int = 1) -> Check:
    """Return the check for a list of at least `least` names; a single name is a list of one."""

    def read(value: Any, where: str) -> tuple[str, ...]:
        listed = [value] if isinstance(value, str) and value else value
        such = f" such as {example}" if example else ""
        if not isinstance(listed, (list, tuple)) or not all(isinstance(one, str) for one in listed):
            raise UsageError(f"{where} must be a list of names{such}, got {value!r}.")
        if len(listed) < least:
            raise UsageError(f"{where} is empty: name at least {least}{such}, or leave the key out.")
        return tuple(dict.fromkeys(listed))

    return read


def numbers(*, above: float | None = None) -> Check:
    """Return the check for a list of one or more numbers; a single number is a list of one."""
    each = number(above=above)

    def read(value: Any, where: str) -> tuple[float, ...]:
        listed = value if isinstance(value, (list, tuple)) else [value]
        if not listed:
            raise UsageError(f"{where} is empty: give at least one number.")
        return tuple(each(one, where) for one in listed)

    return read


def rising(example: str = "[1000, 3000]") -> Check:
    """Return the check for a list of whole numbers of at least 1, each above the one before.

    A single one is a list of one.
    """
    each = count()

    def read(value: Any, where: str) -> tuple[int, ...]:
        listed = value if isinstance(value, (list, tuple)) else [value]
        found = tuple(each(one, where) for one in listed)
        if not found or any(after <= before for before, after in itertools.pairwise(found)):
            raise UsageError(f"{where} must be rising whole numbers such as {example}, got {value!r}.")
        return found

    return read


def layers() -> Check:
    """Return the check for a set of layers, as 0-based numbers; None means ``all``."""

    def read(value: Any, where: str) -> tuple[int, ...] | None:
        if value == "all":
            return None
        chosen = parse_layers(value, None, where)
        if not chosen:
            raise UsageError(f"{where} names no layer: write all, 8-11, 0-3,8 or a list.")
        return chosen

    return read


def path() -> Check:
    """Return the check for a file or folder; ``~`` is the home folder."""

    def read(value: Any, where: str) -> Path:
        if not isinstance(value, (str, Path)) or not str(value):
            raise UsageError(f"{where} must be a path, got {value!r}.")
        return Path(value).expanduser()

    return read


def with_kind(value: Any, where: str, forms: str, kinds: Iterable[str]) -> Mapping[str, Any]:
    """Return a section that may be written as its kind alone, such as ``noise: source``, as a mapping with ``kind``.

    Args:
        forms: how it may be written, for the message.
        kinds: those that there are.

    Raises:
        UsageError: it is neither, or does not name its kind.
    """
    content = {"kind": value} if isinstance(value, str) else value
    if not isinstance(content, Mapping):
        raise UsageError(f"{where} must be {forms}, got {value!r}.")
    if "kind" not in content:
        raise UsageError(f"{where}.kind is missing: give one of {', '.join(kinds)}.")
    return content


def load(
    cls: type[T],
    mapping: Any,
    where: str,
    *,
    example: str = "",
    problems: list[str] | None = None,
) -> T:
    """Return an instance of a dataclass from a mapping.

    A field without a check takes its value as it is; one that is a dataclass is read from a mapping of its own. A
    method ``conflicts(where)`` of the class yields a sentence for everything that does not go together.

    Args:
        cls: the dataclass.
        mapping: names and values.
        where: place of the mapping, such as ``tuning.fisher``; it is the ``-o`` key as well.
        example: a suitable mapping, for the message.
        problems: where given, sentences are appended to it for a caller who raises them together with others, and what
            is returned holds defaults (or None) in place of the wrong values.

    Raises:
        UsageError: with all problems, unless `problems` is given.
    """
    found = Problems()
    if not isinstance(mapping, Mapping):
        such = f" such as {example}" if example else ""
        found.append(f"{where} must be a mapping{such}, got {mapping!r}.")
        mapping = {}
    checks = _checks(cast(Any, cls))
    found += unknown_keys(mapping, checks, where)
    values: dict[str, Any] = {}
    for key, check in checks.items():
        if mapping.get(key) is not None:
            try:
                values[key] = check(mapping[key], f"{where}.{key}")
            except UsageError as error:
                found.append(str(error))
    absent = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]  # type: ignore[arg-type]
    found += [f"{where}.{key} is missing." for key in absent if mapping.get(key) is None]
    if problems is None:
        raise_all(found)
    instance = cls(**{**dict.fromkeys(absent), **values})
    if not found and hasattr(instance, "conflicts"):
        found += instance.conflicts(where)
    if problems is None:
        raise_all(found)
    else:
        problems += found
    return instance


def check_fields(instance: Any, where: str) -> None:
    """Check the fields of a frozen dataclass that was made by hand, and give them their types; for ``__post_init__``.

    Raises:
        UsageError: with all problems.
    """
    found: list[str] = []
    for key, check in _checks(cast(Any, type(instance))).items():
        if (value := getattr(instance, key)) is not None:
            try:
                object.__setattr__(instance, key, check(value, f"{where}.{key}"))
            except UsageError as error:
                found.append(str(error))
    raise_all(found)


def unknown_keys(mapping: Mapping[str, Any], known: Iterable[str], where: str) -> list[str]:
    """Return a sentence for each key of a mapping that is not known, with the nearest known one."""
    known = sorted(known)
    return [
        f"{where}: unknown key '{key}'{nearest(key, known)} Known: {', '.join(known)}."
        for key in mapping
        if key not in known
    ]


def raise_all(problems: Iterable[str]) -> None:
    """Raise one UsageError with all problems, if there are any."""
    if problems := list(problems):
        raise UsageError(" ".join(p if p.endswith((".", "?")) else p + "." for p in problems))


def as_number(value: Any, where: str) -> float:
    """Return `value` as a float; numeric strings count.

    Raises:
        UsageError: `value` is not a number, or not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f"{where} must be a number, got {value!r}.")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{where} must be a number, got {value!r}.") from None
    if not math.isfinite(found):
        raise UsageError(f"{where} must be a finite number, got {found:g}.")
    return found


def _bounds(above: float | None, least: float | None, most: float | None) -> str:
    if most is None:
        return f"above {above:g}" if above is not None else f"at least {least:g}"
    if above is None and least is None:
        return f"at most {most:g}"
    return f"in {f'({above:g}' if above is not None else f'[{least:g}'}, {most:g}]"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _checks(cls: Any) -> dict[str, Check]:
    """Return the check of each field of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: _check_of(hints[field.name]) for field in dataclasses.fields(cls)}


def _check_of(hint: Any) -> Check:
    if typing.get_origin(hint) is Annotated:
        return next(part for part in hint.__metadata__ if callable(part))
    if dataclasses.is_dataclass(hint):
        return lambda value, where: load(cast(type, hint), value, where)
    return lambda value, where: value
