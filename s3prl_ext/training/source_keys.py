"""The keys that a task may read its settings by, as far as its source tells.

s3prl's tasks take their section apart in many ways: ``section["k"]``, ``section.get("k")``, a parameter that
``**section`` fills, an attribute of a ``Namespace(**section)``, a class whose section has its name. So a key counts
where its name stands in the source in one of these places, whatever reads it: too many rather than too few. What is in
a section that goes to another package as a whole is not judged. The source is read and not run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.compat.import_hooks import FINDER
from s3prl_ext.compat.shim import Shim
from s3prl_ext.configs import PACKAGE_DIR, package_dir

SPLIT = r"(?:train|dev|test|valid|eval)(?:-\w+)*"  # what a key of the variables below may be
SPLIT_VARIABLES = ("split", "mode")


@dataclass(frozen=True)
class TaskKeys:
    """What a task may read.

    Attributes:
        names: text constants, parameters, fields, classes and attributes of its source.
        patterns: regular expressions of keys that are put together from the name of a split.
        handed_on: names of the sections that go as a whole to something that is not in the source.
        known: whether it is a task of s3prl or of this package, whose sections are called what its variables are.
    """

    names: frozenset[str]
    patterns: frozenset[str]
    handed_on: frozenset[str]
    known: bool

    def may_read(self, path: Sequence[str]) -> bool:
        """Tell whether the task may read a key, given with the sections that it is in below ``downstream_expert``."""
        *sections, key = path
        passed = self.handed_on.intersection(sections) if self.known else self.handed_on
        return bool(passed) or self.names_key(key)

    def names_key(self, key: str) -> bool:
        """Tell whether the source names a key, or what may be a section of its own."""
        return key in self.names or any(re.fullmatch(pattern, key) for pattern in self.patterns)


def keys_of(task: str) -> TaskKeys | None:
    """Return what a task may read, or None where there is no source.

    Args:
        task: name for ``-d``.
    """
    spec = importlib.util.find_spec(f"s3prl.downstream.{task}")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [] if spec else [])]
    return next((_keys(task, folder) for folder in folders if any(folder.rglob("*.py"))), None)


@functools.cache
def _keys(task: str, folder: Path) -> TaskKeys:
    own = [node for path in _files(task, folder) for node in ast.walk(_parse(path))]
    nodes = [*own, *(node for path in _shims(task) for node in ast.walk(_parse(path)))]
    return TaskKeys(
        names=frozenset(name for node in nodes for name in _names(node)),
        patterns=frozenset(pattern for node in nodes for pattern in _patterns(node)),
        handed_on=frozenset(_handed_on(own, known=_is_known(folder))),
        known=_is_known(folder),
    )


@functools.cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # of another Python, or a template: nothing can import it
        return ast.Module([], [])


def _is_known(path: Path) -> bool:
    """Tell whether a file is s3prl's or ours, whose ways to read a section are all of those above."""
    return any(package in path.parents for package in (PACKAGE_DIR, package_dir("s3prl")))


def _files(task: str, folder: Path) -> list[Path]:
    """Return the files of a task: those in its folder, what they import of its package, and of s3prl's tasks."""
    stand_ins = PACKAGE_DIR / "compat" / task  # for files that s3prl's package lacks
    found = [*sorted(folder.rglob("*.py")), *sorted(stand_ins.rglob("*.py"))]
    stock = package_dir("s3prl") / "downstream"
    package = folder.parent
    while not _is_known(folder) and (package.parent / "__init__.py").is_file():
        package = package.parent
    for path in found:  # grows meanwhile
        for module in _imported(path):
            inside = package in module.parents or stock in module.parents
            if inside and module not in found:
                found.append(module)
    return found


def _imported(path: Path) -> Iterator[Path]:
    """Yield the files that a source file imports, as far as they are next to it, in its package, or in s3prl's."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            names = [start, *(f"{start}.{alias.name}".strip(".") for alias in node.names)]
        else:
            continue
        level = node.level if isinstance(node, ast.ImportFrom) else 0
        places = [path.parents[level - 1]] if level else [package_dir("s3prl").parent, *path.parents]
        for name in filter(None, names):
            for place in places:
                stem = place.joinpath(*name.split("."))
                yield from (file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file())


def _shims(task: str) -> Iterator[Path]:
    """Yield the files of the shims that are hooked on the modules of a task."""
    module = f"s3prl.downstream.{task}"
    hooks = [hook for name in FINDER.hooks if f"{name}.".startswith(f"{module}.") for hook in FINDER.hooks[name]]
    applied = [shim.apply for hook in hooks if isinstance(shim := getattr(hook, "__self__", None), Shim)]
    codes = [getattr(getattr(apply, "func", apply), "__code__", None) for apply in applied]
    yield from dict.fromkeys(Path(code.co_filename) for code in codes if code is not None)


def _names(node: ast.AST) -> Iterator[str]:
    """Yield what a node of a source may call a key."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.ClassDef):
        yield node.name
        fields = (one.target for one in node.body if isinstance(one, ast.AnnAssign))
        yield from (field.id for field in fields if isinstance(field, ast.Name))
    elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
        yield node.attr


def _patterns(node: ast.AST) -> Iterator[str]:
    """Yield what a key that is a variable, or made of one, may be."""
    if not isinstance(node, ast.Subscript):
        return
    if isinstance(node.slice, ast.Name) and node.slice.id in SPLIT_VARIABLES:
        yield SPLIT
    elif isinstance(node.slice, ast.JoinedStr):
        yield "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else SPLIT for p in node.slice.values)


def _handed_on(nodes: list[ast.AST], known: bool) -> Iterator[str]:
    """Yield the names in what goes as ``**section`` to a Namespace, or to what the source only imports.

    Args:
        known: whether what a variable holds, or ``eval`` gives, is a class or function of the source.
    """
    defined = {node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    imported = {
        alias.asname or alias.name: alias.name.rpartition(".")[2]
        for node in nodes
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        callee, root = call.func, call.func
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name):  # super(), eval(...), or what a call returns
            elsewhere = not known and not isinstance(callee, ast.Attribute)
        elif root.id in imported:
            elsewhere = imported[root.id] not in defined or root is not callee
        else:
            elsewhere = not known and root.id not in {*defined, "self"}
        for spread in (keyword.value for keyword in call.keywords if keyword.arg is None and elsewhere):
            yield from _words(spread)


def _words(expression: ast.AST) -> Iterator[str]:
    for node in ast.walk(expression):
        word = getattr(node, "id", getattr(node, "attr", getattr(node, "value", None)))
        if isinstance(word, str):
            yield word
