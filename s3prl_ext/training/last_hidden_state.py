"""Which last hidden state a task was trained on, where it read that of a pre-norm transformers model.

0.1.0 with transformers 5 gave the one before the encoder's final norm, see :mod:`s3prl_ext.transformers_models`.
Checkpoints, deltas and exports say since then that theirs comes after it.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from torch import nn

from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel

logger = logging.getLogger(__name__)

KEY = "last_hidden_state"  # in checkpoints, deltas, exports and results
PRESENT = "after the final norm"


def _is_prenorm(upstream: Any) -> bool:
    """Return whether an upstream is a transformers speech model whose encoder ends with a norm of its own."""
    config = getattr(getattr(upstream, "model", None), "config", None)
    return bool(getattr(config, "do_stable_layer_norm", False))


def is_read(upstream: nn.Module, spec: RunSpec) -> bool:
    """Return whether a task reads the last of the hidden states of a pre-norm transformers model.

    Args:
        upstream: unwrapped.
        spec: says what the task reads.
    """
    if not _is_prenorm(upstream):
        return False
    selection, layer = spec.upstream_feature_selection, spec.upstream_layer_selection
    if selection == "last_hidden_state" and isinstance(upstream, TransformersSpeechModel):
        return False  # its own output, which never changed
    return layer is None or layer in (-1, cast(Any, upstream).model.config.num_hidden_layers)


def result_of(upstream: nn.Module, spec: RunSpec) -> str | None:
    """Return what a result stores about it, so that results of both are not compared; None where it is not read."""
    return PRESENT if is_read(upstream, spec) else None


def warn_where_unknown(record: str | None, upstream: nn.Module, spec: RunSpec, where: object) -> None:
    """Warn where a task may have been trained on another last hidden state than `upstream` gives.

    Args:
        record: what the file says.
        upstream: the present upstream, unwrapped.
        spec: says what the task reads.
        where: the file.
    """
    if record == PRESENT or not is_read(upstream, spec):
        return
    logger.warning(
        "%s does not say which last hidden state of this model it was trained on: s3prl_ext 0.1.0 with transformers 5 "
        "gave the one before the final norm, now it is the one after it, so its scores may change; train it again, "
        "unless it was trained with transformers 4.",
        where,
    )
