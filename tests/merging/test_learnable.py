"""Learnable interpolation: its gradients, what it keeps, its lambdas, and how it is folded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.differentiable import Interpolate
from s3prl_ext.merging.learnable import LearnableSource, find_lambda, fold, make_learnable
from s3prl_ext.merging.learnable_config import CONSTRAINTS, GRANULARITIES, LearnableConfig, parse_learnable
from s3prl_ext.merging.methods import LINEAR

WIDTH, HEADS, LAYERS = 8, 2, 3


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        query, key = self.q_proj(x), F.linear(x, self.k_proj.weight, self.k_proj.bias)
        return self.out_proj(torch.softmax(query @ key.T, -1) @ self.v_proj(x))


class Model(nn.Module):
    """Three attention blocks under the names of s3prl's own models."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList()
        for _ in range(LAYERS):
            layer = nn.Module()
            layer.self_attn = Attention()
            self.encoder.layers.append(layer)

    def forward(self, x):
        for layer in self.encoder.layers:
            x = x + layer.self_attn(x)
        return x


def learnable(initial=0.3, layers=range(LAYERS), projections=PROJECTIONS, source=None, method=LINEAR, **config):
    model, source = Model(0), extract(Model(1).state_dict()) if source is None else source
    values = {projection: [initial] * LAYERS for projection in projections}
    shared = make_learnable(model, [LearnableSource(source, values, layers)], LearnableConfig(**config), method=method)
    return model, source, shared


def merged(weight, combine=torch.lerp):
    """The model with a fixed lambda."""
    model, source = Model(0), extract(Model(1).state_dict())
    with torch.no_grad():
        for slot, tensor in extract(model.state_dict()).items():
            if slot.kind == "weight":
                tensor.copy_(combine(tensor.clone(), source[slot], weight))
    return model


def inputs():
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))


