"""Layers by similarity on a Whisper: clips through the encoder, transcripts through the decoder."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import extract
from s3prl_ext.commands.layers import main as layers
from s3prl_ext.errors import DataError, ExtError, UsageError
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.layer_similarity.text_encoder import DecoderEncoder
from s3prl_ext.upstreams.merged_attention.decoder import decoder_attention
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert
from tests.downstreams.test_merged_decoder import _head
from tests.support import factories

TEXTS = ("a bee", "see the deep blue sea", "ef", "gee h", "i jay kay", "queue are es")
PROMPT = [41, 42, 45, 49]  # start, <|en|>, <|transcribe|>, <|notimestamps|> of the tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "tiny", seed=3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def table(tmp_path):
    """Write six clips, one of them longer than the model's window of 2 s, and their table."""
    generator = np.random.default_rng(0)
    for index in range(len(TEXTS)):
        samples = 70000 if index == 2 else 6000 + 1700 * index
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(samples), 16000)
    rows = [f"{index}.wav\t{text}" for index, text in enumerate(TEXTS)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n")
    return tmp_path / "pairs.tsv"


def test_blocks_of_the_encoder_are_those_of_its_own_states_in_every_window(folder, table, tmp_path):
    upstream = UpstreamExpert(folder).eval()
    short, long = SpeechEncoder(upstream, "whisper").states([tmp_path / "0.wav", tmp_path / "2.wav"])
    for states, name in ((short, "0.wav"), (long, "2.wav")):
        wav = torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0])
        with torch.no_grad():
            hidden = upstream([wav])["hidden_states"]
        assert states.shape == (2, hidden[0].shape[1], 32)
        assert torch.allclose(states[0], hidden[1][0], atol=1e-5)
        assert torch.allclose(upstream.model.encoder.layer_norm(states[1]), hidden[2][0], atol=1e-5)
    assert long.shape[1] == 219  # 70,000 samples in steps of 320


def test_padding_to_the_whole_window_is_left_out(folder, table, tmp_path):
    upstream = UpstreamExpert(folder, padded=True).eval()
    encoder = SpeechEncoder(upstream, "whisper")
    assert encoder.pads
    for states, name in zip(encoder.states([tmp_path / "0.wav", tmp_path / "2.wav"]), ("0.wav", "2.wav"), strict=True):
        wav = torch.from_numpy(soundfile.read(tmp_path / name, dtype="float32")[0])
        with torch.no_grad():
            hidden = upstream([wav])["hidden_states"]
        assert states.shape == (2, hidden[0].shape[1], 32) and torch.allclose(states[0], hidden[1][0], atol=1e-5)


