"""The text of ``-g``: a file and changes to it, ``my.yaml,,lambda=0.10,,layers=12-19,,target.ckpt=/path``.

Values are YAML scalars or flow lists; dots reach into sections and, by index from 0, into lists:
``sources.1.lambda=0.1``.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import yaml

from s3prl_ext.configs import parse_yaml
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
