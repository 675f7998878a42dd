"""Weights held in bfloat16 act as a float32 model that was rounded, in every family; what trains is float32."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.nn import functional as F

from s3prl_ext.child_tuning import child_network, masks
from s3prl_ext.child_tuning.child_network import ChildNetwork, release
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.held_weight import HeldWeight, held_matrices, hold, matrix_of, restore, round_base
from s3prl_ext.errors import DataError
from tests.support import factories

FAMILIES = {
    "hubert_local": factories.hubert_local_ckpt,
    "wav2vec2_local": factories.wav2vec2_local_ckpt,
    "wavlm_local": factories.wavlm_local_ckpt,
    "beats_local": factories.beats_ckpt,
    "hf_hubert_custom": factories.hubert_folder,
    "hf_wav2vec2_custom": factories.wav2vec2_folder,
    **{f"hf_speech_custom {family}": writer for family, writer in factories.SPEECH_FAMILIES.items()},
}
EPSILON = 1e-4  # Adam's; with the default rounding decides where a gradient is all but 0


@pytest.fixture(scope="module", params=FAMILIES)
def upstream(request, tmp_path_factory):
    """How to build a tiny upstream of s3prl's hub, in evaluation mode."""
    import s3prl.hub

    path = FAMILIES[request.param](tmp_path_factory.mktemp("model") / "model")
    return lambda: getattr(s3prl.hub, request.param.partition(" ")[0])(ckpt=str(path)).eval()


def wavs():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) for n in (16000, 13000)]


