"""The list of audio files of speaker identification: one per corpus, and a sentence for a missing file."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.errors import DataError
from tests.support import listings

s3prl_ext.install()

from s3prl.downstream.voxceleb1.dataset import SpeakerClassifiDataset

LINES = ["1 id10001/a/00001.wav", "1 id10002/b/00001.wav", "2 id10001/a/00002.wav", "3 id10002/b/00002.wav"]


def make_corpus(root: Path, lines: list[str] = LINES) -> Path:
    """Write one short clip per line, and the list; return the list's path."""
    for line in lines:
        path = root / "dev" / "wav" / line.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, torch.zeros(160).numpy(), 16000)
    (root / "split.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return root / "split.txt"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "s3prl_ext" / "voxceleb1"


def test_two_corpora_have_two_lists(tmp_path):
    first, second = make_corpus(tmp_path / "first"), make_corpus(tmp_path / "second", LINES[:1])
    assert len(SpeakerClassifiDataset("train", first.parent, first)) == 2
    assert len(SpeakerClassifiDataset("train", second.parent, second)) == 1


def test_a_changed_list_is_read_anew(tmp_path):
    meta_data = make_corpus(tmp_path / "corpus")
    SpeakerClassifiDataset("train", meta_data.parent, meta_data)
    meta_data.write_text(f"{LINES[1]}\n", encoding="utf-8")
    dataset = SpeakerClassifiDataset("train", meta_data.parent, meta_data)
    assert dataset.label == [1]


def test_a_list_made_from_a_relative_path_serves_every_working_directory(tmp_path, monkeypatch):
    for folder in ("first", "second"):
        make_corpus(tmp_path / folder / "vox")
        monkeypatch.chdir(tmp_path / folder)
        SpeakerClassifiDataset("train", Path("vox"), Path("vox/split.txt"))
    root = tmp_path / "first" / "vox"
    found = SpeakerClassifiDataset("train", root, root / "split.txt").dataset
    assert [Path(path) for path in found] == [root / "dev" / "wav" / line.split()[1] for line in LINES[:2]]


def test_of_a_clip_in_two_folders_the_same_one_counts_on_every_disk(tmp_path, monkeypatch):
    meta_data = make_corpus(tmp_path / "corpus")
    shutil.copytree(tmp_path / "corpus" / "dev", tmp_path / "corpus" / "test")
    for backwards in (False, True):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{backwards}"))
        with listings.by_name(backwards):
            found = SpeakerClassifiDataset("train", meta_data.parent, meta_data).dataset
        assert [Path(path).relative_to(meta_data.parent).parts[0] for path in found] == ["dev", "dev"]


def test_the_list_is_cached_and_reused(tmp_path, cache):
    meta_data = make_corpus(tmp_path / "corpus")
    SpeakerClassifiDataset("dev", meta_data.parent, meta_data)
    (stored,) = cache.glob("*/*")
    assert stored.name == "dev.pkl"
    stored.write_bytes(pickle.dumps(["/somewhere/id10007/x/1.wav"]))
    assert SpeakerClassifiDataset("dev", meta_data.parent, meta_data).label == [6]


def test_a_missing_file_is_named_and_leaves_no_list(tmp_path, cache):
    meta_data = make_corpus(tmp_path / "corpus")
    next(meta_data.parent.rglob("id10002/b/00001.wav")).unlink()
    with pytest.raises(DataError, match=r"lists id10002/b/00001\.wav for train"):
        SpeakerClassifiDataset("train", meta_data.parent, meta_data)
    assert not list(cache.glob("*/*"))


@pytest.mark.parametrize("line", ["", "4 id10001/a/00001.wav", "id10001/a/00001.wav"])
def test_a_malformed_line_is_named(tmp_path, line):
    meta_data = make_corpus(tmp_path / "corpus")
    meta_data.write_text(f"{LINES[0]}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 must be"):
        SpeakerClassifiDataset("train", meta_data.parent, meta_data)


def test_a_missing_folder_or_list_is_named(tmp_path):
    meta_data = make_corpus(tmp_path / "corpus")
    with pytest.raises(DataError, match="no such VoxCeleb1 folder"):
        SpeakerClassifiDataset("train", tmp_path / "absent", meta_data)
    with pytest.raises(DataError, match="no such VoxCeleb1 list"):
        SpeakerClassifiDataset("train", meta_data.parent, tmp_path / "absent.txt")


def test_clips_are_read_with_their_speaker(tmp_path):
    meta_data = make_corpus(tmp_path / "corpus")
    samples, label, name = SpeakerClassifiDataset("test", meta_data.parent, meta_data)[0]
    assert (samples.shape, label, name) == ((160,), 1, "id10002-b-00002")