def _by_hand(folder, text):
    """Return the outputs of the decoder's blocks from transformers' own model, which hears 2 s of silence."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperModel

    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    mel = extractor(np.zeros(32000, np.float32), sampling_rate=16000, return_tensors="pt").input_features
    ids = [*PROMPT, *tokenizer(f" {text}", add_special_tokens=False)["input_ids"]]
    seen = []
    for block in model.decoder.layers:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(input_features=mel, decoder_input_ids=torch.tensor([ids]))
    return torch.stack([output[0] if isinstance(output, tuple) else output for output in seen])[:, 0]


def test_blocks_of_the_decoder_read_the_prompt_and_the_text_over_silence(folder):
    encoder = DecoderEncoder(folder, "whisper")
    together = encoder.states(list(TEXTS))
    for text, states in zip(TEXTS, together, strict=True):
        expected = _by_hand(folder, text)
        assert states.shape == expected.shape == (2, len(PROMPT) + 1 + len(text), 32)
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.states([text])[0], states, rtol=1e-4, atol=1e-4)
    without = DecoderEncoder(folder, "whisper", special_tokens=False).states([TEXTS[0]])[0]
    torch.testing.assert_close(without, together[0][:, len(PROMPT) :], rtol=1e-4, atol=1e-4)


def test_a_long_text_is_cut_with_a_warning_and_an_empty_one_is_refused(folder, caplog, tmp_path):
    encoder = DecoderEncoder(folder, "whisper")
    with caplog.at_level(logging.WARNING, logger="s3prl_ext"):
        (states,) = encoder.states(["abc" * 20])
    assert states.shape == (2, 32, 32) and "has 65 tokens, of which whisper takes 32" in caplog.text
    other = factories.whisper_folder(tmp_path / "other")
    (other / "generation_config.json").unlink()
    with pytest.raises(DataError, match="lacks generation_config.json"):
        DecoderEncoder(other, "whisper")


def _compare(folder, table, out, *flags):
    flags = ["--target", str(folder), "--source", str(folder), "--pairs", str(table), "--share", "1", *flags]
    assert layers([*flags, "--top-k", "1", "--device", "cpu", "--out", str(out)]) == 0
    return json.loads((out / "layers.json").read_text())


def test_the_command_compares_encoder_and_decoder_and_the_other_way_round(folder, table, tmp_path, capsys):
    one = _compare(folder, table, tmp_path / "one", "--source-prefix", "decoder")
    two = _compare(folder, table, tmp_path / "two", "--target-prefix", "decoder")
    assert (one["target"]["kind"], one["source"]["kind"]) == ("speech", "text")
    assert (two["target"]["kind"], two["source"]["kind"]) == ("text", "speech")
    assert one["source"]["name"] == two["target"]["name"] == f"{folder} (decoder)"
    encoder = SpeechEncoder(UpstreamExpert(folder).eval(), "whisper")
    x = torch.stack([s.mean(1) for s in encoder.states([tmp_path / f"{i}.wav" for i in range(len(TEXTS))])])
    y = torch.stack([s.mean(1) for s in DecoderEncoder(folder, "whisper").states(list(TEXTS))])
    expected = [(x[:, i] - y[:, i]).norm(dim=1).mean().item() for i in range(2)]
    assert one["metrics"]["euclidean"]["values"] == pytest.approx(expected, rel=1e-5)
    for metric, row in one["metrics"].items():
        assert two["metrics"][metric]["values"] == pytest.approx(row["values"], rel=1e-5), metric
    frames = ["--level", "frame", "--metric", "swd"]
    one = _compare(folder, table, tmp_path / "three", "--source-prefix", "decoder", *frames)
    two = _compare(folder, table, tmp_path / "four", "--target-prefix", "decoder", *frames)
    assert two["metrics"]["swd"]["values"] == pytest.approx(one["metrics"]["swd"]["values"], rel=1e-5)


def test_a_second_encoder_hears_the_clips(folder, table, tmp_path):
    found = _compare(folder, table, tmp_path / "one")
    assert found["source"]["kind"] == "speech"
    assert found["metrics"]["euclidean"]["values"] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize("part, other", [("encoder", "decoder"), ("decoder", "encoder")])
@pytest.mark.parametrize("how", ["pairs", "from"])
def test_a_merge_takes_the_most_similar_layers(folder, table, tmp_path, part, other, how):
    flags = ("--source-prefix", "decoder") if part == "encoder" else ("--target-prefix", "decoder")
    found = _compare(folder, table, tmp_path / "layers", *flags)
    (chosen,) = found["metrics"]["swd"]["layers"]
    where = {"pairs": f"pairs: {table}, share: 1", "from": f"from: {tmp_path / 'layers' / 'layers.json'}"}[how]
    config = tmp_path / "merge.yaml"
    config.write_text(
        f"target: {{model: {folder}, prefix: {part}}}\nsource: {{model: {folder}, prefix: {other}}}\nlambda: 0.5\n"
        f"layers: {{by: swd, top_k: 1, {where}}}\n"
    )
    upstream = merged_attention(model_config=str(config))
    merged = extract(upstream.state_dict()) if part == "encoder" else decoder_attention(_head(folder, str(config)))
    before = read_attention(folder, part)
    changed = {slot.layer for slot, tensor in merged.items() if not torch.equal(tensor, before[slot])}
    assert changed == {chosen}
    (record,) = upstream.merge_record["sources"]
    assert record["layer_selection"]["layers"] == [chosen]

    from s3prl_ext.commands.merge import main as merge

    assert merge(["-g", str(config), "--out", str(tmp_path / "merged")]) == 0
    written = read_attention(tmp_path / "merged", part)
    assert all(torch.equal(written[slot], merged[slot]) for slot in merged)


def test_a_file_made_with_the_encoder_is_refused_for_the_decoder(folder, table, tmp_path):
    _compare(folder, table, tmp_path / "layers", "--source-prefix", "decoder")
    config = tmp_path / "merge.yaml"
    config.write_text(
        f"target: {{model: {folder}, prefix: decoder}}\nsource: {{model: {folder}}}\nlambda: 0.5\n"
        f"layers: {{by: swd, top_k: 1, from: {tmp_path / 'layers' / 'layers.json'}}}\n"
    )
    with pytest.raises(DataError, match=r"made with another target: .* now it is .*\(decoder\)"):
        merged_attention(model_config=str(config))


def _vit(path):
    factories.vit_folder(path)
    (path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    return path


@pytest.mark.parametrize(
    "flags, error, sentence",
    [
        (("--source-prefix", "decodr"), DataError, "no attention after the prefix 'decodr'; did you mean 'decoder'"),
        (
            ("--source", "DEEP", "--source-prefix", "decoder"),
            UsageError,
            "2 layers of width 32 .* 3 layers .* layer_map",
        ),
        (("--source", "WIDE", "--source-prefix", "decoder"), UsageError, "choose models of equal width"),
        (("--target", "HUBERT", "--target-prefix", "decoder"), UsageError, "decoder belongs to a Whisper"),
        (("--source", "VIT", "--target-prefix", "decoder"), UsageError, "reads transcripts and .* images"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(folder, table, tmp_path, flags, error, sentence):
    made = {
        "DEEP": lambda path: factories.whisper_folder(path, layers=3),
        "WIDE": lambda path: factories.whisper_folder(path, width=48),
        "HUBERT": lambda path: factories.hubert_folder(path, width=32),
        "VIT": _vit,
    }
    flags = [str(made[flag](tmp_path / flag)) if flag in made else flag for flag in flags]
    with pytest.raises(error, match=sentence) as caught:
        _compare(folder, table, tmp_path / "out", *flags)
    assert "\n" not in str(caught.value) and isinstance(caught.value, ExtError)
