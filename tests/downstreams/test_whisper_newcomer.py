"""What somebody tries first with a Whisper of their own: half a folder, other formats and shapes, unusual clips."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ext.attention.files import refuse_ctranslate2
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.whisper.hubconf import whisper_custom
from tests.adapters.models import clips
from tests.downstreams.test_librispeech_zeroshot import _config, _evaluate
from tests.downstreams.test_whisper_recognition import WINDOW, _of_transformers
from tests.support import factories


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """LibriSpeech with a clip of two and a quarter windows, digital silence, and a clip at 8 kHz."""
    root, rng = tmp_path_factory.mktemp("unusual") / "LibriSpeech", np.random.default_rng(0)
    folder = root / "test-clean" / "1" / "1"
    folder.mkdir(parents=True)
    for number, (wav, rate) in enumerate(
        [(rng.normal(0, 0.1, 9 * WINDOW // 4), 16000), (np.zeros(16000), 16000), (rng.normal(0, 0.1, 8000), 8000)]
    ):
        soundfile.write(folder / f"1-1-{number:04d}.flac", wav, rate)
    (folder / "1-1.trans.txt").write_text("".join(f"1-1-{number:04d} A WORD\n" for number in range(3)))
    return root


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A Whisper with the shape of distil-whisper: every layer of the encoder, first and last of the decoder."""
    from transformers import WhisperForConditionalGeneration

    folder = factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "distilled", layers=4, seed=3)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    layers = model.model.decoder.layers
    model.model.decoder.layers = torch.nn.ModuleList([layers[0], layers[-1]])
    model.config.decoder_layers = 2
    settings = (folder / "generation_config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_bytes(settings)
    return folder


def _merge(folder, target, source):
    file = folder / "merge.yaml"
    file.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}, prefix: decoder}}\nlambda: 0.1\n")
    return merged_attention(model_config=str(file))


def _windows(root, row):
    wav = read_audio(next(root.rglob(f"{row.id}.flac")))
    return [wav[start : start + WINDOW] for start in range(0, len(wav), WINDOW)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_long_silent_and_telephone_clips_are_written_as_transformers_writes_them(
    unusual, distilled, tmp_path, batch_size
):
    rows = _evaluate(tmp_path / "exp", "whisper_local", distilled, _config(unusual, eval_batch_size=batch_size))
    parts = [_windows(unusual, row) for row in rows]
    assert [len(windows) for windows in parts] == [3, 1, 1]
    expected = [" ".join(filter(None, _of_transformers(distilled, windows))) for windows in parts]
    assert [row.hypothesis for row in rows] == expected and all(expected)


def test_a_distilled_decoder_is_no_source_of_its_encoders_depth(distilled, tmp_path):
    with pytest.raises(UsageError, match="4 layers .* and source .* 2 layers .*set layer_map") as caught:
        _merge(tmp_path, distilled, distilled)
    assert "\n" not in str(caught.value)


def test_weights_and_config_alone_are_an_upstream_and_the_decoder_says_what_it_lacks(unusual, tmp_path):
    folder = factories.whisper_folder(tmp_path / "large", layers=3, bands=128, max_shard_size="40KB")
    for file in folder.iterdir():
        if file.name != "config.json" and "safetensors" not in file.name:
            file.unlink()
    features = whisper_custom(str(folder))(clips(16000))
    assert len(features["hidden_states"]) == 4
    with pytest.raises(DataError, match="lacks tokenizer.json, without which nothing can be written: copy it"):
        _evaluate(tmp_path / "exp", "whisper_local", folder, _config(unusual))


def test_a_model_for_faster_whisper_is_refused_wherever_it_is_named(unusual, distilled, tmp_path):
    folder = tmp_path / "ct2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"\x06\x00\x00\x00")
    (folder / "config.json").write_text('{"suppress_ids": [1]}')
    for used in (
        lambda: whisper_custom(str(folder)),
        lambda: _evaluate(tmp_path / "exp", "whisper_local", distilled, _config(unusual, head={"ckpt": str(folder)})),
        lambda: _merge(tmp_path, folder, distilled),
        lambda: _merge(tmp_path, distilled, folder),
    ):
        with pytest.raises(DataError, match="is a CTranslate2 conversion .*prepare whisper --ctranslate2") as caught:
            used()
        assert "\n" not in str(caught.value)
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    refuse_ctranslate2(folder)  # transformers' own files may have that name too
