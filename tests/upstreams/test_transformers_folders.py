"""Folders as transformers' classes and versions write them: whole and of the right family, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.hf_speech.hubconf import hf_speech_custom
from s3prl_ext.upstreams.layer_similarity.block_outputs import find_blocks, load_encoder
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.support import factories

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def build(name: str, folder: Path) -> torch.nn.Module:
    import s3prl.hub

    return getattr(s3prl.hub, name)(ckpt=str(folder))


def keep_weights(folder: Path, rename=lambda name: name) -> Path:
    """Write the weights again under other names; those whose new name is None are left out."""
    file = folder / "model.safetensors"
    state = {rename(name): value for name, value in load_file(file).items()}
    state.pop(None, None)
    save_file(state, file, metadata={"format": "pt"})
    return folder


def speech_config(name: str, **options):
    import transformers

    config = getattr(transformers, f"{name}Config")
    return factories._speech_config(config, 2, 32, 2, stable_norm=False, **options)


def save_speech(path: Path, name: str, head: str = "Model", **options) -> Path:
    """Write a model of the class NAME + HEAD with its feature extractor."""
    import transformers

    model = getattr(transformers, name + head)(speech_config(name, **options))
    return factories._save_speech(model, path, ctc=False)


def with_processor_of_transformers_5(folder: Path) -> Path:
    """Leave of the preprocessing what a processor of transformers 5 writes."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(
        json.dumps({"feature_extractor": settings, "processor_class": "Wav2Vec2Processor"})
    )
    return folder


@pytest.mark.parametrize(
    ("upstream", "family", "advice"),
    [
        ("hf_hubert_custom", "WavLM", "'wavlm', but -u hf_hubert_custom takes hubert: use -u hf_speech_custom"),
        ("hf_hubert_custom", "Wav2Vec2", "'wav2vec2', .* takes hubert: use -u hf_wav2vec2_custom"),
        ("hf_wav2vec2_custom", "Hubert", "'hubert', .* takes wav2vec2: use -u hf_hubert_custom"),
        ("hf_wav2vec2_custom", "Wav2Vec2Conformer", "takes wav2vec2: use -u hf_speech_custom"),
        ("hf_hubert_custom", "Bert", "takes hubert: no upstream takes it; hf_speech_custom takes hubert"),
        ("hf_speech_custom", "Bert", "'bert', but must be one of hubert"),
    ],
)  # fmt: skip
def test_another_family_is_refused(upstream, family, advice, tmp_path):
    if family == "Bert":
        factories.hubert_folder(tmp_path)  # for its preprocessing
        (tmp_path / "config.json").write_text((factories.bert_folder(tmp_path / "text") / "config.json").read_text())
    else:
        save_speech(tmp_path, family)
    with pytest.raises(UsageError, match=advice):
        build(upstream, tmp_path)


@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom"])
def test_weights_that_would_be_drawn_at_random_are_an_error(upstream, tmp_path):
    folder = factories.hubert_folder(tmp_path / "m")
    keep_weights(folder, lambda name: None if "layers.1.attention" in name else name)
    with pytest.raises(DataError, match=r"lacks 8 weights of HubertModel.*encoder.layers.1.attention.k_proj.bias, .*, \.\.\.\)"):  # fmt: skip
        build(upstream, folder)


def test_a_text_model_without_its_embeddings_is_an_error(tmp_path):
    folder = keep_weights(factories.bert_folder(tmp_path / "bert"), lambda name: name if "word" not in name else None)
    with pytest.raises(DataError, match="lacks 1 weights of BertModel"):
        load_encoder(folder, "bert")


@pytest.mark.parametrize(
    ("upstream", "family", "head"),
    [
        ("hf_hubert_custom", "Hubert", "ForCTC"),
        ("hf_hubert_custom", "Hubert", "ForSequenceClassification"),
        ("hf_wav2vec2_custom", "Wav2Vec2", "ForPreTraining"),
        ("hf_wav2vec2_custom", "Wav2Vec2", "ForXVector"),
        ("hf_speech_custom", "WavLM", "ForXVector"),
        ("hf_speech_custom", "WavLM", "ForCTC"),
        ("hf_speech_custom", "Data2VecAudio", "ForCTC"),
        ("hf_speech_custom", "UniSpeechSat", "ForPreTraining"),
    ],
)
def test_heads_are_left_alone(upstream, family, head, tmp_path, capfd):
    folder = save_speech(tmp_path, family, head)
    built = build(upstream, folder).model.state_dict()
    stored = {name.partition(".")[2]: value for name, value in load_file(folder / "model.safetensors").items()}
    assert all(torch.equal(value, stored[name]) for name, value in built.items())