def loss_of(model, amp=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        states = model(wavs())["hidden_states"]
        # a ramp over the width: behind a layer norm the mean of squares alone is the same whatever trains
        return sum((torch.linspace(0.5, 1.5, state.shape[-1]) * state.float() ** 2).mean() for state in states)


def rounded(upstream):
    model = upstream()
    round_base(eligible_parameters(model))
    return model


def chosen(model, density, rows=False):
    sizes = {name: p.numel() for name, p in eligible_parameters(model).items()}
    mask = masks.bernoulli(sizes, density, seed=1)
    if rows:
        for name, parameter in held_matrices(eligible_parameters(model)).items():
            mask[name] = torch.arange(parameter.numel(), dtype=torch.int32)[parameter.shape[1] :]  # all but the first
    return {name: indices for number, (name, indices) in enumerate(mask.items()) if number % 3}  # some have none


def dense_steps(model, mask, steps, lr):
    """Train the chosen entries of a float32 model by torch's Adam over dense tensors, the rest of the gradient at 0."""
    parameters = eligible_parameters(model)
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer, losses = torch.optim.Adam(parameters.values(), lr=lr, eps=EPSILON), []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(loss_of(model))
        losses[-1].backward()
        for name, parameter in parameters.items():
            kept = torch.zeros(parameter.numel())
            kept[mask.get(name, torch.zeros(0, dtype=torch.int32)).long()] = 1
            if parameter.grad is not None:
                parameter.grad *= kept.view_as(parameter)
        optimizer.step()
    return torch.stack(losses).detach()


@pytest.mark.parametrize(("density", "rows"), [(0.02, False), (0.3, False), (0.02, True)])
def test_training_equals_a_dense_float32_model_whose_weights_were_rounded(upstream, density, rows, monkeypatch):
    monkeypatch.setattr(child_network, "FEWEST", 64)  # as of large weights, values are in another order
    model, dense = rounded(upstream), rounded(upstream)
    before = {name: p.detach().clone() for name, p in eligible_parameters(dense).items()}
    mask = chosen(model, density, rows)
    expected = dense_steps(dense, mask, 4, 1e-2)
    child = ChildNetwork(eligible_parameters(model), mask, held=True)
    optimizer, losses = torch.optim.Adam(child.parameters(), lr=1e-2, eps=EPSILON), []
    for _ in range(4):
        losses.append(loss_of(model))
        losses[-1].backward()
        child.gather_gradients()
        optimizer.step()
        child.write_back()
    torch.testing.assert_close(torch.stack(losses).detach(), expected, rtol=1e-5, atol=0)
    parameters = eligible_parameters(model)
    matrices = {name for name, p in parameters.items() if isinstance(p, HeldWeight)}
    assert matrices == set(held_matrices(eligible_parameters(dense))) and len(matrices) > len(set(matrices) & set(mask))
    release(parameters.values())
    for name, trained in eligible_parameters(dense).items():
        assert type(parameters[name]) is torch.nn.Parameter and parameters[name].dtype == torch.float32
        torch.testing.assert_close(parameters[name].detach(), trained.detach(), rtol=0, atol=2e-5)
        outside = torch.ones(trained.numel(), dtype=torch.bool)
        outside[mask.get(name, torch.zeros(0, dtype=torch.int32)).long()] = False
        assert torch.equal(parameters[name].detach().flatten()[outside], before[name].flatten()[outside])
    moved = [
        (eligible_parameters(dense)[name].detach() - before[name]).abs().max()
        for name in matrices & set(mask)
        if len(mask[name])
    ]
    assert len(moved) > 4 and sum(change > 1e-4 for change in moved) > 0.5 * len(moved)


def test_features_are_those_of_the_rounded_model_bit_by_bit(upstream):
    model, plain = rounded(upstream), rounded(upstream)
    ChildNetwork(eligible_parameters(model), chosen(model, 0.1), held=True)
    with torch.no_grad():
        ours, theirs = (m(wavs())["hidden_states"] for m in (model, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(theirs[1:], upstream()(wavs())["hidden_states"][1:], strict=True))


def test_gradient_under_autocast(upstream):
    if type(getattr(upstream().model, "config", None)).__name__ == "ASTConfig":
        pytest.skip("its features go through numpy, which has no bfloat16")
    gradients = []
    for held in (True, False):
        model = rounded(upstream)
        child = ChildNetwork(eligible_parameters(model), chosen(model, 0.05), sparse_gradients=False, held=held)
        loss_of(model, amp=True).backward()
        child.gather_gradients()
        gradients.append(child.values.grad.clone())
    assert gradients[0].dtype == torch.float32
    scale = gradients[1].abs().max().item()
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.02 * scale)


def test_no_float32_matrix_is_kept_between_forward_and_backward(upstream):
    model = rounded(upstream)
    ChildNetwork(eligible_parameters(model), chosen(model, 0.05), held=True)
    matrices = [matrix_of(p) for p in held_matrices(eligible_parameters(model)).values()]
    before = {id(each) for each in gc.get_objects()}
    loss = loss_of(model)
    made = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and id(t) not in before and t is not loss]
    assert loss.requires_grad
    assert not [t for t in made if any(t.shape == m.shape and torch.equal(t.detach(), m) for m in matrices)]


def test_kept_memory_is_half():
    def kept(held):
        saved = {}
        layers = torch.nn.ModuleList([torch.nn.Linear(256, 256) for _ in range(4)])
        parameters = {f"{n}.weight": layer.weight for n, layer in enumerate(layers)}
        round_base(parameters)
        ChildNetwork(parameters, {"0.weight": torch.arange(100, dtype=torch.int32)}, held=held)
        x = torch.randn(2, 256, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
        ):
            for layer in layers:
                x = layer(x)
        weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters.values()}
        return sum((saved | weights).values())

    assert kept(True) < 0.52 * kept(False)


def weight_of(density=0.1, shape=(6, 4)):
    weight = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    round_base({"w": weight})
    indices = torch.arange(1, weight.numel(), 5, dtype=torch.int32)
    slot = (weight.detach().flatten()[indices.long()] + 1e-4).requires_grad_()
    with torch.no_grad():
        weight.view(-1)[indices.long()] = slot.detach()
    plain = weight.detach().clone()
    hold(weight, slot, indices)
    return weight, slot, indices, plain


