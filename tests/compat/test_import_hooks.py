"""Hooks around imports: order, modules imported before, errors that a shim repairs, stand-ins that vanish."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from s3prl_ext.compat.import_hooks import HookFinder, after
from s3prl_ext.compat.shim import STATES, Shim, stub_module, visible


@pytest.fixture
def finder(monkeypatch):
    """A finder of its own at the front of sys.meta_path."""
    finder = HookFinder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module that can be imported; it is forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_hooks_act_in_order_of_registration_once_the_module_is_complete(finder, write_module):
    name = write_module("hooked_order", "calls = ['executed']\n")
    finder.add(name, after(lambda module: module.calls.append("first")))
    finder.add(name, after(lambda module: module.calls.append("second")))
    assert importlib.import_module(name).calls == ["executed", "first", "second"]


def test_hook_acts_at_once_on_an_imported_module_and_again_on_reload(finder, write_module):
    module = importlib.import_module(write_module("hooked_late", "count = 0\n"))
    finder.add("hooked_late", after(lambda module: setattr(module, "count", module.count + 1)))
    assert module.count == 1
    assert importlib.reload(module).count == 1


def test_removed_hook_stays_away(finder, write_module):
    name = write_module("hooked_removed", "changed = False\n")
    hook = after(lambda module: setattr(module, "changed", True))
    finder.add(name, hook)
    finder.remove(name, hook)
    assert importlib.import_module(name).changed is False


def test_loader_is_as_before_after_the_import(finder, write_module):
    name = write_module("hooked_loader", "value = 1\n")
    finder.add(name, after(lambda module: None))
    loader = importlib.import_module(name).__spec__.loader
    assert "exec_module" not in vars(loader)
    assert loader.get_source(name) == "value = 1\n"


def make_shim(name: str, **changes) -> Shim:
    """Build a shim that is needed where the module has no ``answer``, and gives it one."""
    fields = {
        "name": name,
        "module": name,
        "needed": lambda module: not hasattr(module, "answer"),
        "apply": lambda module: setattr(module, "answer", 42),
        "reason": "the module has no answer",
        "remove_when": "it has one",
    }
    return Shim(**{**fields, **changes})


@pytest.mark.parametrize(("text", "answer", "state"), [("", 42, "active"), ("answer = 7\n", 7, "not needed")])
def test_shim_acts_only_where_it_is_needed(finder, write_module, text, answer, state):
    name = write_module(f"shimmed_{answer}", text)
    finder.add(name, make_shim(name).hook)
    assert importlib.import_module(name).answer == answer
    assert STATES.pop(name) == state


def test_shim_repairs_a_module_whose_import_fails(finder, write_module):
    name = write_module("shimmed_failure", "raise OSError('no such library')\n")
    finder.add(name, make_shim(name, tolerates=(OSError,)).hook)
    assert importlib.import_module(name).answer == 42
    assert STATES.pop(name) == "active"


def test_other_errors_of_the_import_are_not_hidden(finder, write_module):
    name = write_module("shimmed_error", "raise ValueError('a real mistake')\n")
    finder.add(name, make_shim(name, tolerates=(OSError,)).hook)
    with pytest.raises(ValueError, match="a real mistake"):
        importlib.import_module(name)


def test_stand_in_is_visible_only_while_the_module_is_executed(finder, write_module):
    name = write_module("shimmed_import", "import no_such_package as package\n")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    stand_in = stub_module("no_such_package", value=3)
    finder.add(name, make_shim(name, stubs=lambda: {"no_such_package": stand_in}).hook)
    assert importlib.import_module(name).package.value == 3
    assert "no_such_package" not in sys.modules
    assert STATES.pop(name) == "active"


def test_visible_restores_a_module_of_the_same_name(monkeypatch):
    original = ModuleType("some_package")
    monkeypatch.setitem(sys.modules, "some_package", original)
    with pytest.raises(KeyError), visible({"some_package": ModuleType("some_package")}):
        assert sys.modules["some_package"] is not original
        raise KeyError
    assert sys.modules["some_package"] is original
