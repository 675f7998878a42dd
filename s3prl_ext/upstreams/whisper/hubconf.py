"""Entry functions for s3prl's hub: ``-u whisper_local -k FOLDER``, with ``-g window=30`` for the padded form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import UsageError
from s3prl_ext.settings import load


def whisper_custom(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
) -> torch.nn.Module:
    """Build the encoder of a Whisper from a transformers folder or hub id.

    Args:
        ckpt: ``-k``: the folder or hub id.
        model_config: ``-g``: ``window=clip`` (default): each clip at its own length; ``window=30``: padded to the 30 s
            of the model's training.
        refresh: without effect; the hub client looks for a newer version by itself.

    Raises:
        UsageError: no `ckpt`, an unknown option, or another kind of model.
        DataError: the model is missing or unreadable.
    """
    from s3prl_ext.attention.files import find_model
    from s3prl_ext.upstreams.whisper.expert import UpstreamExpert

    if not ckpt:
        raise UsageError("a Whisper upstream needs a transformers folder or hub id: -k FOLDER.")
    return UpstreamExpert(find_model(str(ckpt)), padded=read_window(model_config) == 30)


def whisper_local(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
) -> torch.nn.Module:
    """Do the same as :func:`whisper_custom`, from a folder only.

    Raises:
        UsageError: as :func:`whisper_custom`, or `ckpt` is not a folder on this machine.
    """
    if ckpt and not Path(ckpt).exists():
        raise UsageError(f"no such model folder: {ckpt}; for a model on the Hugging Face hub use -u whisper_custom.")
    return whisper_custom(ckpt, model_config, refresh, **kwargs)


def _window(value: Any, where: str) -> str | int:
    if value not in ("clip", 30) or isinstance(value, bool):
        raise UsageError(f"{where} must be clip (each clip at its own length) or 30 (padded to 30 s), got {value!r}.")
    return value


@dataclass(frozen=True)
class WhisperOptions:
    """What ``-g`` may set.

    Attributes:
        window: ``clip``: each clip is read at its own length; 30: padded with silence to 30 s, as in training.
    """

    window: Annotated[str | int, _window] = "clip"


def read_window(model_config: str | None) -> str | int:
    """Read the text given to ``-g`` and return the window.

    Raises:
        UsageError: an unknown key or value.
    """
    from s3prl_ext.overrides import apply_overrides, split_options

    file, overrides = split_options(model_config)
    where = file or "-g"
    content = apply_overrides(load_yaml(file) if file else {}, overrides, where)
    return load(WhisperOptions, content, where).window
