"""Merge into the decoder of a Whisper (``target: {model: ..., prefix: decoder}``), where a task holds it.

The decoder is not part of an upstream: it is the head of a recognition task, which merges it when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from s3prl_ext.attention.weights import AttentionWeights, extract, sha256
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.names import DECODER
from s3prl_ext.upstreams.layer_similarity.paired_alignment import decide_by_pairs
from s3prl_ext.upstreams.merged_attention.config import OWN_UPSTREAM, is_merged, read_config
from s3prl_ext.upstreams.merged_attention.expert import merge_in_module
from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, open_sources, read_decoder, target_name


def decoder_merge(args: Mapping[str, Any]) -> MergeConfig | None:
    """Return the merge of an experiment's upstream where it changes a decoder, None where it does not.

    Args:
        args: the arguments of ``run_downstream.py``: ``upstream``, ``upstream_ckpt``, ``upstream_model_config``.
    """
    upstream = args.get("upstream")
    if not upstream or not is_merged(upstream):
        return None
    preset = None if upstream == OWN_UPSTREAM else upstream
    config = read_config(args.get("upstream_model_config"), args.get("upstream_ckpt"), preset)
    return config if config.target.prefix == DECODER else None


def check_task(expert: type, task: str, args: Mapping[str, Any]) -> None:
    """Refuse a merged decoder for a task that reads features only, which the merge does not change.

    Args:
        expert: class of the task; one that can hold a decoder has the attribute ``decoder``.
        task: its name for ``-d``.

    Raises:
        UsageError: the merge would change nothing.
    """
    config = None if hasattr(expert, "decoder") else decoder_merge(args)
    if config is not None:
        raise UsageError(
            f"the merge changes {target_name(config.target)}, which -d {task} does not read, so it would score the "
            "unmerged model: transcribe with it (-d ljspeech or vctk, head.init: target), or leave target.prefix out."
        )


def decoder_attention(holder: nn.Module) -> AttentionWeights:
    """Return the attention parameters of the decoder inside a module as views: writing to them writes to it."""
    return extract(holder.state_dict(), "the decoder", DECODER)


def check_decoder(holder: nn.Module | None, config: MergeConfig) -> None:
    """Check that a task transcribes with the decoder that a merge changes.

    Args:
        holder: module with the task's decoder, not yet merged; None where the task has another head.

    Raises:
        UsageError: it has another head.
        DataError: it is the decoder of another model.
    """
    name = target_name(config.target)
    if holder is None:
        raise UsageError(
            f"the merge changes {name}, but the task has a CTC head, so it would score the unmerged model: set "
            "head.init: target, or leave target.prefix out."
        )
    if sha256(decoder_attention(holder)) != sha256(read_decoder(config.target)):
        raise DataError(f"the merge changes {name}, but head.ckpt names another model: leave head.ckpt out.")


def merge_decoder(holder: nn.Module, config: MergeConfig) -> None:
    """Merge into the decoder inside `holder`, in place; with ``learnable`` the merge stays in the module.

    Raises:
        UsageError: the models do not fit each other or the configuration.
        DataError: a model is missing, unreadable, or without attention.
    """
    merge = OpenedMerge(config, open_sources(config))
    if merge.by_pairs:
        merge = decide_by_pairs(merge)
    merge_in_module(replace(merge, module=holder))
