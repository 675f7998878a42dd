"""The table of methods by which matrices are combined: what each needs, its options, and its section in a file.

A task vector is what training changed: delta_j = W_j - B_j, the source minus the model that it was trained from
(``base``). Each method takes lambda by source, layer and projection; with lambda 0 everywhere the target stays as it
is, bit for bit. All sums are taken in float32, or float64 if a tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.interpolation import combine, dtype_of_sum
from s3prl_ext.merging.names import DARE_DENSITY, METHOD_NAMES, REGMEAN_SHRINK, SHARE, TIES_DENSITY
from s3prl_ext.merging.regmean import regression_mean
from s3prl_ext.merging.slerp import slerp
from s3prl_ext.merging.task_vectors import drop_and_rescale, fisher_mean, task_arithmetic, ties
from s3prl_ext.randomness import generator_of
from s3prl_ext.settings import choice, count, load, name, number

Key = tuple[int | str, ...]  # a slot, or the name of a tensor


@dataclass(frozen=True)
class Part:
    """One source's matrix in the merge of one slot.

    Attributes:
        matrix: of the target's shape.
        weight: lambda, not 0.
        base: the same matrix of the model that the source was trained from; None for methods that need none.
        source: number of the source, which chooses its random numbers.
        fisher: diagonal Fisher information of its entries; None where it was not estimated for this matrix.
        moments: second moments of what target and source read; None for methods that need none, and for a bias.
    """

    matrix: Tensor
    weight: float
    base: Tensor | None = None
    source: int = 0
    fisher: Tensor | None = None
    moments: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class MethodConfig:
    """Section ``method`` of a merge.

    Attributes:
        name: a name of :data:`MERGE_METHODS`.
        density: share of each task vector that is kept, in (0, 1]: the largest entries (ties) or random ones (dare).
        seed: of the random choice (dare), of the draw of pairs (regmean).
        pairs, root, split, share: paired inputs (regmean), as of an alignment.
        shrink: factor of second moments off the diagonal (regmean).
    """

    name: Annotated[str, choice(METHOD_NAMES)] = "linear"
    density: Annotated[float | None, number(above=0, most=1)] = None
    seed: Annotated[int | None, count(0)] = None
    pairs: Annotated[str | None, name()] = None
    root: Annotated[str | None, name()] = None
    split: Annotated[str | None, name()] = None
    share: Annotated[float | None, number(above=0, most=1)] = None
    shrink: Annotated[float | None, number(least=0, most=1)] = None

    @property
    def method(self) -> MergeMethod:
        """The row of :data:`MERGE_METHODS`."""
        return MERGE_METHODS[self.name]

    def plain(self) -> dict[str, Any]:
        """Return what decides a merge, as plain values; which pairs is said by their hash."""
        more = {"share": self.share, "shrink": self.shrink}
        own = {key: value for key, value in more.items() if value is not None}
        return {"name": self.name, "density": self.density, "seed": self.seed, **own}

    def combine(self, target: Tensor, parts: Sequence[Part], key: Key) -> Tensor:
        """Return the merged matrix in the target's dtype and on its device.

        Args:
            target: [out, in], or a bias [out].
            parts: the sources with a lambda other than 0, in the order of the configuration.
            key: slot or name of the tensor; it chooses the random numbers, so that no tensor depends on another.
        """
        return self.method.function(target, parts, self, key)


@dataclass(frozen=True)
class MergeMethod:
    """A row of the table of methods.

    Attributes:
        function: target, parts, configuration, key -> merged matrix.
        about: what becomes of the target's matrices, for the card of a model.
        needs_base: whether each source has a base.
        options: keys of the section that it takes, and the value of each that is not given.
        sums_to_one: whether lambda of all sources together must not exceed 1.
        several: whether it takes more than one source.
        of_tasks: whether it merges tuned tasks only, which have data to be weighed by.
        by_inputs: whether it needs what target and source read on paired inputs.
        learnable: whether lambda can be trained (L-MAM).
        extrapolates: whether lambda outside [0, 1], and sums above 1, have a meaning.
    """

    function: Callable[[Tensor, Sequence[Part], MethodConfig, Key], Tensor]
    about: str
    needs_base: bool = False
    options: Mapping[str, Any] | None = None
    sums_to_one: bool = False
    several: bool = True
    of_tasks: bool = False
    by_inputs: bool = False
    learnable: bool = False
    extrapolates: bool = True


def parse_method(value: Any, where: str = "method") -> MethodConfig:
    """Check a section ``method``: a name, or a mapping such as ``{name: ties, density: 0.2}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    content = {"name": value} if isinstance(value, str) else value
    if not isinstance(content, Mapping) or "name" not in content:
        raise UsageError(f"{where} must be one of {', '.join(MERGE_METHODS)}, or a mapping with name, got {value!r}.")
    config = load(MethodConfig, content, where)
    options = config.method.options or {}
    surplus = [key for key in content if key != "name" and key not in options]
    if surplus:
        takes = f"takes {', '.join(options)} only" if options else "takes no option"
        raise UsageError(f"{where}: {config.name} {takes}, but {', '.join(surplus)} is given.")
    if config.method.by_inputs and config.pairs is None:
        raise UsageError(f"{where}: {config.name} needs paired inputs: give {{name: {config.name}, pairs: FILE}}.")
    return MethodConfig(config.name, **{**options, **{key: getattr(config, key) for key in options if key in content}})


