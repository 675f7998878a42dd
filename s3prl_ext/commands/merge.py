"""``s3prl-ext merge``: write a merged model as a plain checkpoint that needs neither the source nor this package."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from s3prl_ext import plugin
from s3prl_ext.attention.files import find_model, read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights, sha256
from s3prl_ext.commands import merge_deltas
from s3prl_ext.commands.flags import merge as flags_of
from s3prl_ext.deltas.plain_upstream import checkpoint_of
from s3prl_ext.errors import UsageError
from s3prl_ext.locks import one_writer
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.export import attention_keys, write_model
from s3prl_ext.merging.merge import MergeRow, chosen_slots, merge_sources
from s3prl_ext.merging.model_card import Usage, model_card
from s3prl_ext.merging.names import OWN_UPSTREAM
from s3prl_ext.model_settings import model_config
from s3prl_ext.progress import bar
from s3prl_ext.run_folder import MERGE_FILE
from s3prl_ext.tables import columns
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.hf_speech.expert import check_type
from s3prl_ext.upstreams.layer_similarity.paired_alignment import decide_by_pairs
from s3prl_ext.upstreams.merged_attention.config import check_config, read_raw
from s3prl_ext.upstreams.merged_attention.expert import merge_record
from s3prl_ext.upstreams.merged_attention.models import (
    OpenedMerge,
    build_target,
    decoder_folder,
    model_of,
    open_sources,
    source_name,
)
from s3prl_ext.upstreams.merged_attention.sources import prepare_sources, resolve_sources
from s3prl_ext.writing import written_folder

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True)
class Models:
    """What is merged: the target's files next to the models of the merge.

    Attributes:
        merge: the sources, with their layers chosen.
        path: transformers folder or checkpoint file of the target.
        upstream: the upstream of s3prl that loads a checkpoint file; None for a folder.
        attention: of the target as an upstream holds it, one matrix read from disk each time that it is asked for.
    """

    merge: OpenedMerge
    path: Path
    upstream: str | None
    attention: AttentionWeights


def main(argv: Sequence[str] | None = None) -> int:
    """Write a merged model, or show what would be merged; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    args = flags_of.parser().parse_args(argv)
    if args.deltas:
        return merge_deltas.main(args)
    merge_deltas.check_flags(args)
    if args.out is None and not args.dry_run:
        raise UsageError("--out is missing: name a new folder for the merged model, or look first with --dry-run.")
    plugin.install()
    preset = None if args.upstream in (None, OWN_UPSTREAM) else args.upstream
    raw, name = read_raw(args.upstream_model_config, args.upstream_ckpt, preset)
    config = check_config(raw, name)
    if config.learnable is not None:
        raise UsageError(
            f"{name}: a learnable lambda is known after training only: give a fixed lambda, learnable: false."
        )
    with one_writer(args.out):
        if args.out is not None:
            check_out(args.out)
        models = find_models(config)
        if args.dry_run:
            sys.stdout.write(matched_table(models) + "\n")
            return 0
        write(models, raw, args.out)
    sys.stdout.write(f"{args.out}\n")
    return 0


