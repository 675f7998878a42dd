"""Invariants 1 to 4 of attention merging, on real classes, against the plain-loop oracle."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract, insert
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.merge import check_compatible, format_table, merge_attention
from tests.support import factories, reference


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A HuBERT target and a BERT source of 4 layers, and a second target of the same size."""
    root = tmp_path_factory.mktemp("models")
    folders = {
        "hubert": factories.hubert_folder(root / "hubert", layers=4),
        "wav2vec2": factories.wav2vec2_folder(root / "wav2vec2", layers=4, seed=7),
        "bert": factories.bert_folder(root / "bert", layers=4),
    }
    return {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}


def constant(weight, depth=4, projections=PROJECTIONS):
    return {projection: [weight] * depth for projection in projections}


def merge(target, source, lambdas, biases=False):
    merged, _ = merge_attention(extract(target), extract(source), lambdas, biases)
    return insert(target, merged)


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("biases", [False, True])
def test_lambda_0_is_the_target_and_1_the_source_bitwise(states, biases):
    target, source = states["hubert"], states["bert"]
    untouched = merge(target, source, constant(0.0), biases)
    assert all(untouched[key] is target[key] for key in target)

    full = merge(target, source, constant(1.0), biases)
    theirs = extract(source)
    slots = [slot for slot in theirs if biases or slot.kind == "weight"]
    assert all(torch.equal(extract(full)[slot], theirs[slot]) for slot in slots)
    assert len(changed(target, full)) == len(slots) == (24 if biases else 12)


def test_equals_equation_2_of_the_paper(states):
    rows = [[0.05, 0.1, 0.25], [0.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.9, 0.2, 0.15]]
    lambdas = {projection: [row[index] for row in rows] for index, projection in enumerate(PROJECTIONS)}
    for biases, kinds in ((False, ("weight",)), (True, ("weight", "bias"))):
        ours = merge(states["hubert"], states["bert"], lambdas, biases)
        expected = reference.merge_state(states["hubert"], states["bert"], ("hubert", "bert"), rows, kinds)
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor.double(), expected[key].double(), rtol=1e-6, atol=1e-7)


def test_only_the_chosen_matrices_change(states):
    target, source = states["hubert"], states["bert"]
    assert len(changed(target, merge(target, source, constant(0.1)))) == 3 * 4
    assert len(changed(target, merge(target, source, constant(0.1), biases=True))) == 6 * 4
    some = merge(target, source, {"k_proj": [0.0, 0.1, 0.1, 0.0]})
    assert changed(target, some) == {f"encoder.layers.{i}.attention.k_proj.weight" for i in (1, 2)}


def test_inputs_stay_unchanged(states):
    before = {name: {key: tensor.clone() for key, tensor in state.items()} for name, state in states.items()}
    for weight in (0.3, 1.0):
        merge(states["hubert"], states["bert"], constant(weight), biases=True)
    assert not any(changed(before[name], states[name]) for name in states)


def test_two_merges_equal_one(states):
    target, source = states["hubert"], states["bert"]
    twice = merge(merge(target, source, constant(0.2)), source, constant(0.3))
    once = merge(target, source, constant(1 - (1 - 0.2) * (1 - 0.3)))
    assert all(torch.allclose(twice[key], once[key], rtol=1e-6, atol=1e-7) for key in once)
    assert changed(target, once)


