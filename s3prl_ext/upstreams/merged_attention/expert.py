"""Build the target, read the source's attention, and fold the merge into the target's parameters."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.attention.files import find_model, find_package_model, model_config, read_attention
from s3prl_ext.attention.weights import AttentionWeights, depth, extract
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.config import MergeConfig, SourceConfig, TargetConfig, resolve_lambdas
from s3prl_ext.merging.merge import check_compatible, merge_attention
from s3prl_ext.merging.report import format_table
from s3prl_ext.upstreams.merged_attention.model import TransformersSpeechModel
from s3prl_ext.upstreams.merged_attention.record import MergeRecord, check_merge_record, describe_model

__all__ = ["build_target", "build_upstream", "check_merge_record", "merge_into"]

logger = logging.getLogger(__name__)

# s3prl's upstreams for transformers folders: they return no last_hidden_state, so our own model stands in for them.
TRANSFORMERS_UPSTREAMS = ("hf_hubert_custom", "hf_wav2vec2_custom")


def build_upstream(config: MergeConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the target as an s3prl upstream with the source's attention merged in; it costs nothing at run time.

    The module is the target itself, with its parameter names, and has the attribute ``merge_record``: a dict of plain
    values for :func:`s3prl_ext.upstreams.merged_attention.record.check_merge_record`.

    Args:
        refresh: let s3prl download the target again.

    Raises:
        UsageError: the models do not fit each other or the configuration.
        DataError: a model is missing, unreadable, or without attention.
    """
    source_path = find_source(config.source)
    source = read_attention(source_path, config.source.prefix)
    upstream = build_target(config.target, refresh)
    record = merge_into(upstream, source, config)
    upstream.merge_record = record  # type: ignore[assignment]  # a plain attribute, not a submodule
    _warn_heads(upstream, source_path)
    return upstream


def find_source(source: SourceConfig) -> Path:
    """Return the folder or file of the source model."""
    return find_package_model(source.package) if source.package else find_model(str(source.model))


def build_target(target: TargetConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the unmerged target as an s3prl upstream.

    Raises:
        UsageError: s3prl has no upstream of that name, or it needs a checkpoint.
        DataError: the model is missing or unreadable.
    """
    if target.upstream is None:
        return TransformersSpeechModel(find_model(str(target.model)))
    if target.upstream in TRANSFORMERS_UPSTREAMS:
        if not target.ckpt:
            raise UsageError(f"target.upstream {target.upstream} needs a folder or hub id: set target.ckpt or -k.")
        return TransformersSpeechModel(find_model(target.ckpt))
    return _build_s3prl_upstream(target.upstream, target.ckpt, refresh)


def _build_s3prl_upstream(name: str, ckpt: str | None, refresh: bool) -> torch.nn.Module:
    import s3prl.hub

    if name not in s3prl.hub.options():
        raise unknown_name("target.upstream", name, s3prl.hub.options())
    if name.endswith("_local") and not (ckpt and Path(ckpt).is_file()):
        raise UsageError(f"target.upstream {name} needs a checkpoint file, but target.ckpt is {ckpt}.")
    return getattr(s3prl.hub, name)(ckpt=ckpt, model_config=None, refresh=refresh)


def merge_into(upstream: torch.nn.Module, source: AttentionWeights, config: MergeConfig) -> MergeRecord:
    """Merge `source` into the parameters of `upstream`, in place, log what changed, and return the record.

    Raises:
        UsageError: depth, width, layers or lambda do not fit.
        DataError: no attention found, or NaN in a matrix.
    """
    names = target_name(config.target), source_name(config.source)
    target = extract(upstream.state_dict(), f"target {names[0]}")
    _check(target, source, names, config)
    lambdas = resolve_lambdas(config, depth(target))
    record = {
        "target": describe_model(names[0], target),
        "source": describe_model(names[1], source),
        "lambda": lambdas,
        "biases": config.biases,
        "config": _plain(config),
    }
    merged, rows = merge_attention(target, source, lambdas, config.biases)
    with torch.no_grad():
        for slot, tensor in merged.items():
            target[slot].copy_(tensor)
    logger.info("Merged the attention of %s into %s:\n%s", names[1], names[0], format_table(rows))
    return record


def target_name(target: TargetConfig) -> str:
    """Return what to call the target in messages and records."""
    return target.model or " ".join(filter(None, (target.upstream, target.ckpt)))


def source_name(source: SourceConfig) -> str:
    """Return what to call the source in messages and records."""
    return source.model or f"package {source.package}"


def _check(target: AttentionWeights, source: AttentionWeights, names: tuple[str, str], config: MergeConfig) -> None:
    """Report everything that does not fit at once: the sizes of the models, and the configuration to the depth."""
    problems = []
    for check, arguments in (
        (check_compatible, (target, source, (f"target {names[0]}", f"source {names[1]}"), config.biases)),
        (resolve_lambdas, (config, depth(target))),
    ):
        try:
            check(*arguments)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))


def _plain(config: MergeConfig) -> dict[str, Any]:
    """Return the configuration under the keys of its YAML file, in plain values."""
    content = dataclasses.asdict(config)
    content["lambda"] = content.pop("lambda_")
    return content


def _warn_heads(upstream: torch.nn.Module, source_path: Path) -> None:
    """Warn where source and target split the same width into different numbers of heads."""
    source_heads = model_config(source_path).get("num_attention_heads")
    target_heads = next(
        (m.num_heads for m in upstream.modules() if isinstance(getattr(m, "num_heads", None), int)), None
    )
    if source_heads and target_heads and source_heads != target_heads:
        logger.warning(
            "The target has %d attention heads, the source %d: heads will not line up.", target_heads, source_heads
        )