FUNCTIONS = {
    "linear": lambda w, x: F.linear(x, w),
    "matmul": lambda w, x: x @ w.T,
    "einsum": lambda w, x: torch.einsum("ti,oi->to", x, w),
    "view": lambda w, x: x @ w.view(3, 2, 4).reshape(6, 4).t(),
    "embedding": lambda w, x: F.embedding(torch.tensor([0, 3, 3, 5]), w),
    "multiply": lambda w, x: (w * w).sum(0) * x,
    "index": lambda w, x: x @ w[1:3].T,
    "cast": lambda w, x: x.double() @ w.to(torch.float64).T,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_the_float32_matrix_and_gives_its_gradient(name):
    weight, slot, indices, plain = weight_of()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    leaf = plain.requires_grad_()
    ours, theirs = (FUNCTIONS[name](w, x) for w in (weight, leaf))
    assert torch.equal(ours, theirs)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    torch.testing.assert_close(slot.grad, leaf.grad.flatten()[indices.long()], rtol=1e-6, atol=1e-7)


def test_it_says_float32_holds_half_and_stays_where_it_is():
    weight, slot, _, plain = weight_of()
    assert weight.dtype == torch.float32 and weight.untyped_storage().nbytes() == 2 * plain.numel()
    assert torch.equal(weight.detach(), plain) and torch.equal(matrix_of(weight), plain)
    layer = torch.nn.Linear(4, 6, bias=False)
    layer.weight = weight
    layer.to("cpu").train()
    assert layer.weight is weight and isinstance(weight, HeldWeight) and weight.untyped_storage().nbytes() == 48
    twin = copy.deepcopy(layer)
    assert type(twin.weight) is torch.nn.Parameter and torch.equal(twin.weight, plain)
    assert torch.equal(layer.state_dict()["weight"], plain)
    with torch.no_grad():
        slot.add_(1.0)
    restore(weight)
    assert type(weight) is torch.nn.Parameter and not torch.equal(weight, plain) and weight.dtype == torch.float32


@pytest.mark.parametrize("change", [lambda w: w.zero_(), lambda w: w.copy_(w * 2), lambda w: w.put_(
    torch.tensor([0]), torch.tensor([1.0]))])  # fmt: skip
def test_nothing_changes_it_in_place(change):
    weight, _, _, plain = weight_of()
    with torch.no_grad(), pytest.raises(RuntimeError, match="would change a frozen weight that is held in bfloat16"):
        change(weight)
    assert torch.equal(matrix_of(weight), plain)


def test_what_would_be_lost_is_refused():
    weight = torch.nn.Parameter(torch.tensor([[1.0, 1.0 + 2**-12]]))
    with pytest.raises(DataError, match="not a bfloat16 number: round the upstream first"):
        hold(weight)
    assert type(weight) is torch.nn.Parameter and weight[0, 1] == 1.0 + 2**-12
    hold(weight, weight.detach()[0, 1:].clone().requires_grad_(), torch.tensor([1], dtype=torch.int32))
    assert matrix_of(weight)[0, 1] == 1.0 + 2**-12


@pytest.mark.parametrize("value", [3.4e38, float("inf"), float("nan")])
def test_numbers_that_bfloat16_does_not_have_are_refused(value):
    with pytest.raises(DataError, match="'w' holds values that are not finite, or not in bfloat16"):
        round_base({"w": torch.nn.Parameter(torch.tensor([[value]]))})


def test_rounding_is_to_nearest_even_of_matrices_alone():
    numbers = torch.randn(100, generator=torch.Generator().manual_seed(0))
    bits = numbers.view(torch.int32).long() & 0xFFFFFFFF
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    matrix, vector = torch.nn.Parameter(numbers.clone().view(10, 10)), torch.nn.Parameter(numbers.clone())
    round_base({"m": matrix, "v": vector})
    assert torch.equal(matrix.detach().flatten().view(torch.int32).long() & 0xFFFFFFFF, expected)
    assert torch.equal(vector.detach(), numbers)
