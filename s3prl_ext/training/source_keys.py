"""The keys that a task reads its settings by, as its source tells.

A key counts where the source reads it: ``section["k"]``, ``section.get("k")`` and ``.pop("k")``, a parameter that
``**section`` fills, a field of a dataclass, an attribute of a ``Namespace(**section)``, or a class, whose section has
its name. The source is read and not run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from s3prl_ext.compat.import_hooks import FINDER
from s3prl_ext.compat.shim import Shim
from s3prl_ext.configs import PACKAGE_DIR, package_dir

EXPERT = "DownstreamExpert"
READERS = ("get", "pop", "setdefault")
SPLIT = r"(?:train|dev|test|valid|eval)(?:-\w+)*"  # what a key of the variables below may be
SPLIT_VARIABLES = ("split", "mode")
NAMESPACES = ("args", "config", "hparams")  # ends of the names of variables that hold a Namespace

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class TaskKeys:
    """What a task may read.

    Attributes:
        names: keys below ``downstream_expert``, of any section.
        patterns: regular expressions of keys that are put together from the name of a split.
        sections: names that its expert takes, as arguments or out of the rest of them; None where another package's
            class takes them.
        complete: whether these are all; not where the source hands a section on to something that is not in it.
        known: whether it is a task of s3prl or of this package: all of its keys are written out in its source.
    """

    names: set[str] = field(default_factory=set)
    patterns: set[str] = field(default_factory=set)
    sections: set[str] | None = field(default_factory=set)
    complete: bool = True
    known: bool = True

    def names_key(self, key: str) -> bool:
        """Tell whether the source reads a key of this name."""
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
    files = [_parse(path) for path in _files(task, folder)]
    return _Reader(files, [_parse(path) for path in _shims(task)], known=_is_known(folder)).keys


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


class _Reader:
    """Collects the keys of some source files.

    Args:
        files: of the task.
        shims: hooked on it: what they read counts, not what their classes and functions are called with.
        known: whether every callee of ``**section`` that the files do not name is one of their classes.
    """

    def __init__(self, files: list[ast.Module], shims: list[ast.Module], known: bool) -> None:
        self.keys = TaskKeys(known=known)
        nodes = [node for tree in files for node in ast.walk(tree)]
        every = [*nodes, *(node for tree in shims for node in ast.walk(tree))]
        self.constants = {
            target.id: node.value.value
            for node in every
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }
        self.classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.keys.names |= set(self.classes)  # a section of the name that another key selects
        self.functions = {node.name: node for node in nodes if isinstance(node, Function)}
        self.aliases = _aliases(nodes)
        self.written = _written_out(nodes)
        self.has_namespace = False
        for node in every:
            self._read(node, self.keys)
        for node in nodes:
            self._filled(node)
        for node in nodes if self.has_namespace else ():
            self._attribute(node)
        self.keys.sections = self._sections()

    def _read(self, node: ast.AST, keys: TaskKeys) -> None:
        """Count a key that an expression reads; a loop over written-out names reads each of them."""
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Store):
            self._key(node.slice, keys)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in READERS:
                self._key(node.args[0], keys)
        elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.iter, (ast.Tuple, ast.List)):
            for one in node.iter.elts:
                self._key(one, keys)

    def _key(self, node: ast.AST, keys: TaskKeys) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            keys.names.add(node.value)
        elif isinstance(node, ast.Name) and node.id in self.constants:
            keys.names.add(self.constants[node.id])
        elif isinstance(node, ast.Name) and node.id in SPLIT_VARIABLES:
            keys.patterns.add(SPLIT)
        elif isinstance(node, ast.JoinedStr) and any(isinstance(part, ast.Constant) for part in node.values):
            parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else SPLIT for p in node.values]
            keys.patterns.add("".join(parts))

    def _filled(self, node: ast.AST) -> None:
        """Count the parameters that ``**section`` may fill, and the fields of dataclasses."""
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(one) for one in node.decorator_list):
            self.keys.names |= _fields(node)
        if not isinstance(node, ast.Call):
            return
        spread = [keyword.value for keyword in node.keywords if keyword.arg is None]
        if all(isinstance(value, ast.Name) and value.id in self.written for value in spread):
            return
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        names = self.aliases.get(name, {name})
        if "Namespace" in names:
            self.has_namespace = True
        elif found := [one for one in names if one in self.classes or (one in self.functions and one != "__init__")]:
            for one in found:
                self.keys.names |= self._parameters(one)
        else:  # a name in a variable, or super()
            self.keys.complete = self.keys.complete and self.keys.known
            for one in self.classes:
                self.keys.names |= self._parameters(one)

    def _parameters(self, name: str) -> set[str]:
        """Return the names of what a class of the task is made with, or a function called with."""
        if name not in self.classes:
            return _arguments(self.functions[name])
        made = _method(self.classes[name], "__init__")
        if made is not None:
            return _arguments(made)
        bases = [base.id for base in self.classes[name].bases if isinstance(base, ast.Name)]
        return {key for base in bases if base in self.classes and base != name for key in self._parameters(base)}

    def _attribute(self, node: ast.AST) -> None:
        """Count an attribute that a Namespace may have."""
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return
        if node.value.id.endswith(NAMESPACES) or not self.keys.known:
            self.keys.names.add(node.attr)

    def _sections(self) -> set[str] | None:
        """Return what the expert, and the classes that it is made of, take of the task file."""
        found: set[str] = set()
        waiting, seen = [EXPERT], {"Module"}  # torch's
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name not in self.classes:
                return None
            expert = self.classes[name]
            waiting += [getattr(base, "id", getattr(base, "attr", "")) for base in expert.bases]
            made = _method(expert, "__init__")
            if made is not None:
                found |= _arguments(made) | self._taken(made)
        return found

    def _taken(self, made: Function) -> set[str]:
        """Return the names that a function reads from its ``**kwargs``."""
        rest = made.args.kwarg.arg if made.args.kwarg else None
        taken = TaskKeys()
        for node in ast.walk(made):
            receiver: ast.AST | None = None
            if isinstance(node, ast.Subscript):
                receiver = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                receiver = node.func.value
            if isinstance(receiver, ast.Name) and receiver.id == rest:
                self._read(node, taken)
        return taken.names


def _aliases(nodes: Iterable[ast.AST]) -> dict[str, set[str]]:
    """Return what the names of ``import ... as NAME`` stand for."""
    found: dict[str, set[str]] = {}
    for node in nodes:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if alias.asname:
                found.setdefault(alias.asname, set()).add(alias.name)
    return found


def _written_out(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the variables that only ever hold dictionaries whose keys are written out: no section fills them."""
    values: dict[str, list[ast.AST]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
        if isinstance(node, ast.arguments):
            for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs, node.kwarg):
                if argument is not None:
                    values.setdefault(argument.arg, []).append(argument)
    return {
        name
        for name, assigned in values.items()
        if all(isinstance(value, ast.Dict) and None not in value.keys for value in assigned)
    }


def _fields(node: ast.ClassDef) -> set[str]:
    return {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}


def _method(node: ast.ClassDef, name: str) -> Function | None:
    return next((one for one in node.body if isinstance(one, Function) and one.name == name), None)


def _arguments(node: Function) -> set[str]:
    arguments = node.args
    return {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - {"self"}
