"""Reading and checking configuration: YAML files, ``${VARIABLE}`` paths, known keys, where the shipped files are."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from s3prl_ext.errors import DataError, UsageError

Section = Mapping[str, Any]
"""A section of a YAML file, or a whole one, as it was read: its keys are checked by who reads it."""

Record = dict[str, Any]
"""Plain values under names, as they are stored: in a checkpoint, a result file, the metadata of a delta."""

PACKAGE_DIR = Path(__file__).resolve().parent
# each folder in here with an expert.py is a task, found by s3prl as s3prl.downstream.NAME
DOWNSTREAM_DIR = PACKAGE_DIR / "downstreams"

# ${NAME} or ${NAME:-default}; the default may not contain braces, so the innermost variable is expanded first.
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^${}]*))?\}")

MAX_VALUES = 100_000  # in one configuration; the largest that is shipped has 150

# keys of section downstream_expert whose values s3prl looks up as names of Python
PYTHON_NAMES = ("select", "pooling", "module", "agg_module", "utter_module", "ObjectiveLoss", "metric", "activation")

# Variables that are always there, unless the environment sets them: the shipped task files, and the folder of s3prl,
# which in a clone holds large files that its package lacks.
BUILT_IN = {
    "S3PRL_EXT_DOWNSTREAM_CONFIGS": lambda: shipped_dir("downstream_configs"),
    "S3PRL_PACKAGE": lambda: package_dir("s3prl"),
}


def shipped_dir(name: str) -> Path:
    """Return the folder ``upstream_configs``, ``downstream_configs`` or ``recipes`` that belongs to this installation.

    A wheel has it inside the package, a repository or editable install next to it.
    """
    for parent in (PACKAGE_DIR, PACKAGE_DIR.parent):
        if (parent / name).is_dir():
            return parent / name
    raise DataError(f"the folder '{name}' is missing from this installation of s3prl_ext: install the package again.")


def package_dir(name: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        DataError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise DataError(f"the package '{name}' is not installed: pip install {name}.")
    return Path(locations[0])


def load_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UsageError: the file is missing, is not YAML, has a key twice, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such configuration file: {path}.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except _KeyTwice as error:
        raise UsageError(f"{path}, {error}; keep one of the two.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from error
    check_size(content, str(path))
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping (key: value lines), but holds {type(content).__name__}.")
    return content


class UnsetVariable(UsageError):
    """An environment variable that a configuration needs is not set, or empty.

    Attributes:
        need: the first half of the message: the place, the variable, and what is wrong with it.
        name: of the variable.
    """

    def __init__(self, name: str, where: str, remedy: str) -> None:
        state = "empty" if name in os.environ else "not set"
        self.name, self.need = name, f"{where} needs the environment variable {name}, which is {state}"
        super().__init__(f"{self.need}: {remedy}")


class _KeyTwice(yaml.YAMLError):
    pass


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping that has a key twice: YAML itself would take the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping whose keys differ; raises yaml.YAMLError for another."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in lines:
                raise _KeyTwice(f"line {line}: the key '{key.value}' is there twice, first in line {lines[name]}")
            lines[name] = line
        return node


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text, read without executing any tag.

    Raises:
        yaml.YAMLError: it is not YAML, has a key twice in a mapping, or is nested too deeply.
    """
    try:
        return copy.deepcopy(_parsed(text))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


@functools.lru_cache(maxsize=64)  # the runs of a study begin with the same few files
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=UniqueKeys)


def check_size(content: Any, where: str) -> None:
    """Raise UsageError where a configuration is far larger than any.

    Few lines of aliases stand for billions of values.
    """
    try:
        count = _count(content, {})
    except RecursionError:
        count = None
    if count is None or count > MAX_VALUES:
        raise UsageError(
            f"{where} holds more than {MAX_VALUES:,} values, or is nested without end: this is not a configuration."
        )


