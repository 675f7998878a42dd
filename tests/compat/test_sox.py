"""The effect ``silence`` against sox's own way: sample by sample, with two buffers."""

from __future__ import annotations

from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.compat import sox, torchaudio
from s3prl_ext.compat.sox import apply_effects_file, apply_effects_tensor
from s3prl_ext.errors import UsageError
from s3prl_ext.prediction import recordings

RATE = 16000
SILENCE = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]  # of s3prl's speaker verification


def as_sox(samples: np.ndarray, duration: int, threshold: float) -> np.ndarray:
    """Return what sox keeps: a ring of the last 20 ms gives the level; held samples are written or dropped whole."""
    ring, place, total = [0.0] * (RATE // 50), 0, 0.0
    copying, held, out = False, [], []
    for sample in map(float, samples):
        total += sample**2 - ring[place]
        ring[place], place = sample**2, (place + 1) % len(ring)
        loud = sqrt(max(0.0, total) / len(ring)) > threshold
        if copying and loud:
            out += [*held, sample]
            held = []
        elif copying:
            held.append(sample)
            if len(held) >= duration:
                copying, held, ring, place, total = False, [], [0.0] * len(ring), 0, 0.0
        else:
            held = [*held, sample] if loud else []
            if len(held) >= duration:
                copying, out, held = True, [*out, *held], []
    return np.array(out + (held if copying else []), dtype=np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_silence_is_cut_out_as_sox_does(seed):
    rng = np.random.default_rng(seed)
    levels = rng.choice([0.0, 0.0003, 0.0009, 0.0011, 0.002, 0.1], 12)
    samples = np.concatenate([rng.normal(0, level, int(n)) for level, n in zip(levels, rng.integers(10, 6000, 12))])
    samples = samples.astype(np.float32)
    found, rate = apply_effects_tensor(torch.from_numpy(samples)[None], RATE, [SILENCE])
    expected = as_sox(samples, RATE // 10, 0.001)
    assert rate == RATE and 0 < len(expected) < len(samples) and np.array_equal(found[0].numpy(), expected)


def test_silence_throughout_leaves_nothing_and_speech_stays_whole():
    assert apply_effects_tensor(torch.zeros(1, 5000), RATE, [SILENCE])[0].shape == (1, 0)
    loud = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_effects_tensor(loud, RATE, [SILENCE])[0], loud)
    assert apply_effects_tensor(torch.zeros(1, 0), RATE, [SILENCE])[0].shape == (1, 0)


@pytest.mark.parametrize(
    "effect",
    [
        ["silence", "1", "0.1"],
        ["silence", "1", "0.1", "0.1%"],
        [*SILENCE[:4], "1", "0.1", "0.1%"],
        [*SILENCE[:3], "-60d", *SILENCE[4:]],
    ],
)
def test_another_form_of_silence_is_refused(effect):
    with pytest.raises(UsageError, match="'silence .*' is not available: known is silence 1 SECONDS PERCENT%"):
        apply_effects_tensor(torch.zeros(1, 5000), RATE, [effect])


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (11025, 1), (16000, 1), (44100, 2), (48000, 1)])
def test_an_evaluation_resamples_as_a_prediction_does(tmp_path, rate, channels):
    s3prl_ext.install()
    samples = np.random.default_rng(rate).normal(0, 0.1, (rate // 2 + 3, channels)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", samples, rate, subtype="FLOAT")
    found, new_rate = apply_effects_file(str(tmp_path / "clip.wav"), [["channels", "1"], ["rate", "16000"]])
    assert new_rate == RATE and found.dtype == torch.float32
    assert np.array_equal(found[0].numpy(), recordings.read(tmp_path / "clip.wav").samples)


def test_a_tone_leaves_no_image_above_the_old_band():
    tone = torch.sin(2 * torch.pi * 3300 * torch.arange(8000) / 8000)[None]
    found, _ = apply_effects_tensor(tone, 8000, [["rate", "16000"]])
    power = np.abs(np.fft.rfft(found[0].numpy() * np.hanning(found.shape[1]))) ** 2
    assert 10 * np.log10(power[4700 - 20 : 4700 + 20].max() / power.max()) < -50


def test_tasks_that_resample_do_so_whichever_torchaudio_there_is():
    bound = [shim for shim in torchaudio.SHIMS if shim.name.startswith("sox-")]
    assert {shim.module for shim in bound} == {
        "s3prl.downstream.quesst14_dtw.dataset", "s3prl.downstream.speech_commands.dataset"
    }  # fmt: skip
    for shim in bound:
        module = SimpleNamespace(apply_effects_file="of an older torchaudio")
        assert shim.needed(module)
        shim.apply(module)
        assert module.apply_effects_file is sox.apply_effects_file and not shim.needed(module)
