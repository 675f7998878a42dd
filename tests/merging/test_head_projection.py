"""Sources of other widths and heads in the target's shape: what comes back, what keeps its function, brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Aligner, Paired
from s3prl_ext.merging.basis import Basis, Rotation, basis_of, procrustes
from s3prl_ext.merging.head_projection import place_heads


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows, columns, seed):
    """Return a matrix with orthonormal columns, or rows where it is wide."""
    tall = torch.linalg.qr(randn(max(rows, columns), min(rows, columns), seed=seed)).Q
    return tall if rows >= columns else tall.T


def model(seed, heads, head, width):
    weights = {Slot(0, p): randn(heads * head, width, seed=seed + n) for n, p in enumerate(PROJECTIONS)}
    return weights | {Slot(0, p, "bias"): randn(heads * head, seed=seed + 3 + n) for n, p in enumerate(PROJECTIONS)}


def aligner(x, y, heads, pair=False):
    return Aligner(Paired(basis_of(x[:, None], y[:, None], [0], {})), heads, pair)


def test_a_target_in_a_wider_or_narrower_space_comes_back_as_far_as_the_space_holds_it():
    target, x = model(0, 4, 3, 10), randn(50, 10, seed=9)
    wide = orthonormal(16, 10, seed=1)
    source = {slot: tensor @ wide.T if slot.kind == "weight" else tensor for slot, tensor in target.items()}
    back = aligner(x, x @ wide.T, (4, 4)).apply(target, source)
    for slot in target:
        torch.testing.assert_close(back.weights[slot], target[slot])
    assert all(kept == pytest.approx(1) for kept in back.kept.values())

    narrow = orthonormal(6, 10, seed=2)
    small = {slot: tensor @ narrow.T if slot.kind == "weight" else tensor for slot, tensor in target.items()}
    rotation = procrustes(x, x @ narrow.T)
    torch.testing.assert_close(rotation.matrix @ rotation.matrix.T, torch.eye(6, dtype=torch.float64))
    there = aligner(x, x @ narrow.T, (4, 4)).apply(target, small)
    assert all(kept == pytest.approx(1) for kept in there.kept.values())
    assert there.facts["projection"] | {"orders": 0} == {
        "from": [12, 6],
        "to": [12, 10],
        "heads": [4, 4],
        "orders": 0,
        "paired": False,
    }


def test_what_a_narrower_target_cannot_hold_is_reported():
    target, source = model(0, 2, 3, 6), model(1, 2, 3, 15)
    basis = procrustes(randn(40, 6, seed=2), randn(40, 15, seed=3))
    torch.testing.assert_close(basis.matrix.T @ basis.matrix, torch.eye(6, dtype=torch.float64))
    result = Aligner(Paired(Basis({0: basis})), (2, 2)).apply(target, source)
    slot = Slot(0, "k_proj")
    inside = source[slot] @ basis.matrix
    torch.testing.assert_close(result.weights[slot], inside)
    assert result.kept[slot] == pytest.approx((inside.norm() / source[slot].norm()).item())
    assert 0.3 < result.kept[slot] < 0.95 and result.kept[Slot(0, "k_proj", "bias")] == pytest.approx(1)


def test_few_pairs_leave_out_what_they_do_not_determine_where_widths_differ():
    rotation = procrustes(randn(4, 6), randn(4, 15, seed=1))
    assert rotation.rank == 4 and torch.linalg.matrix_rank(rotation.matrix) == 4


@pytest.mark.parametrize(("heads", "sizes"), [((4, 3), (6, 4)), ((2, 6), (8, 4)), ((8, 3), (4, 4))])
def test_attention_over_the_turned_inputs_is_that_of_the_source(heads, sizes):
    """Wider heads and a wider space hold all of the source, so that its scores and values are the same."""
    target, source = model(0, heads[0], sizes[0], 20), model(1, heads[1], sizes[1], 12)
    inside = orthonormal(12, 20, seed=4)
    one = Aligner(Paired(Basis({0: Rotation(inside, 12, 1.0)})), heads)
    placed = one.apply(target, source).weights
    tokens = randn(7, 12, seed=5)

    def by_head(weights, projection, inputs, count):
        rows = inputs @ weights[Slot(0, projection)].T + weights[Slot(0, projection, "bias")]
        return rows.view(7, count, -1).transpose(0, 1)

    q, k, v = (by_head(source, p, tokens, heads[1]) for p in PROJECTIONS)
    ours = [by_head(placed, p, tokens @ inside, heads[0]) for p in PROJECTIONS]
    order = [place * heads[1] // heads[0] for place in range(heads[0])]
    scores = (q @ k.transpose(1, 2) / math.sqrt(sizes[1]))[order]
    torch.testing.assert_close(ours[0] @ ours[1].transpose(1, 2) / math.sqrt(sizes[0]), scores)
    torch.testing.assert_close(ours[2].norm(dim=2), v[order].norm(dim=2))


def test_heads_are_turned_by_the_closest_of_all_turns():
    target, source = model(2, 3, 5, 9), model(3, 3, 4, 9)
    placement = place_heads(target, source, (3, 3), PROJECTIONS, pair=False)[0]
    assert torch.equal(placement.rotations["q_proj"], placement.rotations["k_proj"])

    def distance(rotation, head, projections):
        ours, theirs = slice(5 * head, 5 * head + 5), slice(4 * head, 4 * head + 4)
        return sum(
            (target[Slot(0, p)][ours] - rotation @ source[Slot(0, p)][theirs]).square().sum() for p in projections
        )

    for head, group in itertools.product(range(3), (("q_proj", "k_proj"), ("v_proj",))):
        rotation = placement.rotations[group[0]][head]
        torch.testing.assert_close(rotation.T @ rotation, torch.eye(4, dtype=torch.float64))
        least = distance(rotation, head, group)
        assert all(distance(orthonormal(5, 4, seed=seed), head, group) > least for seed in range(200))


@pytest.mark.parametrize(("ours", "theirs"), [(2, 4), (4, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 2)])
def test_pairs_of_heads_are_the_closest_of_all_and_none_is_taken_too_often(ours, theirs, sizes):
    target, source = model(4, ours, sizes[0], 7), model(5, theirs, sizes[1], 7)
    found = place_heads(target, source, (ours, theirs), PROJECTIONS, pair=True)[0]

    def likeness(order):
        total = 0.0
        for head, other in enumerate(order):
            for group in (("q_proj", "k_proj"), ("v_proj",)):
                products = [
                    target[Slot(0, p)].view(ours, sizes[0], -1)[head]
                    @ source[Slot(0, p)].view(theirs, sizes[1], -1)[other].T
                    for p in group
                ]
                total += (
                    torch.linalg.matrix_norm(sum(products), "nuc") if sizes[0] != sizes[1] else sum(products).trace()
                )
        return total

    most = math.ceil(ours / theirs)
    orders = itertools.product(range(theirs), repeat=ours)
    allowed = [order for order in orders if max(map(order.count, order)) <= most]
    assert found.order == max(allowed, key=likeness)


def test_heads_in_order_are_spread_over_the_source_s():
    target, source = model(0, 8, 2, 6), model(1, 12, 2, 6)
    assert place_heads(target, source, (8, 12), PROJECTIONS, pair=False)[0].order == (0, 1, 3, 4, 6, 7, 9, 10)
    assert place_heads(source, target, (12, 8), PROJECTIONS, pair=False)[0].order == (
        0,
        0,
        1,
        2,
        2,
        3,
        4,
        4,
        5,
        6,
        6,
        7,
    )


def test_a_base_moves_as_its_source_and_other_projections_are_left_out():
    target, source, base = model(0, 4, 3, 8), model(1, 3, 2, 10), model(2, 3, 2, 10)
    rotation = procrustes(randn(30, 8), randn(30, 10, seed=1))
    one = Aligner(Paired(Basis({0: rotation})), (4, 3), True, ["q_proj", "v_proj"])
    with_base = one.apply(target, source, base)
    assert with_base.base is not None
    assert (
        {slot.projection for slot in with_base.weights}
        == {slot.projection for slot in with_base.base}
        == {"q_proj", "v_proj"}
    )
    change = one.apply(target, source, {slot: source[slot] - base[slot] for slot in source}).base
    for slot, tensor in with_base.weights.items():
        torch.testing.assert_close(tensor - with_base.base[slot], change[slot])


def test_rows_that_cannot_be_divided_and_heads_that_are_not_known_are_one_sentence():
    target, source = model(0, 4, 3, 8), model(1, 3, 2, 8)
    with pytest.raises(UsageError, match="12 rows of the target cannot be divided into 5 heads"):
        place_heads(target, source, (5, 3), PROJECTIONS, pair=False)
    x = randn(20, 8)
    with pytest.raises(
        UsageError, match="the source does not say how many heads it has, by which its rows are divided"
    ):
        aligner(x, x, (4, None)).apply(target, source)
