"""AdamW as AD-TUNING's released code has it, by torch's own fused kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class ChildnetAdamW(torch.optim.AdamW):
    """AdamW whose `eps` is added to the root of the second moment before its bias correction.

    That is torch's AdamW with ``eps / sqrt(1 - beta2^t)`` at step t, so its fused kernel does the work. Give it the
    parameters of a :class:`~s3prl_ext.child_tuning.child_network.ChildNetwork`, and moments and weight decay exist for
    the child network alone (the released optimizer keeps them for every weight, and its decay moves frozen ones).

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
    infinite = getattr(optimizer, "found_inf", None)  # set by a GradScaler: the kernel then skips the step
    for group in optimizer.param_groups:
        group["steps"] = group.get("steps", 0) + (infinite is None or not bool(infinite))
        group["stated_eps"] = group["eps"]
        group["eps"] = group["eps"] / (1 - group["betas"][1] ** max(1, group["steps"])) ** 0.5


def _after_step(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        group["eps"] = group.pop("stated_eps")
