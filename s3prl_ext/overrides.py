"""The text of ``-g``, and the values of ``-o``.

``-g`` is a file and changes to it, ``my.yaml,,lambda=0.10,,layers=12-19,,target.ckpt=/path``. Values are YAML scalars
or flow lists; dots reach into sections and, by index from 0, into lists: ``sources.1.lambda=0.1``.
"""

from __future__ import annotations

import ast
import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from s3prl_ext.configs import UniqueKeys, parse_yaml
from s3prl_ext.errors import UsageError

SEPARATOR = ",,"


def split_options(text: str | os.PathLike[str] | None) -> tuple[str | None, dict[str, Any]]:
    """Split the text of ``-g`` into a file name (or None) and overrides ``dotted.key -> value``.

    Raises:
        UsageError: a part after the first is not ``key=value``, or its value is not YAML.
    """
    if text is None:
        return None, {}
    first, *rest = str(text).split(SEPARATOR)
    if "=" in first and not Path(first).is_file():
        first, rest = "", [first, *rest]
    overrides = dict(_parse_override(part) for part in rest if part.strip())
    return first.strip() or None, overrides


def _parse_override(part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"-g: '{part}' is not an override: write key=value, such as lambda=0.10 or target.ckpt=/path.")
    try:
        return key.strip(), parse_yaml(value)
    except yaml.YAMLError as error:
        raise UsageError(f"-g: the value of {key.strip()} is not readable as YAML: {value!r}.") from error


def apply_overrides(raw: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a copy of `raw` with each dotted key set; sections that are missing are made.

    Raises:
        UsageError: a dotted key reaches into something that is not a section.
    """
    result = copy.deepcopy(raw)
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        place: Any = result
        for section in sections:
            key = _key(place, section, dotted, where)
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[key]
            if not isinstance(place, (dict, list)):
                raise UsageError(f"-g: {dotted} cannot be set: '{section}' is not a section of {where}.")
        place[_key(place, last, dotted, where)] = value
    return result


def _key(place: dict[str, Any] | list[Any], name: str, dotted: str, where: str) -> Any:
    """Return the key of a mapping, or the index of a list, that a part of a dotted key names."""
    if isinstance(place, dict):
        return name
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    raise UsageError(f"-g: {dotted} cannot be set: '{name}' is not an item of a list of {len(place)} in {where}.")


# -- values of -o ----------------------------------------------------------------------------------------------------

_WORDS = {"true": True, "false": False, "null": None}
_AMBIGUOUS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # YAML 1.1 takes them for true and false
_KINDS = ((bool, "true or false"), ((int, float), "a number"), ((list, tuple), "a list such as [a, b]"),
          (Mapping, "a mapping such as {a: 1}"))  # fmt: skip


def parse_value(text: str, where: str) -> Any:
    """Return what a value of ``-o`` means: a Python literal, else a word, list or mapping of YAML, else the text.

    So ``1e-3`` is a number, ``None`` and ``null`` are nothing, ``false`` is false and ``[dev, 'test-clean']`` a list.
    What only YAML takes for something else than text, such as ``2024-01-31``, ``1:30`` or ``~``, is text.

    Args:
        text: the value as written.
        where: its key, for the message.

    Raises:
        UsageError: it begins as a list or mapping and cannot be read, or is yes, no, on or off without quotes.
    """
    text = text.strip()
    try:
        return _literal(text)
    except ValueError:
        pass
    try:
        value = yaml.load(text, Loader=_Flow) if text.startswith(("[", "{")) else _word(text)
        _literal(repr(value))  # else s3prl could not be told: a number beyond all bounds in a list
    except UsageError as error:
        raise UsageError(f"-o {where}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"-o {where}: '{text[:80]}' is not readable: a list is [a, b], a mapping {{a: 1}}, and a text that begins "
            "so needs quotes of its own."
        ) from error
    return value


def as_literal(text: str, where: str) -> str:
    """Return a value of ``-o`` as s3prl reads it, which takes ``false`` for a text: as a Python literal.

    Args and errors are those of :func:`parse_value`.
    """
    try:
        _literal(text)
        return text
    except ValueError:
        return repr(parse_value(text, where))


def check_kind(value: Any, before: Any, where: str) -> None:
    """Refuse a text in place of a bool, number, list or mapping: s3prl would take 'no' for true.

    Args:
        value: of ``-o``.
        before: what it replaces.
        where: its key, such as ``args.seed``.

    Raises:
        UsageError: it is a text, or holds one, in such a place.
    """
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        for key in value.keys() & before.keys():
            check_kind(value[key], before[key], f"{where}.{key}")
    if isinstance(value, str):
        for kind, name in _KINDS:
            if isinstance(before, kind):
                raise UsageError(f"-o {where} must be {name}, got '{value}'.")


def _literal(text: str) -> Any:
    """Return the value of a Python literal; raises ValueError for any other text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a backslash in a path
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(text) from error


def _word(text: str) -> Any:
    word = text.lower()
    if word in _AMBIGUOUS:
        raise UsageError(
            f"{text} may mean {_AMBIGUOUS[word]} or a text: write {_AMBIGUOUS[word]}, or '{text}' in quotes."
        )
    return _WORDS.get(word, text)


class _Flow(UniqueKeys):
    """YAML whose plain scalars are read as other values of ``-o``, and whose quoted ones are text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Return the value of a scalar."""
        if node.style is not None:
            return node.value
        try:
            return _literal(node.value)
        except ValueError:
            return _word(node.value)


_Flow.add_constructor("tag:yaml.org,2002:str", _Flow.scalar)