def check_out(out: Path) -> None:
    """Raise UsageError unless `out` is missing or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} exists already and is not empty: name a new folder.")


def find_models(config: MergeConfig) -> Models:
    """Find the files of target and sources, open their attention parameters, and choose layers by similarity.

    Raises:
        UsageError: the target is an upstream without a checkpoint file, or of a family that no upstream reads.
        DataError: a model is missing, unreadable or without attention.
    """
    path, upstream = _target_file(config.target)
    merge = OpenedMerge(config, open_sources(config))
    if merge.by_pairs:
        module = None if config.target.prefix else build_target(config.target)
        merge = decide_by_pairs(replace(merge, module=module))
    return Models(merge, path, upstream, _AsHeld(read_attention(path, config.target.prefix)))


class _AsHeld(Mapping[Slot, torch.Tensor]):
    """The attention of a model's files as an upstream holds it, half precision in float32: made when it is asked for.

    Args:
        weights: as :func:`read_attention` returns them.
    """

    def __init__(self, weights: AttentionWeights) -> None:
        self._weights = weights

    def __getitem__(self, slot: Slot) -> torch.Tensor:
        return _widened(self._weights[slot])

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _target_file(target: TargetConfig) -> tuple[Path, str | None]:
    """Return folder or file of the target, and the upstream that loads a file."""
    if target.prefix:
        return decoder_folder(target), None
    model = model_of(target)
    if model:
        folder = find_model(model)
        if folder.is_dir() and model_config(folder).get("model_type") not in SPEECH_UPSTREAMS:
            check_type(folder)  # what no upstream reads is not written either
        return folder, None
    return checkpoint_of(str(target.upstream), target.ckpt)


def matched_table(models: Models) -> str:
    """Return the table of tensors that a merge changes: layer, projection, lambda, names in both models, shape.

    Raises:
        UsageError: the models do not fit each other or the configuration.
    """
    merge, config = models.merge, models.merge.config
    lambdas, maps = resolve_sources(merge, models.attention)
    names = attention_keys(models.path, config.target.prefix).names
    lines = [("layer", "projection", "lambda", "target", "source", "shape")]
    for source, values, layers in zip(merge.sources, lambdas, maps, strict=True):
        section, path = source.section, source.path
        theirs = None if path is None or section.noise else attention_keys(path, section.prefix).names
        for slot, weight in chosen_slots(models.attention, values, config.biases).items():
            other = source_name(section)
            if theirs is not None:
                layer = layers[slot.layer]
                assert layer is not None
                other = theirs[Slot(layer, slot.projection, slot.kind)]
            label = slot.projection if slot.kind == "weight" else f"{slot.projection}.bias"
            shape = "x".join(map(str, models.attention[slot].shape))
            lines.append((str(slot.layer), label, f"{weight:g}", names[slot], other, shape))
    return "\n".join([*columns(lines), f"{len(lines) - 1} of {len(names)} attention tensors; nothing was written."])


def write(models: Models, raw: dict[str, Any], out: Path) -> None:
    """Write the merged model with its card and record into a new folder, which appears only when it is complete.

    Args:
        raw: the configuration as its file says it.
        out: missing or empty.

    Raises:
        UsageError: the models do not fit each other or the configuration.
        DataError: NaN or infinity in a matrix.
    """
    config, target = models.merge.config, models.attention
    sources = prepare_sources(models.merge, target)
    record = merge_record(models.merge, target, sources)
    slots = {slot for source in sources for slot in chosen_slots(target, source.lambdas, config.biases)}
    rows: list[MergeRow] = []
    with written_folder(out) as partial:
        with bar(total=len(slots), desc="merging", unit="tensor") as progress:

            def merged_tensor(slot: Slot, old: torch.Tensor) -> torch.Tensor:
                merged, row = merge_sources({slot: _widened(old)}, sources, config.biases, config.combination)
                rows.extend(row)
                progress.update()
                return merged[slot]

            ordered = sorted(slots, key=lambda slot: slot.order)
            files = write_model(models.path, partial, ordered, merged_tensor, config.target.prefix)
        rows.sort(key=lambda row: (row.layer, row.source))
        _describe(models, raw, record, rows, partial, out, files[0].name)
    logger.info("merged model with %d changed tensors written to %s", len(slots), out)


def _describe(
    models: Models,
    raw: dict[str, Any],
    record: dict[str, Any],
    rows: list[MergeRow],
    folder: Path,
    out: Path,
    file: str,
) -> None:
    """Write card, configuration and record of the model in `folder`, which will be `out`; `file` holds its weights."""
    config = models.merge.config
    written = read_attention(folder if models.upstream is None else folder / file, config.target.prefix)
    merged = sha256(_AsHeld(written))
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    (folder / "merge.yaml").write_text(text, encoding="utf-8")
    content = {
        "schema": SCHEMA,
        "merge": record,
        "merged_attention_sha256": merged,
        "rows": [{key: value for key, value in vars(row).items() if value is not None} for row in rows],
    }
    (folder / MERGE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    bases = [source.base.model for source in config.sources if source.base]
    named = [config.target.model or config.target.ckpt, *(source.model for source in config.sources), *bases]
    hub_ids = [name for name in named if name and not Path(name).expanduser().exists() and "://" not in name]
    usage = _usage(models, out, file, transcribes=config.target.prefix is not None)
    card = model_card(out.name, record, rows, merged, text, usage, hub_ids)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _usage(models: Models, out: Path, file: str, transcribes: bool) -> Usage:
    """Return the commands that load the model, by s3prl and by transformers; where `transcribes`, with its decoder."""
    run = "s3prl-ext run -m train -d speech_commands -p exp/merged"
    if transcribes:
        run = "s3prl-ext run -m evaluate -d ljspeech -c ljspeech/mam -p exp/merged"
    if models.upstream is not None:
        return Usage(f"{run} -u {models.upstream} -k {out / file}")
    config = model_config(models.path)
    name = SPEECH_UPSTREAMS[config["model_type"]]
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    python = f'from transformers import {architecture}\n\nmodel = {architecture}.from_pretrained("{out}")'
    return Usage(f"{run} -u {name} -k {out}", python)
