"""Diagonal empirical Fisher information (AD-TUNING, Eq. 6, after CHILD-TUNING_D)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from s3prl_ext.errors import DataError


def estimate(
    parameters: Mapping[str, torch.Tensor],
    batches: Iterable[Any],
    loss_of: Callable[[Any], torch.Tensor],
) -> tuple[dict[str, torch.Tensor], int]:
    """Sum the squared gradients of the loss over batches.

    Each batch contributes the square of the gradient of its mean loss; with batches of one this is Eq. 6 times the
    number of samples. The mean over ranks and batches is left to the caller, who knows all counts.

    Args:
        parameters: eligible parameters by name; they must require grad. Their ``.grad`` must be None.
        batches: what `loss_of` takes.
        loss_of: returns the mean loss of a batch, a scalar.

    Returns:
        The sums by name (float32, shapes of the parameters) and the number of batches.

    Raises:
        DataError: a loss is not finite.
    """
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    count = 0
    for batch in batches:
        loss = loss_of(batch)
        if not torch.isfinite(loss):
            raise DataError(f"the loss of batch {count} of the Fisher pass is {loss.item()}; check the training data.")
        loss.backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                scores[name].addcmul_(gradient, gradient)
                parameter.grad = None
        count += 1
    return scores, count
