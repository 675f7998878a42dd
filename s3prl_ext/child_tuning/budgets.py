"""What a density is a budget of: all eligible weights together, each encoder layer, or each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from s3prl_ext.child_tuning.masks import NestedMask, nested_bernoulli, nested_top_k
from s3prl_ext.errors import DataError
from s3prl_ext.models.architectures import encoder_layers


def groups_of(names: Iterable[str], budget: str) -> list[list[str]]:
    """Return the names of tensors that share a budget, in their order.

    Args:
        names: parameter names of an upstream.
        budget: ``global``: all of them; ``layer``: those of each encoder layer, and those of no layer together;
            ``tensor``: each alone.
    """
    names = list(names)
    layers = {name: layer for name, (layer, _) in encoder_layers(names).items()} if budget == "layer" else {}
    groups: dict[object, list[str]] = {}
    for name in names:
        key = {"global": None, "layer": layers.get(name), "tensor": name}[budget]
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def nested_top_k_in(
    scores: Mapping[str, torch.Tensor], densities: Sequence[float], budget: str = "global"
) -> NestedMask:
    """Select the round(density x N) largest scores of each group of tensors, N being the group's entries.

    A group whose scores are all zero gets none: its weights have no gradient, so they would not train.

    Args:
        scores: as for :func:`nested_top_k`.
        densities: fractions of the entries, in (0, 1].
        budget: see :func:`groups_of`.

    Raises:
        DataError: a score is negative, NaN or infinite, all scores are zero, or a density is less than one entry of
            every group, which would be an empty child network.
    """
    groups = [{name: scores[name] for name in group} for group in groups_of(scores, budget)]
    alive = [group for group in groups if any(bool(score.any()) for score in group.values())]
    chosen = joined([nested_top_k(group, densities) for group in alive or [dict(scores)]], scores)
    smallest = chosen.densities[-1]
    if budget != "global" and not chosen.at(smallest):
        raise DataError(
            f"a density of {smallest:g} is less than one weight of each {budget}: choose a larger density, or "
            "tuning.budget: global."
        )
    return chosen


def nested_random(
    sizes: Mapping[str, int], densities: Sequence[float], seed: int, budget: str = "global"
) -> NestedMask:
    """Draw the masks of several densities (CHILD-TUNING_F, Eq. 4).

    With a budget for each layer or tensor the number of its entries is exact, round(density x N): those drawn lowest.

    Args:
        sizes: number of entries per tensor name.
        densities: fractions of the entries, in (0, 1].
        seed: of the draw.
        budget: see :func:`groups_of`; ``global``: each entry for itself, with the density as its probability.
    """
    if budget == "global":
        return nested_bernoulli(sizes, densities, seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: 1 - torch.rand(size, generator=generator) for name, size in sizes.items()}
    return nested_top_k_in(drawn, densities, budget)


def joined(parts: Sequence[NestedMask], names: Iterable[str]) -> NestedMask:
    """Return masks of different tensors as one, its tensors in the order of `names`.

    Args:
        parts: masks of the same densities, at least one.
        names: of all tensors.
    """
    indices = {name: chosen for part in parts for name, chosen in part.indices.items()}
    levels = {name: level for part in parts for name, level in part.levels.items()}
    order = [name for name in names if name in indices]
    return NestedMask(parts[0].densities, {n: indices[n] for n in order}, {n: levels[n] for n in order})
