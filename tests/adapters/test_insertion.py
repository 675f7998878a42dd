"""What every method promises on every architecture."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from s3prl_ext import adapters
from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training.statistics import hold_statistics
from tests.adapters.models import MAIN, MODELS, WITHOUT_BLOCKS, WITHOUT_PREFIX, build, clips, states, train

METHODS = list(adapters.ADAPTERS)
# Biases that change no output: of keys, and of positions that wav2vec2-conformer has and does not read.
IDLE = ("k_proj.bias", "linear_k.bias", "key_proj.bias", "pos_conv_embed.conv.bias")
NEED_BLOCKS = ("cnn_adapter", "chapter")
CASES = [
    pytest.param(method, model, id=f"{method}-{model}")
    for method in METHODS
    for model in MODELS
    if not (model in WITHOUT_BLOCKS and method in NEED_BLOCKS) and not (model in WITHOUT_PREFIX and method == "prefix")
]


@pytest.fixture
def make(tmp_path):
    return lambda name: build(name, tmp_path)


@pytest.mark.parametrize("method, model_name", CASES)
def test_a_method_trains_its_weights_and_nothing_else(make, method, model_name):
    model = make(model_name)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        frozen = states(model, clips())
    parameters = adapters.insert(model, method, seed=3)
    with torch.no_grad():
        started = states(model, clips())

    assert sum(p.numel() for p in parameters.values()) == adapters.count(method, adapters.dimensions(model))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(parameters)
    assert [s.shape for s in started] == [s.shape for s in frozen]
    differences = [(a - b).abs().max().item() for a, b in zip(started, frozen, strict=True)]
    assert max(differences) > 1e-4 if method == "prefix" else max(differences) <= 1e-6

    model.train()
    hold_statistics(model)  # as a run does
    reached = train(model, parameters)
    exempt = {n for n in parameters if n.endswith(IDLE)}  # at most rounding noise
    assert set(parameters) - exempt <= reached[0] | reached[1], set(parameters) - reached[1]
    after = model.state_dict()
    for name, base in before.items():
        now = after[name] if name in after else after[name.replace(".weight", ".parametrizations.weight.original")]
        if name not in parameters:
            assert torch.equal(base, now), f"{name} changed, got frozen"
    changed = {n for n, p in adapters.adapter_state(model).items() if n not in before or not torch.equal(before[n], p)}
    assert changed | exempt == set(parameters) | exempt

    adapters.remove(model)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), frozen, strict=True))
    assert adapters.inserted(model) == {}


@pytest.mark.parametrize("model_name", MAIN)
@pytest.mark.parametrize("method", METHODS)
def test_own_weights_carry_the_tuned_model(make, method, model_name):
    model, other = make(model_name), make(model_name)
    parameters = adapters.insert(model, method, seed=3)
    train(model, parameters)
    state = adapters.adapter_state(model)
    adapters.insert(other, method, seed=4)
    adapters.load_adapter_state(other, state)
    with torch.no_grad():
        expected = states(model, clips())
        assert all(torch.equal(a, b) for a, b in zip(states(other, clips()), expected, strict=True))
    assert sum(t.numel() for t in state.values()) == adapters.count(method, adapters.dimensions(model))


@pytest.mark.parametrize(
    "model_name",
    [*MAIN, "beats", "whisper", *(f"transformers-{n}" for n in ("conformer", "sew-d", "ast", "moonshine"))],
)
@pytest.mark.parametrize("method", [m for m in METHODS if adapters.can_fold(m)])
def test_folding_keeps_the_output_bit_by_bit(make, method, model_name):
    model = make(model_name)
    names = set(model.state_dict())
    train(model, adapters.insert(model, method, seed=3))
    with torch.no_grad():
        tuned = states(model, clips())
        adapters.fold(model)
        assert set(model.state_dict()) == names
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), tuned, strict=True))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("model_name", ["transformers-hubert", "transformers-wavlm"])
@pytest.mark.parametrize("method", METHODS)
def test_a_deep_copy_is_independent(make, method, model_name):
    """Only transformers: s3prl's models hold tensors and hooks that a copy cannot take along."""
    model = make(model_name)
    adapters.insert(model, method, seed=3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        start = states(model, clips())
        for name, parameter in twin.named_parameters():
            if name in adapters.inserted(twin)[method].names:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))  # no norm takes it away
        changed = states(twin, clips())
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), start, strict=True))
    assert not torch.allclose(changed[-1], start[-1])


