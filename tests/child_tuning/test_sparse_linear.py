"""Sampled weight gradients equal the dense ones at the chosen entries, on transformers' and on s3prl's own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from s3prl_ext.child_tuning import masks, sparse_linear
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_linear import SampledWeight
from tests.support import factories

FAMILIES = ["hubert_local", "wav2vec2_local", "wavlm_local", "hf_hubert_custom", "hf_wav2vec2_custom"]
WRITERS = {
    "hubert_local": factories.hubert_local_ckpt,
    "wav2vec2_local": factories.wav2vec2_local_ckpt,
    "wavlm_local": factories.wavlm_local_ckpt,
    "hf_hubert_custom": factories.hubert_folder,
    "hf_wav2vec2_custom": factories.wav2vec2_folder,
}


@pytest.fixture(scope="module", params=FAMILIES)
def upstream(request, tmp_path_factory):
    """A tiny upstream of s3prl's hub, in evaluation mode."""
    import s3prl.hub

    path = WRITERS[request.param](tmp_path_factory.mktemp(request.param) / "model")
    return getattr(s3prl.hub, request.param)(ckpt=str(path)).eval()


def gradient(upstream, mask, wavs, amp=False, accumulate=1, **options):
    """Return the child network's gradient, the loss, and the network."""
    child = ChildNetwork(eligible_parameters(upstream), mask, **options)
    loss = torch.zeros(())
    for _ in range(accumulate):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            states = upstream(wavs)["hidden_states"]
            loss = sum((state.float() ** 2).mean() for state in states)
        loss.backward()
    child.gather_gradients()
    return child.values.grad.clone(), loss.detach(), child


def example(upstream, density=0.02):
    sizes = {name: p.numel() for name, p in eligible_parameters(upstream).items()}
    generator = torch.Generator().manual_seed(3)
    return masks.bernoulli(sizes, density, seed=1), [torch.randn(n, generator=generator) for n in (8000, 6500)]


def test_gradient_equals_the_gathered_dense_one(upstream):
    mask, wavs = example(upstream)
    dense, loss, _ = gradient(upstream, mask, wavs, sparse_gradients=False)
    sampled, same, child = gradient(upstream, mask, wavs)
    torch.testing.assert_close(same, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(sampled, dense, rtol=1e-4, atol=1e-6)
    covered = {n for n, p in eligible_parameters(upstream).items() if isinstance(p, SampledWeight)}
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert any(part in name for name in covered), part
    assert not any(p.requires_grad for n, p in eligible_parameters(upstream).items() if n in covered)
    assert all(p.grad is None for p in eligible_parameters(upstream).values())
    assert len(child) == dense.numel() > 100


def test_accumulated_batches_add_up(upstream):
    mask, wavs = example(upstream)
    once, _, _ = gradient(upstream, mask, wavs)
    twice, _, child = gradient(upstream, mask, wavs, accumulate=2)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-6)
    child.write_back()
    child.gather_gradients()
    assert not child.values.grad.any(), "a written-back step leaves no gradient"


def test_mixed_precision(upstream):
    mask, wavs = example(upstream)
    dense, loss, _ = gradient(upstream, mask, wavs, amp=True, sparse_gradients=False)
    sampled, same, _ = gradient(upstream, mask, wavs, amp=True)
    torch.testing.assert_close(same, loss, rtol=1e-3, atol=1e-4)
    assert F.cosine_similarity(sampled, dense, dim=0) > 0.999  # bf16 has three digits


def test_evaluation_and_state_are_untouched(upstream):
    mask, wavs = example(upstream)
    with torch.no_grad():
        expected = upstream(wavs)["hidden_states"]
        ChildNetwork(eligible_parameters(upstream), mask)
        assert all(torch.equal(a, b) for a, b in zip(expected, upstream(wavs)["hidden_states"]))
    assert all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in upstream.state_dict().values())


def test_copies_are_ordinary(tmp_path):
    model = torch.nn.Linear(20, 10)
    x = torch.randn(3, 20)
    ChildNetwork({"w": model.weight}, {"w": torch.tensor([7])})
    assert isinstance(model.weight, SampledWeight)
    copied = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copied, stored):
        assert type(other.weight) is torch.nn.Parameter and not other.weight.requires_grad
        assert torch.equal(other(x), model(x))


