"""Attaching new modules to a model whose code stays as it is, and finding their weights again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn


class Through:
    """A forward hook that sends a module's output through one of its own children.

    The child is looked up by name, so a deep copy of the model uses its own.

    Args:
        name: name of the child.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Return what the child makes of `output`."""
        return getattr(module, self.name)(output)


def attach(module: nn.Module, name: str, child: nn.Module) -> None:
    """Register `child` as ``module.name`` and send the output of `module` through it."""
    module.add_module(name, child)
    cast(Any, child).hook = module.register_forward_hook(Through(name))


def detach(module: nn.Module, name: str) -> None:
    """Undo :func:`attach`."""
    getattr(module, name).hook.remove()
    delattr(module, name)


def place_like(new: nn.Module, reference: nn.Module) -> nn.Module:
    """Move `new` to the device and dtype of the first weight of `reference`."""
    weight = next(reference.parameters())
    return new.to(device=weight.device, dtype=weight.dtype)


def parameters_of(model: nn.Module, modules: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of `modules` under their full names in `model`, in the model's order."""
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}
