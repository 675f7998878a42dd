"""What a learnable lambda (L-MAM) changes in a run: what trains, and what a checkpoint holds of the upstream."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.learnable import PARAMETER_NAME, find_lambda
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)

METHODS = ("full", "weighted_sum", "frozen")  # of tuning.method; without it -f decides


def prepare_lambda(upstream: nn.Module, tuning: TuningConfig | None, trainable: bool, training: bool) -> bool:
    """Set whether lambda trains, and return whether anything of the upstream does.

    The methods that freeze the upstream train lambda alone. ``lambda_lr: 0`` keeps it at its first values.

    Args:
        upstream: prepared by its method, not yet wrapped for several devices.
        tuning: section ``tuning``, or None.
        trainable: whether the method, or ``-f``, trains the upstream.
        training: whether this run trains at all.

    Raises:
        UsageError: ``lambda_lr`` without a learnable lambda, or a method that cannot train it.
    """
    shared = find_lambda(upstream)
    lambda_lr = tuning.rates.lambda_lr if tuning is not None else None
    if shared is None:
        if lambda_lr is not None:
            raise UsageError("tuning.lambda_lr needs a merged upstream with learnable: true; remove it.")
        return trainable
    if tuning is not None and tuning.method not in METHODS:
        raise UsageError(
            f"tuning.method '{tuning.method}' does not train lambda; use full, weighted_sum or frozen, or fix lambda "
            "(learnable: false)."
        )
    if tuning is None and not trainable:
        if training:
            logger.warning("lambda stays at its first values: without -f or a section tuning the upstream is frozen")
        return False
    shared.requires_grad_(lambda_lr != 0)
    return trainable or lambda_lr != 0


def only_lambda_trains(upstream: nn.Module) -> bool:
    """Return whether lambda is all that trains in an upstream."""
    return [name for name, parameter in upstream.named_parameters() if parameter.requires_grad] == [PARAMETER_NAME]


def stored_state(upstream: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of the upstream's state dict: lambda alone where nothing else trains."""
    return {PARAMETER_NAME: state[PARAMETER_NAME]} if only_lambda_trains(upstream) else dict(state)


def loadable_state(upstream: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a whole state dict from what a checkpoint holds, see :func:`stored_state`."""
    return upstream.state_dict() | dict(state) if set(state) == {PARAMETER_NAME} else state
