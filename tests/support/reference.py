"""Slow oracles, written from the papers' formulas with plain loops and independently of the package."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

# Attention key templates by family, typed out from the models; {p} is the family's name of the projection.
KEYS = {
    "hubert": ("encoder.layers.{i}.attention.{p}.{k}", "q_proj", "k_proj", "v_proj"),
    "fairseq": ("encoder.layers.{i}.self_attn.{p}.{k}", "q_proj", "k_proj", "v_proj"),
    "bert": ("encoder.layer.{i}.attention.self.{p}.{k}", "query", "key", "value"),
}


def interpolate(target: torch.Tensor, source: torch.Tensor, weight: float) -> torch.Tensor:
    """Return weight * source + (1 - weight) * target, entry by entry in Python floats (float64)."""
    pairs = zip(target.flatten().tolist(), source.flatten().tolist(), strict=True)
    values = [weight * s + (1.0 - weight) * t for t, s in pairs]
    return torch.tensor(values, dtype=torch.float64).reshape(target.shape)


def merge_state(
    target: dict[str, torch.Tensor],
    source: dict[str, torch.Tensor],
    families: tuple[str, str],
    weights: list[list[float]],
    kinds: tuple[str, ...] = ("weight",),
) -> dict[str, torch.Tensor]:
    """Return the target's state dict after MAM, Eq. 2, in float64 where merged.

    Args:
        families: rows of :data:`KEYS` for target and source.
        weights: lambda of q, k, v for each layer.
        kinds: ``weight`` and, to merge biases, ``bias``.
    """
    (target_key, *target_names), (source_key, *source_names) = KEYS[families[0]], KEYS[families[1]]
    merged = dict(target)
    for layer, row in enumerate(weights):
        for which, weight in enumerate(row):
            for kind in kinds:
                mine = target_key.format(i=layer, p=target_names[which], k=kind)
                theirs = source_key.format(i=layer, p=source_names[which], k=kind)
                merged[mine] = interpolate(target[mine], source[theirs], weight)
    return merged


def slow_top_k(scores: dict[str, list[float]], k: int) -> dict[str, list[int]]:
    """Choose the k largest scores over all tensors, lowest position first among equals, by sorting a list."""
    entries = [(-value, position, name, index)
               for position, (name, index, value) in enumerate((n, i, v) for n, vs in scores.items() for i, v in enumerate(vs))]  # fmt: skip
    chosen: dict[str, list[int]] = {}
    for _, _, name, index in sorted(entries)[:k]:
        chosen.setdefault(name, []).append(index)
    return {name: sorted(indices) for name, indices in chosen.items()}


def slow_fisher(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean over samples of the squared gradient of the log likelihood, one sample and one weight tensor at a time."""
    result = {}
    for name, parameter in model.named_parameters():
        total = torch.zeros_like(parameter)
        for x, y in zip(inputs, labels):
            log_likelihood = torch.log_softmax(model(x), dim=-1)[y]
            (gradient,) = torch.autograd.grad(log_likelihood, [parameter])
            total += gradient * gradient
        result[name] = total / len(inputs)
    return result


def merge_several(target: torch.Tensor, sources: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return (1 - sum of weights) * target + sum of weight * source, entry by entry in Python floats (float64)."""
    columns = [source.flatten().tolist() for source in sources]
    values = []
    for index, t in enumerate(target.flatten().tolist()):
        value = (1.0 - sum(weights)) * t
        for column, weight in zip(columns, weights, strict=True):
            value += weight * column[index]
        values.append(value)
    return torch.tensor(values, dtype=torch.float64).reshape(target.shape)


def mean_and_std(tensors: list[torch.Tensor]) -> tuple[float, float]:
    """Return mean and population standard deviation of all entries together, in Python floats."""
    values = [value for tensor in tensors for value in tensor.flatten().tolist()]
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5


def wasserstein(x: list[float], y: list[float]) -> float:
    """Return the squared one-dimensional Wasserstein distance, p = 2, by moving mass from the lowest points upwards."""
    left = [[value, 1.0 / len(x)] for value in sorted(x)]
    right = [[value, 1.0 / len(y)] for value in sorted(y)]
    cost = 0.0
    while left and right:
        mass = min(left[0][1], right[0][1])
        cost += mass * (left[0][0] - right[0][0]) ** 2
        for points in (left, right):
            points[0][1] -= mass
            if points[0][1] < 1e-12:
                points.pop(0)
    return cost


def swd(x: torch.Tensor, y: torch.Tensor, projections: torch.Tensor) -> float:
    """Return the sliced Wasserstein distance, p = 2, one direction at a time."""
    costs = []
    for direction in projections.T:
        on_x = [sum(a * b for a, b in zip(row, direction.tolist(), strict=True)) for row in x.tolist()]
        on_y = [sum(a * b for a, b in zip(row, direction.tolist(), strict=True)) for row in y.tolist()]
        costs.append(wasserstein(on_x, on_y))
    return (sum(costs) / len(costs)) ** 0.5


def successive_halving(
    curves: dict[str, list[float]], rungs: tuple[int, ...], eta: float, total: int
) -> tuple[list[str], list[tuple[int, set[str]]]]:
    """Halve on recorded accuracies by striking out the worst one at a time (Jamieson & Talwalkar 2016).

    Args:
        curves: accuracy after each step, by candidate in the order of the file; NaN once it has diverged.
        rungs: steps of the comparisons.
        eta: of n candidates the fewest with fewest * eta >= n go on.
        total: step at which those that are left after the last rung are compared.

    Returns:
        The winner alone in a list, nobody where all diverged, and who was compared at which step.
    """
    left, rounds = list(curves), []
    for step in (*rungs, total):
        if len(left) < 2:
            break
        rounds.append((step, set(left)))
        wanted = 1
        while step != total and round(wanted * eta, 9) < len(left):
            wanted += 1
        left = [name for name in left if curves[name][step - 1] == curves[name][step - 1]]  # without NaN
        while len(left) > wanted:
            worst = left[0]
            for name in left:
                if curves[name][step - 1] <= curves[worst][step - 1]:  # of equals the last one goes
                    worst = name
            left.remove(worst)
    return left, rounds


def diarization_by_frames(hypothesis: list[Any], reference: list[Any]) -> tuple[float, float, float]:
    """Return miss, false alarm and confusion in seconds, counted in frames of 10 ms under the best mapping."""
    end = round(100 * max(turn.end for turn in hypothesis + reference))

    def active(found: list[Any]) -> dict[str, np.ndarray]:
        frames = {turn.speaker: np.zeros(end, dtype=bool) for turn in found}
        for turn in found:
            frames[turn.speaker][round(100 * turn.start) : round(100 * turn.end)] = True
        return frames

    h, r = active(hypothesis), active(reference)
    speaking = sum(x.astype(int) for x in h.values()), sum(x.astype(int) for x in r.values())
    names = [*h, *(f"nobody{i}" for i in range(len(r)))]
    correct = max(
        sum(int((h[a] & r[b]).sum()) for a, b in zip(order, r) if a in h)
        for order in itertools.permutations(names, len(r))
    )
    both = np.minimum(*speaking).sum()
    miss, alarm = np.maximum(speaking[1] - speaking[0], 0).sum(), np.maximum(speaking[0] - speaking[1], 0).sum()
    return miss / 100, alarm / 100, (both - correct) / 100
