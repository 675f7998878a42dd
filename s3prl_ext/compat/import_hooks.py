"""Run functions around the import of named modules, now or whenever it happens.

DataLoader workers started with ``spawn`` or ``forkserver`` import only the dataset's module. Hooks keyed by module name
reach them too, whichever part of s3prl comes first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Hook = Callable[[ModuleType, Callable[[], None]], None]
"""A hook receives the module and a function that executes it, which it must call."""


class HookFinder:
    """Import finder that finds nothing itself but wraps the execution of modules that have hooks.

    Attributes:
        hooks: module name -> hooks; of several, the first one registered runs closest to the module.
    """

    def __init__(self) -> None:
        self.hooks: dict[str, list[Hook]] = {}

    def add(self, name: str, hook: Hook) -> None:
        """Run `hook` when module `name` is imported, or at once, with nothing to execute, if it is imported already."""
        self.hooks.setdefault(name, []).append(hook)
        if name in sys.modules:
            hook(sys.modules[name], lambda: None)

    def remove(self, name: str, hook: Hook) -> None:
        """Forget `hook`; what it did to a module that was imported before stays."""
        if hook in self.hooks.get(name, []):
            self.hooks[name].remove(hook)

    def find_spec(self, name: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that the other finders give, with the hooks of module `name` around its loader."""
        hooks = self.hooks.get(name)
        if not hooks:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        # The loaders of built-in and frozen modules are classes shared by all of them: leave those alone.
        if spec is not None and hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, type):
            self._wrap(spec, hooks)
        return spec

    @staticmethod
    def _wrap(spec: ModuleSpec, hooks: list[Hook]) -> None:
        """Shadow ``exec_module`` on this one loader; the attribute goes as soon as it has been used."""
        loader: Any = spec.loader
        execute_module = loader.exec_module

        def execute_with_hooks(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)
            execute = partial(execute_module, module)
            for hook in hooks if module.__name__ == spec.name else ():
                execute = partial(hook, module, execute)
            execute()

        loader.exec_module = execute_with_hooks


FINDER = HookFinder()


def activate() -> None:
    """Put the finder at the front of ``sys.meta_path``, where it stays."""
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
        importlib.invalidate_caches()


def after(action: Callable[[ModuleType], None]) -> Hook:
    """Make a hook that calls `action` with the module once it has been executed."""

    def hook(module: ModuleType, execute: Callable[[], None]) -> None:
        execute()
        action(module)

    return hook
