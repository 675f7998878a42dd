"""Heads of a source in the order of the target's: what is recovered, what stays the same function, brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.merging import aligner, alignment, head_projection
from s3prl_ext.merging.alignment import align_heads, permute_heads
from s3prl_ext.merging.basis import Basis, Rotation

HEADS, WIDTH = 4, 12


def model(seed, layers=2, kinds=("weight", "bias")):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (WIDTH, WIDTH), "bias": (WIDTH,)}
    return {
        Slot(layer, projection, kind): torch.randn(shapes[kind], generator=generator)
        for layer in range(layers)
        for projection in PROJECTIONS
        for kind in kinds
    }


def test_a_copy_with_permuted_heads_is_recovered_bit_for_bit():
    target = model(0)
    orders = {0: [2, 0, 3, 1], 1: [1, 0, 2, 3]}
    shuffled = {slot: permute_heads(tensor, orders[slot.layer]) for slot, tensor in target.items()}
    recovered, found = align_heads(target, shuffled, HEADS, PROJECTIONS)
    assert all(torch.equal(recovered[slot], target[slot]) for slot in target)
    assert {layer: [orders[layer][head] for head in order] for layer, order in found.items()} == {
        0: [0, 1, 2, 3],
        1: [0, 1, 2, 3],
    }


def test_the_assignment_is_the_closest_of_all_permutations():
    target, source = model(1), model(2)
    aligned, orders = align_heads(target, source, HEADS, PROJECTIONS)
    for layer in (0, 1):
        slots = [Slot(layer, projection) for projection in PROJECTIONS]

        def distance(order, slots=slots):
            return sum((target[s] - permute_heads(source[s], order)).double().square().sum().item() for s in slots)

        best = min(itertools.permutations(range(HEADS)), key=distance)
        assert orders[layer] == list(best)
        bias = Slot(layer, "v_proj", "bias")
        assert torch.equal(aligned[bias], permute_heads(source[bias], best))


def test_the_function_of_the_attention_stays_where_the_output_projection_follows():
    target, source = model(3), model(4)
    aligned, orders = align_heads(target, source, HEADS, PROJECTIONS)
    out = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    columns = torch.arange(WIDTH).view(HEADS, -1)[orders[0]].flatten()
    inputs = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(8))

    def attend(weights, out):
        q, k, v = (
            torch.nn.functional.linear(inputs, weights[Slot(0, p)], weights[Slot(0, p, "bias")])
            .view(5, HEADS, -1)
            .transpose(0, 1)
            for p in PROJECTIONS
        )
        context = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(5, WIDTH)
        return context @ out.T

    assert orders[0] != list(range(HEADS))
    torch.testing.assert_close(attend(aligned, out[:, columns]), attend(source, out), rtol=1e-5, atol=1e-5)


def test_only_the_named_projections_are_compared_and_moved():
    target, source = model(5), model(6)
    aligned, _ = align_heads(target, source, HEADS, ["v_proj"])
    others = [slot for slot in source if slot.projection != "v_proj"]
    assert all(aligned[slot] is source[slot] for slot in others)
    by_all, _ = align_heads(target, {**source, **{slot: 0 * source[slot] for slot in others}}, HEADS, PROJECTIONS)
    assert all(torch.equal(aligned[slot], by_all[slot]) for slot in source if slot.projection == "v_proj")


def test_a_width_that_cannot_be_divided_is_one_sentence():
    with pytest.raises(UsageError, match="12 rows cannot be divided into 5 heads: correct align.heads"):
        align_heads(model(0), model(1), 5, PROJECTIONS)


@pytest.mark.parametrize("width", [8, 16])  # of the source; another one is projected
def test_models_on_two_devices_are_aligned(width, monkeypatch):
    for module in (alignment, head_projection):
        monkeypatch.setattr(module, "assign", lambda alike: list(range(len(alike))))
    monkeypatch.setattr(aligner, "_norm", lambda tensor: 1.0)
    basis = Basis({0: Rotation(torch.eye(width, 8), 1.0, 8)}) if width != 8 else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        target = {Slot(0, p): torch.empty(8, 8, device="cuda") for p in PROJECTIONS}
        for device in ("cuda", "cpu"):
            source = {Slot(0, p): torch.empty(width, width, device=device) for p in PROJECTIONS}
            base = {slot: tensor.clone().cpu() for slot, tensor in source.items()}
            found = aligner.Aligner(aligner.Paired(basis), heads=(2, 2), pair=True).apply(target, source, base)
            assert all(tensor.device.type == device and tensor.shape == (8, 8) for tensor in found.weights.values())
