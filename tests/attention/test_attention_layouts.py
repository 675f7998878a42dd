"""Every row of the table of architectures against the real classes, on disk and in memory."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from s3prl_ext.attention.files import read_attention, read_torch_state
from s3prl_ext.attention.layouts import PROJECTIONS, Slot, find_attention
from s3prl_ext.attention.weights import depth, extract, insert, width
from s3prl_ext.errors import DataError
from s3prl_ext.models.architectures import ARCHITECTURES
from s3prl_ext.upstreams.layer_similarity.encoders import source_kind
from tests.support import factories

# factory, its options -> row on disk, row in memory
TRANSFORMERS_MODELS = {
    "hubert": (factories.hubert_folder, {}, "transformers-speech", "transformers-speech"),
    "hubert-ctc-large": (factories.hubert_folder, {"ctc": True, "stable_norm": True}, *["transformers-speech"] * 2),
    "wav2vec2-ctc": (factories.wav2vec2_folder, {"ctc": True}, *["transformers-speech"] * 2),
    "wavlm-ctc": (factories.wavlm_folder, {"ctc": True}, *["transformers-speech"] * 2),
    "data2vec-audio-ctc": (factories.data2vec_audio_folder, {"ctc": True}, *["transformers-speech"] * 2),
    **{
        name: (factories.SPEECH_FAMILIES[name], {}, row, row)
        for name, row in (
            ("unispeech", "transformers-speech"),
            ("unispeech-sat", "transformers-speech"),
            ("mms", "transformers-speech"),
            ("sew", "transformers-speech"),
            ("sew-d", "sew-d"),
            ("conformer", "conformer"),
            ("w2v-bert", "conformer"),
        )
    },
    "distilbert": (factories.distilbert_folder, {}, "distilbert", "distilbert"),
    "modernbert": (factories.modernbert_folder, {}, "modernbert", "modernbert"),
    "dinov2": (factories.dinov2_folder, {}, "vit", "dinov2-memory"),
    "bert": (factories.bert_folder, {}, "bert", "bert"),
    "roberta": (factories.roberta_folder, {}, "bert", "bert"),
    "vit": (factories.vit_folder, {}, "vit", "vit-memory"),
    "deit": (factories.deit_folder, {}, "vit", "vit-memory"),
    "ast": (factories.ast_folder, {}, "vit", "vit-memory"),
    "mgp-str": (factories.mgp_str_folder, {}, "timm", "timm"),
}
PREFIXES = {
    "hubert-ctc-large": "hubert.",
    "wav2vec2-ctc": "wav2vec2.",
    "wavlm-ctc": "wavlm.",
    "data2vec-audio-ctc": "data2vec_audio.",
    "roberta": "roberta.",
    "distilbert": "distilbert.",
    "modernbert": "model.",
    "deit": "deit.",
    "ast": "audio_spectrogram_transformer.",
    "mgp-str": "mgp_str.encoder.",
}
CHECKPOINTS = {
    "hubert": factories.hubert_local_ckpt,
    "wav2vec2": factories.wav2vec2_local_ckpt,
    "wavlm": factories.wavlm_local_ckpt,
}


def load_model(folder) -> torch.nn.Module:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(folder)


@pytest.mark.parametrize("name", TRANSFORMERS_MODELS)
def test_row_matches_real_transformers_class(name, tmp_path):
    factory, options, on_disk, in_memory = TRANSFORMERS_MODELS[name]
    folder = factory(tmp_path / name, layers=3, width=24, heads=2, **options)
    disk, memory = load_file(folder / "model.safetensors"), load_model(folder).state_dict()
    for state, row in ((disk, on_disk), (memory, in_memory)):
        keys = find_attention(state, name)
        assert (keys.architecture.name, keys.layers) == (row, 3)
        assert len(keys.names) == (9 if name == "modernbert" else 18)  # which has no biases
        weights = extract(state)
        assert (depth(weights), width(weights)) == (3, 24)
        assert all(t.shape == ((24, 24) if slot.kind == "weight" else (24,)) for slot, t in weights.items())
    assert find_attention(disk, name).prefix == PREFIXES.get(name, "")
    read, live = read_attention(folder), extract(memory)
    assert read.keys() == live.keys()
    assert all(torch.equal(read[slot], live[slot]) for slot in read)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_fairseq_row_matches_s3prl_checkpoints(name, tmp_path):
    path = CHECKPOINTS[name](tmp_path / "model.pt", layers=3, width=24, heads=2)
    state = read_torch_state(path)
    keys = find_attention(state, name)
    assert (keys.architecture.name, keys.prefix, keys.layers) == ("fairseq", "", 3)
    assert find_attention([f"model.{key}" for key in state], name).prefix == "model."
    weights = read_attention(path)
    assert torch.equal(weights[Slot(2, "k_proj")], state["encoder.layers.2.self_attn.k_proj.weight"])


@pytest.mark.parametrize("name", [*TRANSFORMERS_MODELS, *(f"{name}-local" for name in CHECKPOINTS)])
def test_inserting_what_was_extracted_is_the_identity(name, tmp_path):
    if name in TRANSFORMERS_MODELS:
        factory, options, *_ = TRANSFORMERS_MODELS[name]
        folder = factory(tmp_path / name, **options)
        states = [load_file(folder / "model.safetensors"), load_model(folder).state_dict()]
    else:
        states = [read_torch_state(CHECKPOINTS[name.removesuffix("-local")](tmp_path / "model.pt"))]
    for state in states:
        before = {key: tensor.clone() for key, tensor in state.items()}
        again = insert(state, {slot: tensor.clone() for slot, tensor in extract(state).items()})
        assert list(again) == list(before)
        assert all(torch.equal(again[key], before[key]) and torch.equal(state[key], before[key]) for key in before)


def test_insert_replaces_exactly_the_given_slots(tmp_path):
    for factory, changed in (
        (factories.bert_folder, "encoder.layer.1.attention.self.key.weight"),
        (factories.mgp_str_folder, "mgp_str.encoder.blocks.1.attn.qkv.weight"),
    ):
        state = load_file(factory(tmp_path / factory.__name__) / "model.safetensors")
        result = insert(state, {Slot(1, "k_proj"): torch.zeros(32, 32)})
        assert [key for key in state if not torch.equal(state[key], result[key])] == [changed]
        weights = extract(result)
        assert weights[Slot(1, "k_proj")].abs().sum() == 0
        assert torch.equal(weights[Slot(1, "q_proj")], extract(state)[Slot(1, "q_proj")])


def test_fused_rows_are_query_key_value_in_this_order(tmp_path):
    """The real module's own split of its projection output, against ours of its weight."""
    model = load_model(factories.mgp_str_folder(tmp_path / "m"))
    attention = model.mgp_str.encoder.blocks[0].attn
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    query, key, value = attention.qkv(x).reshape(1, 4, 3, 2, 16).permute(2, 0, 3, 1, 4)  # as in MgpstrAttention.forward
    weights = extract(model.state_dict())
    for projection, theirs in zip(PROJECTIONS, (query, key, value), strict=True):
        ours = x @ weights[Slot(0, projection)].T + weights[Slot(0, projection, "bias")]
        torch.testing.assert_close(ours.reshape(1, 4, 2, 16).transpose(1, 2), theirs)