def _linear(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    return combine(target, [part.matrix for part in parts], [part.weight for part in parts])


def _slerp(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    (part,) = parts
    return slerp(target, part.matrix, part.weight)


def _task_arithmetic(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    return task_arithmetic(target, _task_vectors(target, parts), [part.weight for part in parts])


def _ties(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    assert config.density is not None
    return ties(target, _task_vectors(target, parts), [part.weight for part in parts], config.density)


def _dare(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    assert config.density is not None
    deltas = [
        drop_and_rescale(delta, config.density, generator_of("dare", config.seed, part.source, *key))
        for delta, part in zip(_task_vectors(target, parts), parts, strict=True)
    ]
    return task_arithmetic(target, deltas, [part.weight for part in parts])


def _fisher(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    deltas = []
    for part in parts:
        assert part.base is not None
        deltas.append(part.matrix.to(target.device, torch.float64) - part.base.to(target.device, torch.float64))
    return fisher_mean(target, deltas, [part.weight for part in parts], [part.fisher for part in parts])


def _regmean(target: Tensor, parts: Sequence[Part], config: MethodConfig, key: Key) -> Tensor:
    moments = [part.moments for part in parts if part.moments is not None]
    if len(moments) < len(parts):
        return _linear(target, parts, config, key)
    assert config.shrink is not None
    weights = [part.weight for part in parts]
    return regression_mean(target, [part.matrix for part in parts], weights, moments, config.shrink)


def _task_vectors(target: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    deltas = []
    for part in parts:
        assert part.base is not None
        dtype = dtype_of_sum(target, part.matrix, part.base)
        deltas.append(part.matrix.to(target.device, dtype) - part.base.to(target.device, dtype))
    return deltas


MERGE_METHODS: dict[str, MergeMethod] = {
    "linear": MergeMethod(
        _linear,
        "interpolated with those of other models: W = λ · W_source + (1 - λ) · W_target",
        sums_to_one=True,
        learnable=True,
    ),
    "slerp": MergeMethod(
        _slerp,
        "rotated towards those of another model on the arc between them (slerp, λ of the way)",
        several=False,
        sums_to_one=True,
        learnable=True,
    ),
    "task_arithmetic": MergeMethod(
        _task_arithmetic,
        "plus what training changed in other models: W = W_target + λ · (W_source - W_base)",
        needs_base=True,
    ),
    "ties": MergeMethod(
        _ties,
        "plus what training changed in other models, trimmed to the largest entries of the elected sign (TIES)",
        needs_base=True,
        options={"density": TIES_DENSITY},
    ),
    "dare": MergeMethod(
        _dare,
        "plus what training changed in other models, dropped at random and rescaled (DARE)",
        needs_base=True,
        options={"density": DARE_DENSITY, "seed": 0},
    ),
    "fisher": MergeMethod(
        _fisher,
        "plus the mean of what several tasks changed, weighted by their Fisher information",
        needs_base=True,
        of_tasks=True,
    ),
    "regmean": MergeMethod(
        _regmean,
        "averaged with those of other models so that outputs on the models' own inputs are kept best (RegMean)",
        options={"pairs": None, "root": None, "split": None, "share": SHARE, "seed": 0, "shrink": REGMEAN_SHRINK},
        sums_to_one=True,
        by_inputs=True,
        extrapolates=False,  # a weight below 0 of a squared error has no least sum
    ),
}
LINEAR = MethodConfig()
