"""Invariant 5 of the noise controls: distribution, seeds, independence of the layer subset, global RNG."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_ext.attention.layouts import PARAMETER_KINDS, PROJECTIONS, Slot
from s3prl_ext.errors import DataError
from s3prl_ext.merging.noise import Moments, NoiseConfig, moments, noise_moments, sample
from tests.support import reference


def model(layers=3, width=16, seed=0):
    """Attention parameters whose mean and spread differ from tensor to tensor."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for projection in PROJECTIONS:
            for kind in PARAMETER_KINDS:
                shape = (width, width) if kind == "weight" else (width,)
                spread, shift = torch.rand(2, generator=generator).tolist()
                weights[Slot(layer, projection, kind)] = spread * torch.randn(shape, generator=generator) + shift
    return weights


def shapes(weights, kind="weight"):
    return {slot: tensor.shape for slot, tensor in weights.items() if slot.kind == kind}


@pytest.mark.parametrize("statistics", ["tensor", "projection", "global"])
def test_moments_are_those_of_the_tensors_that_share_them(statistics):
    weights = model()
    for slot, found in moments(weights, statistics).items():
        shared = [
            tensor
            for other, tensor in weights.items()
            if other.kind == slot.kind
            and (statistics != "tensor" or other == slot)
            and (statistics == "global" or other.projection == slot.projection)
        ]
        mean, std = reference.mean_and_std(shared)
        assert (found.mean, found.std) == (pytest.approx(mean, abs=1e-6), pytest.approx(std, rel=1e-5))
        assert found.count == sum(tensor.numel() for tensor in shared)


@pytest.mark.parametrize("kind", ["source", "target", "standard"])
def test_samples_have_the_mean_and_deviation_asked_for(kind):
    target, source = model(layers=2, width=128, seed=1), model(layers=2, width=128, seed=2)
    config = NoiseConfig(kind)
    drawn = sample(shapes(target), noise_moments(config, target, source, [0, 1]), config)
    assert set(drawn) == set(shapes(target))
    for slot, noise in drawn.items():
        owner = {"source": source, "target": target, "standard": None}[kind]
        mean, std = (0.0, 1.0) if owner is None else reference.mean_and_std([owner[slot]])
        count = noise.numel()
        assert abs(noise.double().mean().item() - mean) < 5 * std / math.sqrt(count)
        assert abs(noise.double().std().item() - std) < 5 * std / math.sqrt(2 * count)
        # normal: about 31.7 % of the values are further than one deviation from the mean
        beyond = ((noise - mean).abs() > std).double().mean().item()
        assert abs(beyond - 0.3173) < 5 * math.sqrt(0.3173 * 0.6827 / count)


def test_same_seed_same_bits_and_every_part_of_the_seed_matters():
    wanted = shapes(model())
    first = sample(wanted, None, NoiseConfig("standard", draw=1, seed=2))
    again = sample(wanted, None, NoiseConfig("standard", draw=1, seed=2))
    assert all(torch.equal(first[slot], again[slot]) for slot in wanted)
    others = [
        sample(wanted, None, NoiseConfig("standard", draw=2, seed=1)),
        sample(wanted, None, NoiseConfig("standard", draw=1, seed=3)),
        sample(wanted, None, NoiseConfig("standard", draw=1, seed=2), source=1),
    ]
    drawn = [tensor for draw in (first, *others) for tensor in draw.values()]
    assert all(not torch.equal(a, b) for index, a in enumerate(drawn) for b in drawn[:index])


def test_samples_are_independent_of_each_other():
    drawn = sample(shapes(model(width=64)), None, NoiseConfig("standard"))
    rows = torch.stack([tensor.flatten() for tensor in drawn.values()])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])


def test_a_sample_does_not_depend_on_the_other_layers_and_the_global_rng_stays():
    weights, config = model(layers=4), NoiseConfig("target", statistics="projection")
    state = torch.get_rng_state()
    statistics = noise_moments(config, weights, None, [0, 1, 2, 3])
    everything = sample(shapes(weights), statistics, config)
    some = {slot: shape for slot, shape in reversed(shapes(weights).items()) if slot.layer in (1, 3)}
    assert all(torch.equal(tensor, everything[slot]) for slot, tensor in sample(some, statistics, config).items())
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_follow_the_layer_map():
    target, source = model(layers=2), model(layers=5, seed=3)
    found = noise_moments(NoiseConfig("source"), target, source, [4, None])
    assert {slot.layer for slot in found} == {0}
    single = moments(source, "tensor")
    assert all(found[slot] == single[Slot(4, slot.projection, slot.kind)] for slot in found)


def test_constant_matrices_give_constant_noise():
    drawn = sample(
        {Slot(0, "q_proj"): torch.Size([4, 4])}, {Slot(0, "q_proj"): Moments(0.5, 0.0)}, NoiseConfig("target")
    )
    assert torch.equal(drawn[Slot(0, "q_proj")], torch.full((4, 4), 0.5))


def test_nan_is_refused_by_name():
    source = model()
    source[Slot(2, "k_proj")][0, 0] = float("nan")
    with pytest.raises(DataError, match=r"layer 2 k_proj\.weight of the source holds NaN"):
        noise_moments(NoiseConfig("source", statistics="global"), model(), source, [0, 1, 2])


def test_the_kinds_are_independent_streams():
    """Standardised, two kinds correlate as two draws of one kind do: not at all."""
    target, source = model(layers=1, width=128, seed=1), model(layers=1, width=128, seed=2)
    drawn = []
    for kind in ("source", "target", "standard"):
        noise = sample(shapes(target), noise_moments(NoiseConfig(kind), target, source, [0]), NoiseConfig(kind))
        drawn.append(torch.cat([((t - t.mean()) / t.std()).flatten() for t in noise.values()]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        correlation = (drawn[one] * drawn[other]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(len(drawn[one]))  # it was 1
