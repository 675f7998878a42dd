"""The validated configuration of a merge: target, one or more sources with lambda, layers and noise, biases.

All problems of a configuration are reported together, before any model is opened. How the values fit the depth of
the models is checked by :mod:`s3prl_ext.merging.resolution`, before any tensor is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from s3prl_ext.merging.learnable_config import DEFAULT_LAMBDA, LearnableConfig, parse_learnable
from s3prl_ext.merging.methods import LINEAR, MERGE_METHODS, MethodConfig, parse_method
from s3prl_ext.merging.names import DECODER, TARGET_PREFIXES
from s3prl_ext.merging.source_config import SOURCE_KEYS, SourceConfig, load_one_of, parse_source, source_items
from s3prl_ext.settings import Problems, choice, name, switch, unknown_keys


@dataclass(frozen=True)
class TargetConfig:
    """The speech model that is merged into.

    Attributes:
        upstream: name of an upstream of s3prl's hub; None where `model` is given.
        ckpt: checkpoint for `upstream`, where it needs one.
        model: transformers folder or hub id; None where `upstream` is given.
        prefix: ``decoder`` for the decoder of a Whisper, which a task of speech recognition transcribes with; None for
            the encoder.
    """

    upstream: Annotated[str | None, name()] = None
    ckpt: Annotated[str | None, name()] = None
    model: Annotated[str | None, name()] = None
    prefix: Annotated[str | None, choice(*TARGET_PREFIXES)] = None


@dataclass(frozen=True)
class MergeConfig:
    """A merge, by default after MAM, Eq. 1 and 2: W = (1 - sum of lambda_j) * W_target + sum of lambda_j * W_j.

    Attributes:
        target: the model that is merged into.
        sources: the models that are merged in, mostly one.
        biases: merge the bias vectors as well as the matrices.
        allow_extrapolation: accept lambda outside [0, 1], and sums over the sources above 1.
        learnable: train lambda together with the target (L-MAM, Eq. 3), beginning with the given values; None for a
            fixed lambda.
        method: how matrices are combined; None for the interpolation of Eq. 1 and 2.
    """

    target: TargetConfig
    sources: tuple[SourceConfig, ...]
    biases: bool = False
    allow_extrapolation: bool = False
    learnable: LearnableConfig | None = None
    method: MethodConfig | None = None

    @property
    def combination(self) -> MethodConfig:
        """How matrices are combined."""
        return self.method or LINEAR


KEYS = ("target", "source", "sources", *SOURCE_KEYS, "method", "biases", "allow_extrapolation", "learnable")


def parse_config(raw: Mapping[str, Any], where: str) -> MergeConfig:
    """Check a configuration and return it.

    Args:
        raw: the content of a YAML file, keys as in :data:`KEYS`: target, source or sources, and lambda are required;
            no source is where the noise needs none.
        where: name of the configuration, shown before each complaint.

    Raises:
        UsageError: with one line for every problem found.
    """
    problems = Problems(unknown_keys(raw, KEYS, where))
    if "target" not in raw:
        problems.append(f"{where}: the key 'target' is missing.")
        target = None
    else:
        place = f"{where}: target"
        target = load_one_of(TargetConfig, raw["target"], place, ("upstream", "model"), problems)
        if target.model and target.ckpt:
            problems.append(
                f"{place}.ckpt belongs to {place}.upstream; with {place}.model the model is the checkpoint."
            )
        target = replace(target, prefix=DECODER if target.prefix == DECODER else None)
    flags = {
        key: problems.attempt(switch(), raw.get(key, False), f"{where}: {key}") or False
        for key in ("biases", "allow_extrapolation")
    }
    learnable = problems.attempt(parse_learnable, raw.get("learnable", False), f"{where}: learnable")
    shared = {key: (raw[key], f"{where}: {key}") for key in SOURCE_KEYS if key in raw}
    if raw.get("learnable"):
        shared.setdefault("lambda", (DEFAULT_LAMBDA, f"{where}: lambda"))
    # a stand-in, where the sections themselves are wrong, lets the other keys be checked all the same
    items = problems.attempt(source_items, raw, where) or [({"model": "unknown"}, f"{where}: source")]
    sources = [
        problems.attempt(parse_source, item, place, shared, where, flags["allow_extrapolation"])
        for item, place in items
    ]
    method = problems.attempt(parse_method, raw["method"], f"{where}: method") if "method" in raw else LINEAR
    if learnable:
        problems += _unlearnable(flags["biases"], method or LINEAR, where)
    if flags["allow_extrapolation"] and not (method or LINEAR).method.extrapolates:
        problems.append(
            f"{where}: method {(method or LINEAR).name} takes lambda between 0 and 1, and no larger sum of them: leave "
            "allow_extrapolation out."
        )
    problems += _unfit_method(method or LINEAR, sources, where)
    problems.raise_lines()
    if method is not None and method.method.by_inputs:
        sources = [replace(source, by_inputs=True) for source in sources if source is not None]
    fitting = None if method == LINEAR else method
    return MergeConfig(target, tuple(sources), **flags, learnable=learnable, method=fitting)  # type: ignore[arg-type]  # nothing is None without problems


def _unlearnable(biases: bool, method: MethodConfig, where: str) -> list[str]:
    """Return a complaint for each setting that a learnable lambda cannot be combined with."""
    problems = []
    if biases:
        problems.append(f"{where}: learnable merges matrices only: set biases: false, or fix lambda.")
    if not method.method.learnable:
        able = " or ".join(name for name, row in MERGE_METHODS.items() if row.learnable)
        problems.append(f"{where}: learnable takes method {able}, but it is {method.name}: choose one, or fix lambda.")
    return problems


def _unfit_method(method: MethodConfig, sources: Sequence[SourceConfig | None], where: str) -> list[str]:
    """Return a complaint for each source that a method cannot take.

    None stands for a source with complaints of its own.
    """
    problems = []
    if len(sources) > 1 and not method.method.several:
        problems.append(f"{where}: method {method.name} takes one source, but there are {len(sources)}: keep one.")
    if method.method.of_tasks:
        return [
            *problems,
            f"{where}: method {method.name} weighs what tuned tasks changed by their own data, which a source has none "
            "of: it is for s3prl-ext merge --deltas.",
        ]
    needing = [name for name, row in MERGE_METHODS.items() if row.needs_base and not row.of_tasks]
    for index, source in enumerate(sources):
        place = f"{where}: sources[{index}]" if len(sources) > 1 else where
        if source is None:
            continue
        if method.method.by_inputs and not (source.model or source.package):
            problems.append(f"{place}: method {method.name} runs a source over the pairs: name it with source.")
        if source.base_for(method) is None and method.method.needs_base:
            problems.append(
                f"{place} needs a base for method {method.name}: name the model that the source was trained from, such "
                "as base: {model: FOLDER}."
            )
        if source.base is not None and not method.method.needs_base:
            problems.append(f"{place}: base is for the methods {', '.join(needing)}, but method is {method.name}.")
        if source.base_for(method) is not None and source.noise is not None:
            problems.append(
                f"{place}: noise replaces a source's matrices, but {method.name} merges what training changed."
            )
    return problems
