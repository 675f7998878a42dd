"""Text and pickles of foreign files: names and lists of numbers mean what they did, code is not run."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
from pathlib import Path

import pytest
import torch

import s3prl_ext
from s3prl_ext.compat import evaluated, pickles
from s3prl_ext.compat.evaluated import evaluate
from s3prl_ext.configs import load_yaml, package_dir, shipped_dir
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training.task_file import TaskFile

s3prl_ext.install()

from torch import nn


class Code:
    """What pickle runs when it loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_every_module_of_s3prl_that_evaluates_text_is_restricted():
    root = package_dir("s3prl")
    found = set()
    for path in root.rglob("*.py"):
        text = path.read_text(errors="replace")
        if "eval(" not in text:
            continue
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if any(isinstance(function, ast.Name) and function.id in ("eval", "exec") for function in calls):
            found.add("s3prl." + ".".join(path.relative_to(root).with_suffix("").parts))
    by_the_user = {  # options of -o, and names of modes that argparse checks
        "s3prl.util.override", "s3prl.utility.helper", "s3prl.run_downstream", "s3prl.run_pretrain",
        "s3prl.utility.run_sig_test",
    }  # fmt: skip
    assert found - by_the_user == set(evaluated.MODULES)


def test_what_models_and_tasks_say_means_the_same():
    layers = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] * 2"
    assert evaluate(layers) == [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
    assert evaluate("-math.inf") == -float("inf")
    assert evaluate("nn.Linear") is nn.Linear
    self = argparse.Namespace(model=argparse.Namespace(layers=[1, 2]), get_dev_dataloader=lambda: "dev")  # noqa: F841
    assert evaluate("self.model.layers[0]") == 1 and evaluate("self.get_dev_dataloader")() == "dev"
    assert evaluate("{'a': (1, 2.5), 'b': None}") == {"a": (1, 2.5), "b": None}
    with pytest.raises(UsageError, match="unknown name 'Utterance' in the task file"):
        evaluate("Utterance")
    with pytest.raises(AttributeError):
        evaluate("self.get_train_dataloader")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('made')", "os.system", "os", "Path", "importlib", "exec", "print('x')", "torch.os.system",
        "nn.init.warnings.sys", "(lambda: 1)()", "[x for x in (1,)]", "().__class__", "nn.Linear.__init__", "f'{1}'",
        "[0] * 1000000000", "'x' * 1000000 * 1000000", "9 ** 9 ** 9", "x := 1", "(" * 900, "-" * 1900 + "1", "", "1 2",
        "'" + "x" * 3000 + "'", "argparse.Namespace",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        result = evaluate(text)
        assert type(result).__name__ == "module", result  # which cannot be called
        raise UsageError("harmless")
    assert not list(tmp_path.iterdir()) and "Traceback" not in str(refused.value)


def test_a_module_evaluates_within_its_own_names(tmp_path):
    model = importlib.import_module("s3prl.downstream.model")
    made = model.get_downstream_model(4, 2, {"select": "FrameLevel", "FrameLevel": {"hidden_sizes": [3]}})
    assert type(made) is model.FrameLevel
    with pytest.raises(UsageError, match="unknown name 'FrameLevl' in the task file, .*; did you mean 'FrameLevel'?"):
        model.get_downstream_model(4, 2, {"select": "FrameLevl"})
    code = f"__import__('os').mkdir('{tmp_path / 'made'}')"
    with pytest.raises(UsageError, match="is not run as Python"):
        model.get_downstream_model(4, 2, {"select": code})
    assert not list(tmp_path.iterdir())


def test_optimizers_and_schedulers_are_found():
    optimizers, schedulers = (importlib.import_module(f"s3prl.{name}") for name in ("optimizers", "schedulers"))
    parameters = [nn.Linear(2, 2)]
    for name in ("TorchOptim", "AdamW_with_schedule"):
        config = {"name": name, "lr": 0.1, **({"torch_optim_name": "SGD"} if name == "TorchOptim" else {})}
        optimizer = optimizers.get_optimizer(parameters, 10, config)
    schedulers.get_scheduler(optimizer, 10, {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2})


@pytest.mark.parametrize("key", ["select", "UtteranceLevel.pooling"])
def test_a_task_file_holds_names_where_s3prl_evaluates(key):
    config = load_yaml(shipped_dir("downstream_configs") / "ks" / "mini.yaml")
    section = config["downstream_expert"]["modelrc"]
    *folders, last = key.split(".")
    for folder in folders:
        section = section[folder]
    section[last] = "__import__('os').system('true')"
    with pytest.raises(UsageError, match=rf"config.downstream_expert.modelrc.{key} must be a name"):
        TaskFile.read(config)


@pytest.mark.parametrize("name", pickles.MODULES)
def test_pickled_code_of_a_model_is_not_run(name, tmp_path, monkeypatch):
    builder = importlib.import_module(name)
    made = tmp_path / "made"
    torch.save({"Config": {}, "state": Code(made)}, tmp_path / "model.pt")
    torch.save({"Config": {"a": 1}, "Args": argparse.Namespace(b=2)}, tmp_path / "plain.pt")
    with pytest.raises(DataError, match="holds pickled Python code, which is not run .*S3PRL_EXT_TRUST=1"):
        builder.torch.load(tmp_path / "model.pt", map_location="cpu", weights_only=False)
    assert not made.exists()
    assert builder.torch.load(str(tmp_path / "plain.pt"), weights_only=False)["Args"].b == 2
    assert builder.torch.nn is nn
    monkeypatch.setenv(pickles.SWITCH, "1")
    builder.torch.load(tmp_path / "model.pt", map_location="cpu")
    assert made.is_dir()
