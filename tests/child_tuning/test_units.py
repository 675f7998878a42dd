"""Whole rows and heads: what a unit is, which are chosen, and the gradient of rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.sparse_linear import SampledWeight, whole_rows
from s3prl_ext.child_tuning.units import nested_units, places_of, random_units
from s3prl_ext.errors import DataError, UsageError

LAYER = "encoder.layers.{}.attention.{}.{}"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture
def shapes():
    """Two layers of width 8 with a feed-forward of 16."""
    made = {}
    for layer in (0, 1):
        made |= {LAYER.format(layer, name, "weight"): (8, 8) for name in PROJECTIONS}
        made |= {LAYER.format(layer, name, "bias"): (8,) for name in PROJECTIONS}
        made[f"encoder.layers.{layer}.feed_forward.intermediate_dense.weight"] = (16, 8)
        made[f"encoder.layers.{layer}.feed_forward.intermediate_dense.bias"] = (16,)
    return made


HEADS = {"encoder.layers.0.attention": 2, "encoder.layers.1.attention": 2}


def scores_of(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) ** 4 for name, shape in shapes.items()}


def units_by_hand(shapes, unit):
    """Return sets of (tensor, flat index) by slow loops, from the definition."""
    found = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        for index in np.ndindex(*shape):
            key = (module, index[0])
            if unit == "head" and part in PROJECTIONS[:3]:
                key = (module.rpartition(".")[0], "head", index[0] // 4)
            if unit == "head" and part == "out_proj" and kind == "weight":
                key = (module.rpartition(".")[0], "head", index[1] // 4)
            found.setdefault(key, []).append((name, int(np.ravel_multi_index(index, shape))))
    return list(found.values())


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("unit", ["row", "head"])
def test_the_units_of_largest_mean_score_are_chosen_whole(shapes, unit, density):
    scores = scores_of(shapes)
    total = sum(score.numel() for score in scores.values())
    units = units_by_hand(shapes, unit)
    mean = lambda entries: sum(float(scores[n].reshape(-1)[i]) for n, i in entries) / len(entries)  # noqa: E731
    expected, filled = set(), 0
    for entries in sorted(units, key=mean, reverse=True):
        filled += len(entries)
        if filled > round(density * total):
            break
        expected |= set(entries)
    places = places_of(shapes, unit, HEADS)
    chosen = nested_units(scores, [density], places).at(density)
    assert {(n, int(i)) for n, indices in chosen.items() for i in indices} == expected and expected
    assert all(torch.equal(indices, indices.sort().values) for indices in chosen.values())


@pytest.mark.parametrize("unit", ["row", "head"])
def test_they_nest_and_layers_get_their_share(shapes, unit):
    scores = scores_of(shapes)
    scores = {name: score * (50 if ".1." in name else 1) for name, score in scores.items()}
    places = places_of(shapes, unit, HEADS)
    for budget in ("global", "layer"):
        nested = nested_units(scores, [0.1, 0.4], places, budget)
        for name, indices in nested.at(0.1).items():
            assert set(indices.tolist()) <= set(nested.at(0.4)[name].tolist())
        alone = nested_units(scores, [0.1], places, budget).at(0.1)
        assert alone.keys() == nested.at(0.1).keys()
        assert all(torch.equal(alone[name], nested.at(0.1)[name]) for name in alone)
        assert any(".0." in name for name in nested.at(0.4)) == (budget == "layer")


def test_random_rows_are_whole_and_differ_by_seed(shapes):
    places = places_of(shapes, "row")
    first, other = (random_units([0.3], places, seed, "global").at(0.3) for seed in (1, 2))
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert 0.3 * total - 9 < masks.count(first) <= round(0.3 * total)
    assert all(whole_rows(first[n], shapes[n][1]) is not None for n in first if len(shapes[n]) == 2)
    assert first.keys() != other.keys() or any(not torch.equal(first[n], other[n]) for n in first)


def test_what_cannot_be_divided_is_refused(shapes):
    with pytest.raises(UsageError, match="does not say how many attention heads encoder.layers.0 has; use unit: row"):
        places_of(shapes, "head", {})
    with pytest.raises(UsageError, match="has 8 rows for 3 attention heads"):
        places_of(shapes, "head", dict.fromkeys(HEADS, 3))
    with pytest.raises(DataError, match=r"less than one whole unit.*unit: entry"):
        nested_units(scores_of(shapes), [0.001], places_of(shapes, "row"))
    with pytest.raises(DataError, match="a density of 0.001 is less than one whole unit"):  # the smaller one of a race
        nested_units(scores_of(shapes), [0.5, 0.001], places_of(shapes, "row"))
    with pytest.raises(DataError, match="all scores are zero"):
        nested_units({n: s * 0 for n, s in scores_of(shapes).items()}, [0.5], places_of(shapes, "row"))


@pytest.mark.parametrize("rows", [4, 2])
def test_key_and_value_that_several_heads_share_are_refused(shapes, rows):
    for layer in (0, 1):
        for name in ("k_proj", "v_proj"):
            shapes[LAYER.format(layer, name, "weight")], shapes[LAYER.format(layer, name, "bias")] = (rows, 8), (rows,)
    with pytest.raises(UsageError, match=rf"k_proj.weight has {rows} rows for 2 attention heads \(.*: use unit: row"):
        places_of(shapes, "head", HEADS)


@pytest.mark.parametrize("output", ["out_lin", "o_proj", "merged"])
def test_an_output_projection_without_a_name_in_the_table_belongs_to_the_heads(shapes, output):
    renamed = {name.replace("out_proj", output): shape for name, shape in shapes.items()}
    scores = scores_of(renamed)
    known = {name.replace(output, "out_proj"): score for name, score in scores.items()}
    ours = nested_units(scores, (0.3,), places_of(renamed, "head", HEADS)).at(0.3)
    theirs = nested_units(known, (0.3,), places_of(shapes, "head", HEADS)).at(0.3)
    assert {name.replace(output, "out_proj"): i.tolist() for name, i in ours.items()} == {
        name: i.tolist() for name, i in theirs.items()
    }
    assert any(output in name for name in ours)


def test_two_matrices_that_could_be_the_output_are_refused(shapes):
    renamed = {name.replace("out_proj", "mix"): shape for name, shape in shapes.items()}
    renamed["encoder.layers.0.attention.gate.weight"] = (3, 8)
    with pytest.raises(UsageError, match="not clear which of .*mix.weight, .*gate.weight the outputs of heads go to"):
        places_of(renamed, "head", HEADS)


def test_heads_without_an_eligible_output_are_rows_of_query_key_and_value_alone(shapes):
    fewer = {name: shape for name, shape in shapes.items() if "out_proj" not in name}
    assert places_of(fewer, "head", HEADS)


def test_weights_in_which_no_head_is_found_are_refused(shapes):
    stacked = {"blocks.0.attn.qkv.weight": (24, 8), "blocks.0.attn.proj.weight": (8, 8)}
    rest = {name: shape for name, shape in shapes.items() if "feed_forward" in name}
    for found in (stacked, rest):
        with pytest.raises(UsageError, match="tuning.unit head: none of the eligible weights .*unit: row"):
            places_of(found, "head", {"blocks.0.attn": 2} | HEADS)
        assert places_of(found, "row")


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_rows_alone_get_the_gradient_of_the_dense_product(kept):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
    x = torch.randn(2, 5, 6)
    model(x).square().mean().backward()
    rows = torch.arange(6)[:kept].flip(0).sort().values
    indices = (rows[:, None] * 6 + torch.arange(6)).reshape(-1).int()
    dense = model[0].weight.grad[rows].reshape(-1).clone()
    model.zero_grad()
    child = ChildNetwork({"weight": model[0].weight}, {"weight": indices})
    assert isinstance(model[0].weight, SampledWeight) and torch.equal(model[0].weight.rows, rows.int())
    model(x).square().mean().backward()
    child.gather_gradients()
    torch.testing.assert_close(child.values.grad, dense, rtol=1e-5, atol=1e-8)
    assert model[0].weight.grad is None, "no dense gradient is made"


def test_entries_that_only_look_like_rows_are_not_taken_for_them():
    assert torch.equal(whole_rows(torch.tensor([3, 4, 5, 9, 10, 11]), 3), torch.tensor([1, 3]))
    for other in ([0, 1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 4, 5, 6]):
        assert whole_rows(torch.tensor(other), 3) is None