def test_the_next_network_on_the_same_weights_takes_over(upstream):
    mask, wavs = example(upstream)
    first, _, child = gradient(upstream, mask, wavs)
    other, _, second = gradient(upstream, {name: i[:3] for name, i in mask.items()}, wavs)
    assert other.numel() == len(second) < len(child)
    child.attach()
    child.zero_grad()
    sum((s**2).mean() for s in upstream(wavs)["hidden_states"]).backward()
    child.gather_gradients()
    torch.testing.assert_close(child.values.grad, first, rtol=1e-4, atol=1e-6)
    ChildNetwork(
        eligible_parameters(upstream), masks.full({n: p.numel() for n, p in eligible_parameters(upstream).items()})
    )
    assert not any(isinstance(p, SampledWeight) for p in upstream.parameters())


def test_sampled_product_equals_the_dense_one():
    torch.manual_seed(0)
    left, right = torch.randn(37, 11), torch.randn(37, 7)
    indices = torch.tensor([0, 5, 6, 7, 40, 76], dtype=torch.int32)
    expected = (left.T @ right).reshape(-1)[indices.long()]
    torch.testing.assert_close(sparse_linear.sampled_product(left, right, indices), expected, rtol=1e-5, atol=1e-5)


def test_functions_other_than_linear_get_the_dense_gradient_gathered():
    """Whatever else a model does with its weight, the gradient of the chosen entries is right."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, 10))
    mask = {"w": torch.tensor([3, 77])}
    x = torch.randn(4, 20)

    def loss(w):
        return (x @ w).tanh().sum() + torch.cat([w, w]).pow(3).sum() + F.embedding(torch.tensor([0, 7]), w).sum()

    loss(weight).backward()
    expected = weight.grad.reshape(-1)[[3, 77]]
    weight.grad = None
    child = ChildNetwork({"w": weight}, mask)
    assert isinstance(weight, SampledWeight)
    loss(weight).backward()
    child.gather_gradients()
    torch.testing.assert_close(child.values.grad, expected)


@pytest.mark.parametrize("shape", [(20,), (4, 20), (2, 3, 20)])
def test_a_model_may_change_the_output_in_place(shape):
    """As an encoder does that sets padded frames to zero, and attention that scales its queries."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(20, 10)
    x, mask = torch.randn(shape), {"w": torch.tensor([3, 77, 150])}

    def loss():
        y = linear(x)
        y *= 0.5
        y[..., 0] = 0
        return y.tanh().sum()

    loss().backward()
    expected = linear.weight.grad.reshape(-1)[[3, 77, 150]]
    linear.weight.grad = None
    child = ChildNetwork({"w": linear.weight}, mask)
    assert isinstance(linear.weight, SampledWeight)
    value = loss()
    value.backward()
    child.gather_gradients()
    torch.testing.assert_close(child.values.grad, expected)
    sparse_linear.restore(linear.weight)
    assert torch.equal(value, loss()), "the same output, bitwise"


@pytest.mark.parametrize("patterns", [["*projection*"], ["*"]])
def test_padded_frames_of_transformers_models_are_set_to_zero(tmp_path, patterns):
    """With an attention mask their encoder writes into the output of the feature projection."""
    from transformers import HubertModel

    model = HubertModel.from_pretrained(factories.hubert_folder(tmp_path / "hubert")).eval()
    weights = {n: p for n, p in eligible_parameters(model, tuple(patterns)).items() if p.dim() == 2}
    mask = {name: torch.arange(0, weight.numel(), 60, dtype=torch.int32) for name, weight in weights.items()}
    attention = torch.ones(2, 8000, dtype=torch.long)
    attention[1, 5000:] = 0
    wavs = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))

    def found(**options):
        child = ChildNetwork(weights, mask, **options)
        model(wavs, attention_mask=attention).last_hidden_state.pow(2).mean().backward()
        child.gather_gradients()
        return child.values.grad.clone()

    torch.testing.assert_close(found(), found(sparse_gradients=False), rtol=1e-4, atol=1e-7)


def test_tensors_above_the_density_stay_dense():
    weights = {n: torch.nn.Parameter(torch.randn(10, 10)) for n in ("at", "above", "empty")}
    ChildNetwork(weights, {"at": torch.arange(3), "above": torch.arange(4)})
    assert [type(w).__name__ for w in weights.values()] == ["SampledWeight", "Parameter", "Parameter"]
    assert weights["above"].requires_grad and not weights["empty"].requires_grad
