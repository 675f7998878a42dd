"""Building the optimizer of section ``optimizer``.

S3prl's own names, ours, and the fused kernels for child networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from s3prl import optimizers, schedulers
from s3prl.optimizers import get_optimizer
from s3prl.schedulers import get_scheduler
from torch import nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.configs import Section
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.settings import as_number, raise_all, unknown_keys

OWN = {"ChildnetAdamW": ChildnetAdamW}  # the optimizer of AD-TUNING's released task files
_READ_ELSEWHERE = ("name", "reserve_p")  # the released files state the densities with the optimizer's name
_NOT_BUILT_BY_NAME = ("optimizer", "scheduler", "grouped_parameters")  # get_...: helpers of s3prl's two modules
_GIVEN = ("model_params", "total_steps", "kwargs")  # what the run itself says
# Optimizers of s3prl that accept any key: what reads the keys behind their own parameters; None: nothing does.
_ANY_KEY = {"Adam": None, "AdamW": None, "BertAdam_with_schedule": None,
            "AdamW_with_schedule": "Lamb", "Lamb_with_schedule": "Lamb"}  # fmt: skip
_SET_BY_THEM = ("params", "warmup", "t_total", "adam", "correct_bias")
_FUSED = ("Adam", "AdamW", "SGD")
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients
OF_WHOLE_TENSORS = ("Adafactor",)  # of torch.optim: an entry's step depends on the others of its tensor


def check_optimization(config: Section) -> None:
    """Raise UsageError where the sections ``optimizer`` and ``scheduler`` of a task file cannot be built."""
    for section, module in (("optimizer", optimizers), ("scheduler", schedulers)):
        if not config.get(section):
            continue
        name = str(config[section].get("name"))
        known = [key.removeprefix("get_") for key in vars(module) if key.startswith("get_")]
        known = [key for key in known if key not in _NOT_BUILT_BY_NAME]
        known += OWN if section == "optimizer" else []
        if name not in known:
            raise unknown_name(f"{section}.name", name, known)
    name = config["optimizer"].get("torch_optim_name")
    known = [key for key, value in vars(torch.optim).items() if isinstance(value, type) and key not in _UNFIT]
    if config["optimizer"]["name"] == "TorchOptim" and name not in known:
        raise unknown_name("optimizer.torch_optim_name", str(name), known)
    if "lr" in config["optimizer"]:
        as_number(config["optimizer"]["lr"], "optimizer.lr")
    _check_optimizer_keys(config["optimizer"])
    _try_out(config)


def accepted_keys(section: Section) -> list[str] | None:
    """Return the keys that the optimizer of a section ``optimizer`` reads; None where it says itself what it takes.

    Those of s3prl take any key, and leave out most: its ``AdamW`` reads nothing but ``lr``.
    """
    name = section["name"]
    if name not in _ANY_KEY:
        return None
    builders = [f"get_{name}", *filter(None, [_ANY_KEY[name]])]
    keys = [key for builder in builders for key in inspect.signature(getattr(optimizers, builder)).parameters]
    return [key for key in dict.fromkeys(keys) if key not in (*_GIVEN, *_SET_BY_THEM)]


def _check_optimizer_keys(section: Section) -> None:
    """Raise UsageError for keys of section ``optimizer`` that would be left out, or that belong to ``tuning``."""
    ours = [key for key in ("upstream_lr", "lambda_lr", "layer_decay") if key in section]
    problems = [
        f"optimizer.{key} is not read: the learning rates of the upstream are keys of section tuning, such as "
        f"tuning: {{method: full, {'lr' if key == 'upstream_lr' else key}: {section[key]}}}."
        for key in ours
    ]
    keys = accepted_keys(section)
    if keys is not None:
        given = {key: value for key, value in section.items() if key not in (*_READ_ELSEWHERE, *ours)}
        unread = unknown_keys(given, keys, "optimizer")
        if unread:
            unread[-1] += (
                f" s3prl's {section['name']} ignores all others; an optimizer of torch takes its own options: "
                f"{{name: TorchOptim, torch_optim_name: {_torch_name(section['name'])}, ...}}."
            )
        problems += unread
    raise_all(problems)


def _torch_name(name: str) -> str:
    return name if name in _FUSED else "AdamW"


def _try_out(config: Section) -> None:
    """Build both for a layer of nothing: what they say to a wrong key or value comes before the work, not after it.

    It has a matrix and a vector, as every task has: an optimizer of matrices alone, such as Muon, is refused here.
    """
    nothing = nn.Module()  # of zeros: to draw weights would change the numbers of the run
    nothing.weight, nothing.bias = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
    section = "optimizer"
    try:
        optimizer = build_optimizer([nothing], 10, config[section])
        section = "scheduler"
        if config.get(section):
            get_scheduler(optimizer, 10, config[section])
    except Exception as error:  # whatever s3prl's and torch's constructors raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"section {section}: {config[section]['name']} rejected these options ({reason}); correct its keys "
            "and values, or take a preset's."
        ) from error


def build_optimizer(modules: Sequence[nn.Module], total_steps: int, config: Section, fused: bool = False) -> Optimizer:
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


def set_length(optimizer: Optimizer, total_steps: int) -> None:
    """Let s3prl's optimizers with a schedule of their own, whose state holds its length, end it at `total_steps`."""
    for group in optimizer.param_groups:
        if isinstance(group.get("schedule"), optimizers._LRSchedule):
            group["schedule"].t_total = float(total_steps)
