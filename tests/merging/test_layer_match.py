"""Which layers of source and target are paired, by similarity: against brute force, and what is recovered."""

from __future__ import annotations

import itertools

import pytest
import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.layer_selection import layer_table, match_layers, similarity_matrix
from s3prl_ext.merging.layers import parse_layer_map, resolve_layer_map
from s3prl_ext.merging.similarity import SIMILARITIES


def layers(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(20, 6, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("metric", list(SIMILARITIES))
def test_rows_of_the_matrix_are_comparisons_of_single_layers(metric):
    x, y = layers(2, 0), layers(3, 1)
    matrix = similarity_matrix(x, y, metric)
    assert matrix.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert matrix[i, j].item() == layer_table([x[i]], [y[j]], metric).values[0]


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3), (3, 1)])
def test_the_monotone_map_is_the_best_of_all_that_never_go_back(shape, metric):
    sign = -1.0 if SIMILARITIES[metric].largest else 1.0
    for seed in range(5):
        matrix = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        candidates = itertools.combinations_with_replacement(range(shape[1]), shape[0])
        cost = {one: sum(sign * matrix[i, j].item() for i, j in enumerate(one)) for one in candidates}
        found = tuple(match_layers(matrix, metric))
        assert cost[found] == pytest.approx(min(cost.values()), abs=1e-12)
        free = match_layers(matrix, metric, monotone=False)
        assert free == [int(row.argmax() if sign < 0 else row.argmin()) for row in matrix]


def test_of_equally_good_layers_the_lower_ones_are_taken():
    assert match_layers(torch.zeros(3, 3), "euclidean") == [0, 0, 0]
    assert match_layers(torch.zeros(3, 3), "inner_product", monotone=False) == [0, 0, 0]


def test_shuffled_layers_are_found_again():
    x = layers(4, 3)
    order = [2, 0, 3, 1]
    shuffled = [x[order.index(layer)] for layer in range(4)]  # x[i] is layer order[i] of the source
    assert match_layers(similarity_matrix(x, shuffled, "swd"), "swd", monotone=False) == order
    assert match_layers(similarity_matrix(x, [x[0], x[1], x[1], x[2], x[3]], "swd"), "swd") == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"match": "swd"}, "pairs"),
        ({"match": "swdd", "pairs": "x"}, "unknown metric 'swdd'; did you mean 'swd'"),
        ({"match": "swd", "pairs": "x", "monotone": 3}, "monotone"),
        ({"match": "swd", "pairs": "x", "top_k": 3}, "top_k"),
        ({"match": "swd", "pairs": "x", "level": "frame"}, "leave level: frame out"),
    ],
)
def test_bad_settings_are_one_sentence(value, message):
    with pytest.raises(UsageError, match=message):
        parse_layer_map(value)


def test_a_match_is_resolved_when_the_models_are_open():
    with pytest.raises(UsageError, match="which layers are paired by swd is only known when both models are opened"):
        resolve_layer_map(parse_layer_map({"match": "swd", "pairs": "pairs.tsv"}), 4, 4)
