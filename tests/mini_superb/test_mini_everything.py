"""``--all``: every recording with a text is in a corpus or said to be left out; speakers stay whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.commands.prepare import main as prepare_main
from s3prl_ext.corpora import ljspeech, vctk
from s3prl_ext.corpora.splits import group_split
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import build
from tests.mini_superb.test_mini_superb_build import digests

HEADER = "path\tduration_s\tspeaker\tsplit\ttext"
TASKS = ["asr", "ljspeech", "vctk"]
COUNTED = ("utterances", "words", "speakers", "minutes", "texts_in_train")


def _rows() -> dict[str, list[tuple[str, str, str, str]]]:
    """Return corpus -> (file name, speaker, part, text) of its clips."""
    librispeech = [
        (f"a/{who}-1-{i:04d}", who, part, f"IT'S NUMBER {chr(65 + i)}")
        for who, part, count in (("1", "train-clean-100", 4), ("2", "test-other", 3), ("3", "test-other", 2))
        for i in range(count)
    ]
    librispeech += [("b/1-1-0000", "1", "train-clean-100", "TWICE"), ("a/1-1-0009", "1", "train-clean-100", "AT 9")]
    return {
        "librispeech": [*librispeech, ("a/9-1-0000", "1", "train-clean-100", "OF ANOTHER")],
        "misc_read": [("an1", "bob", "", "YES  he said"), ("an2", "ann", "", ""), ("an3", "ann", "", "go")],
        "ljspeech": [(f"LJ001-{i:04d}", "LJ", "", f'Lower "case", {i}|.') for i in range(8)],
        "asterisk_en": [("go-on", "allison", "", "Press 1, now!"), ("beep", "allison", "", "")],
        "vctk": [
            (f"{who}_{i:03d}", who, "", f"Sentence {i}.")
            for who, count in (("p1", 8), ("p2", 4), ("p3", 2), ("p4", 1), ("p5", 1))
            for i in range(count)
        ],
    }


def _write(root: Path, backwards: bool = False) -> Path:
    """Write recordings of one second each."""
    for corpus, rows in _rows().items():
        lines = [f"{corpus}/{name}.flac\t1.0\t{who}\t{part}\t{text}" for name, who, part, text in rows]
        for line in lines:
            path = root / line.split("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(16000, 0.1), 16000)
        table = "\n".join([HEADER, *(lines[::-1] if backwards else lines)]) + "\n"
        (root / corpus / f"{corpus}.tsv").write_text(table.replace('Lower "case"', "Lower case"))
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Return the three corpora of all these recordings."""
    folder = tmp_path_factory.mktemp("everything")
    build(folder / "mini", _write(folder / "recordings"), tasks=TASKS, everything=True)
    return folder / "mini"


def _contents(folder: Path) -> tuple[dict, dict[str, tuple]]:
    content = json.loads((folder / "contents.json").read_text())
    return content, {name: tuple(row.get(key) for key in COUNTED) for name, row in content["splits"].items()}


def test_librispeech_keeps_speakers_of_test_parts_apart_and_says_what_it_leaves_out(built):
    content, counts = _contents(built / "librispeech")
    assert counts == {"train": (6, 16, 3, 0.1, None), "dev": (2, 6, 1, 0.03, 2), "test": (3, 9, 1, 0.05, 3)}
    assert content["left_out"] == {
        "another recording has its name": ["librispeech/b/1-1-0000.flac"],
        "characters other than letters and apostrophes": ["librispeech/a/1-1-0009.flac"],
        "its name is not SPEAKER-CHAPTER-NUMBER": ["librispeech/a/9-1-0000.flac"],
        "no text": ["misc_read/an2.flac"],
    }
    spoken = {path.parts[-3] for path in (built / "librispeech").rglob("train-clean-100/*/*/*.flac")}
    assert spoken == {"1", "9001", "9002"}
    assert (built / "librispeech/train-clean-100/9002/1/9002-1.trans.txt").read_text() == "9002-1-0000 YES HE SAID\n"
    assert content["recordings"]["9001-1-0001"] == "misc_read/an3.flac"
    lengths = (built / "librispeech/len_for_bucket/test-clean.csv").read_text().splitlines()
    assert len(lengths) == 1 + 3 and all(line.endswith(",16000,") for line in lengths[1:])


