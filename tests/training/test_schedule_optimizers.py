"""Optimizers that need to know the tensor of an entry: a child network does not take them; s3prl's schedules are read back."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.training import checkpoint
from s3prl_ext.training.task_file import TaskFile
from tests.support.experiments import make_args, task_config


@pytest.mark.parametrize("name", ["BertAdam_with_schedule", "AdamW_with_schedule"])
def test_runs_with_a_schedule_inside_the_optimizer_resume(build, tmp_path, name):
    def config(steps):
        made = task_config(total_steps=steps, save_step=1)
        made["optimizer"] = {"name": name, "lr": 1.0e-3, "warmup_proportion": 0.1}
        return made

    build(make_args(tmp_path / "whole"), config(3)).train()
    build(make_args(tmp_path / "parts"), config(3) | {"runner": config(3)["runner"] | {"max_keep": 9}}).train()
    args = make_args(tmp_path / "parts")
    args.init_ckpt, args.past_exp = str(tmp_path / "parts" / "states-2.ckpt"), str(tmp_path / "parts")
    build(args, config(3)).train()
    ours, theirs = (checkpoint.load(tmp_path / n / "states-3.ckpt")["Downstream"] for n in ("parts", "whole"))
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_steps_that_are_added_on_resume_are_trained(build, tmp_path):
    """The schedule ends where the run does now."""
    config = task_config(total_steps=2)
    config["optimizer"] = {"name": "AdamW_with_schedule", "lr": 1.0e-3}
    build(make_args(tmp_path), config).train()
    before = checkpoint.load(tmp_path / "states-2.ckpt")
    config["runner"]["total_steps"] = 6
    args = make_args(tmp_path, past_exp=str(tmp_path), init_ckpt=str(tmp_path / "states-2.ckpt"))
    build(args, config).train()
    after = checkpoint.load(tmp_path / "states-6.ckpt")
    assert {group["schedule"].t_total for group in after["Optimizer"]["param_groups"]} == {6.0}
    weights = [name for name, value in before["Downstream"].items() if value.dim() > 1]
    assert weights and all((before["Downstream"][name] != after["Downstream"][name]).any() for name in weights)


@pytest.mark.parametrize("name", ["BertAdam_with_schedule", "AdamW_with_schedule", "Lamb_with_schedule"])
@pytest.mark.parametrize(
    "tuning",
    [
        {"method": "child", "density": 0.05},
        {"method": "child", "density": 1},
        {"method": "child", "density": 0.05, "reselect_every": 2},
        {"method": ["lora", "child"], "density": 0.05},
    ],
    ids=["child", "whole", "reselected", "race"],
)
def test_they_know_weights_by_name_and_are_refused_for_child_networks(name, tuning):
    """Their groups would put weight decay on the biases of a child network."""
    config = task_config(tuning=tuning) | {"early_stop": {"ratio": 0.5}}
    config["optimizer"] = {"name": name, "lr": 1e-3}
    with pytest.raises(UsageError, match=f"optimizer.name {name} .* tuning.method child .* section scheduler"):
        TaskFile.read(config)
    assert TaskFile.read(config, stored=True).tunings, "what such a run has stored is scored all the same"
    TaskFile.read(config | {"tuning": {"method": "lora"}})


def stepped(name, parameters, gradients):
    """Return all entries after three steps of an optimizer of torch, as one vector."""
    weights = [torch.nn.Parameter(value.clone()) for value in parameters]
    optimizer = getattr(torch.optim, name)(weights, lr=1e-2)
    for step in range(3):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient * (1 + step)
        optimizer.step()
    return torch.cat([weight.detach() for weight in weights])


def test_optimizers_of_torch_that_a_child_network_takes_look_at_each_entry_alone():
    """The vector of a child network holds tensors of unlike size: what takes means over it is another algorithm."""
    generator = torch.Generator().manual_seed(0)
    parameters = [scale * torch.randn(40, generator=generator) for scale in (1.0, 1e-3)]
    gradients = [scale * torch.randn(40, generator=generator) for scale in (1e-4, 1.0)]
    accepted = []
    for name in torch.optim.__all__:
        config = task_config(tuning={"method": "child", "density": 0.05})
        config["optimizer"] = {"name": "TorchOptim", "torch_optim_name": name, "lr": 1e-3}
        try:
            TaskFile.read(config)
        except UsageError:
            continue
        accepted.append(name)
        whole = stepped(name, [torch.cat(parameters)], [torch.cat(gradients)])
        torch.testing.assert_close(whole, stepped(name, parameters, gradients), rtol=1e-6, atol=0)
    assert {"Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam"} <= set(accepted)


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactor_is_refused_where_the_child_network_is_one_vector():
    config = task_config(tuning={"method": ["lora", "child"], "density": 0.05}) | {"early_stop": {"ratio": 0.5}}
    config["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "Adafactor", "lr": 1e-3}
    with pytest.raises(UsageError, match=r"torch_optim_name Adafactor .* tuning.method child of density 0.05 .* AdamW"):
        TaskFile.read(config)
    assert TaskFile.read(config, stored=True).tunings
    redrawn = {"method": "child", "mask": "random", "density": 0.05, "redraw": True}
    for tuning in ({"method": "child", "density": 1}, redrawn, {"method": "full"}):
        TaskFile.read({**config, "tuning": tuning, "early_stop": {}})
