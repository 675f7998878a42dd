"""How a selection of layers by similarity is written: ``layers: {by: swd, top_k: 6, pairs: pairs.tsv}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from s3prl_ext.configs import as_number, check_keys
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.merging.similarity import METRICS, PROJECTIONS

LEVELS = ("utterance", "frame")
SHARE = 0.1  # of the training pairs, as in the paper


@dataclass(frozen=True)
class ComparisonSettings:
    """How the layers of two encoders are compared.

    Attributes:
        level: ``utterance`` compares one mean vector per layer and sample; ``frame`` takes the distance between the
            set of frames and the set of tokens of each sample, and the mean over samples.
        normalize: scale every vector to length 1 first.
        projections: number of directions of the sliced Wasserstein distance, drawn with seed 0.
        special_tokens: keep [CLS] and [SEP], or a class token, among the source's tokens.
        share: part of the pairs that is drawn, in (0, 1].
        seed: of that draw.
    """

    level: str = "utterance"
    normalize: bool = False
    projections: int = PROJECTIONS
    special_tokens: bool = True
    share: float = SHARE
    seed: int = 0


@dataclass(frozen=True)
class LayerSelection:
    """``layers: {by: swd, top_k: 6, ...}``: the layers are found by similarity when the models are opened.

    Attributes:
        by: a name of :data:`s3prl_ext.merging.similarity.METRICS`.
        top_k: number of layers.
        file: ``from``: a ``layers.json`` with the values; None where they are computed from `pairs`.
        pairs: table or corpus folder of paired inputs; None where `file` is given.
        root: folder that the paths of a table are relative to; None for the table's own.
        split: rule or file that divides a corpus folder, whose train list is used; None for its own rule.
        settings: how the layers are compared; with `file` that file's own count.
    """

    by: str
    top_k: int
    file: str | None = None
    pairs: str | None = None
    root: str | None = None
    split: str | None = None
    settings: ComparisonSettings = ComparisonSettings()


SETTINGS = tuple(field.name for field in fields(ComparisonSettings))
KEYS = ("by", "top_k", "from", "pairs", "root", "split", *SETTINGS)


def parse_selection(value: Mapping[str, Any], where: str = "layers") -> LayerSelection:
    """Check ``{by: swd, top_k: 6, pairs: pairs.tsv}`` or ``{by: swd, top_k: 6, from: layers.json}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = check_keys(value, KEYS, where)
    problems += [f"{where}: the key '{key}' is missing." for key in ("by", "top_k") if key not in value]
    if ("from" in value) == ("pairs" in value):
        problems.append(f"{where} needs either pairs (a table or corpus folder) or from (a layers.json).")
    for key in ("from", "pairs", "root", "split"):
        if key in value and (not isinstance(value[key], str) or not value[key]):
            problems.append(f"{where}.{key} must be a name or path, but is {value[key]!r}.")
    surplus = [key for key in value if key in (*SETTINGS, "root", "split")] if "from" in value else []
    if surplus:
        problems.append(f"{where}: {', '.join(surplus)} cannot be set with from: that file says how it was made.")
    k, by = value.get("top_k", 1), value.get("by", "swd")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        problems.append(f"{where}.top_k must be a number of layers, 1 or more, but is {k!r}.")
    settings = ComparisonSettings()
    try:
        settings = parse_settings({key: value[key] for key in SETTINGS if key in value}, [by], where)
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    file, pairs, root, split = (value.get(key) for key in ("from", "pairs", "root", "split"))
    return LayerSelection(by, k, file, pairs, root, split, settings)


def parse_settings(value: Mapping[str, Any], metrics: Sequence[str], where: str) -> ComparisonSettings:
    """Check settings and whether the metrics exist and fit them.

    Args:
        value: any of :data:`SETTINGS`.
        metrics: names of :data:`s3prl_ext.merging.similarity.METRICS`.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = [str(unknown_name("metric", name, METRICS, where)) for name in metrics if name not in METRICS]
    level = value.get("level", LEVELS[0])
    if level not in LEVELS:
        problems.append(str(unknown_name("level", level, LEVELS, where)))
    paired = [name for name in metrics if name in METRICS and METRICS[name].paired]
    if level == "frame" and paired:
        problems.append(
            f"{where}: level frame compares sets of frames and tokens, which {', '.join(paired)} cannot: use swd."
        )
    for key in ("normalize", "special_tokens"):
        if not isinstance(value.get(key, True), bool):
            problems.append(f"{where}.{key} must be true or false, but is {value[key]!r}.")
    for key, least in (("projections", 1), ("seed", 0)):
        number = value.get(key, least)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            problems.append(f"{where}.{key} must be a whole number, {least} or more, but is {number!r}.")
    share = SHARE
    try:
        share = as_number(value.get("share", SHARE), f"{where}.share")
        if not 0 < share <= 1:
            problems.append(f"{where}.share must lie above 0 and not above 1, but is {share:g}.")
    except UsageError as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return ComparisonSettings(**{**value, "share": share})
