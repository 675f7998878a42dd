"""Several sources and maps between layers, on tensors."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.interpolation import combine, interpolate
from s3prl_ext.merging.layers import align, resolve_layer_map
from s3prl_ext.merging.merge import Source, check_compatible, format_table, merge_attention, merge_sources
from tests.support import reference


def tensors(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 5, generator=generator).to(dtype) for _ in range(count)]


def model(layers, seed, width=8):
    generator = torch.Generator().manual_seed(seed)
    return {Slot(i, p): torch.randn(width, width, generator=generator) for i in range(layers) for p in PROJECTIONS}


def constant(weight, depth):
    return {projection: [weight] * depth for projection in PROJECTIONS}


@pytest.mark.parametrize(
    "weights", [[0.1, 0.2], [0.7, 0.2, 0.1], [0.5, 0.5], [0.9, 0.0, 0.05], [0.8, 0.7], [-0.2, 0.4]]
)
def test_combine_equals_the_formula(weights):
    target, *sources = tensors(1 + len(weights))
    expected = reference.merge_several(target, sources, weights)
    torch.testing.assert_close(combine(target, sources, weights).double(), expected, rtol=1e-6, atol=1e-6)


def test_combine_with_one_source_is_interpolation_bitwise():
    target, source, other = tensors(3)
    for weight in (0.0, 0.3, 1.0):
        expected = interpolate(target, source, weight)
        assert torch.equal(combine(target, [source], [weight]), expected)
        assert torch.equal(combine(target, [other, source], [0.0, weight]), expected)
    assert combine(target, [source, other], [0.0, 0.0]) is target


def test_the_target_does_not_enter_where_lambdas_add_up_to_1():
    target, *sources = tensors(4)
    weights = [0.7, 0.2, 0.1]
    assert sum(weights) != 1.0
    elsewhere = combine(1e6 * target, sources, weights)
    assert torch.equal(combine(target, sources, weights), elsewhere)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_combined_in_float32(dtype):
    target, first, second = tensors(3, dtype)
    result = combine(target, [first, second], [0.25, 0.5])
    expected = 0.25 * target.float() + 0.25 * first.float() + 0.5 * second.float()
    assert result.dtype == dtype and torch.equal(result, expected.to(dtype))


def test_each_source_has_its_own_layers_and_projections():
    target, first, second = (model(3, seed) for seed in range(3))
    sources = [
        Source(first, {"q_proj": [0.2, 0.2, 0.0], "k_proj": [0.0, 0.1, 0.0]}, "text"),
        Source(second, {"q_proj": [0.0, 0.3, 1.0]}, "image"),
    ]
    before = {name: {slot: t.clone() for slot, t in m.items()} for name, m in (("t", target), ("a", first))}
    merged, rows = merge_sources(target, sources)
    assert list(merged) == [Slot(0, "q_proj"), Slot(1, "q_proj"), Slot(1, "k_proj"), Slot(2, "q_proj")]
    slot = Slot(1, "q_proj")
    expected = reference.merge_several(target[slot], [first[slot], second[slot]], [0.2, 0.3])
    torch.testing.assert_close(merged[slot].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(merged[Slot(2, "q_proj")], second[Slot(2, "q_proj")])
    assert torch.equal(merged[Slot(0, "q_proj")], torch.lerp(target[Slot(0, "q_proj")], first[Slot(0, "q_proj")], 0.2))
    assert all(torch.equal(before["t"][s], target[s]) and torch.equal(before["a"][s], first[s]) for s in target)

    assert [(row.layer, row.projection, row.source, row.lambda_) for row in rows] == [
        (0, "q_proj", "text", 0.2),
        (1, "q_proj", "text", 0.2),
        (1, "q_proj", "image", 0.3),
        (1, "k_proj", "text", 0.1),
        (2, "q_proj", "image", 1.0),
    ]
    assert rows[1].relative_change == rows[2].relative_change > 0
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["layer", "projection", "source", "lambda", "relative", "change"]
    assert lines[3].split()[:4] == ["1", "q_proj", "image", "0.3"]


def test_the_order_of_sources_does_not_matter():
    target, first, second = (model(2, seed) for seed in range(3))
    sources = [Source(first, constant(0.2, 2)), Source(second, constant(0.3, 2))]
    there, back = merge_sources(target, sources)[0], merge_sources(target, sources[::-1])[0]
    assert all(torch.allclose(there[slot], back[slot], rtol=1e-6, atol=1e-7) for slot in there)
    # one source given twice is that source with the sum
    twice = merge_sources(target, [sources[0], Source(first, constant(0.3, 2))])[0]
    once, _ = merge_attention(target, first, constant(0.5, 2))
    assert all(torch.allclose(twice[slot], once[slot], rtol=1e-6, atol=1e-6) for slot in once)


@pytest.mark.parametrize(
    ("depth", "source_depth", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (2, 6, [0, 5]),
        (6, 2, [0, 0, 0, 1, 1, 1]),
        (3, 12, [0, 6, 11]),
        (12, 6, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (1, 5, [0]),
        (5, 1, [0] * 5),
        (24, 12, [round(i * 11 / 23) for i in range(24)]),
    ],
)
def test_linear_spreads_evenly_from_first_to_last(depth, source_depth, expected):
    assert resolve_layer_map("linear", depth, source_depth) == expected


def test_explicit_and_absent_maps():
    assert resolve_layer_map({0: 2, 2: 0}, 3, 4) == [2, None, 0]
    assert resolve_layer_map(None, 3, 3) == [0, 1, 2]
    # noise without a source: any source layer will do
    assert resolve_layer_map({0: 99}, 2, None) == [99, None]
    assert resolve_layer_map("linear", 3, None) == [0, 1, 2]


def test_layers_that_are_not_there_are_all_named():
    with pytest.raises(UsageError) as caught:
        resolve_layer_map({5: 0, 0: 7}, 3, 4, ("target a", "source b"))
    assert str(caught.value).splitlines() == [
        "layer_map: layer 5 of target a is out of range: 3 layers are numbered 0-2.",
        "layer_map: layer 7 of source b is out of range: 4 layers are numbered 0-3.",
    ]


def test_mapped_layers_are_merged_and_shown():
    target, source = model(2, 0), model(6, 1)
    layer_map = resolve_layer_map({1: 4}, 2, 6)
    check_compatible(target, source, layer_map=layer_map)
    lambdas = {"v_proj": [0.0, 0.25]}
    merged, rows = merge_sources(target, [Source(align(source, layer_map), lambdas, "text", layer_map)])
    assert set(merged) == {Slot(1, "v_proj")}
    expected = torch.lerp(target[Slot(1, "v_proj")], source[Slot(4, "v_proj")], 0.25)
    assert torch.equal(merged[Slot(1, "v_proj")], expected)
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["layer", "projection", "source", "layer", "lambda", "relative", "change"]
    assert lines[1].split()[:4] == ["1", "v_proj", "4", "0.25"]


def test_one_source_layer_may_serve_several_target_layers():
    target, source = model(4, 0), model(2, 1)
    aligned = align(source, resolve_layer_map("linear", 4, 2))
    assert [torch.equal(aligned[Slot(i, "q_proj")], source[Slot(i // 2, "q_proj")]) for i in range(4)] == [True] * 4
    assert len(merge_attention(target, aligned, constant(0.1, 4))[0]) == 12


def test_unequal_depth_needs_a_map_and_unequal_width_stays_refused():
    with pytest.raises(UsageError, match="4 layers .* 2 layers .*same depth and width, so .*or set layer_map"):
        check_compatible(model(4, 0), model(2, 1))
    with pytest.raises(
        UsageError,
        match=r"so choose a source of the target's size, or project it with align: \{kind: basis, pairs: FILE\}.$",
    ):
        check_compatible(model(4, 0), model(2, 1, width=6), layer_map=[0, 0, 1, 1])


def test_a_damaged_tensor_is_named_by_source_and_its_own_layer():
    target, source = model(2, 0), model(6, 1)
    source[Slot(4, "k_proj")][0, 0] = float("inf")
    mapped = Source(align(source, [0, 4]), constant(0.1, 2), "text", [0, 4])
    with pytest.raises(DataError, match=r"layer 4 k_proj\.weight of the source text holds NaN or infinity"):
        merge_sources(target, [Source(model(2, 3), constant(0.1, 2), "image"), mapped])
