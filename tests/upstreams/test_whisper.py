"""Whisper's encoder as an upstream: the states of transformers' own encoder, lengths, windows, batches, gradients."""

from __future__ import annotations

import json

import pytest
import torch

import s3prl_ext
from s3prl_ext import adapters
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE, UpstreamExpert
from s3prl_ext.upstreams.whisper.frontend import LogMel
from s3prl_ext.upstreams.whisper.hubconf import whisper_custom, whisper_local
from s3prl_ext.upstreams.windows import number_of_states
from tests.adapters.models import clips
from tests.support import factories

s3prl_ext.install()

WINDOW = 32000  # samples in the 2 s window of the tiny model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "tiny")


def _states(upstream, wavs):
    with torch.no_grad():
        return upstream.eval()(wavs)["hidden_states"]


def _reference(folder, wavs):
    """Return the states of transformers' own feature extractor and encoder, which pad every clip to the window."""
    from transformers import WhisperFeatureExtractor, WhisperModel

    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    model = WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    mel = extractor([wav.numpy() for wav in wavs], sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        output = model.encoder(mel, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


@pytest.mark.parametrize("bare", [False, True])
def test_the_padded_form_equals_transformers_encoder(tmp_path, bare):
    folder = factories.whisper_folder(tmp_path / "whisper", bare=bare)
    wavs = clips(32000, 20000, 5000)
    expected = _reference(folder, wavs)
    found = _states(UpstreamExpert(folder, padded=True), wavs)
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        for clip, wav in enumerate(wavs):
            count = number_of_states(len(wav), DOWNSAMPLE_RATE)
            assert torch.allclose(ours[clip, :count], theirs[clip, :count], rtol=0, atol=1e-5)
            assert not ours[clip, count:].any()


def test_the_spectrogram_of_a_clip_is_the_beginning_of_the_padded_one(folder):
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    wav = clips(12345)[0]
    padded = torch.from_numpy(extractor([wav.numpy()], sampling_rate=16000, return_tensors="np").input_features[0])
    for frames in (76, 200):
        ours = LogMel(80)([wav], [frames], WINDOW)[0]
        assert torch.allclose(ours, padded[:, :frames], rtol=0, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_clip_has_the_same_states_alone_and_in_a_batch(folder, padded):
    upstream = UpstreamExpert(folder, padded)
    wavs = clips(16000, 12000, 700, 41000)
    together = _states(upstream, wavs)
    for clip, wav in enumerate(wavs):
        for batch, alone in zip(together, _states(upstream, [wav]), strict=True):
            assert torch.allclose(batch[clip, : alone.shape[1]], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 100, 160, 399, 400, 16000, 16161, 31999, 32000, 32001, 32100, 90000])
def test_lengths_are_those_of_the_featurizer(folder, samples):
    upstream = UpstreamExpert(folder)
    found = _states(upstream, clips(samples))[-1]
    assert abs(found.shape[1] - round(samples / upstream.get_downsample_rates())) < 5
    assert torch.isfinite(found).all()


def test_a_long_clip_is_read_window_by_window(folder):
    upstream = UpstreamExpert(folder, padded=True)
    wav = clips(80000)[0]
    parts = [_states(upstream, [part])[-1][0] for part in wav.split(WINDOW)]
    assert torch.allclose(_states(upstream, [wav])[-1][0], torch.cat(parts), rtol=0, atol=1e-6)
    assert torch.cat(parts).shape == (250, 32)


def test_s3prls_featurizer_takes_it(folder):
    from s3prl.upstream.interfaces import Featurizer

    upstream = UpstreamExpert(folder)
    wavs = clips(16000, 9000)
    features = Featurizer(upstream, "hidden_states", "cpu")(wavs, upstream(wavs))
    assert [feature.shape for feature in features] == [(50, 32), (28, 32)]


def test_gradients_reach_every_block_and_no_convolution_trains(folder):
    upstream = UpstreamExpert(folder).train()
    upstream(clips(8000, 6000))["last_hidden_state"].square().mean().backward()
    without = {n for n, p in upstream.named_parameters() if p.requires_grad and not p.grad.abs().sum()}
    assert without == set()
    assert {f"conv{i}" for i in (1, 2)} == {n.split(".")[2] for n, _ in upstream.named_parameters() if "conv" in n}
    upstream.feature_extractor.requires_grad_(False)
    assert not any(p.requires_grad for n, p in upstream.named_parameters() if "conv" in n or "positions" in n)


def test_eligible_weights_are_those_of_the_blocks_and_the_last_norm(folder):
    chosen = eligible_parameters(UpstreamExpert(folder))
    width, inner = 32, 64
    block = 4 * width * width + 3 * width + 2 * width * inner + inner + width + 4 * width
    assert sum(p.numel() for p in chosen.values()) == 2 * block + 2 * width
    assert not any("conv" in name or "positions" in name for name in chosen)


def test_weights_of_the_released_base_size():
    from transformers import WhisperConfig

    from s3prl_ext.upstreams.whisper.encoder import WhisperModel

    with torch.device("meta"):
        model = WhisperModel(
            WhisperConfig(d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048)
        )
    assert sum(p.numel() for p in eligible_parameters(model).values()) == 18_912_256
    assert adapters.count("houlsby", adapters.dimensions(model)) == 6 * (2 * 512 * 32 + 32 + 512)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    upstream = UpstreamExpert(factories.whisper_folder(tmp_path / "half", dtype=torch.float16))
    assert {p.dtype for p in upstream.parameters()} == {torch.float32}
    assert _states(upstream, clips(8000))[-1].dtype == torch.float32


def test_shards_and_128_bands(tmp_path):
    folder = factories.whisper_folder(tmp_path / "large", bands=128, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    wavs = clips(20000)
    assert torch.allclose(
        _states(UpstreamExpert(folder, padded=True), wavs)[-1][0], _reference(folder, wavs)[-1][0, :62], atol=1e-5
    )


def test_the_window_is_an_option(folder):
    assert not whisper_local(str(folder)).padded
    assert whisper_local(str(folder), "window=30").padded
    assert not whisper_local(str(folder), "window=clip").padded
    with pytest.raises(UsageError, match=r"window must be clip .* or 30 .*, got 20"):
        whisper_local(str(folder), "window=20")
    with pytest.raises(UsageError, match="did you mean 'window'"):
        whisper_local(str(folder), "windows=30")


def _edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def _without_config(folder):
    (folder / "config.json").unlink()
    return folder


def _ctranslate2(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "model.bin").write_bytes(b"\x06\x00\x00\x00")
    (folder / "config.json").write_text('{"alignment_heads": [[3, 1]], "suppress_ids": [1]}')
    return folder


@pytest.mark.parametrize(
    "spoil, error, sentence",
    [
        (_without_config, DataError, "lacks config.json"),
        (_ctranslate2, DataError, "is a CTranslate2 conversion .*s3prl-ext prepare whisper --ctranslate2"),
        (
            lambda folder: _edit(folder, model_type="hubert"),
            UsageError,
            "type 'hubert', not whisper: .* hf_speech_custom",
        ),
        (lambda folder: _edit(folder, encoder_layers=3), DataError, "15 of the encoder's are missing"),
        (lambda folder: _edit(folder, encoder_layers=1), DataError, "15 unknown"),
        (lambda folder: _edit(folder, d_model=64), DataError, "do not fit its config.json"),
        (lambda folder: _edit(folder, d_model="wide"), DataError, "config.json: d_model must be a whole number"),
        (lambda folder: folder / "model.safetensors", DataError, "is a folder .* but .*model.safetensors is a file"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_in_one_sentence(tmp_path, spoil, error, sentence):
    path = spoil(factories.whisper_folder(tmp_path / "whisper"))
    with pytest.raises(error, match=sentence) as caught:
        whisper_custom(str(path))
    assert "\n" not in str(caught.value)


def test_a_model_must_be_named_and_be_there(tmp_path):
    with pytest.raises(UsageError, match="needs a transformers folder or hub id: -k FOLDER"):
        whisper_custom()
    with pytest.raises(UsageError, match="no such model folder: .* whisper_custom"):
        whisper_local(str(tmp_path / "nothing"))
