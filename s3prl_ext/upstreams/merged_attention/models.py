"""The models of a merge, opened once: the target, and path and attention of each source.

All that follows takes them from here: layers by similarity, alignment by pairs, the merge and its record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model, find_package_model, read_attention
from s3prl_ext.attention.peft_files import with_adapter
from s3prl_ext.attention.weights import AttentionWeights, extract
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.aligner import Paired
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.names import DECODER
from s3prl_ext.merging.selection_config import LayerMatch, LayerSelection
from s3prl_ext.merging.source_config import SourceConfig, SourceModel
from s3prl_ext.model_settings import head_count, model_config
from s3prl_ext.models.heads import module_heads
from s3prl_ext.upstreams.speech_models import speech_model
from s3prl_ext.upstreams.whisper.encoder import MODEL_TYPE as WHISPER

# Upstreams for transformers folders. As targets all give way to ours: s3prl's return no last_hidden_state.
TRANSFORMERS_UPSTREAMS = (
    "hf_speech_custom",
    "hf_hubert_custom",
    "hf_wav2vec2_custom",
    "whisper_custom",
    "whisper_local",
)


@dataclass(frozen=True)
class OpenedSource:
    """A source of a merge, and what was found out about it before it is merged.

    Attributes:
        section: what the configuration says of it.
        path: folder or file of its model; None for noise that needs none.
        weights: its attention as read, an adapter folded in; None without a path.
        selection: how its layers were chosen, where by similarity; plain values.
        match: how it was found which layers are paired, where by similarity; plain values.
        paired: what paired inputs say about it.
    """

    section: SourceConfig
    path: Path | None = None
    weights: AttentionWeights | None = None
    selection: dict[str, Any] | None = None
    match: dict[str, Any] | None = None
    paired: Paired = field(default_factory=Paired)

    @property
    def name(self) -> str:
        """What to call its model."""
        return model_name(self.section)


@dataclass(frozen=True)
class OpenedMerge:
    """A merge with its models.

    Attributes:
        config: what is merged, and how.
        sources: one for each section in `config`.
        module: holds the target's parameters: the unmerged upstream, or a task's decoder; None where only the files
            of the target are read.
    """

    config: MergeConfig
    sources: Sequence[OpenedSource]
    module: torch.nn.Module | None = None

    def with_sources(self, sources: Sequence[OpenedSource]) -> OpenedMerge:
        """Return the merge with other sources, or with more known about them."""
        config = replace(self.config, sources=tuple(source.section for source in sources))
        return replace(self, config=config, sources=sources)

    @property
    def name(self) -> str:
        """What to call the target."""
        return target_name(self.config.target)

    @property
    def by_pairs(self) -> bool:
        """Whether something is left to be found out by paired inputs or a ``layers.json``."""
        return any(
            isinstance(one.layers, LayerSelection) or isinstance(one.layer_map, LayerMatch) or one.runs
            for one in self.config.sources
        )

    def attention(self) -> AttentionWeights:
        """Return the attention of the target as its files hold it; of an upstream as views."""
        prefix = self.config.target.prefix
        if prefix:
            return read_attention(decoder_folder(self.config.target), prefix)
        assert self.module is not None
        return extract(self.module.state_dict(), f"target {self.name}")

    def heads(self, source: SourceConfig) -> tuple[int | None, int | None]:
        """Return the numbers of heads of target and source: as given, by each ``config.json``, by the built target.

        Args:
            source: a section with ``align``.

        Raises:
            UsageError: heads are to be paired one to one and the numbers differ, or one is not known.
        """
        assert source.align is not None
        pair, found = source.align.heads, self.head_counts(source)
        given = pair.heads if pair is not None else None
        if pair is not None:
            _check_heads(found, given, source.rotates)
        ours = found["target"] or given
        return ours, found.get("source", ours) or given

    def head_counts(self, source: SourceConfig) -> dict[str, int | None]:
        """Return the number of heads of ``target`` and, where it is read, of ``source``: None of one that is silent."""
        target, model = self.config.target, model_of(self.config.target)
        said = head_count(find_model(model), target.prefix) if model else None
        found = {"target": said or (module_heads(self.module) if self.module is not None else None)}
        if source.is_read:
            found["source"] = head_count(find_source(source), source.prefix)
        return found


def _check_heads(found: Mapping[str, int | None], given: int | None, rotates: bool) -> None:
    """Refuse numbers of heads that are not known, or differ; with a basis they may."""
    said = {f"the {role} has {count}": count for role, count in found.items() if count}
    if given:
        said[f"align.heads is {given}"] = given
    if len(set(said.values())) > 1 and (given or not rotates):
        raise UsageError(
            f"align: {' and '.join(said)}: heads are paired one to one, so leave align out, or correct it."
        )
    if not given and None in found.values():
        silent = next(role for role, count in found.items() if count is None)
        raise UsageError(
            f"align: the {silent} does not say how many heads it has: give align: {{kind: heads, heads: N}}."
        )


# -- sources -----------------------------------------------------------------------------------------------------------


def open_sources(config: MergeConfig) -> list[OpenedSource]:
    """Find the models of all sources, then read their attention.

    Raises:
        DataError: a model is missing, unreadable, or without attention.
    """
    paths = [find_source(section) if section.is_read else None for section in config.sources]
    return [open_source(section, path) for section, path in zip(config.sources, paths, strict=True)]


def open_source(section: SourceConfig, path: Path | None) -> OpenedSource:
    """Read the attention of a source, its adapter folded in.

    Args:
        path: as :func:`find_source` returns it; None for noise that needs no source.

    Raises:
        DataError: model or adapter is missing, unreadable, or the two do not belong together.
    """
    if path is None:
        return OpenedSource(section)
    weights = read_attention(path, section.prefix)
    if section.adapter is not None:
        adapter = Path(section.adapter).expanduser()
        weights = with_adapter(weights, adapter, _adapted_name(section), section.prefix)
    return OpenedSource(section, path, weights)


def find_source(source: SourceConfig | SourceModel) -> Path:
    """Return the folder or file of a source, or of its base."""
    return find_package_model(source.package) if source.package else find_model(str(source.model))


def model_name(source: SourceConfig | SourceModel) -> str:
    """Return what to call the model of a source or of its base."""
    return _with_prefix(source.model or f"package {source.package}", source.prefix)


def source_name(source: SourceConfig) -> str:
    """Return what to call what is merged, in messages and records: a model with its adapter, or noise."""
    model = _adapted_name(source)
    if source.noise is None:
        return model
    owner = {"source": model, "target": "the target", "standard": "N(0, 1)"}[source.noise.kind]
    return f"noise of {owner} (draw {source.noise.draw}, seed {source.noise.seed})"


def _adapted_name(source: SourceConfig) -> str:
    name = model_name(source)
    return f"{name} with adapter {source.adapter}" if source.adapter else name


# -- target ------------------------------------------------------------------------------------------------------------


def build_target(target: TargetConfig, refresh: bool = False) -> torch.nn.Module:
    """Return the unmerged target as an s3prl upstream.

    Raises:
        UsageError: s3prl has no upstream of that name, or it needs a checkpoint.
        DataError: the model is missing or unreadable.
    """
    if target.upstream is None:
        return speech_model(find_model(str(target.model)))
    if target.upstream in TRANSFORMERS_UPSTREAMS:
        if not target.ckpt:
            raise UsageError(f"target.upstream {target.upstream} needs a folder or hub id: set target.ckpt or -k.")
        return speech_model(find_model(target.ckpt))
    ckpt = str(find_model(target.ckpt)) if hub.is_file_reference(target.ckpt) else target.ckpt
    return _build_s3prl_upstream(target.upstream, ckpt, refresh)


def _build_s3prl_upstream(name: str, ckpt: str | None, refresh: bool) -> torch.nn.Module:
    import s3prl.hub

    if name not in s3prl.hub.options():
        raise unknown_name("target.upstream", name, s3prl.hub.options())
    if name.endswith("_local") and not (ckpt and Path(ckpt).is_file()):
        raise UsageError(f"target.upstream {name} needs a checkpoint file, but target.ckpt is {ckpt}.")
    return getattr(s3prl.hub, name)(ckpt=ckpt, model_config=None, refresh=refresh)


def model_of(target: TargetConfig) -> str | None:
    """Return the transformers folder or hub id of a target, None of one that s3prl loads from a checkpoint."""
    return target.model or (target.ckpt if target.upstream in TRANSFORMERS_UPSTREAMS else None)


def target_name(target: TargetConfig) -> str:
    """Return what to call the target in messages and records."""
    return _with_prefix(target.model or " ".join(filter(None, (target.upstream, target.ckpt))), target.prefix)


def _with_prefix(name: str, prefix: str | None) -> str:
    """Return what to call the part of a model after a prefix, such as ``whisper_base (decoder)``."""
    return name if prefix is None else f"{name} ({prefix})"


def decoder_folder(target: TargetConfig) -> Path:
    """Return the folder of a target with ``prefix: decoder``.

    Raises:
        UsageError: it is not a Whisper.
        DataError: it is missing.
    """
    model = model_of(target)
    folder = find_model(model) if model else None
    kind = target.upstream if folder is None else model_config(folder).get("model_type")
    if folder is None or kind != WHISPER:
        raise UsageError(
            f"target.prefix: decoder belongs to a Whisper, but the target {model or target.upstream} is of type "
            f"{kind!r}: leave target.prefix out."
        )
    return folder


def read_decoder(target: TargetConfig) -> AttentionWeights:
    """Return the attention parameters of a target's decoder in float32, as a task holds them."""
    weights = read_attention(decoder_folder(target), DECODER)
    return {slot: tensor.float() for slot, tensor in weights.items()}