def _count(value: Any, known: dict[int, int]) -> int:
    if not isinstance(value, (Mapping, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1  # what holds itself is endless
        items = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in items)
    return known[id(value)]


def value_at(section: Any, key: str) -> Any:
    """Return the value at a dotted key such as ``datarc.batch_size``; None where there is none."""
    for part in key.split("."):
        section = section.get(part) if isinstance(section, Mapping) else None
    return section


def expand_variables(value: Any, where: str = "config") -> Any:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in every string of a nested config by environment variables.

    The variables of :data:`BUILT_IN` are always there; an empty variable counts as not set. The input is left
    unchanged.

    Args:
        value: nested dicts, lists and scalars.
        where: dotted name of `value`, used in the error and as the key for ``-o``.

    Raises:
        UsageError: a variable is not set, or refers to itself; the message names it and the ``-o`` key that can replace
            it.
    """
    check_size(value, where)
    return _expand(value, where)


def _expand(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_expand(item, where) for item in value)
    return _expand_text(value, where, ()) if isinstance(value, str) else value


def _expand_text(text: str, where: str, inside: tuple[str, ...]) -> str:
    """Replace the variables of a text; `inside` are the variables whose values are being replaced."""

    def replace(match: re.Match) -> str:
        name, default = match.groups()
        if name in inside:
            raise UsageError(
                f"{where}: the environment variable {name} refers to itself ({' -> '.join((*inside, name))}); set it "
                "to a path."
            )
        if os.environ.get(name):
            return _expand_text(os.environ[name], where, (*inside, name))
        if name in BUILT_IN:
            return str(BUILT_IN[name]())
        if default is not None:
            return default
        raise UnsetVariable(
            name, where, f"`export {name}=/path/to/corpus`, or give the path itself with -o \"{where}='/path'\"."
        )

    while _VARIABLE.search(text):
        text = _VARIABLE.sub(replace, text)
    return text


def expand_known(value: Any) -> Any:
    """Return a section with the ``${VARIABLE}`` paths replaced whose variables are set; the others stay."""
    if isinstance(value, Mapping):
        return {key: expand_known(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(expand_known(item) for item in value)
    try:
        return expand_variables(value)
    except UsageError:
        return value


class Variables:
    """A task file with its ``${VARIABLE}`` paths expanded, which can be stored unexpanded again.

    Checkpoints hold the variables, not their values, so they can be used where the corpora are elsewhere.

    Attributes:
        expanded: a copy of the config with every variable replaced; it may be changed afterwards.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._raw = copy.deepcopy(dict(config))
        self._first = expand_variables(self._raw)
        self.expanded = copy.deepcopy(self._first)

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of `config` in which every value that came from a variable is that variable again."""
        return _restore(config, self._raw, self._first)


def _restore(now: Any, raw: Any, first: Any) -> Any:
    if isinstance(now, Mapping) and isinstance(raw, Mapping):
        return {k: _restore(v, raw[k], first[k]) if k in raw else copy.deepcopy(v) for k, v in now.items()}
    if isinstance(now, (list, tuple)) and isinstance(raw, (list, tuple)) and len(now) == len(raw):
        return type(now)(_restore(n, r, f) for n, r, f in zip(now, raw, first))
    return copy.deepcopy(raw if now == first else now)


def check_python_names(section: Any, where: str) -> None:
    """Raise UsageError where a section says something else than a name under a key of :data:`PYTHON_NAMES`.

    s3prl passes such text to ``eval``, and a task file may come with a checkpoint or a delta of somebody else.

    Args:
        section: mapping, list or value.
        where: its dotted name.
    """
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key in PYTHON_NAMES:
                for name in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(name, str) and not name.isidentifier():
                        raise UsageError(
                            f"config.{where}.{key} must be a name, got '{name[:80]}'; s3prl would run it as Python: "
                            "correct it, and do not trust the file if it is not yours."
                        )
            check_python_names(value, f"{where}.{key}")
    elif isinstance(section, (list, tuple)):
        for item in section:
            check_python_names(item, where)


def with_numbers(config: Mapping[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    """Return `config` with numeric strings of the named sections as floats: PyYAML reads ``lr: 1e-4`` as a string."""
    return {key: _numbers(value) if key in sections else value for key, value in config.items()}


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_numbers(item) for item in value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