def test_the_fused_row_of_modernbert_is_query_key_value_in_this_order(tmp_path, monkeypatch):
    """The module rotates what it takes for query and key; the third part is the value."""
    from transformers.models.modernbert import modeling_modernbert

    model = load_model(factories.modernbert_folder(tmp_path / "m")).eval()
    inputs, rotated = [], []
    rotate = modeling_modernbert.apply_rotary_pos_emb
    monkeypatch.setattr(
        modeling_modernbert,
        "apply_rotary_pos_emb",
        lambda q, k, *more, **named: rotated.append((q, k)) or rotate(q, k, *more, **named),
    )
    model.model.layers[0].attn.Wqkv.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(torch.arange(3, 9)[None])
    weights = extract(model.state_dict())
    for projection, theirs in zip(PROJECTIONS, rotated[0], strict=False):
        ours = inputs[0] @ weights[Slot(0, projection)].T
        torch.testing.assert_close(ours.unflatten(2, (2, 16)).transpose(1, 2), theirs)


def test_extracted_tensors_are_views_of_the_model(tmp_path):
    model = load_model(factories.mgp_str_folder(tmp_path / "m"))
    extract(model.state_dict())[Slot(0, "v_proj")].zero_()
    assert model.mgp_str.encoder.blocks[0].attn.qkv.weight[64:].abs().sum() == 0
    assert model.mgp_str.encoder.blocks[0].attn.qkv.weight[:64].abs().min() > 0


def test_unmatched_state_dict_names_the_keys_it_saw():
    with pytest.raises(DataError, match=r"conv1\.weight, fc\.bias.*Known: encoder\.layers\.\{layer\}\.attention"):
        find_attention(["conv1.weight", "fc.bias"], "resnet")
    with pytest.raises(DataError, match="Keys seen: encoder"):
        find_attention([f"encoder.layers.0.self_attn.{p}.weight_scale" for p in PROJECTIONS], "quantized")


def test_incomplete_layers_are_named():
    keys = [f"encoder.layer.{i}.attention.self.{p}.weight" for i in (0, 2) for p in ("query", "key", "value")]
    with pytest.raises(DataError, match=r"of 3 attention layers it lacks layer 1 q_proj\.weight"):
        find_attention(keys, "bert")


def test_several_encoders_need_a_prefix():
    keys = [f"{m}.encoder.layers.0.self_attn.{p}.weight" for m in ("text_model", "vision_model") for p in PROJECTIONS]
    with pytest.raises(
        DataError, match="'text_model.', 'vision_model.': choose one with the key prefix .*: vision_model"
    ):
        find_attention(keys, "clip")
    assert find_attention(keys, "clip", "vision_model.").names[Slot(0, "q_proj")].startswith("vision_model.")
    with pytest.raises(DataError, match="after the prefix 'audio_model.'"):
        find_attention(keys, "clip", "audio_model.")


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_each_tower_of_a_clip_is_a_source(tower, tmp_path):
    folder = factories.clip_folder(tmp_path / "clip")
    with pytest.raises(
        DataError, match="choose one with the key prefix next to its model, such as prefix: vision_model"
    ):
        read_attention(folder)
    state = load_file(folder / "model.safetensors")
    weights = read_attention(folder, tower)
    assert len(weights) == 12
    assert torch.equal(weights[Slot(1, "v_proj")], state[f"{tower}.encoder.layers.1.self_attn.v_proj.weight"])
    with pytest.raises(DataError, match="a tower for text and one for images"):
        source_kind(folder, "clip", tower)


def test_cross_attention_of_a_decoder_is_not_taken():
    keys = [f"encoder.layers.0.self_attn.{p}.weight" for p in PROJECTIONS]
    keys += [f"decoder.layers.{i}.encoder_attn.{p}.weight" for i in range(4) for p in PROJECTIONS]
    assert find_attention(keys, "whisper").layers == 1


def test_row_names_are_unique():
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES)
