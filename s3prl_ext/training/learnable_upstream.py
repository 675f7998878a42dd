"""What a learnable lambda (L-MAM) changes in a run: what trains, and what a checkpoint holds of the upstream.

A merged decoder of a Whisper is the head of its task: its lambda is there, and trains and is stored with the head.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.learnable import PARAMETER_NAME, LearnableLambda, find_lambda
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
        if lambda_lr is not None and not _learns_in_head(upstream):
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


def _learns_in_head(upstream: nn.Module) -> bool:
    """Return whether the merge of an upstream learns lambda in the decoder that is the task's head."""
    record = getattr(upstream, "merge_record", None) or {}
    return bool(record.get("learnable") and record["config"]["target"]["prefix"])


def prepare_head_lambda(head: nn.Module, tuning: TuningConfig | None) -> None:
    """Set whether the lambda of a merged decoder trains, whatever the method does with the upstream.

    Args:
        head: the task, not yet wrapped for several devices.
        tuning: section ``tuning``, or None.
    """
    shared = find_lambda(head)
    if shared is not None:
        shared.requires_grad_(tuning is None or tuning.rates.lambda_lr != 0)


def learnt_lambda(upstream: nn.Module | None, head: nn.Module) -> LearnableLambda | None:
    """Return the learnable lambda of a run, of its upstream or of the decoder in its task, None where there is none.

    Args:
        upstream: None where nothing of it trains.
    """
    shared = find_lambda(upstream) if upstream is not None else None
    return find_lambda(head) if shared is None else shared


def only_lambda_trains(upstream: nn.Module) -> bool:
    """Return whether lambda is all that trains in an upstream."""
    return [name for name, parameter in upstream.named_parameters() if parameter.requires_grad] == [PARAMETER_NAME]


def stored_state(upstream: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of the upstream's state dict: lambda alone where nothing else trains."""
    return {PARAMETER_NAME: state[PARAMETER_NAME]} if only_lambda_trains(upstream) else dict(state)


def loadable_state(upstream: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a whole state dict from what a checkpoint holds, see :func:`stored_state`."""
    return upstream.state_dict() | dict(state) if set(state) == {PARAMETER_NAME} else state
