"""The parameter counts of the published base model, and what is said about unsuitable options."""

from __future__ import annotations

import pytest
import torch

import s3prl_ext
from s3prl_ext import adapters
from s3prl_ext.adapters import DIMENSIONS
from s3prl_ext.errors import UsageError
from tests.adapters.models import build

s3prl_ext.install()

# AD-TUNING, Table 2, where it can be derived; semantics: seven whole copies for the CNN adapter
BASE = {
    "houlsby": 599_424,
    "adapter_bias": 18_444,
    "lora": 294_912,
    "prefix": 99_840,
    "cnn_adapter": 4_200_448,
    "chapter": 4_799_872,
    "bitfit": 102_912,
}


@pytest.mark.parametrize("method", BASE)
def test_counts_of_the_base_model(method):
    assert adapters.count(method, DIMENSIONS["base"]) == BASE[method]


def test_every_method_has_the_same_parts():
    for name, file in adapters.ADAPTERS.items():
        assert all(isinstance(getattr(file, part), str) for part in ("PAPER", "EQUATION")), name
        assert all(callable(getattr(file, part)) for part in ("Config", "insert", "remove", "count")), name
        assert hasattr(file, "fold") == file.CAN_FOLD and file.ACTS_ON, name


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("library", ["transformers", "s3prl"])
def test_formulas_hold_on_wavlm_of_published_size(monkeypatch, library, size):
    monkeypatch.setattr("s3prl.upstream.wavlm.WavLM.init_bert_params", lambda module: None)  # it copies to the CPU
    model = _published_wavlm(library, size)
    sizes = adapters.dimensions(model)
    layers = DIMENSIONS[size].layers
    assert (sizes.layers, sizes.width, sizes.biases) == (
        layers,
        DIMENSIONS[size].width,
        DIMENSIONS[size].biases + layers * 8,
    )
    for method in BASE:
        parameters = adapters.insert(model, method)
        assert sum(p.numel() for p in parameters.values()) == adapters.count(method, sizes)
        adapters.remove(model)


def _published_wavlm(library, size):
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    if library == "transformers":
        from transformers import WavLMConfig, WavLMModel

        large |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
        with torch.device("meta"):
            return WavLMModel(WavLMConfig(**(large if size == "large" else {})))
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    options = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 320, "max_distance": 800}
    if size == "large":
        options |= {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096}
        options |= {"encoder_attention_heads": 16, "layer_norm_first": True, "extractor_mode": "layer_norm"}
    with torch.device("meta"):
        return WavLM(WavLMConfig(options))


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("library", ["transformers", "s3prl"])
def test_formulas_hold_on_models_of_published_size(library, size):
    model = _published(library, size)
    assert adapters.dimensions(model) == DIMENSIONS[size]
    for method in BASE:
        parameters = adapters.insert(model, method)
        assert sum(p.numel() for p in parameters.values()) == adapters.count(method, DIMENSIONS[size])
        adapters.remove(model)


def _published(library, size):
    large = size == "large"
    if library == "transformers":
        from transformers import HubertConfig, HubertModel

        extra = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        extra |= {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
        with torch.device("meta"):
            return HubertModel(HubertConfig(**(extra if large else {})))
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    extra = {"encoder_layers": 24, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096}
    extra |= {"encoder_attention_heads": 16, "layer_norm_first": True, "extractor_mode": "layer_norm"}
    with torch.device("meta"):
        return Wav2Vec2Model(Wav2Vec2Config(**(extra | {"conv_bias": True} if large else {})))


def test_param_matched_gives_the_figures_of_the_table():
    for method, count in {"cnn_adapter": 4_069_376, "chapter": 4_668_800}.items():
        config = adapters.parse_options(method, {"param_matched": True})
        assert adapters.count(method, DIMENSIONS["base"], config) == count


@pytest.mark.parametrize("model_name", ["s3prl-hubert", "s3prl-hubert-large", "transformers-hubert-large"])
def test_param_matched_copies_start_at_zero_and_train(tmp_path, model_name):
    from tests.adapters.models import clips, states, train

    model = build(model_name, tmp_path)
    with torch.no_grad():
        frozen = states(model, clips())
    config = adapters.parse_options("cnn_adapter", {"param_matched": True})
    parameters = adapters.insert(model, "cnn_adapter", config)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(states(model, clips()), frozen, strict=True))
    assert sum(p.numel() for p in parameters.values()) == adapters.count(
        "cnn_adapter", adapters.dimensions(model), config
    )
    assert train(model, parameters)[1] == set(parameters)


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("lora", {"rank": 0}, "tuning.rank must be a whole number of at least 1, got 0"),
        ("lora", {"rank": "many"}, "tuning.rank must be a whole number of at least 1, got 'many'"),
        ("lora", {"alpha": -1}, "tuning.alpha must be above 0, got -1"),
        ("lora", {"ranks": 4}, "unknown key 'ranks'; did you mean 'rank'"),
        (
            "lora",
            {"projections": []},
            r"tuning.projections is empty: name at least 1 such as \[q_proj, v_proj\]",
        ),
        ("houlsby", {"layers": "9-3"}, "tuning.layers: '9-3' is neither a layer index nor a range"),
        ("houlsby", {"bottleneck": 1.5}, "tuning.bottleneck must be a whole number"),
        ("prefix", {"length": 0}, "tuning.length must be a whole number"),
        ("cnn_adapter", {"param_matched": "yes"}, "tuning.param_matched must be true or false"),
        ("chapter", {"scale": 0}, "tuning.scale must be above 0, got 0"),
        ("bitfit", {"rank": 3}, "bitfit has no options; remove rank"),
        ("houlsbi", {}, "unknown method 'houlsbi'; did you mean 'houlsby'"),
    ],
)
def test_unsuitable_options_are_refused(method, options, message):
    with pytest.raises(UsageError, match=message):
        adapters.parse_options(method, options)


@pytest.mark.parametrize(
    "method, options, message",
    [
        (
            "lora",
            {"projections": ["q_prj"]},
            "unknown projection 'q_prj'; did you mean 'q_proj'.*Known: fc1, fc2, k_proj, out_proj, q_proj, v_proj",
        ),
        ("lora", {"rank": 33}, "lora: rank 33 is above 32, the width of q_proj; choose at most 32"),
        ("lora", {"layers": "0-2"}, "lora: layers: the upstream has no layer 2; its layers are 0-1"),
        ("houlsby", {"bottleneck": 64}, "bottleneck 64 is above the width 32 of the upstream; choose at most 32"),
        ("adapter_bias", {"layers": [5]}, "the upstream has no layer 5"),
    ],
)
@pytest.mark.parametrize("model_name", ["s3prl-hubert", "transformers-wavlm"])
def test_options_that_do_not_fit_the_model_leave_it_alone(tmp_path, model_name, method, options, message):
    model = build(model_name, tmp_path)
    names = set(model.state_dict())
    with pytest.raises(UsageError, match=message):
        adapters.insert(model, method, adapters.parse_options(method, options))
    assert set(model.state_dict()) == names and not any(p.requires_grad for p in model.parameters())


def test_numeric_strings_and_layers_are_understood():
    config = adapters.parse_options("lora", {"alpha": "1e1", "layers": "0-1,4", "projections": "k_proj"})
    assert (config.alpha, config.layers, config.projections) == (10.0, (0, 1, 4), ("k_proj",))
    assert adapters.count("lora", DIMENSIONS["base"], config) == 3 * 8 * 2 * 768
    assert adapters.parse_options("houlsby", {"layers": "all"}).layers is None
