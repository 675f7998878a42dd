"""Kaldi's tables: what is accepted, and that a shorter wav.scp is mentioned."""

from __future__ import annotations

import pytest

from s3prl_ext.compat.kaldi_tables import check_tables

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


def test_fewer_recordings_than_segments_are_mentioned(folder, caplog):
    (folder / "wav.scp").write_text("r1 /a b/r1.wav\n")
    check_tables(folder)
    assert "wav.scp lacks 1 of the 2 recordings in segments, such as r2" in caplog.text