def test_ljspeech_takes_the_prompts_in_and_its_own_module_reads_it(built):
    utterances = {u.id: u.text for u in ljspeech.read(built / "LJSpeech-1.1")}
    assert len(utterances) == 9 and utterances["AST-go-on"] == "Press 1, now!"
    assert utterances["LJ001-0003"] == "Lower case, 3 ."
    content, counts = _contents(built / "LJSpeech-1.1")
    assert [row[0] for row in counts.values()] == [7, 1, 1]
    assert content["left_out"] == {"no text": ["asterisk_en/beep.flac"]}


def test_vctk_is_divided_by_speaker_and_counts_the_sentences_that_train_has(built):
    root = built / "VCTK-Corpus-0.92"
    utterances = {u.id: u for u in vctk.read(root)}
    splits = vctk.CORPUS.splits(list(utterances.values()), str(root / "splits.json"))
    speakers = {name: {utterances[id].group for id in ids} for name, ids in splits.items()}
    assert speakers["train"] == {"p1", "p2"} and speakers["dev"] | speakers["test"] == {"p3", "p4", "p5"}
    assert not speakers["dev"] & speakers["test"]
    assert sorted(row[0] for row in _contents(root)[1].values()) == [1, 3, 12]
    assert [row[-1] for row in _contents(root)[1].values()] == [None, len(splits["dev"]), len(splits["test"])]


def test_the_order_of_the_tables_changes_nothing(built, tmp_path):
    build(tmp_path / "mini", _write(tmp_path / "recordings", backwards=True), tasks=TASKS, everything=True)
    first, again = digests(built), digests(tmp_path / "mini")
    first.pop("README.md"), again.pop("README.md")  # commands with the path as a shell writes it
    assert first == again


def test_log_and_readme_count_every_split(tmp_path, caplog):
    recordings = _write(tmp_path / "recordings")
    caplog.set_level(logging.INFO)
    arguments = ["--out", str(tmp_path / "mini"), "--recordings", str(recordings), "--all", "--tasks", "vctk"]
    assert prepare_main(["mini_superb", *arguments]) == 0
    line = "vctk: train: 12 utterances, 24 words, 2 speakers, 0.2 minutes"
    assert line in caplog.text and line in (tmp_path / "mini" / "README.md").read_text()


def test_what_cannot_be_is_refused(tmp_path):
    recordings = _write(tmp_path / "recordings")
    for given, count, part in ((None, 0, "--all takes recordings only"), (recordings, 20, "give one of them")):
        with pytest.raises(UsageError, match=part):
            build(tmp_path / "mini", given, tasks=["vctk"], digit_strings=count, everything=True)
    (recordings / "vctk" / "vctk.tsv").unlink()
    with pytest.raises(UsageError, match="there are none of vctk"):
        build(tmp_path / "mini", recordings, tasks=["vctk"], everything=True)


def test_groups_are_whole_and_the_small_ones_are_held_out():
    sizes = {"a": 10, "b": 10, "c": 3, "d": 1, "e": 1}
    splits = group_split(sizes)
    assert (splits["a"], splits["b"]) == ("train", "train")
    assert {splits["d"], splits["e"]} == {"dev", "test"} and splits["c"] in ("dev", "test")
    assert group_split(dict(reversed(sizes.items()))) == splits
    assert set(group_split(sizes, train=False).values()) == {"dev", "test"}


@pytest.mark.data
def test_all_real_recordings(recordings, tmp_path):
    build(tmp_path / "mini", recordings, tasks=TASKS, everything=True)
    counts = {
        name: _contents(tmp_path / "mini" / name)[1] for name in ("librispeech", "LJSpeech-1.1", "VCTK-Corpus-0.92")
    }
    assert [sum(row[0] for row in rows.values()) for rows in counts.values()] == [163, 125, 68]
    assert [sum(row[1] for row in rows.values()) for rows in counts.values()] == [3474, 1438, 1507]
