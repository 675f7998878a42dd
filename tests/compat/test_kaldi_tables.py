"""Kaldi's tables: what is accepted, and that a shorter wav.scp is mentioned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from s3prl_ext.compat.kaldi_tables import check_speakers, check_tables
from s3prl_ext.errors import DataError

GOOD = {
    "segments": "u1 r1 0 1.5\nu2 r2 0.5 2\n",
    "utt2spk": "u1 a\nu2 b c\n",
    "reco2dur": "r1 2\nr2 2.5\n",
    "wav.scp": "r1 /a b/r1.wav\nr2 sox r2.wav -t wav - |\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in GOOD.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_right_tables_are_accepted(folder, caplog):
    check_tables(folder)
    (folder / "wav.scp").unlink()  # then a folder `wav` holds the recordings
    check_tables(folder)
    assert not caplog.records


def test_only_line_ends_divide_a_table(folder):
    (folder / "utt2spk").write_text("u1 a\u2028\x0c\nu2 b c\n", encoding="utf-8")
    check_tables(folder)


def test_fewer_recordings_than_segments_are_mentioned(folder, caplog):
    (folder / "wav.scp").write_text("r1 /a b/r1.wav\n")
    check_tables(folder)
    assert "wav.scp lacks 1 of the 2 recordings in segments, such as r2" in caplog.text


def test_a_recording_with_more_speakers_than_the_task_has_is_named(folder):
    segments = {"r1": [{"utt": "u1"}, {"utt": "u2"}, {"utt": "u3"}, {"utt": "u1"}], "r2": [{"utt": "u1"}]}
    wavs = dict.fromkeys(segments, "clip.wav")
    data = SimpleNamespace(segments=segments, utt2spk={"u1": "a", "u2": "b", "u3": "NaN"}, wavs=wavs)
    for places in (3, None):
        check_speakers(data, folder, places)
    with pytest.raises(
        DataError, match=r"utt2spk gives r1 3 speakers \(NaN, a, b\), but the task has num_speakers: 2; corr"
    ):
        check_speakers(data, folder, 2)
    del wavs["r1"]  # a recording that is left out
    check_speakers(data, folder, 2)


@pytest.mark.parametrize("mode", ["train", "dev"])
def test_the_speakers_are_checked_when_the_task_reads_its_tables(mini_superb, tmp_path, mode):
    import shutil

    from s3prl.downstream.diarization.dataset import DiarizationDataset

    folder = tmp_path / mode
    shutil.copytree(mini_superb / "libri2mix_diarization" / mode, folder)
    assert len(DiarizationDataset(mode, str(folder), num_speakers=2)) > 0
    with pytest.raises(DataError, match="has num_speakers: 1; correct the table"):
        DiarizationDataset(mode, str(folder), num_speakers=1)