def test_swapping_the_models_mirrors_lambda(states):
    there = extract(merge(states["wav2vec2"], states["hubert"], constant(0.3)))
    back = extract(merge(states["hubert"], states["wav2vec2"], constant(0.7)))
    matrices = [slot for slot in there if slot.kind == "weight"]
    assert all(torch.allclose(there[slot], back[slot], rtol=1e-6, atol=1e-7) for slot in matrices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_keep_their_dtype(states, dtype):
    target = {key: tensor.to(dtype) for key, tensor in states["hubert"].items()}
    result = merge(target, states["bert"], constant(0.25))
    assert {tensor.dtype for tensor in result.values()} == {dtype}
    expected = reference.merge_state(target, states["bert"], ("hubert", "bert"), [[0.25] * 3] * 4)
    tolerance = 2.0 ** (-11 if dtype == torch.float16 else -8)
    for key in changed(target, result):
        torch.testing.assert_close(result[key].double(), expected[key], rtol=tolerance, atol=1e-6)
    full = extract(merge(target, states["bert"], constant(1.0)))
    assert torch.equal(full[Slot(0, "q_proj")], extract(states["bert"])[Slot(0, "q_proj")].to(dtype))


def test_report_gives_lambda_and_relative_change(states):
    target, source = extract(states["hubert"]), extract(states["bert"])
    _, rows = merge_attention(target, source, {"v_proj": [0.0, 0.5, 0.0, 1.0]}, biases=True)
    assert [(row.layer, row.projection, row.lambda_) for row in rows] == [
        (1, "v_proj", 0.5),
        (1, "v_proj.bias", 0.5),
        (3, "v_proj", 1.0),
        (3, "v_proj.bias", 1.0),
    ]
    slot = Slot(3, "v_proj")
    expected = (source[slot] - target[slot]).norm() / target[slot].norm()
    assert rows[-2].relative_change == pytest.approx(expected.item(), rel=1e-5)
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["layer", "projection", "lambda", "relative", "change"]
    assert lines[-2].split() == ["3", "v_proj", "1", f"{expected.item():.4f}"]
    assert "nothing merged" in format_table([])


@pytest.mark.parametrize(("layers", "width"), [(3, 32), (4, 24)])
def test_unequal_models_are_refused_with_both_shapes(states, layers, width, tmp_path):
    other = load_file(factories.bert_folder(tmp_path / "b", layers=layers, width=width) / "model.safetensors")
    message = rf"4 layers of shape \(32, 32\) and the source {layers} layers of shape \({width}, {width}\)"
    with pytest.raises(UsageError, match=message):
        check_compatible(extract(states["hubert"]), extract(other))


def test_missing_bias_matters_only_where_biases_are_merged(states):
    source = {slot: tensor for slot, tensor in extract(states["bert"]).items() if slot != Slot(0, "k_proj", "bias")}
    check_compatible(extract(states["hubert"]), source)
    with pytest.raises(UsageError, match=r"the source has no layer 0 k_proj\.bias.*biases: false"):
        check_compatible(extract(states["hubert"]), source, biases=True)


@pytest.mark.parametrize(
    ("name", "value"), [("source", float("nan")), ("target", float("inf")), ("source", float("-inf"))]
)
def test_nan_and_infinity_are_refused_by_name(states, name, value):
    weights = {"target": extract(states["hubert"]), "source": extract(states["bert"])}
    weights[name] = {slot: tensor.clone() for slot, tensor in weights[name].items()}
    weights[name][Slot(2, "k_proj")][0, 0] = value
    with pytest.raises(DataError, match=rf"layer 2 k_proj\.weight of the {name} holds NaN or infinity"):
        merge_attention(weights["target"], weights["source"], constant(0.1))
    merge_attention(weights["target"], weights["source"], {"q_proj": [0.1] * 4})


def test_large_finite_values_are_accepted(states):
    weights = {slot: torch.full_like(tensor, 3e38) for slot, tensor in extract(states["bert"]).items()}
    merged, _ = merge_attention(weights, weights, constant(1.0))
    assert merged[Slot(0, "q_proj")].isfinite().all()


def run_speech(model):
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    return model(audio).last_hidden_state


def run_text(model):
    return model(torch.tensor([[2, 5, 9, 11, 3]])).last_hidden_state


def run_image(model):
    return model(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).last_hidden_state


@pytest.mark.parametrize(
    ("factory", "model_class", "forward"),
    [
        (factories.hubert_folder, "HubertModel", run_speech),
        (factories.wavlm_folder, "WavLMModel", run_speech),
        (factories.bert_folder, "BertModel", run_text),
        (factories.vit_folder, "ViTModel", run_image),
    ],
)
def test_key_bias_changes_no_output_and_query_bias_does(factory, model_class, forward, tmp_path):
    """softmax(q (k + b)^T) = softmax(q k^T): the added term is equal for all keys of a query."""
    model = getattr(transformers, model_class).from_pretrained(factory(tmp_path / "m")).eval()
    weights = extract(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    source = {slot: torch.randn(tensor.shape, generator=generator) for slot, tensor in weights.items()}
    merged, _ = merge_attention(weights, source, constant(0.5, depth=2), biases=True)
    with torch.no_grad():
        before = forward(model)
        differences = {}
        for projection in ("k_proj", "q_proj"):
            for layer in range(2):
                slot = Slot(layer, projection, "bias")
                weights[slot].copy_(merged[slot])
            differences[projection] = (forward(model) - before).abs().max().item()
    assert differences["k_proj"] < 1e-5
    assert differences["q_proj"] > 1e-3


def test_value_bias_shifts_the_attention_output_by_a_constant(tmp_path):
    model = transformers.HubertModel.from_pretrained(factories.hubert_folder(tmp_path / "m", stable_norm=True)).eval()
    attention, weight = model.encoder.layers[0].attention, 0.3
    weights = extract(model.state_dict())
    source = {
        slot: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(4)) for slot, tensor in weights.items()
    }
    slot = Slot(0, "v_proj", "bias")
    outputs = []
    attention.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        expected = weight * attention.out_proj.weight @ (source[slot] - weights[slot])
        run_speech(model)
        weights[slot].copy_(merge_attention(weights, source, {"v_proj": [weight, 0.0]}, biases=True)[0][slot])
        run_speech(model)
    shift = outputs[1] - outputs[0]
    torch.testing.assert_close(shift, expected.expand_as(shift), rtol=1e-4, atol=1e-5)
