"""AdamW as AD-TUNING's released code has it, by torch's own fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch


class ChildnetAdamW(torch.optim.AdamW):
    """AdamW whose `eps` is added to the root of the second moment before its bias correction.

    That is torch's AdamW with ``eps / sqrt(1 - beta2^t)`` at a parameter's step t, so its fused kernel does the work.
    Give it the parameters of a :class:`~s3prl_ext.child_tuning.child_network.ChildNetwork`, and moments and weight
    decay exist for the child network alone (the released optimizer keeps them for every weight, and its decay moves
    frozen ones).

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the uncorrected second moment (released: 1e-7).
        weight_decay: decoupled decay (released: 0), acting before the step as in torch.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

        self.register_step_pre_hook(_before_step)
        self.register_step_post_hook(_after_step)


def _before_step(optimizer: Any, *_: Any) -> None:
    optimizer.stated_groups = optimizer.param_groups
    optimizer.param_groups = [part for group in optimizer.param_groups for part in _by_steps(optimizer, group)]


def _by_steps(optimizer: Any, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Divide a group by the steps that its parameters have done, which differ where a child network changes."""
    steps = [optimizer.state.get(parameter, {}).get("step") for parameter in group["params"]]
    done = iter(torch.stack(known).tolist() if (known := [step for step in steps if step is not None]) else ())
    divided: dict[float, list[Any]] = {}
    for parameter, step in zip(group["params"], steps):
        divided.setdefault(0.0 if step is None else next(done), []).append(parameter)
    for before, parameters in divided.items():
        eps = group["eps"] / (1 - group["betas"][1] ** (before + 1)) ** 0.5
        yield {**group, "params": parameters, "eps": eps}


def _after_step(optimizer: Any, *_: Any) -> None:
    optimizer.param_groups = optimizer.__dict__.pop("stated_groups")
