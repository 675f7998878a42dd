"""Diarization of recordings longer than a chunk: labels, predictions and rates are those of the whole recording."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.evaluation.diarization_scoring import Turn, error_rates, read_predictions, turns
from tests.support.reference import diarization_by_frames

s3prl_ext.install()

RATE, SHIFT, CHUNK = 16000, 320, 100  # frames of 20 ms, a chunk is 2 s
Spoken = list[tuple[str, float, float]]  # speaker, start and end in seconds


def write_tables(folder: Path, recordings: dict[str, tuple[float, Spoken]]) -> None:
    """Write a Kaldi folder of noise: recording -> seconds, turns."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    tables: dict[str, list[str]] = defaultdict(list)
    for name, (seconds, spoken) in recordings.items():
        soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, round(seconds * RATE)), RATE)
        tables["wav.scp"].append(f"{name} {folder / name}.wav")
        tables["reco2dur"].append(f"{name} {seconds}")
        for number, (speaker, start, end) in enumerate(spoken):
            tables["segments"].append(f"{name}-{number} {name} {start} {end}")
            tables["utt2spk"].append(f"{name}-{number} {speaker}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def talking(rng: np.random.Generator, seconds: float) -> Spoken:
    """Return turns of two speakers on whole frames; long ones cover chunks, and some overlap."""
    spoken: Spoken = []
    for speaker in "ab":
        at = 0
        while at < seconds * 50 - 30:
            end = min(at + int(rng.choice([3, 20, 150, 260])), int(seconds * 50))
            spoken.append((speaker, at / 50, end / 50))
            at = end + int(rng.integers(1, 60))
    return spoken


def labels_of(spoken: Spoken, frames: int, shift: int) -> np.ndarray:
    """Return who talks in each frame of a whole recording, [frames, speakers], frame by frame."""
    speakers = sorted({speaker for speaker, _, _ in spoken})
    found = np.zeros((frames, len(speakers)), int)
    for frame, (speaker, start, end) in itertools.product(range(frames), spoken):
        if round(start * RATE / shift) <= frame < round(end * RATE / shift):
            found[frame, speakers.index(speaker)] = 1
    return found


@pytest.mark.parametrize("mode", ["train", "dev", "test"])
@pytest.mark.parametrize("shift", [160, 320])
def test_labels_of_a_chunk_are_those_of_the_recording_there(tmp_path, mode, shift):
    from s3prl.downstream.diarization.dataset import DiarizationDataset

    rng = np.random.default_rng(1)
    recordings = {f"r{i}": (seconds, talking(rng, seconds)) for i, seconds in enumerate((1.0, 2.0, 5.5, 9.0, 13.7))}
    recordings["whole"] = (9.0, [("a", 0.5, 8.0), ("b", 8.5, 9.0), ("b", 2.0, 2.0)])  # over chunks; without a length
    write_tables(tmp_path / "data", recordings)
    truth = {name: labels_of(spoken, int(s * RATE / shift), shift) for name, (s, spoken) in recordings.items()}
    data = DiarizationDataset(mode, str(tmp_path / "data"), chunk_size=CHUNK, frame_shift=shift, num_speakers=2)
    chunks = list(itertools.chain(*data.chunk_indices.values())) if mode == "test" else data.chunk_indices
    items = [data[i] for i in range(len(data))]
    labels = (
        list(itertools.chain(*(found for _, found, _ in items))) if mode == "test" else [found for _, found in items]
    )
    assert len(chunks) == len(labels) > 2 * len(recordings)
    for (name, start, end), found in zip(chunks, labels, strict=True):
        assert np.array_equal(found, truth[name][start:end]), (name, start, end)
    covered = {(name, frame) for name, start, end in chunks for frame in range(start, end)}
    assert len(covered) == sum(map(len, truth.values())), "every frame is in a chunk"


@pytest.mark.parametrize("mode", ["train", "dev"])
def test_a_rest_that_is_shorter_than_the_frames_of_upstreams_is_left_out(tmp_path, mode):
    from s3prl.downstream.diarization.dataset import DiarizationDataset

    spoken: Spoken = [("a", 0.0, 0.04), ("b", 0.02, 0.06)]
    lengths = {"short": 0.06, "one": 2.02, "four": 4.08, "five": 4.1}
    write_tables(tmp_path / "data", {name: (seconds, spoken) for name, seconds in lengths.items()})
    data = DiarizationDataset(mode, str(tmp_path / "data"), chunk_size=CHUNK, frame_shift=SHIFT, num_speakers=2)
    assert data.chunk_indices == [
        ("short", 0, 3), ("one", 0, 100), ("four", 0, 100), ("four", 100, 200),
        ("five", 0, 100), ("five", 100, 200), ("five", 200, 205),
    ]  # fmt: skip


def expert_of(folder: Path, expdir: Path) -> Any:
    """Return s3prl's expert, on the test recordings of a folder, with a model that passes on who talks."""
    from s3prl.downstream.diarization.expert import DownstreamExpert

    section = load_yaml(shipped_dir("downstream_configs") / "sd" / "mini.yaml")["downstream_expert"]
    section["loaderrc"] |= {f"{split}_dir": str(folder) for split in ("train", "dev", "test")}
    section["datarc"] |= {"chunk_size": CHUNK}
    expdir.mkdir()
    expert = DownstreamExpert(2, SHIFT, section, str(expdir)).eval()
    expert.model = torch.nn.Linear(2, 2)
    expert.model.weight.data, expert.model.bias.data = 8 * torch.eye(2), torch.full((2,), -0.5)  # of padding: 0.38
    return expert


def evaluated(expert: Any, order: Any = lambda recording, number: [0, 1]) -> dict[str, list[float]]:
    """Evaluate features that are right but for the order of speakers, which a window's number decides."""
    records: dict[str, list[float]] = defaultdict(list)
    for _, labels, lengths, recording in expert.get_dataloader("test"):
        features = [torch.tensor(2 * label[:, order(recording, i)] - 1) for i, label in enumerate(labels)]
        with torch.no_grad():
            expert("test", features, labels, lengths, recording, records=records)
    return records


def test_a_right_model_has_no_error_whatever_the_order_of_speakers_in_its_windows(tmp_path):
    pytest.importorskip("pyannote.metrics", reason="the extra sd is not installed")
    recordings = {}
    for seconds in (1.5, 2.5, 7.0, 12.3):  # in every half second, an overlap of windows, one of them talks alone
        starts = np.arange(0, seconds - 0.5, 0.4)
        spoken = [*(("a", at, at + 0.2) for at in starts), *(("b", at + 0.1, at + 0.34) for at in starts)]
        recordings[f"r{seconds:g}"] = (seconds, spoken)
    write_tables(tmp_path / "data", recordings)
    expert = expert_of(tmp_path / "data", tmp_path / "exp")
    rng = np.random.default_rng(3)
    records = evaluated(expert, lambda recording, number: rng.permutation(2))
    predictions = read_predictions(tmp_path / "exp")
    references = {
        name: [Turn(start, end, who) for who, start, end in spoken] for name, (_, spoken) in recordings.items()
    }
    rates = error_rates(predictions, references, SHIFT)
    for setting, rate in rates.items():
        parts = [diarization_by_frames(turns(predictions[n], setting, SHIFT), references[n]) for n in recordings]
        spoken = sum(turn.end - turn.start for found in references.values() for turn in found)
        assert rate.der == pytest.approx(np.sum(parts) / spoken, abs=1e-9)
        if setting.median == 1:  # the filter takes short turns away
            assert np.sum(parts) == 0
    assert {name: len(found) for name, found in predictions.items()} == {
        name: int(seconds * RATE / SHIFT) for name, (seconds, _) in recordings.items()
    }, "padding is not written"
    assert records["der"] == [0, 0, 0, 0] and records["acc"] == [1, 1, 1, 1]


def test_the_rate_that_an_evaluation_reports_is_of_whole_recordings(tmp_path):
    """A model that takes one speaker for the other half of the time is wrong, also where half of it is a chunk."""
    write_tables(tmp_path / "data", {"r": (8.0, [("a", 0.0, 7.0), ("b", 7.0, 8.0)])})
    expert = expert_of(tmp_path / "data", tmp_path / "exp")
    records: dict[str, list[float]] = defaultdict(list)
    ((_, labels, lengths, recording),) = expert.get_dataloader("test")
    windows = expert.test_dataset.chunk_indices[recording]
    said = np.zeros((400, 2), np.float32)
    said[:200, 0] = said[200:, 1] = 1
    features = [torch.tensor(2 * said[start:end] - 1) for _, start, end in windows]
    expert("test", features, labels, lengths, recording, records=records)
    assert records["der"] == [150 / 400] and len(windows) > 4
    assert np.array_equal(read_predictions(tmp_path / "exp")["r"] > 0.5, said > 0)
    assert isinstance(expert.model, torch.nn.Linear)


def test_recordings_up_to_a_chunk_are_scored_as_s3prl_scores_them(tmp_path, monkeypatch, caplog):
    from s3prl.downstream.diarization.dataset import DiarizationDataset
    from s3prl.downstream.diarization.expert import DownstreamExpert

    rng = np.random.default_rng(4)
    lengths = (0.7, 0.71, 1.0, 1.7, 1.999, 2.0)
    write_tables(tmp_path / "data", {f"r{i}": (seconds, talking(rng, seconds)) for i, seconds in enumerate(lengths)})
    seen = []
    for name in ("ours", "s3prl"):
        if name == "s3prl":
            for owner, method in (
                (DiarizationDataset, "__init__"), (DiarizationDataset, "_get_labeled_speech"),
                (DownstreamExpert, "forward"),
            ):  # fmt: skip
                monkeypatch.setattr(owner, method, getattr(owner, method).__wrapped__)
        expert = expert_of(tmp_path / "data", tmp_path / name)
        records = evaluated(expert)
        found = {}
        for path in sorted((tmp_path / name / "scoring" / "predictions").iterdir()):
            with h5py.File(path) as file:
                found[path.name] = file["T_hat"][()].tobytes()
        assert len(found) == len(lengths)
        train = [(wav.tobytes(), label.tobytes()) for wav, label in expert.get_dataloader("train").dataset]
        seen.append((dict(records), found, train))
    assert seen[0] == seen[1]
    assert "longer than a chunk" not in caplog.text


def test_how_many_recordings_are_longer_than_a_chunk_is_said(tmp_path, caplog):
    spoken: Spoken = [("a", 0.0, 1.0), ("b", 0.5, 1.0)]
    write_tables(
        tmp_path / "data", {name: (seconds, spoken) for name, seconds in zip("wxyz", (1, 2, 2.02, 5), strict=True)}
    )
    expert = expert_of(tmp_path / "data", tmp_path / "exp")
    with caplog.at_level(logging.WARNING, "s3prl_ext"):
        expert.get_dataloader("train")
        expert.get_dataloader("dev")
        assert "longer than a chunk" not in caplog.text
        expert.get_dataloader("test")
    assert "2 of 4 recordings (50 %) are longer than a chunk (datarc.chunk_size: 100 frames, 2 s)" in caplog.text
