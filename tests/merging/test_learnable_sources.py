"""A learnable merge of several sources: gradients, constraints, what shares a lambda, and the fixed merge it equals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.differentiable import WeightedSum, line_shares
from s3prl_ext.merging.learnable import LearnableSource, constant_names, find_lambda, fold, make_learnable
from s3prl_ext.merging.learnable_config import CONSTRAINTS, GRANULARITIES, LearnableConfig
from s3prl_ext.merging.learnable_lambda import nearest_shares
from s3prl_ext.merging.merge import Source, merge_in_place
from tests.merging.test_learnable import HEADS, LAYERS, WIDTH, Model, double, inputs

FIRST = (0.3, 0.2)


def source_weights(number):
    return extract(Model(number + 1).state_dict())


def learnable(first=FIRST, layers=None, projections=None, **config):
    model = Model(0)
    layers = layers or [range(LAYERS)] * len(first)
    projections = projections or [PROJECTIONS] * len(first)
    sources = [
        LearnableSource(source_weights(number), {p: [value] * LAYERS for p in names}, chosen, f"model {number}")
        for number, (value, chosen, names) in enumerate(zip(first, layers, projections, strict=True))
    ]
    return model, make_learnable(model, sources, LearnableConfig(**config))


def fixed(*lambdas):
    """The model with the fixed merge of several sources, lambda by projection and layer."""
    model = Model(0)
    sources = [Source(source_weights(number), values) for number, values in enumerate(lambdas)]
    merge_in_place(extract(model.state_dict()), sources)
    return model


def everywhere(value):
    return {projection: [value] * LAYERS for projection in PROJECTIONS}


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gradients_equal_the_plain_expression_and_finite_differences(count, blocks):
    target, sources = double(8, 6, seed=0).requires_grad_(), double(count, 8, 6, seed=1)
    lambdas, upstream = double(count, blocks, seed=2).requires_grad_(), double(8, 6, seed=3)
    rows = lambdas.repeat_interleave(8 // blocks, dim=1).unsqueeze(2)
    plain = (1 - rows.sum(0)) * target + (rows * sources).sum(0)
    ours = WeightedSum.apply(target, sources, line_shares(lambdas))
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(plain, (target, lambdas), upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, (target, lambdas), upstream), expected)
    formula = (upstream * (sources - target.detach())).reshape(count, blocks, -1).sum(2)
    torch.testing.assert_close(expected[1], formula)
    assert torch.autograd.gradcheck(lambda t, w: WeightedSum.apply(t, sources, line_shares(w)).sin(), (target, lambdas))


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_is_the_fixed_merge_at_every_value_and_so_is_the_folded_model(granularity, constraint):
    model, shared = learnable(granularity=granularity, constraint=constraint)
    torch.testing.assert_close(model(inputs()), fixed(*map(everywhere, FIRST))(inputs()), rtol=0, atol=1e-6)
    counts = {"layer": LAYERS, "projection": 3 * LAYERS, "head": HEADS * LAYERS, "global": 1}
    names = shared.names()
    assert len(names) == len(set(names)) == shared.values.numel() == 2 * counts[granularity]
    assert names[0].startswith("source_0/") and names[-1].startswith("source_1/")
    half = len(names) // 2
    torch.testing.assert_close(shared.current(), torch.tensor([0.3] * half + [0.2] * half))
    model(inputs()).square().sum().backward()
    assert shared.values.grad.abs().min() > 0
    with torch.no_grad():
        shared.values.add_(0.1 * torch.rand(shared.values.shape))
    expected = model(inputs())
    if granularity in ("layer", "global"):
        now = dict(zip(names, shared.current().tolist(), strict=True))
        by_layer = [
            {p: [now.get(f"source_{s}/layer_{i:02d}", now.get(f"source_{s}/global")) for i in range(LAYERS)]
             for p in PROJECTIONS}
            for s in range(2)
        ]  # fmt: skip
        torch.testing.assert_close(fixed(*by_layer)(inputs()), expected, rtol=0, atol=1e-6)
    fold(model)
    torch.testing.assert_close(model(inputs()), expected, rtol=0, atol=1e-6)
    assert list(model.state_dict()) == list(Model().state_dict()) and find_lambda(model) is None


def attend(x, model, sources, lambdas):
    """The whole model written out, with weights that autograd differentiates."""
    for index, layer in enumerate(model.encoder.layers):
        attention = layer.self_attn
        q, k, v = (
            F.linear(
                x,
                (1 - sum(w[index] for w in lambdas)) * getattr(attention, p).weight
                + sum(w[index] * source[Slot(index, p)] for w, source in zip(lambdas, sources, strict=True)),
                getattr(attention, p).bias,
            )
            for p in ("q_proj", "k_proj", "v_proj")
        )
        x = x + attention.out_proj(torch.softmax(q @ k.T, -1) @ v)
    return x


def test_training_follows_torchs_own_autograd_on_the_formula_through_the_softmax():
    model, shared = learnable(constraint="sigmoid")
    plain, sources = Model(0), [source_weights(0), source_weights(1)]
    logits = torch.tensor([[0.3] * LAYERS, [0.2] * LAYERS]).div(0.5).log().requires_grad_()
    torch.testing.assert_close(shared.values.detach().flatten(), logits.detach().flatten())
    ours = torch.optim.Adam([*model.parameters()], lr=0.02)
    theirs = torch.optim.Adam([*plain.parameters(), logits], lr=0.02)
    for _ in range(5):
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        exponentials = logits.exp()
        lambdas = exponentials / (1 + exponentials.sum(0))
        attend(inputs(), plain, sources, lambdas).square().sum().backward()
        ours.step()
        theirs.step()
    expected = logits.exp() / (1 + logits.exp().sum(0))
    assert not torch.allclose(expected, torch.tensor([[0.3], [0.2]]).expand_as(expected), atol=1e-3)
    torch.testing.assert_close(shared.current(), expected.detach().flatten(), rtol=0, atol=1e-5)


def test_lambdas_of_zero_leave_the_target_and_its_gradients_bitwise():
    model, shared = learnable((0.0, 0.0))
    shared.requires_grad_(False)
    plain = Model(0)
    for each in (model, plain):
        each(inputs()).square().sum().backward()
    assert torch.equal(model(inputs()), plain(inputs()))
    names = {n.replace("parametrizations.weight.original", "weight"): p for n, p in model.named_parameters()}
    assert all(torch.equal(p.grad, names[n].grad) for n, p in plain.named_parameters())


def test_each_lambda_acts_on_the_rows_and_the_source_that_it_names():
    model, shared = learnable((0.0, 0.0), granularity="head")
    place = shared.names().index("source_1/layer_01/head_01")
    with torch.no_grad():
        shared.values.view(-1)[place] = 1.0
    assert shared.current().tolist() == [float(number == place) for number in range(2 * LAYERS * HEADS)]
    fold(model)
    plain, source = extract(Model(0).state_dict()), source_weights(1)
    for slot, tensor in extract(model.state_dict()).items():
        expected = plain[slot].clone()
        if slot.layer == 1 and slot.kind == "weight":
            expected[WIDTH // 2 :] = source[slot][WIDTH // 2 :]
        assert torch.equal(tensor, expected), slot


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_sources_in_different_layers_have_lambdas_where_they_are_merged(constraint):
    model, shared = learnable(layers=[[0, 1], [1, 2]], constraint=constraint)
    assert shared.names() == [f"source_{s}/layer_{i:02d}" for s, i in ((0, 0), (0, 1), (1, 1), (1, 2))]
    torch.testing.assert_close(shared.current(), torch.tensor([0.3, 0.3, 0.2, 0.2]))
    expected = fixed(*({p: values for p in PROJECTIONS} for values in ([0.3, 0.3, 0.0], [0.0, 0.2, 0.2])))
    torch.testing.assert_close(model(inputs()), expected(inputs()), rtol=0, atol=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        optimizer.step()
        shared.project()
    unused = shared.values.detach()[~shared.present]
    assert len(unused) == 2 and (unused == 0).all() and shared.values.isfinite().all()
    if constraint != "raw":
        assert shared.outside() == []


def test_what_shares_a_lambda_shares_the_sum():
    _, shared = learnable(projections=[["q_proj"], ["v_proj"]], granularity="layer", constraint="clamp")
    with torch.no_grad():
        shared.values.fill_(0.9)
    shared.project()
    torch.testing.assert_close(shared.current(), torch.full((2 * LAYERS,), 0.5))
    with pytest.raises(UsageError, match=r"share a lambda add up to 1.4"):
        learnable((0.7, 0.7), projections=[["q_proj"], ["v_proj"]], constraint="clamp")
    apart = {"projections": [["q_proj"], ["v_proj"]], "granularity": "projection", "constraint": "clamp"}
    assert len(learnable((0.7, 0.7), **apart)[1].names()) == 2 * LAYERS


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_clamp_takes_the_nearest_point_that_is_allowed(count):
    points = double(count, 40, seed=count)
    ours = nearest_shares(points)
    for point, found in zip(points.T.numpy(), ours.T.numpy(), strict=True):
        best = minimize(
            lambda x, p=point: ((x - p) ** 2).sum(),
            np.full(count, 0.5 / count),
            jac=lambda x, p=point: 2 * (x - p),
            bounds=[(0, None)] * count,
            constraints={"type": "ineq", "fun": lambda x: 1 - x.sum()},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(found, best.x, atol=1e-6)
    torch.testing.assert_close(nearest_shares(ours), ours, rtol=0, atol=1e-15)


def test_of_one_source_it_is_a_clamp():
    one = double(1, 40, seed=7)
    torch.testing.assert_close(nearest_shares(one), one.clamp(0, 1), rtol=0, atol=1e-15)


def test_sigmoid_stays_within_target_and_sources_and_can_come_back():
    _, shared = learnable(constraint="sigmoid")
    with torch.no_grad():
        shared.values.copy_(torch.tensor([9.0, 8.0]).view(2, 1, 1, 1).expand_as(shared.values))
    lambdas = shared.current().view(2, LAYERS)
    assert (lambdas.sum(0) < 1).all() and shared.outside() == []
    torch.testing.assert_close(lambdas[:, 0], torch.softmax(torch.tensor([0.0, 9.0, 8.0]), 0)[1:])


def test_raw_says_which_lambdas_are_outside():
    _, shared = learnable((0.5, 0.5))
    assert shared.outside() == []
    with torch.no_grad():
        shared.values[0, 1] = 0.6
        shared.values[1, 2] = -0.1
    assert shared.outside() == ["source_0/layer_01", "source_1/layer_01", "source_1/layer_02"]


def test_state_dict_holds_one_parameter_and_no_source_and_loads():
    model, shared = learnable(granularity="projection")
    keys = list(model.state_dict())
    assert "learnable_lambda.values" in keys and len(keys) == len(Model().state_dict()) + 1
    assert shared.values.shape == (2, LAYERS, 3, 1)
    assert {name.rpartition(".")[2] for name in constant_names(model)} == {"source", "present"}
    assert set(constant_names(model)) == {name for name, _ in model.named_buffers()}
    with torch.no_grad():
        shared.values.mul_(torch.rand(shared.values.shape))
    other, _ = learnable(granularity="projection")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs()), model(inputs()))
    twin = copy.deepcopy(model)
    expected = model(inputs())
    with torch.no_grad():
        find_lambda(twin).values.fill_(0.5)
    assert torch.equal(model(inputs()), expected) and not torch.equal(twin(inputs()), expected)


@pytest.mark.parametrize(
    ("first", "config", "message"),
    [
        ((0.6, 0.5), {"constraint": "clamp"}, "add up to 1.1: lower them"),
        ((0.6, 0.4), {"constraint": "sigmoid"}, "sums of up to 1 over the sources"),
        ((0.6, 0.0), {"constraint": "sigmoid"}, "above 0 and below 1"),
        ((1.2, 0.1), {"constraint": "clamp"}, r"in \[0.1, 1.2\]"),
    ],
)
def test_first_values_that_do_not_fit_are_refused(first, config, message):
    with pytest.raises(UsageError, match=message):
        learnable(first, **config)


def test_the_source_whose_first_values_differ_is_named():
    sources = [
        LearnableSource(source_weights(0), everywhere(0.1), range(LAYERS), "model 0"),
        LearnableSource(source_weights(1), {"q_proj": [0.1] * 3, "k_proj": [0.2] * 3}, range(LAYERS), "model 1"),
    ]
    with pytest.raises(UsageError, match="lambda of source model 1 differs between projections"):
        make_learnable(Model(), sources, LearnableConfig())
