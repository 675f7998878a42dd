"""``s3prl-ext layers``: how similar the layers of two encoders are, and which ones to merge (MAM, Table 3)."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.commands.flags import layers as flags_of
from s3prl_ext.errors import DataError, ExtError, UsageError
from s3prl_ext.evaluation.layer_panels import LayerPanel, plot_layer_panels
from s3prl_ext.merging.config import MergeConfig, TargetConfig
from s3prl_ext.merging.layers import LayerMap, parse_layer_map
from s3prl_ext.merging.names import DECODER, LEVELS, SIMILARITY_NAMES
from s3prl_ext.merging.selection_config import LayerMatch, parse_settings
from s3prl_ext.merging.source_config import SourceConfig
from s3prl_ext.tables import grid
from s3prl_ext.writing import check_out_file, write_json, write_text

logger = logging.getLogger(__name__)

WRITTEN: dict[str, Callable[[str], bool]] = {  # next to the picture; how an earlier result is told from other files
    "layers.md": lambda text: text.startswith("# ") and "`layers: [" in text,
    "layers.json": lambda text: all(f'"{key}":' in text for key in ("kind", "metrics", "layer_map")),
}
SIMILAR = {"smallest": "small = similar", "largest": "large = similar"}  # in the titles of the picture


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two models layer by layer; writes ``layers.json``, ``layers.md`` and ``layers.png``."""
    flags = flags_of.parser().parse_args(argv)
    metrics = [name.strip() for name in flags.metric.split(",") if name.strip()]
    if not metrics:
        raise UsageError(f"--metric names no metric: give some of {', '.join(SIMILARITY_NAMES)}.")
    settings = parse_settings(
        {
            "level": flags.level,
            "normalize": flags.normalize,
            "projections": flags.projections,
            "special_tokens": not flags.no_special_tokens,
            "share": flags.share,
            "seed": flags.seed,
        },
        metrics,
        "layers",
    )
    out = _out_folder(flags.out)
    target, source, layer_map = _models(flags)
    result = _measure(target, source, layer_map, metrics, settings, flags)
    _write(result, out)
    print(format_table(result))
    for metric, row in result["metrics"].items():
        print(f"{metric + ', top ' + str(result['top_k']):28s}layers: {row['layers']}")
    best = "swd" if "swd" in metrics else metrics[0]
    print(f"\nin a merge:  layers: {{by: {best}, top_k: {flags.top_k}, from: {out / 'layers.json'}}}")
    return 0


def _out_folder(path: str) -> Path:
    out = Path(path)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {path} cannot be made ({error.strerror}): give another folder.") from error
    for name, fits in WRITTEN.items():
        check_out_file(out / name, fits)
    return out


def _models(flags: argparse.Namespace) -> tuple[TargetConfig, SourceConfig, LayerMap]:
    """Return target, source and layer map from the flags and, where they are silent, from a merge configuration."""
    target, source, layer_map = _from_merge(flags) if flags.config else (None, None, None)
    if flags.layer_map:
        layer_map = _layer_map(flags.layer_map)
    if flags.target:
        target = _target(flags.target, flags.target_ckpt)
    if flags.source:
        kind, _, name = flags.source.partition(":")
        source = SourceConfig({}, package=name) if kind == "package" else SourceConfig({}, model=flags.source)
    for name, model in (("target", target), ("source", source)):
        if model is None:
            raise UsageError(f"no {name}: give --{name} MODEL, or -g with a merge configuration that names one.")
    assert target is not None and source is not None
    if flags.target_prefix:
        target = replace(target, prefix=DECODER if flags.target_prefix == DECODER else None)
    if flags.source_prefix:
        source = replace(source, prefix=flags.source_prefix)
    return target, source, layer_map


def _from_merge(flags: argparse.Namespace) -> tuple[TargetConfig, SourceConfig | None, LayerMap]:
    """Return target, source and layer map of a merge configuration; flags replace what a comparison cannot take."""
    from s3prl_ext.upstreams.merged_attention.config import read_config

    text = flags.config
    config = read_config(text, None if flags.target else flags.target_ckpt)
    if len(config.sources) != 1:
        if not flags.source:
            raise UsageError(f"{text} names {len(config.sources)} sources: compare one at a time, with --source.")
        return config.target, None, None
    (source,) = config.sources
    if not (source.model or source.package or flags.source):
        raise UsageError(f"{text}: the merge names no source, only noise: give a model to compare with --source.")
    if isinstance(source.layer_map, LayerMatch) and not flags.layer_map:
        raise UsageError(f"{text}: the merge finds its layer_map itself: give one with --layer-map, such as linear.")
    return config.target, source, source.layer_map