def old_name(name: str) -> str | None:
    """Return the name in files of torch's older weight norm, as released models have it; none for the mask's vector."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return None if name == "masked_spec_embed" else name.replace("parametrizations.weight.original1", "weight_v")


@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom"])
def test_released_files_without_what_an_upstream_does_not_use(upstream, tmp_path):
    folder = save_speech(tmp_path / "m", "Hubert", mask_time_prob=0.05)
    before = load_file(folder / "model.safetensors")
    assert "masked_spec_embed" in before
    keep_weights(folder, old_name)
    names = load_file(folder / "model.safetensors").keys()
    assert "encoder.pos_conv_embed.conv.weight_g" in names and "masked_spec_embed" not in names
    convolution = build(upstream, folder).model.encoder.pos_conv_embed.conv
    for part in ("original0", "original1"):
        stored = before[f"encoder.pos_conv_embed.conv.parametrizations.weight.{part}"]
        assert torch.equal(getattr(convolution.parametrizations.weight, part), stored)


@pytest.mark.parametrize(
    ("family", "head", "options"),
    [
        ("Bert", "ForMaskedLM", {"vocab_size": 31}),
        ("Bert", "ForPreTraining", {"vocab_size": 31}),
        ("Roberta", "ForMaskedLM", {"vocab_size": 31}),
        ("Electra", "ForPreTraining", {"vocab_size": 31, "embedding_size": 32}),
        ("ViT", "ForImageClassification", {"image_size": 16, "patch_size": 8}),
        ("ViT", "ForMaskedImageModeling", {"image_size": 16, "patch_size": 8}),
        ("Dinov2", "ForImageClassification", {"image_size": 16, "patch_size": 8}),
        ("DistilBert", "ForMaskedLM", {"vocab_size": 31, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
        ("ModernBert", "ForMaskedLM", {"vocab_size": 31, **MODERN}),
        ("Beit", "ForImageClassification", {"image_size": 16, "patch_size": 8, "vocab_size": 31}),
    ],
)
def test_sources_of_every_head_load_without_their_pooler(family, head, options, tmp_path):
    import transformers

    config = getattr(transformers, f"{family}Config")(**(SIZES if family != "DistilBert" else {}), **options)
    getattr(transformers, family + head)(config).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, "source")
    assert not encoder.training
    if family != "Beit":  # which no row of the table knows
        assert len(find_blocks(encoder, "source")) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom"])
def test_half_precision_runs_in_float32(upstream, dtype, tmp_path):
    folder = factories.hubert_folder(tmp_path / "half", ctc=True, dtype=dtype)
    stored = {name.removeprefix("hubert."): value for name, value in load_file(folder / "model.safetensors").items()}
    assert {value.dtype for value in stored.values()} == {dtype}
    model = build(upstream, folder)
    assert all(
        p.dtype == torch.float32 and torch.equal(p, stored[n].float()) for n, p in model.model.named_parameters()
    )
    model.train()([torch.randn(8000)])["hidden_states"][-1].sum().backward()


def merge_file(folder: Path, target: Path, share: float) -> str:
    source = factories.bert_folder(folder / "bert")
    (folder / "my.yaml").write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: {share}\n")
    return str(folder / "my.yaml")


def features(upstream: torch.nn.Module) -> torch.Tensor:
    clips = [torch.randn(size, generator=torch.Generator().manual_seed(size)) + 0.5 for size in (8000, 5000)]
    with torch.no_grad():
        return torch.stack(upstream.eval()(clips)["hidden_states"])


def test_a_merge_of_a_half_precision_target_is_an_upstream(tmp_path):
    from s3prl_ext.commands.merge import main

    target = factories.hubert_folder(tmp_path / "half", dtype=torch.float16)
    config = merge_file(tmp_path, target, 0.5)
    assert main(["-g", config, "--out", str(tmp_path / "merged")]) == 0
    in_memory = features(merged_attention(model_config=config))
    torch.testing.assert_close(features(build("hf_hubert_custom", tmp_path / "merged")), in_memory, rtol=0, atol=2e-2)
    torch.testing.assert_close(
        features(build("hf_hubert_custom", tmp_path / "merged")), features(hf_speech_custom(str(tmp_path / "merged")))
    )


def test_a_processor_saved_by_transformers_5_is_read_everywhere(tmp_path):
    from s3prl_ext.commands.merge import main

    folder = factories.hubert_folder(tmp_path / "v5", ctc=True)
    expected = features(hf_speech_custom(str(folder)))
    with_processor_of_transformers_5(folder)
    config = merge_file(tmp_path, folder, 0.0)
    assert main(["-g", config, "--out", str(tmp_path / "merged")]) == 0
    merged = tmp_path / "merged"
    assert (merged / "processor_config.json").read_bytes() == (folder / "processor_config.json").read_bytes()
    assert not (merged / "preprocessor_config.json").exists()
    for upstream in (hf_speech_custom(str(folder)), build("hf_hubert_custom", folder), merged_attention(model_config=config),
                     build("hf_hubert_custom", merged)):  # fmt: skip
        assert upstream.extracter.do_normalize
        torch.testing.assert_close(features(upstream), expected, rtol=0, atol=0)


def test_the_processor_that_the_installed_version_saves_is_read(tmp_path):
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    folder = factories.hubert_folder(tmp_path / "m", ctc=True)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    assert hf_speech_custom(str(folder)).extracter.to_dict() == extractor.to_dict()


def test_merge_refuses_what_no_upstream_reads(tmp_path):
    from s3prl_ext.commands.merge import main

    folder = factories.bert_folder(tmp_path / "text")
    with pytest.raises(UsageError, match="holds a model of type 'bert', but must be one of"):
        main(["-g", merge_file(tmp_path, folder, 0.1), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_merged_unispeech_sat_is_written_and_read(tmp_path):
    from s3prl_ext.commands.merge import main

    folder = save_speech(tmp_path / "sat", "UniSpeechSat")
    config = merge_file(tmp_path, folder, 0.3)
    assert main(["-g", config, "--out", str(tmp_path / "out")]) == 0
    assert "-u hf_speech_custom -k" in (tmp_path / "out" / "README.md").read_text()
    torch.testing.assert_close(
        features(hf_speech_custom(str(tmp_path / "out"))), features(merged_attention(model_config=config))
    )


def with_setting(folder: Path, file: str, key: str, value: object) -> Path:
    """Change one setting of a model folder; '' stands for the whole file."""
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, key: value} if key else value))
    return folder


CONFIG = [
    ("", [1, 2], "holds list in place of a mapping"),
    ("num_hidden_layers", 999999999999, "num_hidden_layers must be a whole number from 1 to 1,000, but is 999999999999"),
    ("num_hidden_layers", True, "but is true"),
    ("hidden_size", "", 'hidden_size must be a whole number from 1 to 10,000,000, but is ""'),
    ("hidden_size", None, "but is null"),
    ("num_attention_heads", 1.5, "but is 1.5"),
    ("intermediate_size", [], r"but is \[\]"),
    ("vocab_size", -1, "but is -1"),
    ("conv_stride", [10, -1, 4, 2], "conv_stride must be a list of whole numbers from 1 to"),
    ("conv_kernel", 7, "conv_kernel must be a list"),
    ("conv_dim", [], "conv_dim must be a list"),
    ("do_stable_layer_norm", "x", "do_stable_layer_norm must be true or false"),
    ("layer_norm_eps", float("nan"), "layer_norm_eps must be a number from 0 to 1, but is NaN"),
    ("attention_dropout", float("inf"), "attention_dropout must be a number from 0 to 1"),
    ("mask_time_prob", {}, "mask_time_prob must be a number"),
]  # fmt: skip
PREPROCESSOR = [
    ("feature_size", 2, "feature_size: 2, which must be 1"),
    ("sampling_rate", 8000, "sampling_rate: 8000, which must be 16000"),
    ("sampling_rate", "", 'sampling_rate: "", which'),
    ("padding_value", [], r"padding_value: \[\], which must be a number"),
    ("padding_value", "0", "padding_value"),
    ("padding_side", [], "padding_side"),
    ("padding_side", "left", 'padding_side: "left", which must be right'),
    ("do_normalize", "yes", "do_normalize"),
    ("return_attention_mask", 2, "return_attention_mask"),
]


@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom"])
@pytest.mark.parametrize(("key", "value", "message"), CONFIG)
def test_a_setting_of_another_kind_is_named_before_a_model_is_built(upstream, key, value, message, tmp_path):
    folder = with_setting(factories.hubert_folder(tmp_path / "m"), "config.json", key, value)
    with pytest.raises(DataError, match=rf"m/config\.json: .*{message}"):
        build(upstream, folder)


@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom"])
@pytest.mark.parametrize(("key", "value", "message"), PREPROCESSOR)
def test_preprocessing_of_another_kind_is_named(upstream, key, value, message, tmp_path):
    folder = with_setting(factories.hubert_folder(tmp_path / "m"), "preprocessor_config.json", key, value)
    with pytest.raises(DataError, match=rf"preprocessor_config.json of .*/m says {message}"):
        build(upstream, folder)


def test_a_merge_judges_the_settings_of_its_target(tmp_path):
    folder = with_setting(factories.hubert_folder(tmp_path / "m"), "config.json", "hidden_size", {})
    (tmp_path / "merge.yaml").write_text(
        f"target: {{model: {folder}}}\nsource: {{model: {factories.bert_folder(tmp_path / 'b')}}}\nlambda: 0.1\n"
    )
    from s3prl_ext.commands import merge

    with pytest.raises(DataError, match="m/config.json: hidden_size must be"):
        merge.main(["-u", "merged_attention", "-g", str(tmp_path / "merge.yaml"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_w2v_bert_whose_settings_ask_for_no_mask_of_padding_gets_one(tmp_path):
    wavs = [torch.randn(9000), torch.randn(5000)]
    folder = factories.w2v_bert_folder(tmp_path / "m")
    expected = build("hf_speech_custom", folder)(wavs)["last_hidden_state"]
    without = with_setting(folder, "preprocessor_config.json", "return_attention_mask", False)
    assert torch.equal(build("hf_speech_custom", without)(wavs)["last_hidden_state"], expected)
