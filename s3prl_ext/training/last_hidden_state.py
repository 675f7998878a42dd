"""Which last hidden state a task was trained on, where it read that of a pre-norm transformers model.

0.1.0 with transformers 5 gave the one before the encoder's final norm, see :mod:`s3prl_ext.transformers_models`.
Checkpoints, deltas and exports say since then that theirs comes after it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from s3prl_ext.training.checkpoint import EXTENSION_KEY
from s3prl_ext.training.checkpoint import LAST_HIDDEN_STATE_KEY as KEY
from s3prl_ext.transformers_models import is_prenorm
from s3prl_ext.upstreams.merged_attention.model import TransformersSpeechModel

logger = logging.getLogger(__name__)

PRESENT = "after the final norm"


def record_of(states: Mapping[str, Any]) -> str | None:
    """Return what a checkpoint, or the head of an export, says of it."""
    return states.get(EXTENSION_KEY, states).get(KEY)


def is_read(upstream: nn.Module, args: Mapping[str, Any]) -> bool:
    """Return whether a task reads the last of the hidden states of a pre-norm transformers model.

    Args:
        upstream: unwrapped.
        args: ``upstream_feature_selection`` and ``upstream_layer_selection`` of the task.
    """
    if not is_prenorm(upstream):
        return False
    selection, layer = args.get("upstream_feature_selection"), args.get("upstream_layer_selection")
    if selection == "last_hidden_state" and isinstance(upstream, TransformersSpeechModel):
        return False  # its own output, which never changed
    return layer is None or layer in (-1, cast(Any, upstream).model.config.num_hidden_layers)


def result_of(upstream: nn.Module, args: Mapping[str, Any]) -> str | None:
    """Return what a result must say of it, so that results of both are not compared; None where it is not read."""
    return PRESENT if is_read(upstream, args) else None


def warn_where_unknown(record: str | None, upstream: nn.Module, args: Mapping[str, Any], where: object) -> None:
    """Warn where a task may have been trained on another last hidden state than `upstream` gives.

    Args:
        record: what the file says, see :func:`record_of`.
        upstream: the present upstream, unwrapped.
        args: ``upstream_feature_selection`` and ``upstream_layer_selection`` of the task.
        where: the file.
    """
    if record == PRESENT or not is_read(upstream, args):
        return
    logger.warning(
        "%s does not say which last hidden state of this model it was trained on: s3prl_ext 0.1.0 with transformers 5 gave "
        "the one before the final norm, now it is the one after it, so its scores may change; train it again, unless it "
        "was trained with transformers 4.",
        where,
    )
