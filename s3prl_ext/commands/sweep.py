"""``s3prl-ext sweep``: score many merges of one pair of models in one process; choose lambda on dev, report on test."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any

from s3prl_ext import plugin
from s3prl_ext.commands.flags import sweep as flags_of
from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.lambdas import is_zero
from s3prl_ext.merging.names import OWN_UPSTREAM
from s3prl_ext.metrics import metric
from s3prl_ext.sweeps.grid import KEYS, Grid, as_list, read_grid
from s3prl_ext.sweeps.presets import PRESETS
from s3prl_ext.upstreams.merged_attention.config import read_config

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep and write ``sweep.json``, ``sweep.md`` and ``sweep.png``; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    flags = flags_of.parser().parse_args(argv)
    flags.argv = list(sys.argv[2:] if argv is None else argv)
    plugin.install()
    preset = None if flags.upstream == OWN_UPSTREAM else flags.upstream
    config = _one_source(read_config(flags.upstream_model_config, flags.upstream_ckpt, preset))
    grid = _grid(flags, config)
    if flags.metric is not None:
        metric(flags.metric)
    from s3prl_ext.sweeps.pipeline import run  # s3prl is importable once the plug-in is installed

    found = run(flags, config, grid)
    if flags.part is None:
        sys.stdout.write(found.read_text(encoding="utf-8"))
    return 0


def _one_source(config: MergeConfig) -> MergeConfig:
    if len(config.sources) != 1:
        raise UsageError(f"a sweep varies one source, but the merge has {len(config.sources)}: keep one.")
    if config.learnable is not None:
        raise UsageError("a sweep varies a fixed lambda, but the merge has learnable: true: set it to false.")
    (source,) = config.sources
    merged = {projection: value for projection, value in source.lambda_.items() if not is_zero(value)}
    if not merged:  # a configuration of the unmerged target
        return config
    return dataclasses.replace(config, sources=(dataclasses.replace(source, lambda_=merged),))


def _grid(flags: argparse.Namespace, config: MergeConfig) -> Grid:
    """Return the checked grid of ``--grid`` and the flags that win over it.

    Where neither says what is merged, it is what the configuration merges: the source, or its kind of noise.
    """
    file, where = {}, "the grid"
    if flags.grid is not None:
        file, where = (PRESETS[flags.grid] if flags.grid in PRESETS else load_yaml(flags.grid)), str(flags.grid)
    texts = {
        "lambda": flags.lambda_,
        "layers": flags.layers,
        "noise": flags.noise,
        "by": flags.by,
        "top_k": flags.top_k,
    }
    given: dict[str, Any] = {key: as_list(text) for key, text in texts.items() if text is not None}
    if "layers" in given:
        given["layers"] = [name if "+" not in name else name.split("+") for name in given["layers"]]
    if "top_k" in given:
        given["top_k"] = [int(number) if number.isdecimal() else number for number in given["top_k"]]
    if flags.draws is not None:
        given["draws"] = flags.draws
    assert set(given) <= set(KEYS)
    noise = config.sources[0].noise
    grid = read_grid(file, given, config.allow_extrapolation, where, noise.kind if noise else "none")
    if grid["by"] and flags.similarity is None:
        raise UsageError("--by needs --similarity: the layers.json of `s3prl-ext layers`, or a table of pairs.")
    return grid
