"""LoRA reaches the weights where a wrapped layer does not."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from s3prl_ext import adapters
from s3prl_ext.adapters import lora
from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import UsageError
from tests.adapters.models import MODELS, build, clips, states, train

BYPASSED = ["s3prl-hubert", "s3prl-wav2vec2", "s3prl-wavlm", "transformers-wavlm"]
REACHED = ["transformers-hubert", "transformers-wav2vec2", "beats", "whisper"]


class WrappedLinear(nn.Module):
    """An ordinary LoRA layer: calls the linear map and adds the update; `weight` and `bias` are the map's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def change_of(model, change):
    with torch.no_grad():
        before = states(model, clips())
        change()
        return max((a - b).abs().max().item() for a, b in zip(states(model, clips()), before, strict=True))


@pytest.mark.parametrize("name", BYPASSED + REACHED)
def test_a_wrapped_layer_is_bypassed_where_attention_takes_the_weight(tmp_path, name):
    model = build(name, tmp_path)
    found = find_encoder(model)
    wrappers = []

    def wrap():
        for layer in found.layers:
            attention = layer.get_submodule(found.architecture.parts["q_proj"].rpartition(".")[0])
            attention.q_proj = WrappedLinear(attention.q_proj)
            wrappers.append(attention.q_proj)

    change = change_of(model, wrap)
    torch.stack(states(model, clips())).square().mean().backward() if name in REACHED else None
    if name in BYPASSED:
        assert change == 0.0
    else:
        assert change > 1e-3 and all(w.b.grad is not None for w in wrappers)


@pytest.mark.parametrize("name", MODELS)
def test_the_parametrisation_acts_on_every_projection_of_every_model(tmp_path, name):
    model = build(name, tmp_path)

    def draw(parameters):
        for parameter_name, parameter in parameters.items():
            if parameter_name.endswith("lora_b"):
                parameter.normal_()

    for projection in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"):
        parameters = adapters.insert(model, "lora", adapters.parse_options("lora", {"projections": projection}))
        assert change_of(model, functools.partial(draw, parameters)) > 1e-3, projection
        adapters.remove(model)


def test_the_update_is_alpha_over_rank_times_b_a(tmp_path):
    model = build("s3prl-hubert", tmp_path)
    config = adapters.parse_options("lora", {"rank": 4, "alpha": 8, "projections": ["k_proj"], "layers": [1]})
    base = find_encoder(model).linear(1, "k_proj").weight.clone()
    parameters = adapters.insert(model, "lora", config)
    assert list(parameters) == [
        f"model.encoder.layers.1.self_attn.k_proj.parametrizations.weight.0.lora_{part}" for part in "ab"
    ]
    a, b = parameters.values()
    with torch.no_grad():
        b.normal_()
    torch.testing.assert_close(find_encoder(model).linear(1, "k_proj").weight, base + 2.0 * b @ a)


class Interpolation(nn.Module):
    """Stands for a learnt merge: W -> (1 - lambda) W + lambda S."""

    def __init__(self, source):
        super().__init__()
        self.register_buffer("source", source)
        self.lambda_ = nn.Parameter(torch.tensor(0.3))

    def forward(self, weight):
        return torch.lerp(weight, self.source, self.lambda_)


@pytest.mark.parametrize("name", ["s3prl-hubert", "transformers-hubert"])
def test_lora_stacks_on_a_learnt_merge_and_leaves_it_alone(tmp_path, name):
    model = build(name, tmp_path)
    linears = [find_encoder(model).linear(layer, p) for layer in (0, 1) for p in ("q_proj", "v_proj")]
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", Interpolation(torch.randn_like(linear.weight)))
    with torch.no_grad():
        merged = states(model, clips())
        parameters = adapters.insert(model, "lora")
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), merged, strict=True))
    assert train(model, parameters)[1] == set(parameters)
    with pytest.raises(UsageError, match="another method acts on the same matrices"):
        adapters.fold(model)
    adapters.remove(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), merged, strict=True))
    assert all(len(linear.parametrizations.weight) == 1 for linear in linears)


