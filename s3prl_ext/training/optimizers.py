"""Building the optimizer of section ``optimizer``: s3prl's own names, ours, and the fused kernels for child networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3prl.optimizers import get_optimizer
from torch import nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW

OWN = {"ChildnetAdamW": ChildnetAdamW}  # the optimizer of AD-TUNING's released task files
_READ_ELSEWHERE = ("name", "reserve_p")  # the released files state the densities beside the optimizer's name
_FUSED = ("Adam", "AdamW", "SGD")


def build_optimizer(
    modules: Sequence[nn.Module], total_steps: int, config: Mapping[str, Any], fused: bool = False
) -> Optimizer:
    """Return the optimizer that a task file names, over the parameters of `modules`.

    Args:
        modules: what trains.
        total_steps: steps of the run, for s3prl's optimizers with a schedule of their own.
        config: section ``optimizer``.
        fused: use torch's fused kernels for its Adam, AdamW and SGD, unless the section says otherwise. Their
            roundings differ from those of the plain loop, so runs that must equal s3prl's own leave it off.
    """
    if config["name"] in OWN:
        options = {key: value for key, value in config.items() if key not in _READ_ELSEWHERE}
        return OWN[config["name"]]([p for module in modules for p in module.parameters()], **options)
    config = dict(config)
    own_kernel = config["name"] == "TorchOptim" and config.get("torch_optim_name") in _FUSED
    if fused and own_kernel and not {"fused", "foreach"} & set(config):
        config["fused"] = True
    return get_optimizer(modules, total_steps, config)
