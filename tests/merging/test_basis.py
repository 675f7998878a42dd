"""The hidden space of a source rotated onto the target's: what is recovered, brute force, few pairs."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment_config import Alignment, BasisAlignment, HeadAlignment, parse_align
from s3prl_ext.merging.basis import basis_of, procrustes

WIDTH = 12


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed):
    return torch.linalg.qr(randn(WIDTH, WIDTH, seed=seed)).Q


def test_a_source_in_a_turned_space_comes_back_layer_by_layer():
    x = randn(40, 2, WIDTH) + 3
    rotations = [orthogonal(1), orthogonal(2)]
    y = torch.stack([x[:, layer] @ rotation.T for layer, rotation in enumerate(rotations)], dim=1)
    target = {Slot(layer, p): randn(8, WIDTH, seed=layer).float() for layer in (0, 1) for p in PROJECTIONS}
    source = {slot: (tensor.double() @ rotations[slot.layer].T).float() for slot, tensor in target.items()}
    source[Slot(0, "q_proj", "bias")] = randn(8)
    basis = basis_of(x, y, [0, 1], {"seed": 0})
    rotated = basis.apply(source)
    for slot, tensor in target.items():
        torch.testing.assert_close(rotated[slot], tensor, rtol=0, atol=1e-5)
        assert rotated[slot].dtype == torch.float32
    assert rotated[Slot(0, "q_proj", "bias")] is source[Slot(0, "q_proj", "bias")]
    described = basis.describe()
    assert described["fit"] == pytest.approx([1, 1]) and described["directions"] == [WIDTH] * 2
    assert described["seed"] == 0 and described["layers"] == [0, 1]


def test_it_is_the_closest_of_all_turns():
    x, y = randn(30, WIDTH, seed=3), randn(30, WIDTH, seed=4)
    rotation = procrustes(x, y)
    torch.testing.assert_close(rotation.matrix @ rotation.matrix.T, torch.eye(WIDTH, dtype=torch.float64))

    def distance(matrix):
        return (y - x @ matrix.T).square().sum().item()

    least = distance(rotation.matrix)
    assert all(distance(orthogonal(seed)) > least for seed in range(100))
    for seed in range(20):  # a little further in any direction
        skew = randn(WIDTH, WIDTH, seed=seed)
        assert distance(rotation.matrix @ torch.linalg.matrix_exp(1e-3 * (skew - skew.T))) > least
    squares = x.square().sum() + y.square().sum() - 2 * rotation.fit * x.norm() * y.norm()
    assert least == pytest.approx(squares.item())


def test_what_few_pairs_do_not_determine_stays_where_it_is():
    x = randn(5, WIDTH)
    itself = procrustes(x, x)
    assert itself.rank == 5 and itself.fit == pytest.approx(1)
    torch.testing.assert_close(itself.matrix, torch.eye(WIDTH, dtype=torch.float64))
    plane = torch.eye(WIDTH, dtype=torch.float64)  # a rotation within what five pairs see
    inside = torch.linalg.qr(x.T).Q
    rotated = inside @ torch.linalg.qr(randn(5, 5, seed=1)).Q @ inside.T + plane - inside @ inside.T
    torch.testing.assert_close(procrustes(x, x @ rotated.T).matrix, rotated)
    zero = procrustes(torch.zeros(3, WIDTH), x[:3])
    assert zero.rank == 0 and zero.fit == 0
    torch.testing.assert_close(zero.matrix, plane)


def test_vectors_and_matrices_that_do_not_fit_are_one_sentence():
    with pytest.raises(UsageError, match=r"of the same pairs, got \(5, 12\) of the target and \(4, 12\)"):
        procrustes(randn(5, WIDTH), randn(4, WIDTH))
    basis = basis_of(randn(20, 1, WIDTH), randn(20, 1, WIDTH), [0], {})
    with pytest.raises(
        UsageError, match=r"layer 0 q_proj.weight reads 7 values, but the basis is that of vectors of 12"
    ):
        basis.apply({Slot(0, "q_proj"): randn(12, 7)})


def test_an_alignment_is_a_kind_a_mapping_or_a_list_of_both():
    heads, basis = HeadAlignment(heads=4), BasisAlignment("pairs.tsv", share=1.0)
    written = {"kind": "basis", "pairs": "pairs.tsv", "share": 1}
    assert parse_align("heads") == Alignment(HeadAlignment())
    assert parse_align(written) == Alignment(basis=basis)
    both = parse_align([{"kind": "heads", "heads": 4}, written])
    assert both == parse_align([written, {"kind": "heads", "heads": 4}]) == Alignment(heads, basis)
    assert parse_align(both.plain()) == both and parse_align(None) is None
    by_outputs = parse_align({"kind": "heads", "by": "outputs", "pairs": "pairs.tsv", "seed": 3})
    assert by_outputs.runs and parse_align(by_outputs.plain()) == by_outputs
    assert both.runs and not parse_align("heads").runs


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("basis", r"found from paired inputs: give \{kind: basis, pairs: FILE\}"),
        ("bases", "unknown kind 'bases'; did you mean 'basis'"),
        ({"kind": "basis", "pairs": "a", "sahre": 1}, "unknown key 'sahre'"),
        ({"kind": "basis", "pairs": "a", "share": 0}, "share must be"),
        ({"kind": "heads", "pairs": "a"}, "pairs belong to by: outputs or patterns, but heads are paired by weights"),
        ({"kind": "heads", "by": "outputs"}, "outputs of heads are compared on paired inputs: give pairs"),
        ({"kind": "heads", "by": "pattern", "pairs": "a"}, "unknown by 'pattern'; did you mean 'patterns'"),
        ({"heads": 3}, "align.kind is missing"),
        (["heads", "heads"], "align says heads twice"),
        ([], "align is empty"),
        (3, "align must be heads, a mapping such as"),
    ],
)
def test_a_wrong_alignment_is_one_sentence(value, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_align(value)
    assert "\n" not in str(caught.value)
