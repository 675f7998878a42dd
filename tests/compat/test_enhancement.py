"""Enhancement and separation: spectra by their definition, metrics against the packages, lists, the device."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

import s3prl_ext
from s3prl_ext.compat import enhancement
from s3prl_ext.errors import DataError, UsageError
from tests.support.experiments import make_args, task_config
from tests.training.conftest import build, corpus_variables, hubert_ckpt, hubert_folder

__all__ = ["build", "corpus_variables", "hubert_ckpt", "hubert_folder"]

RATE = 16000


def speech(seed: int, seconds: float = 2.0) -> np.ndarray:
    """Return noise that comes and goes, as speech does."""
    rng = np.random.default_rng(seed)
    samples = np.convolve(rng.normal(size=int(seconds * RATE)), np.ones(8) / 8, "same")
    return (0.2 * samples * (1 + np.sin(np.arange(len(samples)) / 900))).astype(np.float32)


@pytest.mark.parametrize("hop", [160, 320])
def test_spectra_are_windowed_transforms_and_lead_back(hop):
    samples = speech(0, 0.5)
    spectra = enhancement.stft(samples, n_fft=512, hop_length=hop, win_length=512, window="hann", center=True)
    padded = np.pad(samples.astype(np.float64), 256)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = [np.fft.rfft(window * padded[start : start + 512]) for start in range(0, len(padded) - 511, hop)]
    assert spectra.dtype == np.complex64 and np.allclose(spectra, np.array(frames).T, atol=1e-4)
    back = enhancement.istft(spectra, hop_length=hop, win_length=512, window="hann", center=True, length=len(samples))
    assert len(back) == len(samples) and np.allclose(back, samples, atol=1e-5)


def test_another_window_is_refused():
    with pytest.raises(UsageError, match="unknown window 'hamming'"):
        enhancement.stft(speech(0), 512, 160, 512, "hamming", True)


def test_si_sdr_is_that_of_the_angle():
    """With the cosine c of signal and estimate: 10 log10(c^2 / (1 - c^2)), whatever the scale."""
    reference, added = speech(1).astype(np.float64), speech(2).astype(np.float64)
    for amount in (0.01, 0.3, 5.0):
        estimate = reference + amount * added
        cosine = estimate @ reference / np.linalg.norm(estimate) / np.linalg.norm(reference)
        expected = 10 * np.log10(cosine**2 / (1 - cosine**2))
        assert enhancement.si_sdr(reference, 3 * estimate) == pytest.approx(expected, abs=1e-6)


def test_a_silent_output_is_named_as_the_models():
    pytest.importorskip("pesq")
    with pytest.raises(DataError, match="the output of the model is silent"):
        enhancement.pesq(speech(1), np.zeros(RATE, np.float32), RATE)
    with pytest.raises(DataError, match=r"\(No utterances detected\): leave it out"):
        enhancement.pesq(np.zeros(RATE, np.float32), speech(1), RATE)


def test_the_order_of_the_sources_is_found():
    clean = np.stack([speech(3), speech(4)])
    mix = clean.sum(0, keepdims=True)
    estimate = clean + 0.1 * np.stack([speech(5), speech(6)])
    found = enhancement.get_metrics(mix, clean, estimate, RATE, ["si_sdr"])
    swapped = enhancement.get_metrics(mix, clean, estimate[::-1], RATE, ["si_sdr"])
    expected = np.mean([enhancement.si_sdr(c, e) for c, e in zip(clean, estimate)])
    assert found == swapped and found["si_sdr"] == pytest.approx(expected) and found["si_sdr"] > 15
    assert found["input_si_sdr"] == pytest.approx(np.mean([enhancement.si_sdr(c, mix[0]) for c in clean]))
    fixed = enhancement.get_metrics(mix, clean, estimate[::-1], RATE, ["si_sdr"], compute_permutation=False)
    assert fixed["si_sdr"] < 0


def test_quality_and_intelligibility_are_those_of_the_packages(mini_superb):
    packages = pytest.importorskip("pesq"), pytest.importorskip("pystoi")
    folder = mini_superb / "voicebank" / "test"
    clean, _ = enhancement.load(folder / "clean" / "wav" / "test000.wav")
    noisy, _ = enhancement.load(folder / "noisy" / "wav" / "test000.wav")
    found = enhancement.get_metrics(noisy[None], clean[None], clean[None], RATE, ["pesq", "stoi"], False)
    assert found["pesq"] == pytest.approx(4.644, abs=0.01) and found["stoi"] == pytest.approx(1, abs=1e-6)
    assert found["input_pesq"] == packages[0].pesq(RATE, clean, noisy, "wb") < 3.5
    assert found["input_stoi"] == packages[1].stoi(clean, noisy, RATE, extended=False) < 1
    with pytest.raises(DataError, match="PESQ is not defined for a clip of 0.06 s"):
        enhancement.pesq(clean[:1000], noisy[:1000], RATE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda split: shutil.rmtree(split / "clean"), "no such list: .*clean/wav.scp; a split needs wav.scp in each of noisy, clean"),
        (lambda split: (split / "clean" / "wav.scp").write_text("a b c\n"), "line 1 must be 'UTTERANCE PATH'"),
        (lambda split: (split / "clean" / "wav.scp").write_text("a /nowhere.wav\n"), "lists /nowhere.wav, which is not there"),
        (
            lambda split: (split / "clean" / "wav.scp").write_text(f"odd {split / 'clean' / 'wav.scp'}\n"),
            "is in one of .*lists of noisy and clean alone",
        ),
        (shutil.rmtree, "no such folder"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_refused(mini_superb, tmp_path, spoil, message):
    split = Path(shutil.copytree(mini_superb / "voicebank" / "dev", tmp_path / "dev"))
    enhancement.check_lists(split, ["noisy", "clean"])
    spoil(split)
    with pytest.raises(DataError, match=message):
        enhancement.check_lists(split, ["noisy", "clean"])


@pytest.fixture
def dev(mini_superb, tmp_path) -> Path:
    """A copy of dev, with lists of its own files."""
    s3prl_ext.install()
    split = Path(shutil.copytree(mini_superb / "voicebank" / "dev", tmp_path / "dev"))
    for table in split.rglob("wav.scp"):
        table.write_text(table.read_text().replace(str(mini_superb / "voicebank"), str(tmp_path)))
    return split


@pytest.mark.parametrize("condition", ["noisy", "clean"])
def test_signals_of_a_clip_are_equally_long(dev, condition):
    from s3prl.downstream.enhancement_stft.dataset import SeparationDataset

    clips = SeparationDataset(str(dev), src=["noisy"], tgt=["clean"])
    path = dev / condition / "wav" / "dev001.wav"
    soundfile.write(path, soundfile.read(path)[0][:-100], RATE)
    assert len(clips[0][1]) == len(clips[0][3][0])
    with pytest.raises(DataError, match=r"dev001: .*noisy.* samples and .*clean.*: make them equally long"):
        clips[1]


@pytest.mark.parametrize("task", ["se"])
def test_a_clip_that_cannot_be_measured_is_named(task, dev, build, corpus_variables, tmp_path):
    path = dev / "clean" / "wav" / "dev002.wav"
    soundfile.write(path, 0 * soundfile.read(path)[0], RATE)
    config = task_config(task)
    config["downstream_expert"]["loaderrc"]["test_dir"] = str(dev)
    flags = {"mode": "evaluate", "downstream": "enhancement_stft", "upstream": "fbank"}
    runner = build(make_args(tmp_path / "exp", **flags), config)
    with pytest.raises(DataError, match="clip dev002 of split 'test': its clean speech is silent"):
        runner.evaluate()
