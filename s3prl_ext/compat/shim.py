"""What a shim is: one repair of one module, applied only where it is needed, with its reason and its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from s3prl_ext.compat.import_hooks import FINDER

STATES: dict[str, str] = {}
"""Name of a shim -> ``"active"`` or ``"not needed"``; a shim whose module is not imported yet is missing here."""


@dataclass(frozen=True)
class Shim:
    """One repair from outside; no file of another package is changed.

    Attributes:
        name: short name, shown by ``s3prl-ext doctor``.
        module: full name of the module at whose import the shim acts.
        needed: receives the module, tells whether the thing is missing or broken here.
        apply: receives the module once it is executed and repairs it.
        stubs: makes modules that are visible in ``sys.modules`` only while `module` is executed.
        tolerates: errors of the module's own import that `apply` repairs.
        reason: what breaks without the shim, and which versions do.
        remove_when: the event that makes it superfluous.
    """

    name: str
    module: str
    needed: Callable[[ModuleType], bool]
    reason: str
    remove_when: str
    apply: Callable[[ModuleType], None] = lambda module: None
    stubs: Callable[[], Mapping[str, ModuleType]] = dict
    tolerates: tuple[type[Exception], ...] = ()

    def hook(self, module: ModuleType, execute: Callable[[], None]) -> None:
        """Execute the module and repair it; the import hook of this shim."""
        stubs = self.stubs()
        if stubs:
            self._execute_with(stubs, module, execute)
            return
        try:
            execute()
        except self.tolerates:
            if not self.needed(module):
                raise
        needed = self.needed(module)
        if needed:
            self.apply(module)
        self._note(needed)

    def _execute_with(self, stubs: Mapping[str, ModuleType], module: ModuleType, execute: Callable[[], None]) -> None:
        needed = self.needed(module)
        with visible(stubs if needed else {}):
            execute()
        self._note(needed)

    def _note(self, needed: bool) -> None:
        # Once active, a shim finds its own repair in place when it is asked again.
        if STATES.get(self.name) != "active":
            STATES[self.name] = "active" if needed else "not needed"

    def register(self) -> None:
        """Let the shim act at the import of its module, or at once where the module is imported already."""
        FINDER.add(self.module, self.hook)


@contextmanager
def visible(stubs: Mapping[str, ModuleType]) -> Iterator[None]:
    """Put stub modules into ``sys.modules`` for the body of the ``with`` statement, then restore what was there."""
    before = {name: sys.modules.get(name) for name in stubs}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def stub_module(name: str, **attributes: object) -> ModuleType:
    """Make an empty module with the given attributes."""
    module = ModuleType(name, "Stand-in for a package that is imported but not used here.")
    vars(module).update(attributes)
    return module


def absent(name: str) -> bool:
    """Tell whether no module of this name can be imported."""
    from importlib.util import find_spec

    try:
        return find_spec(name) is None
    except (ImportError, ValueError):
        return True
