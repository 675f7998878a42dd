"""Audio over soundfile with torchaudio's arguments, and the sox effects over it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.compat import audio, sox
from s3prl_ext.errors import DataError, UsageError

RATE = 16000


@pytest.fixture
def wav(tmp_path):
    """A stereo PCM16 file of 100 ms: a ramp on the left, its negative on the right."""
    path = tmp_path / "ramp.wav"
    ramp = np.arange(1600, dtype=np.int16)
    soundfile.write(path, np.stack([ramp, -ramp], axis=1), RATE, subtype="PCM_16")
    return path


def test_load_gives_float32_channels_first(wav):
    samples, rate = audio.load(wav)
    assert (samples.shape, samples.dtype, rate) == ((2, 1600), torch.float32, RATE)
    assert torch.equal(samples[0], torch.arange(1600) / 32768)
    assert torch.equal(samples[1], -samples[0])


def test_load_honours_offset_length_and_layout(wav):
    samples, _ = audio.load(str(wav), frame_offset=100, num_frames=50, channels_first=False)
    assert samples.shape == (50, 2)
    assert torch.equal(samples[:, 0], torch.arange(100, 150) / 32768)
    assert audio.load(wav, frame_offset=1590)[0].shape == (2, 10)
    assert audio.load(wav, frame_offset=5000)[0].shape == (2, 0)


def test_load_without_normalisation_keeps_integers(wav):
    samples, _ = audio.load(wav, normalize=False)
    assert samples.dtype == torch.int16
    assert torch.equal(samples[0], torch.arange(1600, dtype=torch.int16))


def test_load_reads_an_open_file(wav):
    with open(wav, "rb") as file:
        assert audio.load(file)[0].shape == (2, 1600)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_save_and_info_agree(tmp_path, suffix):
    path = tmp_path / f"tone.{suffix}"
    tone = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(800) / RATE)
    audio.save(path, tone[None], RATE)
    assert torch.allclose(audio.load(path)[0][0], tone, atol=1 / 32768)
    info = audio.info(path)
    assert (info.sample_rate, info.num_frames, info.num_channels, info.bits_per_sample) == (RATE, 800, 1, 16)


def test_save_as_float_is_exact(tmp_path):
    path = tmp_path / "noise.wav"
    noise = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    audio.save(path, noise, RATE, encoding="PCM_F")
    assert torch.equal(audio.load(path)[0], noise)
    assert audio.info(path).encoding == "PCM_F"


def test_missing_file_is_named(tmp_path):
    for function in (audio.load, audio.info):
        with pytest.raises(DataError, match=r"no such audio file: .*/absent\.wav"):
            function(tmp_path / "absent.wav")


def test_unreadable_file_is_named(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("this is no audio")
    with pytest.raises(DataError, match=r"text\.wav cannot be read"):
        audio.load(path)


def test_unwritable_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot write the audio file .*tone\.wav"):
        audio.save(tmp_path / "no_folder" / "tone.wav", torch.zeros(1, 10), RATE)


def test_keyword_spotting_effects_scale_by_three_decibels(tmp_path):
    s3prl_ext.install()  # torchaudio may need the compat layer
    path = tmp_path / "tone.wav"
    tone = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)
    audio.save(path, tone[None], RATE, encoding="PCM_F")
    samples, rate = sox.apply_effects_file(str(path), [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]])
    assert rate == RATE
    assert torch.allclose(samples[0], tone * 0.7079458, atol=1e-6)


def test_channels_are_averaged_and_the_rate_changes_the_length():
    stereo = torch.stack([torch.full((8000,), 0.4), torch.full((8000,), 0.2)])
    samples, rate = sox.apply_effects_tensor(stereo, 8000, [["channels", "1"], ["rate", "16000"]])
    assert (samples.shape, rate) == ((1, 16000), 16000)
    assert torch.allclose(samples[0, 1000:-1000], torch.tensor(0.3), atol=1e-3)


def test_gain_clips_at_full_scale():
    samples, _ = sox.apply_effects_tensor(torch.tensor([[0.9, -0.9, 0.1]]), RATE, [["gain", "6"]])
    assert samples.tolist()[0] == pytest.approx([1.0, -1.0, 0.1 * 10**0.3])


@pytest.mark.parametrize("effect", [["gain"], ["rate", "fast"], ["tempo", "1.1"]])
def test_other_effects_are_refused(effect):
    with pytest.raises(UsageError, match="known are channels, rate, gain"):
        sox.apply_effects_tensor(torch.zeros(1, 10), RATE, [effect])