def _layer_map(text: str) -> LayerMap:
    if text == "linear":
        return text
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and all(index.strip().isdecimal() for index in pair) for pair in pairs):
        raise UsageError(f"--layer-map must be linear or pairs such as 0:0,1:2, got '{text}'.")
    return parse_layer_map({int(layer): int(other) for layer, other in pairs}, "--layer-map")


def _target(name: str, ckpt: str | None) -> TargetConfig:
    """Return a path as a model, a known name as an upstream, and anything else as a hub id."""
    import s3prl_ext

    s3prl_ext.install()
    import s3prl.hub

    path = Path(name).expanduser()
    if path.is_file():
        raise UsageError(f"--target {name} is a file: name its upstream, such as --target hubert_local -k {name}.")
    if not path.exists() and name in s3prl.hub.options():
        return TargetConfig(upstream=name, ckpt=ckpt)
    if ckpt:
        raise UsageError(f"-k belongs to an upstream, but --target {name} is a model itself.")
    return TargetConfig(model=name)


def _measure(
    target: TargetConfig,
    source: SourceConfig,
    layer_map: LayerMap,
    metrics: Sequence[str],
    settings: Any,
    flags: argparse.Namespace,
) -> dict[str, Any]:
    """Open both models and compare them."""
    import s3prl_ext

    s3prl_ext.install()
    from s3prl_ext.training.devices import check_device
    from s3prl_ext.upstreams.layer_similarity.comparison import source_side
    from s3prl_ext.upstreams.layer_similarity.selection import measure, opened_target
    from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, build_target, find_source, model_name

    if flags.batch_size < 1:
        raise UsageError(f"--batch-size must be 1 or more, got {flags.batch_size}.")
    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    second = source_side(find_source(source), model_name(source), source.prefix, settings.special_tokens, device)
    upstream = None if target.prefix else build_target(target)
    merge = OpenedMerge(MergeConfig(target, ()), (), upstream)
    with opened_target(merge, settings.special_tokens, device, flags.batch_size) as first:
        return measure(first, second, flags.pairs, flags.root, flags.split, layer_map, metrics, flags.top_k, settings)


def format_table(result: dict[str, Any]) -> str:
    """Return the content of a ``layers.json`` as a Markdown table; a star marks a chosen layer."""
    metrics = result["metrics"]
    heads = [f"{metric} ({row['most_similar']} first)" for metric, row in metrics.items()]
    rows = []
    compared = next(iter(metrics.values()))["compared"]
    for position, layer in enumerate(compared):
        cells = [f"{row['values'][position]:.6g}{' *' if layer in row['layers'] else '  '}" for row in metrics.values()]
        rows.append([str(layer), str(result["layer_map"][layer]), *cells])
    return grid(["layer", "source layer", *heads], rows, padded=True)


def _write(result: dict[str, Any], out: Path) -> None:
    pairs = result["pairs"]
    target, source = (Path(result[role]["name"]).name for role in ("target", "source"))
    title = f"{target} and {source}: {pairs['used']} of {pairs['of']} pairs of {Path(pairs['file']).name}"
    level = "" if result["settings"]["level"] == LEVELS[0] else ", frames against tokens"
    chosen = "\n".join(f"- {metric}: `layers: {row['layers']}`" for metric, row in result["metrics"].items())
    star = f"A star marks the {result['top_k']} most similar layers."
    text = f"# {title}{level}\n\n{format_table(result)}\n\n{star}\n\n{chosen}\n"
    panels = [
        LayerPanel(f"{metric} ({SIMILAR[row['most_similar']]})", row["compared"], row["values"], row["layers"])
        for metric, row in result["metrics"].items()
    ]
    _say_what_is_replaced(result, out / "layers.json")
    plot_layer_panels(panels, out / "layers.png", title + level)
    write_text(out / "layers.md", text)
    write_json(out / "layers.json", result, ensure_ascii=False)


def _say_what_is_replaced(result: dict[str, Any], path: Path) -> None:
    """Warn where a file with other similarities is replaced, by which merges may have chosen their layers."""
    from s3prl_ext.upstreams.layer_similarity.selection import read_result

    try:
        before = read_result(path)
    except ExtError:  # missing, or corrupt
        return
    if _similarities(before) != _similarities(json.loads(json.dumps(result))):
        chosen = "; ".join(f"{metric} {row.get('layers')}" for metric, row in before["metrics"].items())
        logger.warning(
            "%s is replaced: it held other similarities (%s). Merges that name it by `from:` take their layers from "
            "the new one.", path, chosen
        )  # fmt: skip


def _similarities(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a merge takes from a ``layers.json``."""
    rows = {metric: (row["compared"], row["values"]) for metric, row in content["metrics"].items()}
    return {**rows, "layer_map": content["layer_map"]}


if __name__ == "__main__":
    sys.exit(main())
