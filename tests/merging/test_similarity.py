"""Invariant 7: distances between layers, against plain loops and the library POT, and the choice of k layers."""

from __future__ import annotations

import math

import pytest
import torch

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.layer_selection import LayerTable, layer_table, top_k
from s3prl_ext.merging.similarity import (
    SIMILARITIES,
    draw_projections,
    euclidean,
    inner_product,
    swd,
    swd_coordinates,
    swd_matrix,
)
from tests.support import reference

DISTANCES = ("euclidean", "swd", "swd_coordinates")


def vectors(samples=20, width=6, seed=0, dtype=torch.float64, shift=0.0):
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=dtype) + shift


def layers(depth=4, seed=0, **options):
    return [vectors(seed=10 * seed + layer, **options) for layer in range(depth)]


def test_means_over_pairs_equal_plain_loops():
    x, y = vectors(), vectors(seed=1)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    assert euclidean(x, y) == pytest.approx(sum(math.dist(a, b) for a, b in pairs) / len(pairs), rel=1e-12)
    products = [sum(p * q for p, q in zip(a, b, strict=True)) for a, b in pairs]
    assert inner_product(x, y) == pytest.approx(sum(products) / len(products), rel=1e-12)
    costs = [math.sqrt(reference.wasserstein(a, b)) for a, b in pairs]
    assert swd_coordinates(x, y) == pytest.approx(sum(costs) / len(costs), rel=1e-12)


@pytest.mark.parametrize("sizes", [(20, 20), (20, 30), (7, 12), (1, 9), (1, 1)])
def test_swd_equals_plain_loops_also_for_sets_of_unequal_size(sizes):
    x, y = vectors(sizes[0]), vectors(sizes[1], seed=1, shift=0.5)
    directions = draw_projections(6, 12, dtype=torch.float64)
    assert swd(x, y, directions) == pytest.approx(reference.swd(x, y, directions), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(200, 200), (200, 130), (1, 1)])
def test_swd_equals_pot(sizes, dtype):
    ot = pytest.importorskip("ot", reason="needs the library POT (extra dev)")
    x, y = vectors(sizes[0], 48, dtype=dtype), vectors(sizes[1], 48, seed=1, shift=0.3, dtype=dtype)
    directions = draw_projections(48, dtype=dtype)
    theirs = float(ot.sliced_wasserstein_distance(x, y, projections=directions))
    assert swd(x, y, directions) == pytest.approx(theirs, abs=1e-6)


def test_without_numpys_sort_the_distance_is_the_same():
    x, y = vectors(30, dtype=torch.bfloat16), vectors(30, seed=1, dtype=torch.bfloat16)
    directions = draw_projections(6, 50, dtype=torch.bfloat16)
    exact = reference.swd(x.double(), y.double(), directions.double())
    assert swd(x, y, directions) == pytest.approx(exact, rel=0.02)


def test_swd_of_single_points_is_euclidean_over_root_d_in_expectation():
    x, y = vectors(1, 24), vectors(1, 24, seed=1)
    count = 20000
    directions = draw_projections(24, count, seed=3, dtype=torch.float64)
    squares = ((x - y) @ directions).square().flatten()
    expected = euclidean(x, y) ** 2 / 24
    assert abs(swd(x, y, directions) ** 2 - expected) < 5 * squares.std().item() / math.sqrt(count)
    assert swd(x, y, directions) == pytest.approx(math.sqrt(expected), rel=0.03)