@pytest.mark.parametrize("end", [adapters.fold, adapters.remove])
def test_ending_it_in_a_copy_leaves_the_original_alone(tmp_path, end):
    model = build("transformers-hubert", tmp_path)
    order = list(model.state_dict())
    train(model, adapters.insert(model, "lora"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        tuned = states(model, clips())
        end(twin)
        assert list(twin.state_dict()) == order
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), tuned, strict=True))
    assert list(adapters.inserted(model)) == ["lora"] and adapters.inserted(twin) == {}


@pytest.mark.parametrize("name", ["s3prl-hubert", "transformers-hubert"])
def test_lora_stacks_on_the_learnable_merge_of_this_package(tmp_path, name):
    from s3prl_ext.attention.weights import extract
    from s3prl_ext.merging.learnable import LearnableSource, find_lambda, make_learnable
    from s3prl_ext.merging.learnable_config import LearnableConfig

    model = build(name, tmp_path)
    source = {slot: torch.randn_like(weight) for slot, weight in extract(model.state_dict()).items()}
    first = {p: [0.2, 0.2] for p in ("q_proj", "k_proj", "v_proj")}
    make_learnable(model, [LearnableSource(source, first, (0, 1))], LearnableConfig())
    parameters = adapters.insert(model, "lora")
    find_lambda(model).requires_grad_(True)
    together = parameters | {"lambda": find_lambda(model).values}
    assert train(model, together)[1] == set(together)


def tuned_linear(rank=3, **options):
    """Return a projection 12 -> 20 with an update that is not zero, called in float64 by default."""
    torch.manual_seed(0)
    linear = nn.Linear(12, 20).to(options.pop("dtype", torch.float64)).requires_grad_(False)
    update = lora.LowRankUpdate(20, 12, rank, alpha=4.0).to(linear.weight.dtype)
    nn.init.normal_(update.lora_b)
    lora.parametrise(linear, update)
    return linear, update


def dense(linear, x):
    """Return what the map of the updated matrix gives, by autograd through the matrix."""
    return nn.functional.linear(x, linear.weight, linear.bias)


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 4, 12), (12,)])
@pytest.mark.parametrize("trains_bias", [False, True])
def test_a_called_projection_gives_the_same_output_and_gradients_to_rounding(shape, trains_bias):
    linear, update = tuned_linear()
    linear.bias.requires_grad_(trains_bias)
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    weights = [x, update.lora_a, update.lora_b, *([linear.bias] if trains_bias else [])]
    expected = dense(linear, x)
    found = linear(x)
    assert torch.equal(found, expected) and linear.parametrizations.weight.original.grad is None
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, weights, upstream), torch.autograd.grad(expected, weights, upstream)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_no_gradient_of_the_matrix_is_computed_where_the_projection_is_called():
    linear, update = tuned_linear(dtype=torch.float32)
    shapes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            shapes.append(tuple(getattr(found, "shape", ())))
            return found

    loss = linear(torch.randn(7, 12, requires_grad=True)).square().sum()
    with Watch():
        loss.backward()
    assert update.lora_a.grad.any() and update.lora_b.grad.any()
    assert (20, 12) not in shapes and (12, 20) not in shapes


def test_a_called_projection_checks_its_gradients_by_differences():
    linear, update = tuned_linear(rank=2)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a, b: linear(x), (x, update.lora_a, update.lora_b))


def test_a_matrix_that_trains_too_gets_its_gradient():
    linear, update = tuned_linear()
    linear.parametrizations.weight.original.requires_grad_(True)
    linear(torch.randn(7, 12, dtype=torch.float64)).sum().backward()
    assert linear.parametrizations.weight.original.grad.any() and update.lora_b.grad.any()


def test_its_output_may_be_changed_in_place():
    linear, _ = tuned_linear()
    y = linear(torch.randn(2, 5, 12, dtype=torch.float64))
    y[0] = 0.0
    y.sum().backward()


def test_half_precision_gradients_come_in_the_dtype_of_the_weights():
    linear, update = tuned_linear(dtype=torch.float32)
    x = torch.randn(2, 5, 12, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = dense(linear, x), linear(x)
    assert torch.equal(found, expected) and found.dtype is torch.bfloat16
    (found.float().square().sum()).backward()
    for tensor in (x, update.lora_a, update.lora_b):
        assert tensor.grad.dtype is torch.float32
