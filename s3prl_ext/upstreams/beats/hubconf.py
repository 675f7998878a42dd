"""Entry functions for s3prl's hub: ``-u beats_local -k checkpoint.pt``, with ``-g tokens=all`` to keep every token."""

from __future__ import annotations

from typing import Any

import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.upstreams.beats.config import read_options


def beats_custom(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
) -> torch.nn.Module:
    """Build a BEATs upstream from a checkpoint in the released format, pre-trained or fine-tuned on AudioSet.

    Args:
        ckpt: ``-k``: the checkpoint file, or one on the hub: ``ID:FILE@REVISION``.
        model_config: ``-g``: a YAML file or overrides, see
            :class:`s3prl_ext.upstreams.beats.config.UpstreamOptions`.
        refresh: without effect, nothing is downloaded.

    Raises:
        UsageError: no checkpoint is given, or an option is unknown.
        DataError: the checkpoint is missing, unreadable or of another family.
    """
    from s3prl_ext import hub
    from s3prl_ext.attention.files import find_model
    from s3prl_ext.upstreams.beats.expert import UpstreamExpert

    if not ckpt:
        raise UsageError("the upstream BEATs needs a checkpoint: -k /path/to/BEATs_iter3.pt.")
    return UpstreamExpert(find_model(str(ckpt)) if hub.is_file_reference(ckpt) else ckpt, read_options(model_config))


def beats_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
) -> torch.nn.Module:
    """Do the same as :func:`beats_custom`."""
    return beats_custom(ckpt=ckpt, model_config=model_config, refresh=refresh, **kwargs)
