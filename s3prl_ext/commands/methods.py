"""``s3prl-ext methods``: what each tuning method trains in an upstream, what can be folded, and its paper."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from s3prl_ext import adapters, extensions, plugin
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.commands.flags import methods as flags_of
from s3prl_ext.errors import ExtError, UsageError
from s3prl_ext.models.architectures import without_unused
from s3prl_ext.tables import grid
from s3prl_ext.training.learnable_lambda import prepare_lambda
from s3prl_ext.training.methods import METHODS, resolve_tuning
from s3prl_ext.training.upstream_checks import upstream_of_flags

DENSITIES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class MethodRow:
    """One line of the table.

    Attributes:
        method: content of section ``tuning``.
        trained: trainable weights in the upstream, or None where the method does not fit it.
        folds: whether the tuned upstream can be written as plain weights.
        source: paper, or why the method does not fit.
    """

    method: str
    trained: int | None
    folds: str
    source: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    flags = flags_of.parser().parse_args(argv)
    for flag, value in (("-k", flags.upstream_ckpt), ("-g", flags.upstream_model_config)):
        if value and not flags.upstream:
            raise UsageError(f"{flag} belongs to an upstream: name it with -u.")
    plugin.install()
    extensions.load()
    if flags.upstream:
        if flags.dims:
            raise UsageError("-u measures an upstream and --dims a published size: give one of the two.")
        model, name = upstream_of_flags(flags), flags.upstream
    else:
        model, name = published(flags.dims or "base"), f"HuBERT {flags.dims or 'base'}"
    total = sum(parameter.numel() for parameter in model.parameters())
    sys.stdout.write(f"{name}: {total:,} weights\n\n{format_table(rows(model), total)}\n")
    sys.stdout.write(
        "\nFeaturizer and downstream train in every method; weighted sums have one weight per hidden state there.\n"
    )
    return 0


def published(size: str) -> nn.Module:
    """Return HuBERT of a published size, ``base`` or ``large``, without memory for its weights."""
    from transformers import HubertConfig, HubertModel

    sizes = adapters.DIMENSIONS[size]
    config = HubertConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 64,
        intermediate_size=sizes.inner,
        conv_bias=sizes.blocks[0].bias,
        feat_extract_norm="layer" if sizes.blocks[1].norm else "group",
        do_stable_layer_norm=sizes.blocks[1].norm,
    )
    with torch.device("meta"):
        return HubertModel(config)


def rows(model: nn.Module) -> list[MethodRow]:
    """Return one row for each method, child networks at three densities."""
    table = []
    for name, method in METHODS.items():
        if name in adapters.ADAPTERS:
            folds = "yes" if adapters.can_fold(name) else "no"
            table.append(_row(name, partial(_adapter_weights, model, name), folds, method.source))
        elif method.has_mask:
            for density in DENSITIES:
                counted = partial(_child_weights, model, density)
                table.append(_row(f"{name}, density {density:g}", counted, "yes", method.source))
        elif method.trains_upstream:
            table.append(_row(name, partial(_full_weights, model), "yes", method.source))
        else:
            table.append(MethodRow(name, 0, "-", method.source))
    return table


def _adapter_weights(model: nn.Module, name: str) -> int:
    """Insert a method as a run would, which refuses what does not fit, and take it out again."""
    _refuse_lambda(model, {"method": name})
    inserted = adapters.insert(model, name)
    adapters.remove(model, name)
    return _size(inserted)


def _child_weights(model: nn.Module, density: float) -> int:
    _refuse_lambda(model, {"method": "child", "density": density})
    return round(density * _size(eligible_parameters(model)))


def _full_weights(model: nn.Module) -> int:
    found = _size(_behind_the_convolutions(model))
    if not found:
        raise UsageError("the upstream has no weights")
    return found


def _refuse_lambda(model: nn.Module, section: dict[str, Any]) -> None:
    """Raise UsageError where the upstream has a learnable lambda, which the method does not train."""
    prepare_lambda(model, resolve_tuning({}, section), trainable=True, training=True)


def _row(method: str, count: Callable[[], int], folds: str, source: str) -> MethodRow:
    try:
        return MethodRow(method, count(), folds, source)
    except ExtError as error:
        return MethodRow(
            method, None, "-", f"does not fit: {str(error).partition('. ')[0].partition(';')[0].rstrip('.')}"
        )


def _behind_the_convolutions(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    return {n: parameters[n] for n in without_unused(parameters) if "feature_extractor" not in n.split(".")}


def _size(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def format_table(table: Sequence[MethodRow], total: int) -> str:
    """Return the rows as a Markdown table; percent of all weights of the upstream."""
    cells = []
    for row in table:
        share = "-" if row.trained is None else f"{100 * row.trained / max(1, total):.3f}"
        cells.append([row.method, "-" if row.trained is None else f"{row.trained:,}", share, row.folds, row.source])
    head = ["method", "trained in the upstream", "percent", "folds", "source"]
    return grid(head, cells, right=(1, 2), padded=True)
