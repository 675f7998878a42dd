"""How layers by similarity are written.

``layers: {by: swd, top_k: 6, pairs: pairs.tsv}``, ``layer_map: {match: swd, pairs: pairs.tsv}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, cast

from s3prl_ext.errors import unknown_name
from s3prl_ext.merging.names import LEVELS, SHARE, SWD_DIRECTIONS
from s3prl_ext.merging.similarity import SIMILARITIES
from s3prl_ext.settings import Problems, choice, count, load, name, number, raise_all, switch, unknown_keys


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

    level: Annotated[str, choice(*LEVELS)] = "utterance"
    normalize: Annotated[bool, switch()] = False
    projections: Annotated[int, count()] = SWD_DIRECTIONS
    special_tokens: Annotated[bool, switch()] = True
    share: Annotated[float, number(above=0, most=1)] = SHARE
    seed: Annotated[int, count(0)] = 0


@dataclass(frozen=True)
class LayerSelection:
    """``layers: {by: swd, top_k: 6, ...}``: the layers are found by similarity when the models are opened.

    Attributes:
        by: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.
        top_k: number of layers.
        file: ``from``: a ``layers.json`` with the values; None where they are computed from `pairs`.
        pairs: table or corpus folder of paired inputs; None where `file` is given.
        root: folder that the paths of a table are relative to; None for the table's own.
        split: rule or file that divides a corpus folder, whose train list is used; None for its own rule.
        settings: how the layers are compared; with `file` that file's own count.
    """

    by: Annotated[str, name()]
    top_k: Annotated[int, count()]
    file: Annotated[str | None, name()] = None
    pairs: Annotated[str | None, name()] = None
    root: Annotated[str | None, name()] = None
    split: Annotated[str | None, name()] = None
    settings: ComparisonSettings = ComparisonSettings()


@dataclass(frozen=True)
class LayerMatch:
    """``layer_map: {match: swd, pairs: ...}``: layers are paired by similarity when the models are opened.

    Attributes:
        match: a name of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.
        pairs, root, split: as in :class:`LayerSelection`.
        monotone: a later target layer takes no earlier source layer; otherwise each takes the one that is most similar
            to it.
        settings: how the layers are compared, by mean vectors.
    """

    match: Annotated[str, name()]
    pairs: Annotated[str, name()]
    root: Annotated[str | None, name()] = None
    split: Annotated[str | None, name()] = None
    monotone: Annotated[bool, switch()] = True
    settings: ComparisonSettings = ComparisonSettings()


SETTINGS = tuple(field.name for field in fields(ComparisonSettings))
KEYS = ("by", "top_k", "from", "pairs", "root", "split", *SETTINGS)
MATCH_KEYS = ("match", "pairs", "root", "split", "monotone", *SETTINGS)


def parse_selection(value: Mapping[str, Any], where: str = "layers") -> LayerSelection:
    """Check ``{by: swd, top_k: 6, pairs: pairs.tsv}`` or ``{by: swd, top_k: 6, from: layers.json}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = Problems(unknown_keys(value, KEYS, where))
    if ("from" in value) == ("pairs" in value):
        problems.append(f"{where} needs either pairs (a table or corpus folder) or from (a layers.json).")
    surplus = [key for key in value if key in (*SETTINGS, "root", "split")] if "from" in value else []
    if surplus:
        problems.append(f"{where}: {', '.join(surplus)} cannot be set with from: that file says how it was made.")
    own = {key: value[key] for key in ("by", "top_k", "pairs", "root", "split") if key in value}
    selection = load(LayerSelection, {**own, "file": value.get("from")}, where, problems=problems)
    given = {key: value[key] for key in SETTINGS if key in value}
    settings = problems.attempt(parse_settings, given, [selection.by] if selection.by else [], where)
    raise_all(problems)
    return replace(selection, settings=cast(ComparisonSettings, settings))


def parse_match(value: Mapping[str, Any], where: str = "layer_map") -> LayerMatch:
    """Check ``{match: swd, pairs: pairs.tsv, monotone: true}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = Problems(unknown_keys(value, MATCH_KEYS, where))
    own = {key: value[key] for key in ("match", "pairs", "root", "split", "monotone") if key in value}
    match = load(LayerMatch, own, where, problems=problems)
    given = {key: value[key] for key in SETTINGS if key in value}
    settings = problems.attempt(parse_settings, given, [match.match] if match.match else [], where)
    if settings is not None and settings.level != "utterance":
        problems.append(f"{where}: layers are matched by mean vectors: leave level: {settings.level} out.")
    raise_all(problems)
    return replace(match, settings=cast(ComparisonSettings, settings))


def parse_settings(value: Mapping[str, Any], metrics: Sequence[str], where: str) -> ComparisonSettings:
    """Check settings and whether the metrics exist and fit them.

    Args:
        value: any of :data:`SETTINGS`.
        metrics: names of :data:`s3prl_ext.merging.similarity.SIMILARITIES`.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = [str(unknown_name("metric", one, SIMILARITIES, where)) for one in metrics if one not in SIMILARITIES]
    settings = load(ComparisonSettings, value, where, problems=problems)
    paired = [one for one in metrics if one in SIMILARITIES and SIMILARITIES[one].paired]
    if settings.level == "frame" and paired:
        problems.append(
            f"{where}: level frame compares sets of frames and tokens, which {', '.join(paired)} cannot: use swd."
        )
    raise_all(problems)
    return settings
