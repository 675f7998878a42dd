"""install and uninstall: what s3prl has before, with and after the plug-in."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType

import pytest

import s3prl_ext
from s3prl_ext import plugin
from s3prl_ext.errors import UsageError
from tests.support import python_process


@pytest.fixture
def stock():
    """s3prl with its shims but without upstreams, tasks and Runner; installed again afterwards."""
    s3prl_ext.install()
    importlib.import_module("s3prl.downstream.runner")
    s3prl_ext.uninstall()
    yield
    s3prl_ext.install()


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """A folder with one task, in the place of the package's own."""
    (tmp_path / "whistling").mkdir()
    (tmp_path / "whistling" / "__init__.py").write_text("")
    (tmp_path / "whistling" / "expert.py").write_text("from ..model import *\nanswer = 42\n")
    monkeypatch.setattr(plugin, "DOWNSTREAM_DIR", tmp_path)
    return tmp_path


def test_upstreams_come_and_go(stock):
    hub = sys.modules["s3prl.hub"]
    before = set(dir(hub))
    s3prl_ext.install()
    added = set(dir(hub)) - before - {"__getattr__"}  # says which name was meant
    assert added == set(plugin.upstream_names())
    assert "merged_attention" in hub.options()
    s3prl_ext.uninstall()
    assert set(dir(hub)) == before


def test_every_upstream_config_is_an_upstream():
    s3prl_ext.install()
    hub = importlib.import_module("s3prl.hub")
    stems = {path.stem for path in plugin.shipped_dir("upstream_configs").glob("*.yaml")}
    assert stems and all(getattr(hub, stem).__name__ == stem for stem in stems)


def test_upstream_entry_is_called_as_s3prl_calls_it(stock, monkeypatch):
    calls = {}
    module = ModuleType("tiny_hubconf")
    module.build = lambda **arguments: calls.update(arguments) or "upstream"
    monkeypatch.setitem(sys.modules, "tiny_hubconf", module)
    monkeypatch.setitem(plugin.UPSTREAMS, "tiny_upstream", "tiny_hubconf:build")
    s3prl_ext.install()
    assert sys.modules["s3prl.hub"].tiny_upstream(ckpt="a", model_config="b", refresh=True) == "upstream"
    assert calls == {"ckpt": "a", "model_config": "b", "refresh": True}


def test_runner_is_replaced_and_comes_back(stock):
    runner = sys.modules["s3prl.downstream.runner"]
    original = runner.Runner
    assert original.__module__ == "s3prl.downstream.runner"
    s3prl_ext.install()
    assert runner.Runner.__module__ == "s3prl_ext.training.runner"
    assert issubclass(runner.Runner, original)
    s3prl_ext.uninstall()
    assert runner.Runner is original


def test_runner_is_replaced_in_an_imported_command_too(stock, monkeypatch):
    command = ModuleType("s3prl.run_downstream")
    command.Runner = sys.modules["s3prl.downstream.runner"].Runner
    monkeypatch.setitem(sys.modules, "s3prl.run_downstream", command)
    s3prl_ext.install()
    assert command.Runner is sys.modules["s3prl.downstream.runner"].Runner
    assert command.Runner.__module__ == "s3prl_ext.training.runner"
    s3prl_ext.uninstall()
    assert command.Runner.__module__ == "s3prl.downstream.runner"


def test_tasks_come_and_go(stock, task_folder):
    s3prl_ext.install()
    expert = importlib.import_module("s3prl.downstream.whistling.expert")
    assert expert.answer == 42 and hasattr(expert, "nn")
    assert plugin.downstream_names() == ["whistling"]
    s3prl_ext.uninstall()
    assert str(task_folder) not in sys.modules["s3prl.downstream"].__path__
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("s3prl.downstream.whistling.expert")


def test_task_with_a_name_of_s3prl_is_reported(stock, task_folder, caplog):
    (task_folder / "asr").mkdir()
    (task_folder / "asr" / "expert.py").write_text("")
    with caplog.at_level(logging.WARNING):
        s3prl_ext.install()
    assert f"the task 'asr' in {task_folder} is hidden by one that s3prl has" in caplog.text
    assert "s3prl_ext" not in importlib.import_module("s3prl.downstream.asr.expert").__file__
    s3prl_ext.uninstall()


def test_installing_twice_and_uninstalling_twice_is_the_same_as_once(stock):
    s3prl_ext.install()
    hub, package = sys.modules["s3prl.hub"], sys.modules["s3prl.downstream"]
    state = (set(dir(hub)), list(package.__path__), list(sys.meta_path), hub.merged_attention)
    s3prl_ext.install()
    assert state == (set(dir(hub)), list(package.__path__), list(sys.meta_path), hub.merged_attention)
    s3prl_ext.uninstall()
    s3prl_ext.uninstall()
    assert not plugin.is_installed() and not hasattr(hub, "merged_attention")


def test_name_of_s3prl_is_refused_with_its_owner():
    s3prl_ext.install()
    hub = importlib.import_module("s3prl.hub")
    original = hub.fbank
    with pytest.raises(UsageError, match=r"'fbank' is taken by s3prl\.upstream\.baseline\.hubconf"):
        plugin.put_on_hub(hub, "fbank", lambda **arguments: None)
    assert hub.fbank is original


def test_clash_leaves_the_upstream_of_s3prl_with_a_warning(stock, monkeypatch, caplog):
    monkeypatch.setitem(plugin.UPSTREAMS, "fbank", "s3prl_ext.plugin:install")
    with caplog.at_level(logging.WARNING):
        s3prl_ext.install()
    assert "'fbank' is taken" in caplog.text
    assert sys.modules["s3prl.hub"].fbank.__module__.startswith("s3prl.")


def test_installing_imports_neither_s3prl_nor_torch(tmp_path):
    code = "import sys, s3prl_ext; s3prl_ext.install(); print([m for m in ('torch', 's3prl') if m in sys.modules])"
    assert python_process.run(tmp_path, "-c", code, hook=False).stdout.strip() == "[]"
