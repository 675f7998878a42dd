"""What other packages register: seen by s3prl, refused where a name is taken, taken back by uninstall."""

from __future__ import annotations

import importlib
import logging
import sys
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

import s3prl_ext
from s3prl_ext import adapters, doctor, extensions, plugin, run_flags
from s3prl_ext.attention.layouts import Layout, find_attention
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models import architectures
from s3prl_ext.models.architectures import Architecture
from s3prl_ext.training.methods import METHODS, resolve_tuning

ROW = Architecture("swallow", "an invented family", "nest.{layer}.attention.{projection}", ("ask", "key", "value"))


@dataclass(frozen=True)
class Options:
    strength: float = 1.0


@dataclass(frozen=True)
class Colliding:
    density: float = 1.0


def method(**changes):
    """Return the file of a method that trains nothing."""
    parts = {"Config": Options, "PAPER": "nobody 2022", "ACTS_ON": (), "CAN_FOLD": False}
    parts |= {
        "insert": lambda model, config: {},
        "remove": lambda model, config: None,
        "count": lambda sizes, config: 0,
    }
    return SimpleNamespace(**(parts | changes))


@pytest.fixture
def s3prl_hub():
    """s3prl's hub without extensions; whatever a test registers is gone afterwards."""
    s3prl_ext.uninstall()
    s3prl_ext.install()
    hub = importlib.import_module("s3prl.hub")
    importlib.import_module("s3prl.downstream")
    yield hub
    s3prl_ext.uninstall()
    s3prl_ext.install()


@pytest.fixture
def tasks(tmp_path):
    """A folder with the task ``whistling`` and its task file."""
    folder = tmp_path / "downstreams" / "whistling"
    folder.mkdir(parents=True)
    (folder / "expert.py").write_text("from ..model import *\nanswer = 42\n")
    (folder / "config.yaml").write_text("runner: {total_steps: 1}\n")
    return folder.parent


def package(folder, body, name="my_extension"):
    """Write an installed package with one entry point: a module and its metadata."""
    (folder / f"{name}.py").write_text(f"import s3prl_ext\n\n\ndef register():\n    {body}\n")
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{extensions.GROUP}]\nwings = {name}:register\n")


def test_upstream_is_on_the_hub_until_uninstall(s3prl_hub):
    calls = []
    s3prl_ext.register_upstream("swallow", lambda **arguments: calls.append(arguments) or "upstream")
    assert "swallow" in s3prl_hub.options() and "swallow" in plugin.upstream_names()
    assert s3prl_hub.swallow(ckpt="a", model_config="b", refresh=True) == "upstream"
    assert calls == [{"ckpt": "a", "model_config": "b", "refresh": True}]
    s3prl_ext.uninstall()
    assert not hasattr(s3prl_hub, "swallow") and "swallow" not in plugin.upstream_names()


def test_upstream_by_reference_is_imported_when_it_is_built(s3prl_hub, tmp_path, monkeypatch):
    (tmp_path / "lazy_swallow.py").write_text("def build(**arguments):\n    return 'upstream'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    s3prl_ext.register_upstream("swallow", "lazy_swallow:build")
    assert "lazy_swallow" not in sys.modules
    assert s3prl_hub.swallow() == "upstream"


def test_upstream_registered_before_install_is_there_after_it(s3prl_hub):
    s3prl_ext.uninstall()
    s3prl_ext.register_upstream("swallow", lambda **arguments: "upstream")
    assert not hasattr(s3prl_hub, "swallow")
    s3prl_ext.install()
    assert s3prl_hub.swallow() == "upstream"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fbank", r"'fbank' is taken by s3prl\.upstream\.baseline\.hubconf"),
        ("beats_local", "'beats_local' is taken by s3prl_ext: choose another name"),
        ("mam_hubert_base_bert_base", "is taken by s3prl_ext"),
        ("two words", "'two words' is not a Python identifier"),
    ],
)
def test_taken_upstream_name_is_refused_with_its_owner(s3prl_hub, name, sentence):
    before = getattr(s3prl_hub, name, None)
    with pytest.raises(UsageError, match=sentence):
        s3prl_ext.register_upstream(name, lambda **arguments: None)
    assert getattr(s3prl_hub, name, None) is before and name not in plugin.added_upstreams
    s3prl_ext.uninstall()
    s3prl_ext.install()
    assert hasattr(s3prl_hub, name) == (before is not None)


def test_second_registration_names_the_first(s3prl_hub):
    s3prl_ext.register_upstream("swallow", lambda **arguments: None)
    with pytest.raises(UsageError, match="'swallow' is taken by a call in this process"):
        s3prl_ext.register_upstream("swallow", lambda **arguments: None)


