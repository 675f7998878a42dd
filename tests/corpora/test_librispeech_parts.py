"""LibriSpeech in its archives' layout: parts, missing files, splits by parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.corpora import librispeech
from s3prl_ext.corpora.librispeech import CORPUS, read
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training.batching.corpus_hash import Corpus

PARTS = {"train-clean-100": "19-198", "dev-clean": "84-121123", "test-clean": "61-70968", "test-other": "1688-142285"}


@pytest.fixture
def root(tmp_path) -> Path:
    """LibriSpeech with two utterances of one chapter in each of four parts."""
    for part, chapter in PARTS.items():
        folder = tmp_path / "LibriSpeech" / part / chapter.replace("-", "/")
        folder.mkdir(parents=True)
        lines = []
        for number in range(2):
            soundfile.write(folder / f"{chapter}-{number:04d}.flac", np.full(1600, 0.1), 16000)
            lines.append(f"{chapter}-{number:04d} {part.upper()} NUMBER {'AB'[number]}\n")
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def test_every_part_is_read_with_its_texts(root):
    utterances = read(root)
    assert read(root.parent) == utterances  # the folder around it will do
    assert len(utterances) == 8 and [u.id for u in utterances] == sorted(u.id for u in utterances)
    found = {u.id: u for u in utterances}["1688-142285-0001"]
    assert (found.text, found.group) == ("TEST-OTHER NUMBER B", "test-other")
    assert found.audio == root / "test-other/1688/142285/1688-142285-0001.flac"


def test_its_own_rule_holds_out_dev_and_test_parts(root):
    splits = CORPUS.splits(read(root), "part")
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 2, "dev": 2, "test": 4}


def test_lists_of_parts_read_only_these_and_may_name_more_splits(root):
    rule = {"train": ["train-clean-360"], "dev": [], "test": ["test-clean"], "test-other": ["test-other"]}
    utterances = CORPUS.utterances(root, "error", rule)
    assert {u.group for u in utterances} == {"test-clean", "test-other"}
    splits = CORPUS.splits(utterances, rule)
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 0, "dev": 0, "test": 2, "test-other": 2}


def test_a_split_of_which_a_part_is_missing_is_refused(root):
    rule = {"train": ["train-clean-360"], "dev": ["dev-clean"], "test": ["test-clean", "test-othr", "test-x"]}
    with pytest.raises(DataError, match="split: test names test-othr, test-x, of which LibriSpeech has no utterance"):
        CORPUS.splits(CORPUS.utterances(root, "error", rule), rule)


def test_lists_of_chapters_divide_ljspeech_too(tmp_path):
    from s3prl_ext.corpora.ljspeech import CORPUS as LJ
    from s3prl_ext.corpora.transcribed import Utterance

    utterances = [Utterance(f"LJ{n:03d}-0001", tmp_path, "x", f"LJ{n:03d}") for n in (1, 2, 3)]
    splits = LJ.splits(utterances, {"train": ["LJ001"], "dev": ["LJ003"], "test": ["LJ002"]})
    assert splits == {"train": ["LJ001-0001"], "dev": ["LJ003-0001"], "test": ["LJ002-0001"]}


def test_a_part_in_training_and_test_is_refused(root):
    with pytest.raises(UsageError, match="test-clean is in dev and in test"):
        CORPUS.splits(read(root), {"train": [], "dev": ["test-clean"], "test": ["test-clean"]})
    both = {"train": [], "dev": [], "test": ["test-clean", "test-other"], "test-other": ["test-other"]}
    assert len(CORPUS.splits(read(root), both)["test"]) == 4


def _table(root):
    return root / "dev-clean/84/121123/84-121123.trans.txt"


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda root: _table(root).write_text("84-121123-0000\n"), "line 1 of .* must read 84-121123-NNNN TEXT"),
        (
            lambda root: _table(root).write_text("85-1-0000 GO\n"),
            "must read 84-121123-NNNN TEXT, but is '85-1-0000 GO'",
        ),
        (
            lambda root: _table(root).write_text("84-121123-0000 GO\n"),
            "1 recordings have no transcript: 84-121123-0001",
        ),
        (lambda root: next(root.rglob("84-*.flac")).unlink(), "1 transcripts have no audio"),
        (lambda root: _table(root).write_text("84-121123-0000 GO\n84-121123-0000 ON\n"), "a second time"),
    ],
)
def test_what_does_not_fit_is_named(root, spoil, sentence):
    spoil(root)
    with pytest.raises(DataError, match=sentence):
        read(root)
    assert len(read(root, parts=["test-clean"])) == 2


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match="is not a LibriSpeech folder: give the one with parts such as test-clean"):
        read(tmp_path)
    assert librispeech.held_out(["dev-clean", "dev", "test-other", "train"]) == {
        "dev": ["dev-clean"],
        "test": ["test-other"],
    }


def test_the_corpus_hash_covers_the_parts_of_the_splits(root):
    def of(**split):
        datarc = {"path": str(root), "split": {"train": [], "dev": [], **split}}
        return Corpus("librispeech_zeroshot", {"downstream_expert": {"datarc": datarc}}).hash

    assert of(test=["test-clean"])["files"] == 3 and of(test=["test-clean", "test-other"])["files"] == 6
    assert of(test=["test-clean"])["sha256"] != of(test=["test-other"])["sha256"]
    whole = {"downstream_expert": {"datarc": {"path": str(root), "split": "hash"}}}
    assert Corpus("librispeech_zeroshot", whole).hash["files"] == 12
