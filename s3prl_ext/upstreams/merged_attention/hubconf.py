"""Entry functions for s3prl's hub: ``-u merged_attention -g my.yaml``, and one per shipped configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from s3prl_ext.upstreams.merged_attention.config import preset_file, read_config
from s3prl_ext.upstreams.merged_attention.expert import build_upstream


def merged_attention(
    ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any
) -> torch.nn.Module:
    """Build a merged upstream from your own configuration file.

    Args:
        ckpt: ``-k``: replaces the target's checkpoint or model.
        model_config: ``-g``: the file, then overrides: ``"my.yaml,,lambda=0.10,,layers=12-19"``.
        refresh: download s3prl's checkpoint of the target again.
    """
    return build_upstream(read_config(model_config, ckpt), refresh)


def preset(name: str) -> Callable[..., torch.nn.Module]:
    """Return the entry function of a shipped configuration, ``upstream_configs/NAME.yaml``.

    Its arguments are those of :func:`merged_attention`, with overrides only in ``-g``: ``"lambda=0.2"``.

    Raises:
        UsageError: there is no such configuration.
    """
    preset_file(name)

    def entry(ckpt: str | None = None, model_config: str | None = None, refresh: bool = False, **kwargs: Any) -> Any:
        return build_upstream(read_config(model_config, ckpt, preset=name), refresh)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Build the merged upstream of upstream_configs/{name}.yaml; -g takes overrides only."
    return entry
