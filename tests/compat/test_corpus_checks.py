"""Audio of another format and empty transcripts are refused by name; good files pass unchanged."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.errors import DataError

WRONG = {"stereo": (2, 16000), "rate": (1, 44100), "both": (2, 8000)}


def write(path, channels=1, rate=16000):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1600, channels)).astype(np.float32)
    soundfile.write(path, samples.squeeze(), rate)
    return samples


@pytest.fixture(scope="module", autouse=True)
def installed():
    s3prl_ext.install()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("module", ["asr.dataset", "ctc.data", "fluent_commands.dataset", "voxceleb1.dataset"])
def test_wrong_format_is_refused_by_name(tmp_path, module, wrong):
    path = tmp_path / "clip.wav"
    channels, rate = WRONG[wrong]
    write(path, channels, rate)
    dataset = importlib.import_module(f"s3prl.downstream.{module}")
    with pytest.raises(DataError, match=rf"clip\.wav has {channels} channels? at {rate} Hz.*sox"):
        dataset.torchaudio.load(str(path))


def test_right_format_passes_unchanged(tmp_path):
    samples = write(tmp_path / "clip.wav")
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    loaded, rate = dataset.torchaudio.load(str(tmp_path / "clip.wav"))
    assert rate == 16000 and loaded.shape == (1, 1600)
    np.testing.assert_allclose(loaded[0].numpy(), samples[:, 0], atol=2**-14)
    assert dataset.torchaudio.functional is not None, "everything else is torchaudio's own"


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_diarization_recording(tmp_path, wrong):
    channels, rate = WRONG[wrong]
    write(tmp_path / "rec.wav", channels, rate)
    dataset = importlib.import_module("s3prl.downstream.diarization.dataset")
    data = dataset.KaldiData.__new__(dataset.KaldiData)
    data.wavs = {"rec": str(tmp_path / "rec.wav")}
    with pytest.raises(DataError, match=rf"rec\.wav has {channels} channel"):
        data.load_wav("rec")


def test_empty_transcript_is_refused_by_name(tmp_path):
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    folder = tmp_path / "train" / "1" / "2"
    folder.mkdir(parents=True)
    (folder / "1-2.trans.txt").write_text("1-2-0000 HELLO\n1-2-0001\n1-2-0002\n")
    reader = SimpleNamespace(libri_root=str(tmp_path), _parse_x_name=lambda x: x.split("/")[-1].split(".")[0])
    load = dataset.SequenceDataset._load_transcript
    assert load(reader, ["train/1/2/1-2-0000.flac"])["1-2-0000"] == "H E L L O |"
    with pytest.raises(DataError, match="1-2-0001.flac.*empty transcript"):
        load(reader, ["train/1/2/1-2-0000.flac", "train/1/2/1-2-0001.flac"])
    with pytest.raises(DataError, match=r"no such transcripts: .*train/1/3/1-3\.trans\.txt.*LIBRISPEECH"):
        load(reader, ["train/1/2/1-2-0000.flac", "train/1/3/1-3-0001.flac"])


def test_features_refuse_matrices_and_clips_below_a_frame():
    from s3prl_ext.training.forward import TaskModels

    class Upstream(torch.nn.Module):
        def forward(self, wavs):
            return [w[: len(w) // 320 * 320].view(-1, 320) for w in wavs]

    class Featurizer(torch.nn.Module):
        def forward(self, wavs, hidden):
            return hidden

    models = TaskModels(Upstream(), Featurizer(), torch.nn.Identity(), "cpu")
    with pytest.raises(DataError, match=r"clip 'b' has 100 samples \(0.006 s\), less than one frame"):
        models.features([np.zeros(3200), np.zeros(100)], names=["a", "b"])
    with pytest.raises(DataError, match=r"clip 'a' has shape \(2, 3200\)"):
        models.features([np.zeros((2, 3200))], names=["a"])
    assert [len(f) for f in models.features([np.zeros(3200)])] == [10]
