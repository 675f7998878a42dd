"""Audio of another format and empty transcripts are refused by name; good files pass unchanged."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pandas
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


@pytest.mark.parametrize(("rate", "frames", "fits"), [(16000, 16000, True), (16000, 15999, False), (8000, 8000, True)])
def test_background_noise_lasts_a_second(tmp_path, rate, frames, fits):
    """s3prl cuts a second out of it."""
    (tmp_path / "_background_noise_").mkdir()
    soundfile.write(tmp_path / "_background_noise_" / "tap.wav", np.zeros(frames), rate)
    module = importlib.import_module("s3prl.downstream.speech_commands.dataset")
    if fits:
        dataset = module.SpeechCommandsDataset([], speech_commands_root=str(tmp_path))
        assert len(dataset[0][0]) == 16000
        return
    with pytest.raises(DataError, match=r"_background_noise_/tap.wav has 15999 samples at 16000 Hz, .*take this"):
        module.SpeechCommandsDataset([], speech_commands_root=str(tmp_path))


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


@pytest.mark.parametrize(("more", "fits"), [(0.05, True), (1.0, False)])
def test_a_recording_shorter_than_its_table_says_is_refused(tmp_path, more, fits):
    """s3prl stretches the features over the labels, and scores them."""
    write(tmp_path / "rec.wav")  # 0.1 s
    dataset = importlib.import_module("s3prl.downstream.diarization.dataset")
    data = dataset.KaldiData.__new__(dataset.KaldiData)
    data.data_dir, data.reco2dur = str(tmp_path), {"rec": 0.1 + more}
    data.wavs = {"rec": str(tmp_path / "rec.wav")}
    end = int(16000 * data.reco2dur["rec"])
    if fits:
        assert len(data.load_wav("rec", 0, end)[0]) == 1600
        return
    with pytest.raises(DataError, match=r"rec\.wav lasts 0\.10 s, but .*/reco2dur gives rec 1\.10 s: make the tables"):
        data.load_wav("rec", 0, end)


def test_a_word_that_is_no_class_is_named_before_anything_is_scored(tmp_path):
    module = importlib.import_module("s3prl.downstream.speech_commands.dataset")
    for word in ("yes", "_unknown_", "bed"):
        (tmp_path / word).mkdir()
        write(tmp_path / word / "a.wav")
    with pytest.raises(DataError, match=r"/bed is the folder of no class of keyword spotting, .* yes, no, up"):
        module.SpeechCommandsTestingDataset(speech_commands_test_root=str(tmp_path))
    (tmp_path / "bed" / "a.wav").unlink()
    assert len(module.SpeechCommandsTestingDataset(speech_commands_test_root=str(tmp_path))) == 2


def test_an_intent_that_train_lacks_is_named_before_anything_is_scored():
    module = importlib.import_module("s3prl.downstream.fluent_commands.dataset")
    known = {slot: {"on": 0, 0: "on"} for slot in ("action", "object", "location")}
    table = pandas.DataFrame(
        {"path": ["a.wav", "b.wav"], "action": ["on", "explode"], "object": "on", "location": "on"}
    )
    with pytest.raises(
        DataError, match=r"b\.wav in /fsc has the action 'explode', which no clip in data/train_data.csv"
    ):
        module.FluentCommandsDataset(table, "/fsc", known)
    assert len(module.FluentCommandsDataset(table[:1], "/fsc", known)) == 1


def test_empty_transcript_is_refused_by_name(tmp_path):
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    folder = tmp_path / "train" / "1" / "2"
    folder.mkdir(parents=True)
    (folder / "1-2.trans.txt").write_text("1-2-0000 HELLO\n1-2-0001\n1-2-0002\n1-2-0003 Hell\u00e9 OLE\n")
    dictionary = SimpleNamespace(symbols=[*"HELO|"])
    reader = SimpleNamespace(
        libri_root=str(tmp_path), dictionary=dictionary, _parse_x_name=lambda x: x.split("/")[-1].split(".")[0]
    )
    load = dataset.SequenceDataset._load_transcript
    assert load(reader, ["train/1/2/1-2-0000.flac"])["1-2-0000"] == "H E L L O |"
    with pytest.raises(DataError, match="1-2-0001.flac.*empty transcript"):
        load(reader, ["train/1/2/1-2-0000.flac", "train/1/2/1-2-0001.flac"])
    with pytest.raises(DataError, match="1-2-0004.flac in .* has no transcript; complete its .trans.txt"):
        load(reader, ["train/1/2/1-2-0000.flac", "train/1/2/1-2-0004.flac"])
    with pytest.raises(DataError, match=r"no such transcripts: .*train/1/3/1-3\.trans\.txt.*LIBRISPEECH"):
        load(reader, ["train/1/2/1-2-0000.flac", "train/1/3/1-3-0001.flac"])
    dictionary.symbols.append("\u00c9")  # as s3prl does when it reads another split
    with pytest.raises(
        DataError, match=r"transcript of train/1/2/1-2-0003.flac .* holds '\u00c9', which the dictionary"
    ):
        load(reader, ["train/1/2/1-2-0003.flac"])


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


LENGTHS = ",file_path,length,label\n0,a/b/a-b-0.flac,80960,\n1,a/b/a-b-1.flac,1000,\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first line must name file_path and length"),
        (b"[1, 2]\n", "its first line must name file_path and length"),
        (b"[" * 200_000, "line 1: field larger than field limit|line 0: field larger|its first line must name"),
        (LENGTHS.encode()[:24], "lists no clip"),
        (LENGTHS.encode().replace(b"b-1", b"b\0-1"), r"line 3: file_path is 'a/b/a-b.x00-1.flac'|line contains NUL"),
        (LENGTHS.encode().replace(b"1000", b"-1"), "line 3: .* length '-1', which must be"),
        (LENGTHS.encode().replace(b"1000", b"1e999"), "line 3: .* length '1e999'"),
        (LENGTHS.encode().replace(b"1000", b"NaN"), "line 3: .* length 'NaN'"),
        (LENGTHS.encode().replace(b",1000,", b""), "line 3: "),
        (LENGTHS.encode() + b"\xff\xfe", "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_damaged_list_of_lengths_is_named(tmp_path, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    with pytest.raises(DataError, match=rf"train.csv.*({message})"):
        dataset.SequenceDataset("train", 2, None, str(tmp_path), str(tmp_path), train=["train"])


def test_lists_of_lengths_that_are_missing(tmp_path):
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    with pytest.raises(
        DataError, match="no list of lengths for split 'train': .*train-clean-100.csv; set LIBRISPEECH_LENGTHS"
    ):
        dataset.SequenceDataset("train", 2, None, str(tmp_path), str(tmp_path), train=["train-clean-100"])
    (tmp_path / "test-clean.csv").write_text(LENGTHS)
    with pytest.raises(DataError, match="no list of lengths for split 'test': [^,]*test-othr.csv; set"):
        dataset.SequenceDataset("test", 2, None, str(tmp_path), str(tmp_path), test=["test-clean", "test-othr"])


@pytest.mark.parametrize(("size", "train"), [(1, 5), (2, 4), (3, 5), (4, 4), (5, 5), (7, 5)])
def test_asr_evaluates_every_clip_whatever_the_batch_size(tmp_path, size, train):
    dataset = importlib.import_module("s3prl.downstream.asr.dataset")
    dictionary = dataset.Dictionary()
    for symbol in "HELO|":
        dictionary.add_symbol(symbol)
    (tmp_path / "part/1/2").mkdir(parents=True)
    names = [f"1-2-{number:04d}" for number in range(5)]
    (tmp_path / "part/1/2/1-2.trans.txt").write_text("".join(f"{name} HELLO\n" for name in names))
    rows = "".join(f"{n},part/1/2/{name}.flac,{16000 * (n + 1)},\n" for n, name in enumerate(names))
    (tmp_path / "part.csv").write_text(f",file_path,length,label\n{rows}")
    for split, clips in {"dev": 5, "train": train}.items():
        found = dataset.SequenceDataset(
            split, size, dictionary, str(tmp_path), str(tmp_path), dev=["part"], train=["part"]
        )
        assert len({clip for batch in found.X for clip in batch}) == sum(map(len, found.X)) == clips
