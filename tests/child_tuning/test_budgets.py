"""Budgets of a density: the same share of each encoder layer, or of each tensor."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.budgets import groups_of, nested_random, nested_top_k_in
from s3prl_ext.errors import DataError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture
def scores():
    """Scores of two layers of which the second one's are a hundred times larger, and of a norm outside them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.layer_norm.weight": (8,)} | {
        f"encoder.layers.{layer}.attention.{name}.weight": (8, 8) for layer in (0, 1) for name in PROJECTIONS
    }
    made = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {name: score * (100 if ".1." in name else 1) for name, score in made.items()}


def counts(mask, scores):
    return {name: len(mask.get(name, ())) for name in scores}


@pytest.mark.parametrize("density", [0.5, 0.1])
@pytest.mark.parametrize("budget", ["layer", "tensor"])
def test_each_group_gets_its_share_of_its_own_largest(scores, budget, density):
    chosen = nested_top_k_in(scores, [density], budget).at(density)
    for group in groups_of(scores, budget):
        entries = torch.cat([scores[name].reshape(-1) for name in group])
        picked = torch.cat([scores[name].reshape(-1)[chosen[name].long()] for name in group if name in chosen])
        k = round(density * len(entries))
        assert torch.equal(picked.sort().values, entries.sort().values[-k:]), group
    assert list(chosen) == [name for name in scores if name in chosen], "in the order of the scores"


def test_globally_one_layer_takes_it_all_and_global_is_the_plain_choice(scores):
    plain, chosen = masks.top_k(scores, 0.4), nested_top_k_in(scores, [0.4]).at(0.4)
    assert all(torch.equal(plain[name], chosen[name]) for name in plain) and plain.keys() == chosen.keys()
    assert not any(".0." in name for name in plain)


@pytest.mark.parametrize("budget", ["global", "layer", "tensor"])
def test_smaller_densities_are_subsets(scores, budget):
    nested = nested_top_k_in(scores, [0.1, 0.5, 0.25], budget)
    for small, large in ((0.1, 0.25), (0.25, 0.5)):
        for name, indices in nested.at(small).items():
            assert set(indices.tolist()) <= set(nested.at(large)[name].tolist())
    alone = nested_top_k_in(scores, [0.25], budget).at(0.25)
    assert all(torch.equal(alone[name], nested.at(0.25)[name]) for name in alone)


def test_a_group_without_gradient_gets_none_and_all_of_them_are_refused(scores):
    dead = {name: score * (".0." not in name) for name, score in scores.items()}
    chosen = nested_top_k_in(dead, [0.5], "layer").at(0.5)
    assert not any(".0." in name for name in chosen) and masks.count(chosen) == 4 * 64 // 2 + 4
    with pytest.raises(DataError, match="all scores are zero"):
        nested_top_k_in({name: score * 0 for name, score in scores.items()}, [0.5], "layer")


def test_random_draws_are_exact_in_each_group_and_plain_without_one():
    sizes = {f"encoder.layers.{layer}.attention.{name}.weight": 1000 for layer in (0, 1) for name in PROJECTIONS}
    by_layer, by_tensor = (nested_random(sizes, [0.1], 3, budget).at(0.1) for budget in ("layer", "tensor"))
    assert set(counts(by_tensor, sizes).values()) == {100}
    layers = [sum(n for name, n in counts(by_layer, sizes).items() if f".{layer}." in name) for layer in (0, 1)]
    assert layers == [400, 400] and len(set(counts(by_layer, sizes).values())) > 1
    plain, same = nested_random(sizes, [0.1], 3).at(0.1), masks.bernoulli(sizes, 0.1, 3)
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_a_density_that_leaves_nothing_of_any_group_is_refused(scores):
    sizes = {name: score.numel() for name, score in scores.items()}
    for choose in (
        lambda *rest: nested_top_k_in(scores, *rest),
        lambda given, budget: nested_random(sizes, given, 0, budget),
    ):
        with pytest.raises(
            DataError, match="a density of 0.005 is less than one weight of each tensor: .*budget: global"
        ):
            choose([0.5, 0.005], "tensor")
        assert masks.count(choose([0.5, 0.005], "layer").at(0.005)) == 2
