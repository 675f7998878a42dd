"""A learnable lambda with method slerp: shares, gradients, ends, the fixed angle, straight lines, configuration."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import DataError
from s3prl_ext.merging.differentiable import WeightedSum, arc_shares
from s3prl_ext.merging.learnable import find_lambda, fold
from s3prl_ext.merging.learnable_config import CONSTRAINTS, GRANULARITIES
from s3prl_ext.merging.methods import MethodConfig
from s3prl_ext.merging.slerp import angle_between, slerp
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.merging.test_learnable import Model, double, inputs
from tests.merging.test_learnable import learnable as learnable_line
from tests.merging.test_learnable import merged as merged_line
from tests.support import factories

SLERP = MethodConfig("slerp")


learnable = functools.partial(learnable_line, method=SLERP)
merged = functools.partial(merged_line, combine=slerp)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_gradients_equal_the_plain_expression_the_formula_and_finite_differences(blocks):
    target, source = double(8, 6, seed=0).requires_grad_(), double(8, 6, seed=1)
    weight, upstream = double(blocks, seed=2).requires_grad_(), double(8, 6, seed=3)
    angle = angle_between(target.detach(), source)
    rows = weight.repeat_interleave(8 // blocks).unsqueeze(1)
    plain = (torch.sin((1 - rows) * angle) * target + torch.sin(rows * angle) * source) / math.sin(angle)
    expected = torch.autograd.grad(plain, (target, weight), upstream)
    ours = WeightedSum.apply(target, source.unsqueeze(0), arc_shares(weight, angle))
    torch.testing.assert_close(ours, plain)
    to_target, to_weight = torch.autograd.grad(ours, (target, weight), upstream)
    torch.testing.assert_close(to_target, expected[0])
    torch.testing.assert_close(to_weight, expected[1])
    scale = angle / math.sin(angle)
    change = scale * (torch.cos(rows * angle) * source - torch.cos((1 - rows) * angle) * target)
    torch.testing.assert_close(to_weight, (upstream * change).reshape(blocks, -1).sum(1).detach())
    assert torch.autograd.gradcheck(
        lambda t, w: WeightedSum.apply(t, source.unsqueeze(0), arc_shares(w, angle)).sin(), (target, weight)
    )


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_start_equals_the_fixed_merge_and_so_does_the_folded_model(granularity, constraint):
    model, _, shared = learnable(0.3, granularity=granularity, constraint=constraint)
    output = model(inputs())
    torch.testing.assert_close(output, merged(0.3)(inputs()), rtol=0, atol=1e-6)
    output.square().sum().backward()
    assert shared.values.grad.abs().min() > 0
    with torch.no_grad():
        shared.values.add_(0.1 * torch.rand(shared.values.shape))
    expected = model(inputs())
    assert not torch.allclose(expected, output)
    fold(model)
    torch.testing.assert_close(model(inputs()), expected, rtol=0, atol=1e-6)
    assert list(model.state_dict()) == list(Model().state_dict()) and find_lambda(model) is None


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_both_ends_are_exact(granularity):
    model, _, shared = learnable(0.0, granularity=granularity)
    shared.requires_grad_(False)
    plain = Model(0)
    for each in (model, plain):
        each(inputs()).square().sum().backward()
    assert torch.equal(model(inputs()), plain(inputs()))
    names = {n.replace("parametrizations.weight.original", "weight"): p for n, p in model.named_parameters()}
    assert all(torch.equal(p.grad, names[n].grad) for n, p in plain.named_parameters())
    model, source, _ = learnable(1.0, granularity=granularity)
    fold(model)
    assert all(torch.equal(t, source[s]) for s, t in extract(model.state_dict()).items() if s.kind == "weight")


def test_the_angle_is_that_of_the_untouched_matrices_while_the_target_trains():
    model, source, _ = learnable(0.4)
    weights = model.encoder.layers[1].self_attn.q_proj
    angle = angle_between(extract(Model(0).state_dict())[Slot(1, "q_proj")], source[Slot(1, "q_proj")])
    with torch.no_grad():
        trained = weights.parametrizations.weight.original.add_(0.5 * source[Slot(1, "q_proj")]).clone()
    shares = [math.sin(part * angle) / math.sin(angle) for part in (0.6, 0.4)]
    expected = shares[0] * trained + shares[1] * source[Slot(1, "q_proj")]
    torch.testing.assert_close(weights.weight.detach(), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, slerp(trained, source[Slot(1, "q_proj")], 0.4), atol=1e-4)


def test_where_fixed_slerp_is_the_straight_line_so_is_the_learnable_one():
    plain = extract(Model(0).state_dict())
    kinds = {"q_proj": lambda t: 3 * t, "k_proj": lambda t: -t, "v_proj": torch.zeros_like}
    source = {slot: kinds.get(slot.projection, lambda t: t)(tensor) for slot, tensor in plain.items()}
    sphere, line = learnable(0.3, source=source)[0], learnable_line(0.3, source=source)[0]
    assert torch.equal(sphere(inputs()), line(inputs()))
    weight = sphere.encoder.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(weight, slerp(plain[Slot(0, "q_proj")], source[Slot(0, "q_proj")], 0.3))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration with a fixed lambda on the arc."""
    folder = tmp_path_factory.mktemp("slerp")
    ckpt, bert = factories.hubert_local_ckpt(folder / "hubert"), factories.bert_folder(folder / "bert")
    file = folder / "merge.yaml"
    file.write_text(
        f"target: {{upstream: hubert_local, ckpt: {ckpt}}}\nsource: {{model: {bert}}}\nlambda: 0.25\nmethod: slerp\n"
    )
    return file


def features(upstream):
    wav = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    return upstream.eval()([wav])["last_hidden_state"]


def test_an_upstream_begins_as_the_fixed_merge_and_a_trained_one_is_loaded_into_a_new_one(config):
    fixed, first = (
        merged_attention(model_config=str(config)),
        merged_attention(model_config=f"{config},,learnable=true"),
    )
    torch.testing.assert_close(features(first), features(fixed), rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(first.parameters(), lr=1e-3)
    features(first).square().mean().backward()
    optimizer.step()
    again = merged_attention(model_config=f"{config},,learnable=true")
    assert not torch.equal(features(again), features(first))
    again.load_state_dict(first.state_dict())
    assert torch.equal(features(again), features(first))
    fold(again)
    torch.testing.assert_close(features(again), features(first), rtol=0, atol=1e-6)


def test_a_checkpoint_of_the_arc_is_refused_on_the_line(config):
    arc, line = (
        merged_attention(model_config=f"{config},,learnable=true{more}").merge_record
        for more in ("", ",,method=linear")
    )
    check_merge_record(arc, arc)
    with pytest.raises(DataError, match="method: {name: slerp}, but now it is method: {name: linear}"):
        check_merge_record(arc, line)