def double(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_gradients_equal_the_plain_expression_the_formula_and_finite_differences(blocks):
    target, source = double(8, 6, seed=0).requires_grad_(), double(8, 6, seed=1)
    weight, upstream = double(blocks, seed=2).requires_grad_(), double(8, 6, seed=3)
    rows = weight.repeat_interleave(8 // blocks).unsqueeze(1)
    plain = rows * source + (1 - rows) * target
    expected = torch.autograd.grad(plain, (target, weight), upstream)
    ours = Interpolate.apply(target, source, weight)
    torch.testing.assert_close(ours, plain)
    to_target, to_weight = torch.autograd.grad(ours, (target, weight), upstream)
    torch.testing.assert_close(to_target, expected[0])
    torch.testing.assert_close(to_weight, expected[1])
    torch.testing.assert_close(to_target, ((1 - rows) * upstream).detach())
    formula = (upstream * (source - target)).reshape(blocks, -1).sum(1)
    torch.testing.assert_close(to_weight, formula.detach())
    assert torch.autograd.gradcheck(lambda t, w: Interpolate.apply(t, source, w).sin(), (target, weight))


def test_float32_gradient_of_lambda_is_as_exact_as_float64():
    torch.manual_seed(0)
    target, source, upstream = (torch.randn(768, 768) for _ in range(3))
    weight = torch.tensor([0.1], requires_grad=True)
    (single,) = torch.autograd.grad(Interpolate.apply(target, source, weight), weight, upstream)
    exact = (upstream.double() * (source.double() - target.double())).sum()
    scale = (upstream * (source - target)).double().norm()
    assert abs(single.double() - exact) < 1e-5 * scale


@pytest.mark.parametrize("frozen", ["target", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen):
    tensors = {"target": torch.randn(4, 4, requires_grad=True), "weight": torch.tensor([0.2], requires_grad=True)}
    tensors[frozen].requires_grad_(False)
    source = torch.randn(4, 4)
    Interpolate.apply(tensors["target"], source, tensors["weight"]).sum().backward()
    assert tensors[frozen].grad is None and source.grad is None
    assert all(tensor.grad is not None for name, tensor in tensors.items() if name != frozen)


def test_a_gradient_that_is_not_contiguous_is_read_in_the_right_order():
    target, source = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
    weight = torch.tensor([0.2, 0.7], requires_grad=True)
    Interpolate.apply(target, source, weight).T.contiguous().mul(torch.arange(16.0).view(4, 4)).sum().backward()
    gradient = torch.arange(16.0).view(4, 4).T
    expected = (gradient * (source - target.detach())).reshape(2, -1).sum(1)
    torch.testing.assert_close(weight.grad, expected)


def test_it_keeps_no_tensor_but_its_inputs():
    model, _, _ = learnable()
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weight = model.encoder.layers[0].self_attn.q_proj.weight
    assert kept and all(t.untyped_storage().data_ptr() in known for t in kept)
    assert weight.grad_fn is not None and weight.untyped_storage().data_ptr() not in known


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_start_equals_the_fixed_merge_and_so_does_the_folded_model(granularity, constraint):
    model, _, shared = learnable(0.3, granularity=granularity, constraint=constraint)
    torch.testing.assert_close(model(inputs()), merged(0.3)(inputs()), rtol=0, atol=1e-6)
    counts = {"layer": LAYERS, "projection": 3 * LAYERS, "head": HEADS * LAYERS, "global": 1}
    assert len(shared.names()) == len(set(shared.names())) == shared.values.numel() == counts[granularity]
    torch.testing.assert_close(shared.current(), torch.full((counts[granularity],), 0.3))
    model(inputs()).square().sum().backward()
    assert shared.values.grad.abs().min() > 0
    with torch.no_grad():
        shared.values.add_(0.1 * torch.rand(shared.values.shape))
    expected = model(inputs())
    fold(model)
    torch.testing.assert_close(model(inputs()), expected, rtol=0, atol=1e-6)
    assert list(model.state_dict()) == list(Model().state_dict())
    assert type(model.encoder.layers[0].self_attn.q_proj) is nn.Linear and find_lambda(model) is None


def test_each_lambda_acts_on_its_own_rows():
    model, source, shared = learnable(0.0, granularity="head")
    with torch.no_grad():
        shared.values[1, 0, 1] = 1.0
    assert shared.names()[3] == "layer_01/head_01" and shared.current().tolist() == [0, 0, 0, 1, 0, 0]
    fold(model)
    plain, now = extract(Model(0).state_dict()), extract(model.state_dict())
    for slot, tensor in now.items():
        expected = plain[slot].clone()
        if slot.layer == 1 and slot.kind == "weight":
            expected[WIDTH // 2 :] = source[slot][WIDTH // 2 :]
        assert torch.equal(tensor, expected), slot


def test_chosen_layers_and_projections_only():
    model, _, shared = learnable(0.5, layers=[0, 2], projections=["v_proj"], granularity="projection")
    assert shared.names() == ["layer_00/v_proj", "layer_02/v_proj"]
    fold(model)
    plain, now = extract(Model(0).state_dict()), extract(model.state_dict())
    changed = {slot for slot in plain if not torch.equal(plain[slot], now[slot])}
    assert changed == {Slot(0, "v_proj"), Slot(2, "v_proj")}


def test_lambda_of_zero_leaves_the_target_and_its_gradients_bitwise():
    model, _, shared = learnable(0.0)
    shared.requires_grad_(False)
    plain = Model(0)
    for each in (model, plain):
        each(inputs()).square().sum().backward()
    assert torch.equal(model(inputs()), plain(inputs()))
    names = {n.replace("parametrizations.weight.original", "weight"): p for n, p in model.named_parameters()}
    assert all(torch.equal(p.grad, names[n].grad) for n, p in plain.named_parameters())


def test_state_dict_holds_lambda_once_and_no_source():
    model, _, shared = learnable()
    keys = list(model.state_dict())
    assert "learnable_lambda.values" in keys and not any("source" in key for key in keys)
    assert len(keys) == len(Model().state_dict()) + 1
    assert sum(p is shared.values for _, p in model.named_parameters(remove_duplicate=False)) == 1
    with torch.no_grad():
        shared.values.add_(0.2)
        model.encoder.layers[0].self_attn.q_proj.parametrizations.weight.original.add_(0.1)
    other, _, _ = learnable()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs()), model(inputs()))


def test_a_copy_is_independent_also_when_one_is_folded():
    model, _, _ = learnable()
    twin = copy.deepcopy(model)
    expected = model(inputs())
    with torch.no_grad():
        find_lambda(twin).values.fill_(1.0)
    assert torch.equal(model(inputs()), expected) and not torch.equal(twin(inputs()), expected)
    fold(twin)
    assert torch.equal(model(inputs()), expected)
    fold(model)
    torch.testing.assert_close(model(inputs()), expected, rtol=0, atol=1e-6)


def test_the_weight_follows_every_step_and_gradients_accumulate():
    model, _, shared = learnable()
    x = inputs()
    for part in (x[:2], x[2:]):
        model(part).square().sum().backward()
    summed = shared.values.grad.clone()
    separate = []
    for part in (x[:2], x[2:]):
        shared.values.grad = None
        model(part).square().sum().backward()
        separate.append(shared.values.grad.clone())
    torch.testing.assert_close(summed, separate[0] + separate[1])
    before = model(x)
    with torch.no_grad():
        shared.values.add_(0.1)
        after = model(x)
    torch.testing.assert_close(after, merged(0.4)(x), rtol=0, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-4)


def test_autocast_gives_gradients_in_float32():
    model, _, shared = learnable()
    model(inputs()).square().sum().backward()
    exact = shared.values.grad.clone()
    shared.values.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs()).float().square().sum()
    loss.backward()
    assert shared.values.grad.dtype == torch.float32
    torch.testing.assert_close(shared.values.grad, exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


def test_clamp_comes_back_into_range_and_can_move_again():
    _, _, shared = learnable(0.01, constraint="clamp")
    optimizer = torch.optim.SGD([shared.values], lr=1.0)
    shared.values.grad = torch.full_like(shared.values, 5.0)
    optimizer.step()
    shared.project()
    assert torch.equal(shared.current(), torch.zeros(LAYERS))
    shared.values.grad = torch.full_like(shared.values, -0.25)
    optimizer.step()
    shared.project()
    assert torch.equal(shared.current(), torch.full((LAYERS,), 0.25))


def test_only_clamp_is_projected():
    for constraint in ("raw", "sigmoid"):
        _, _, shared = learnable(0.3, constraint=constraint)
        with torch.no_grad():
            shared.values.fill_(-3.0)
        shared.project()
        assert torch.equal(shared.values, torch.full_like(shared.values, -3.0))
    assert 0.0 < shared.current().max() < 0.05


def test_data_parallel_shares_lambda_but_not_the_sources(tmp_path):
    import torch.distributed as dist

    model, _, shared = learnable()
    model(inputs()).square().sum().backward()
    expected = shared.values.grad.clone()
    model, _, shared = learnable()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        sent = [buffer for name, buffer in parallel.named_module_buffers.items()]
        parallel(inputs()).square().sum().backward()
    finally:
        dist.destroy_process_group()
    assert sent == []
    torch.testing.assert_close(shared.values.grad, expected)


def test_heads_that_are_not_said_and_fused_attention_are_refused():
    model, source = Model(0), extract(Model(1).state_dict())
    for layer in model.encoder.layers:
        del layer.self_attn.num_heads
    values = {projection: [0.1] * LAYERS for projection in PROJECTIONS}
    with pytest.raises(UsageError, match="does not say how many attention heads"):
        make_learnable(model, [LearnableSource(source, values, range(LAYERS))], LearnableConfig(granularity="head"))
    fused = nn.Module()
    fused.blocks = nn.ModuleList([nn.Module()])
    fused.blocks[0].attn = nn.Module()
    fused.blocks[0].attn.qkv = nn.Linear(WIDTH, 3 * WIDTH)
    with pytest.raises(UsageError, match="q, k and v in one tensor"):
        make_learnable(fused, [LearnableSource(source, values, [0])], LearnableConfig())
    with pytest.raises(UsageError, match="no layer is chosen"):
        make_learnable(Model(), [LearnableSource(source, values, [])], LearnableConfig())


@pytest.mark.parametrize(
    ("values", "config", "message"),
    [
        ({"q_proj": 0.1, "k_proj": 0.2}, {}, "differs between projections.*granularity layer"),
        ({"q_proj": 0.1, "k_proj": 0.2}, {"granularity": "head"}, "differs between projections"),
        ({"q_proj": [0.1, 0.2, 0.3]}, {"granularity": "global"}, "differs between layers"),
        ({"q_proj": 1.2}, {"constraint": "clamp"}, r"its first values are in \[1.2, 1.2\]"),
        ({"q_proj": 0.0}, {"constraint": "sigmoid"}, "above 0 and below 1"),
        ({"q_proj": 1.0}, {"constraint": "sigmoid"}, "above 0 and below 1"),
    ],
)
def test_first_values_that_do_not_fit_are_refused_and_nothing_is_changed(values, config, message):
    model, source = Model(0), extract(Model(1).state_dict())
    initial = {key: value if isinstance(value, list) else [value] * LAYERS for key, value in values.items()}
    with pytest.raises(UsageError, match=message):
        make_learnable(model, [LearnableSource(source, initial, range(LAYERS))], LearnableConfig(**config))
    assert list(model.state_dict()) == list(Model().state_dict())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("yes", "must be true, false or a mapping"),
        ({"granularity": "heads"}, "unknown granularity 'heads'; did you mean 'head'"),
        ({"constraint": "clip"}, "unknown constraint 'clip'"),
        ({"granularty": "head"}, "did you mean 'granularity'"),
    ],
)
def test_wrong_sections_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        parse_learnable(value)


def test_sections():
    assert parse_learnable(False) is None
    assert parse_learnable(True) == LearnableConfig("layer", "raw")
    assert parse_learnable({"granularity": "global"}) == LearnableConfig("global", "raw")