def test_insertion_leaves_the_random_state_alone_and_follows_its_seed(make):
    states_of = []
    for seed in (1, 1, 2):
        torch.manual_seed(5)
        model = make("transformers-hubert")
        torch.manual_seed(5)
        adapters.insert(model, "houlsby", seed=seed)
        assert torch.equal(torch.rand(3), torch.manual_seed(5) and torch.rand(3))
        states_of.append(adapters.adapter_state(model))
    name = next(n for n in states_of[0] if n.endswith("down.weight"))
    assert torch.equal(states_of[0][name], states_of[1][name]) and not torch.equal(
        states_of[0][name], states_of[2][name]
    )


@pytest.mark.parametrize("first, second", [("houlsby", "lora"), ("cnn_adapter", "houlsby"), ("lora", "bitfit")])
def test_methods_on_different_parts_stack(make, first, second):
    model = make("s3prl-hubert")
    before = copy.deepcopy(model.state_dict())
    parameters = adapters.insert(model, first) | adapters.insert(model, second)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(parameters)
    reached = train(model, parameters)
    assert len([n for n in parameters if n not in reached[0] | reached[1] and "k_proj.bias" not in n]) == 0
    adapters.remove(model)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("first, second", [("houlsby", "adapter_bias"), ("chapter", "houlsby"), ("lora", "lora")])
def test_colliding_methods_are_refused(make, first, second):
    model = make("transformers-hubert")
    adapters.insert(model, first)
    names = set(model.state_dict())
    with pytest.raises(UsageError, match=f"{second} cannot be stacked on {first}: both act on"):
        adapters.insert(model, second)
    assert set(model.state_dict()) == names


REFUSED = [pytest.param(method, name, id=f"{method}-{name}") for method in NEED_BLOCKS for name in WITHOUT_BLOCKS]
REFUSED += [pytest.param("prefix", name, id=f"prefix-{name}") for name in WITHOUT_PREFIX]


@pytest.mark.parametrize("method, model_name", REFUSED)
def test_what_a_method_needs_and_a_family_lacks_is_refused_in_one_sentence(make, method, model_name):
    model = make(model_name)
    names = set(model.state_dict())
    family = re.escape(find_encoder(model).architecture.models)
    sentence = (
        rf"prefix needs an encoder whose mask of positions is known, and for {family} it is not; choose houlsby"
        if method == "prefix"
        else rf"cnn_adapter and chapter need convolution blocks.* \({family}\); choose houlsby"
    )
    with pytest.raises(UsageError, match=sentence):
        adapters.insert(model, method)
    assert set(model.state_dict()) == names and not any(p.requires_grad for p in model.parameters())


def test_a_model_without_encoder_is_refused():
    with pytest.raises(
        UsageError,
        match="no encoder that adapters know; its modules are 0; known are transformers HuBERT.*BEATs.* AST in memory: use",
    ):
        adapters.insert(torch.nn.Sequential(torch.nn.Linear(2, 2)), "houlsby")


def test_weights_of_another_method_or_size_are_refused_as_a_whole(make):
    model = make("transformers-hubert")
    adapters.insert(model, "lora", adapters.parse_options("lora", {"rank": 4}))
    other = make("transformers-hubert")
    adapters.insert(other, "lora")
    before = adapters.adapter_state(other)
    with pytest.raises(DataError, match="do not belong to lora with these options"):
        adapters.load_adapter_state(other, adapters.adapter_state(model))
    assert all(torch.equal(before[n], t) for n, t in adapters.adapter_state(other).items())


def test_what_cannot_be_folded_or_is_not_there_is_refused(make):
    model = make("transformers-hubert")
    with pytest.raises(UsageError, match="no adapter method was inserted"):
        adapters.adapter_state(model)
    adapters.insert(model, "houlsby")
    with pytest.raises(UsageError, match="houlsby cannot be folded into plain weights.*lora, bitfit"):
        adapters.fold(model)
    with pytest.raises(UsageError, match="unknown inserted method 'lora'"):
        adapters.remove(model, "lora")