def test_directions_are_unit_vectors_with_a_seed_of_their_own():
    state = torch.get_rng_state()
    directions = draw_projections(16)
    assert directions.shape == (16, 200)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(200))
    assert torch.equal(directions, draw_projections(16)) and not torch.equal(directions, draw_projections(16, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    many = draw_projections(4, 20000, dtype=torch.float64)
    torch.testing.assert_close(many @ many.T / 20000, torch.eye(4, dtype=torch.float64) / 4, rtol=0, atol=0.01)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_compared_with_itself_has_distance_0_in_every_layer(metric, normalise, dtype):
    mine = layers(dtype=dtype)
    assert layer_table(mine, [layer.clone() for layer in mine], metric, normalise).values == (0.0,) * 4
    assert all(value > 0.01 for value in layer_table(mine, layers(seed=1, dtype=dtype), metric, normalise).values)


@pytest.mark.parametrize("metric", SIMILARITIES)
def test_permuting_samples_jointly_changes_nothing(metric):
    x, y = layers(), layers(seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    before = layer_table(x, y, metric)
    after = layer_table([layer[order] for layer in x], [layer[order] for layer in y], metric)
    assert after.values == pytest.approx(before.values, rel=1e-12)
    alone = layer_table(x, [layer[order] for layer in y], metric)
    changed = alone.values != pytest.approx(before.values, rel=1e-6)
    assert changed == SIMILARITIES[metric].paired


def test_sets_and_single_points_rank_layers_differently():
    """The same vectors with the pairs mixed up: equal as sets, far apart as pairs."""
    x = vectors(50)
    mixed, shifted = x.roll(1, dims=0), x + 0.3
    table = {metric: layer_table([x, x], [mixed, shifted], metric).values for metric in ("euclidean", "swd")}
    assert table["swd"][0] == pytest.approx(0.0, abs=1e-12) and table["swd"][0] < table["swd"][1]
    assert table["euclidean"][0] > table["euclidean"][1]


def test_normalised_vectors_have_length_1():
    x, y = layers(), layers(seed=1)
    scaled = [3.0 * layer for layer in y]
    for metric in SIMILARITIES:
        plain, again = (layer_table(x, other, metric, normalise=True).values for other in (y, scaled))
        assert again == pytest.approx(plain, rel=1e-12)
    cosine = [torch.cosine_similarity(a, b).mean().item() for a, b in zip(x, y, strict=True)]
    assert layer_table(x, y, "inner_product", normalise=True).values == pytest.approx(cosine, rel=1e-9)
    zero = layer_table([torch.zeros(3, 2)], [torch.zeros(3, 2)], "euclidean", normalise=True)
    assert zero.values == (0.0,)


@pytest.mark.parametrize("sizes", [(20, 20), (20, 15)])
def test_matrix_holds_all_pairs_of_layers(sizes):
    x, y = layers(3, samples=sizes[0]), layers(4, seed=1, samples=sizes[1])
    directions = draw_projections(6, dtype=torch.float64)
    matrix = swd_matrix(x, y)
    assert matrix.shape == (3, 4)
    for i, j in ((0, 0), (2, 1), (1, 3)):
        assert matrix[i, j].item() == pytest.approx(swd(x[i], y[j], directions), rel=1e-12)
    assert torch.equal(swd_matrix(x, x).diagonal(), torch.zeros(3, dtype=torch.float64))


def test_inputs_stay_unchanged():
    x, y = layers(), layers(seed=1)
    before = [layer.clone() for layer in (*x, *y)]
    for metric in SIMILARITIES:
        layer_table(x, y, metric)
    swd_matrix(x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, (*x, *y), strict=True))


@pytest.mark.parametrize(
    ("metric", "k", "expected"),
    [
        ("euclidean", 2, (1, 3)),
        ("swd", 3, (1, 3, 4)),
        ("swd_coordinates", 1, (1,)),
        ("inner_product", 2, (0, 2)),
        ("swd", 5, (0, 1, 2, 3, 4)),
        ("inner_product", 5, (0, 1, 2, 3, 4)),
    ],
)
def test_top_k_has_the_direction_of_its_metric(metric, k, expected):
    assert top_k(LayerTable(metric, (5.0, 1.0, 4.0, 2.0, 3.0)), k) == expected


@pytest.mark.parametrize("metric", SIMILARITIES)
def test_ties_go_to_the_lower_layer(metric):
    assert top_k(LayerTable(metric, (2.0, 2.0, 2.0, 2.0)), 2) == (0, 1)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_must_fit_the_depth(k):
    with pytest.raises(UsageError, match=f"between 1 and the number of layers, 4, got {k}"):
        top_k(LayerTable("swd", (1.0,) * 4), k)


def test_unsuitable_vectors_are_refused():
    x = layers()
    damaged = [*x[:2], x[2].clone().fill_(float("nan")), x[3]]
    for y, metric, error, message in (
        (x, "swf", UsageError, "unknown metric 'swf'; did you mean 'swd'"),
        (x[:3], "swd", UsageError, "the target has 4 layers and the source 3"),
        (layers(width=5), "swd", UsageError, r"layer 0 has vectors of shape \(20, 6\) .* \(20, 5\) .* same width"),
        (layers(samples=19), "euclidean", UsageError, r"\(20, 6\) .* \(19, 6\) .*for every pair"),
        (damaged, "swd", DataError, "layer 2 of the source hold NaN"),
    ):
        with pytest.raises(error, match=message):
            layer_table(x, y, metric)
    with pytest.raises(UsageError, match="0 layers"):
        layer_table([], [], "swd")
    assert len(layer_table(x, layers(samples=19), "swd").values) == 4
