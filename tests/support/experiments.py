"""Arguments, task files and probes for experiments that tests build and train in their own process."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.configs import load_yaml, shipped_dir


def make_args(expdir: Path | str, **changes: Any) -> Namespace:
    """Return what s3prl's parser returns for a training command, with changes."""
    values = {
        "mode": "train", "evaluate_split": "test", "override": None, "backend": "gloo", "local_rank": None,
        "past_exp": None, "init_ckpt": None, "config": None, "downstream": "speech_commands",
        "downstream_variant": None, "hub": "torch", "upstream": "fbank", "upstream_ckpt": None,
        "upstream_model_config": None, "upstream_refresh": False, "upstream_trainable": False,
        "upstream_feature_selection": "hidden_states", "upstream_layer_selection": None,
        "upstream_feature_normalize": False, "upstream_model_name": "model.pt", "upstream_revision": None,
        "expname": None, "expdir": str(expdir), "auto_resume": False, "push_to_hf_hub": False, "hf_hub_org": None,
        "seed": 1337, "device": "cpu", "cache_dir": None, "verbose": False, "disable_cudnn": False,
    }  # fmt: skip
    unknown = set(changes) - set(values)
    assert not unknown, unknown
    Path(expdir).mkdir(parents=True, exist_ok=True)
    return Namespace(**{**values, **changes})


def task_config(task: str = "ks", tuning: dict[str, Any] | None = None, **runner: Any) -> dict[str, Any]:
    """Return the mini preset of a task: 4 steps, one evaluation and save at the end, unless `runner` says otherwise."""
    config = load_yaml(shipped_dir("downstream_configs") / task / "mini.yaml")
    config["runner"] |= {"total_steps": 4, "eval_step": 1000, "save_step": 1000, "log_step": 2} | runner
    if tuning is not None:
        config["tuning"] = tuning
    return config


def record_losses(runner: Any) -> list[float]:
    """Return a list that collects every loss the task computes, in order."""
    losses: list[float] = []
    expert = runner.downstream.model
    forward = expert.forward

    def recording(*inputs: Any, **kwargs: Any) -> torch.Tensor:
        loss = forward(*inputs, **kwargs)
        losses.append(loss.item())
        return loss

    expert.forward = recording
    return losses


def interrupt_at_loss(runner: Any, number: int) -> None:
    """Send this process SIGINT, as Ctrl-C does, while the task computes its loss for the n-th time."""
    forward = runner.downstream.model.forward
    seen: list[int] = []

    def interrupting(*inputs: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(1)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(*inputs, **kwargs)

    runner.downstream.model.forward = interrupting


def tuned_upstream(states: dict[str, Any], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the upstream's weights that a checkpoint stands for: its own, or the entries of its delta on `base`."""
    if "Upstream" in states:
        return states["Upstream"]
    weights = {name: value.clone() for name, value in base.items()}
    for name, indices in states["UpstreamDelta"]["indices"].items():
        weights[name].view(-1)[indices.long()] = states["UpstreamDelta"]["values"][name]
    return weights