def test_task_is_found_with_its_task_file_until_uninstall(s3prl_hub, tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s3prl_ext.register_tasks(tasks)
    assert importlib.import_module("s3prl.downstream.whistling.expert").answer == 42
    assert "whistling" in plugin.downstream_names()
    assert run_flags.default_task_file("whistling") == tasks / "whistling" / "config.yaml"
    s3prl_ext.uninstall()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("s3prl.downstream.whistling.expert")
    assert run_flags.default_task_file("whistling") is None


@pytest.mark.parametrize(("name", "owner"), [("asr", "s3prl"), ("ljspeech", "s3prl_ext")])
def test_taken_task_name_is_refused_with_its_owner(s3prl_hub, tasks, name, owner):
    (tasks / "whistling").rename(tasks / name)
    with pytest.raises(UsageError, match=f"the task name '{name}' is taken by {owner}: choose another name"):
        s3prl_ext.register_tasks(tasks)
    assert str(tasks) not in sys.modules["s3prl.downstream"].__path__


def test_folder_without_a_task_is_refused(s3prl_hub, tmp_path):
    with pytest.raises(UsageError, match="contains no task: a task is a folder in it"):
        s3prl_ext.register_tasks(tmp_path)


def test_architecture_is_found_until_uninstall(s3prl_hub):
    keys = [f"nest.{layer}.attention.{name}.weight" for layer in (0, 1) for name in ("ask", "key", "value")]
    with pytest.raises(DataError, match="no attention matrices with a known name"):
        find_attention(keys, "a model")
    s3prl_ext.register_architecture(ROW)
    found = find_attention([f"bird.{key}" for key in keys], "a model")
    assert found.architecture is ROW and found.prefix == "bird." and found.layers == 2
    s3prl_ext.uninstall()
    with pytest.raises(DataError, match="no attention matrices"):
        find_attention(keys, "a model")


def test_layout_of_an_older_extension_is_an_architecture(s3prl_hub):
    with pytest.warns(DeprecationWarning, match="Architecture"):
        row = Layout(name="swallow", models="some", template="nest.{layer}.{projection}", projections=("a", "b", "c"))
    with pytest.warns(DeprecationWarning, match="register_architecture"):
        s3prl_ext.register_layout(row)
    found = find_attention([f"nest.0.{name}.weight" for name in "abc"], "a model")
    assert found.architecture == Architecture("swallow", "some", "nest.{layer}.{projection}", ("a", "b", "c"))


def test_added_architecture_does_not_come_before_the_table(s3prl_hub):
    s3prl_ext.register_architecture(Architecture("greedy", "everything", "layers.{layer}.attention.{projection}"))
    keys = [f"encoder.layers.0.attention.{name}.weight" for name in architectures.PROJECTIONS]
    assert find_attention(keys, "HuBERT").architecture.name == "transformers-speech"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            Architecture("bert", "another", "x.{layer}.{projection}"),
            "the architecture name 'bert' is taken by s3prl_ext",
        ),
        (Architecture("short", "one", "nest.{projection}"), r"lacks \{layer\}"),
        (Architecture("short", "one", "nest.{layer}.qkv"), r"lacks \{projection\}"),
        (Architecture("twice", "one", "n.{layer}.{projection}", ("q", "q", "v")), "must name query, key and value"),
        (Architecture("half", "one", "n.{layer}.{projection}", linears={"fc1": "up"}), "must name out_proj, fc1, fc2"),
        (
            Architecture("fused", "one", "n.{layer}.qkv", None, linears=dict.fromkeys(architectures.LINEARS, "x")),
            "no linears",
        ),
    ],
)
def test_unsuitable_architecture_is_refused(s3prl_hub, row, sentence):
    with pytest.raises(UsageError, match=sentence):
        s3prl_ext.register_architecture(row)
    assert architectures.known() == architectures.ARCHITECTURES


def test_method_is_a_value_of_tuning_until_uninstall(s3prl_hub):
    s3prl_ext.register_method("swallow", method())
    tuning = resolve_tuning({}, {"method": "swallow", "strength": 2.0, "lr": 1e-3})
    assert tuning.adapter == Options(strength=2.0) and METHODS["swallow"].source == "nobody 2022"
    model = torch.nn.Linear(2, 2)
    assert adapters.insert(model, "swallow") == {} and "swallow" in adapters.inserted(model)
    s3prl_ext.uninstall()
    with pytest.raises(UsageError, match="unknown method 'swallow'"):
        resolve_tuning({}, {"method": "swallow"})
    assert "swallow" not in adapters.ADAPTERS


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("lora", {}, "the method name 'lora' is taken by s3prl_ext"),
        ("child", {}, "the method name 'child' is taken by s3prl_ext"),
        ("swallow", {"CAN_FOLD": True}, "the file of the tuning method 'swallow' lacks fold"),
        ("swallow", {"TRAINS_BASE": True}, "lacks base_state"),
        ("swallow", {"Config": object}, "must be a dataclass"),
        ("swallow", {"Config": Colliding}, "cannot name an option 'density'"),
    ],
)
def test_unsuitable_method_is_refused(s3prl_hub, name, changes, sentence):
    known = set(METHODS)
    with pytest.raises(UsageError, match=sentence):
        s3prl_ext.register_method(name, method(**changes))
    assert set(METHODS) == known


def test_installed_package_is_loaded_with_s3prl_and_shown(s3prl_hub, tmp_path, monkeypatch, capsys):
    package(tmp_path, "s3prl_ext.register_upstream('swallow', lambda **arguments: 'upstream')")
    monkeypatch.syspath_prepend(str(tmp_path))
    s3prl_ext.uninstall()
    s3prl_ext.install()
    assert s3prl_hub.swallow() == "upstream"
    extensions.load()  # again: calls nothing twice
    with pytest.raises(UsageError, match="'swallow' is taken by wings of my_extension 0.1"):
        s3prl_ext.register_upstream("swallow", lambda **arguments: None)
    doctor.added(doctor.Report(print))
    assert "wings of my_extension 0.1  upstream swallow" in capsys.readouterr().out


def test_broken_package_is_left_out_and_named(s3prl_hub, tmp_path, monkeypatch, caplog):
    package(tmp_path, "s3prl_ext.register_upstream('fbank', lambda **arguments: None)", name="broken_extension")
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        extensions.load()
    assert "the extension wings of broken_extension 0.1 is left out: the upstream name 'fbank' is taken" in caplog.text
    report = doctor.Report(lambda text: None)
    doctor.added(report)
    assert "the extension wings of broken_extension 0.1 cannot be loaded" in report.problems[0]


def test_group_is_the_one_that_the_documentation_names():
    assert extensions.GROUP == "s3prl_ext.extensions"
    assert all(entry.group == extensions.GROUP for entry in metadata.entry_points(group=extensions.GROUP))
