"""Moments of what weights are multiplied with are those of hooks, also where attention hands weights to a function."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from s3prl_ext.models.linear_inputs import LinearInputs
from s3prl_ext.upstreams.valid_frames import valid_rows
from tests.support import factories
from tests.support import tuned as made


def wavs(lengths=(9000, 7000)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) for length in lengths]


def watched(model, clips):
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.dim() == 2}
    inputs = LinearInputs(weights)
    for clip in clips:
        with torch.no_grad(), inputs:
            model([clip])
    return inputs


def moment(rows):
    x = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).double()
    return x.T @ x / len(x)


def test_of_transformers_every_linear_module_is_seen(tmp_path):
    model = made.build("hf_hubert_custom", made.write_model("hf_hubert_custom", tmp_path))
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.setdefault(f"{name}.weight", []).append(inputs[0].clone())
            )
    inputs = watched(model, wavs())
    assert set(inputs.sums) == set(seen) and len(seen) > 12
    for name, rows in seen.items():
        assert inputs.rows[name] == sum(row.shape[:-1].numel() for row in rows)
        torch.testing.assert_close(inputs.means()[name], moment(rows))


def test_of_s3prl_the_weights_of_attention_are_seen_too(tmp_path):
    model = made.build("hubert_local", made.write_model("hubert_local", tmp_path))
    seen: dict[str, list[torch.Tensor]] = {}
    for number, layer in enumerate(model.model.encoder.layers):
        prefix = f"model.encoder.layers.{number}"
        for name in ("fc1", "fc2"):
            getattr(layer, name).register_forward_pre_hook(
                lambda _, inputs, key=f"{prefix}.{name}.weight": seen.setdefault(key, []).append(inputs[0].clone())
            )

        def attention(_, args, kwargs, prefix=f"{prefix}.self_attn"):
            for part in ("q_proj", "k_proj", "v_proj"):
                seen.setdefault(f"{prefix}.{part}.weight", []).append(kwargs["query"].clone())

        layer.self_attn.register_forward_pre_hook(attention, with_kwargs=True)
    inputs = watched(model, wavs())
    assert set(seen) <= set(inputs.sums) and len(seen) == 10
    assert all(f"model.encoder.layers.{n}.self_attn.out_proj.weight" in inputs.sums for n in (0, 1))
    for name, rows in seen.items():
        torch.testing.assert_close(inputs.means()[name], moment(rows))


@pytest.mark.parametrize("upstream", ["wavlm_local", "beats_local", "hf_speech_custom:conformer"])
def test_other_families_multiply_every_matrix_of_attention(upstream, tmp_path):
    model = made.build(upstream, made.write_model(upstream, tmp_path))
    inputs = watched(model, wavs((16000,)))
    for name in model.state_dict():
        if name.endswith(("q_proj.weight", "v_proj.weight", "out_proj.weight", "linear_q.weight", "linear_out.weight")):
            assert name in inputs.sums, name


def test_other_products_and_functions_are_left_alone():
    weight, other, x = torch.randn(4, 3), torch.randn(4, 3), torch.randn(5, 3)
    with torch.no_grad(), LinearInputs({"w": weight}) as inputs:
        F.linear(x, other)
        x @ torch.randn(3, 4)
        torch.randn(2, 4) @ weight  # not the product of a linear map
    assert inputs.sums == {}
    with torch.inference_mode(), inputs:
        F.linear(x.view(1, 5, 3), weight, torch.randn(4))
    torch.testing.assert_close(inputs.means()["w"], (x.T @ x / 5).double())


def padded_whisper(tmp_path):
    from s3prl import hub

    folder = factories.whisper_folder(tmp_path / "whisper")
    return hub.whisper_local(ckpt=str(folder), model_config="window=30").eval(), "model.encoder.layers.1.fc1"


def family(name, module):
    return lambda tmp_path: (made.build(name, made.write_model(name, tmp_path)), module)


def patches(*steps):
    """Return the tokens of an AST's windows (two special ones, 3 bands of 6 steps) that are of a clip's own steps."""
    return [
        20 * window + 2 + 6 * band + step
        for window, own in enumerate(steps)
        for band in range(3)
        for step in range(own)
    ]


AST = family("hf_speech_custom:ast", "model.layers.1.mlp.fc1")
W2V_BERT = family("hf_speech_custom:w2v-bert", "model.encoder.layers.1.ffn2.intermediate_dense")
PADDED = {  # what builds a model, samples of a clip, which of the rows of its products are its own
    "ast": (AST, 3200, patches(2)),
    "ast, two windows": (AST, 14400, patches(6, 3)),
    "whisper": (padded_whisper, 3200, list(range(10))),
    "w2v-bert": (W2V_BERT, 16160, list(range(49))),
    "s3prl's hubert": (family("hubert_local", "model.encoder.layers.1.fc1"), 16320, list(range(49))),
}


@pytest.mark.parametrize("name", PADDED)
def test_padding_of_a_clip_that_is_alone_does_not_count(name, tmp_path):
    build, samples, own = PADDED[name]
    model, module = build(tmp_path)
    (clip,) = wavs((samples,))
    seen = []
    model.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    inputs = LinearInputs({f"{module}.weight": model.state_dict()[f"{module}.weight"]})
    inputs.valid = valid_rows(model, clip)
    with torch.no_grad(), inputs:
        model([clip])
    rows = seen[0].reshape(-1, seen[0].shape[-1])
    assert inputs.rows[f"{module}.weight"] == len(own) < len(rows)
    torch.testing.assert_close(inputs.means()[f"{module}.weight"], moment([rows[own]]))


def test_all_rows_of_a_clip_without_padding_count(tmp_path):
    for number, (name, samples) in enumerate(
        (("hubert_local", 16000), ("hf_hubert_custom", 16320), ("beats_local", 16000))
    ):
        (tmp_path / str(number)).mkdir()
        model = made.build(name, made.write_model(name, tmp_path / str(number)))
        (clip,) = wavs((samples,))
        counts = []
        for valid in ({}, valid_rows(model, clip)):
            inputs = LinearInputs({key: tensor for key, tensor in model.state_dict().items() if tensor.dim() == 2})
            inputs.valid = valid
            with torch.no_grad(), inputs:
                model([clip])
            counts.append(inputs.rows)
        assert counts[0] == counts[1]
