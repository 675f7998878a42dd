"""Low-resource subsets: nested, deterministic, balanced; Libri-Light's lists; what cannot be made is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext import mini_superb
from s3prl_ext.commands import prepare
from s3prl_ext.compat.ctc.corpus.libriphone import LibriPhoneDataset
from s3prl_ext.corpora import low_resource
from s3prl_ext.corpora.low_resource import LibriClip, build, draw, official
from s3prl_ext.errors import DataError, UsageError
from tests.support import listings


def recordings(speakers: int, each: int, seconds: float = 36.0, first: int = 100) -> list[LibriClip]:
    return [
        LibriClip(Path(f"{speaker}-1-{number:04d}.flac"), seconds)
        for speaker in range(first, first + speakers)
        for number in range(each)
    ]


def genders(found: list[LibriClip]) -> dict[str, str]:
    return {one.speaker: "FM"[int(one.speaker) % 2] for one in found}


def seconds(members: list[LibriClip]) -> float:
    return sum(one.seconds for one in members)


def test_a_draw_is_nested_deterministic_and_balanced():
    found = recordings(speakers=40, each=30)  # 0.01 h each, 12 h
    subsets = draw(found, genders(found), [0.5, 1, 5, 10], seed=3)
    assert [round(seconds(subsets[size]) / 3600, 2) for size in (0.5, 1, 5, 10)] == [0.5, 1, 5, 10]
    for small, large in ((0.5, 1), (1, 5), (5, 10)):
        assert set(subsets[small]) < set(subsets[large])
    again = draw(reversed(found), genders(found), [0.5, 1, 5, 10], seed=3)
    assert again == subsets and draw(found, genders(found), [0.5], seed=4)[0.5] != subsets[0.5]
    sex = Counter(genders(found)[one.speaker] for one in subsets[5])
    assert sex["F"] == sex["M"]
    assert len({one.speaker for one in subsets[5]}) == 24
    assert set(Counter(one.speaker for one in subsets[1]).values()) == {4, 5}
    assert len({one.speaker for one in subsets[10]}) > 24, "24 speakers have 7.2 h only"


def test_a_draw_without_genders_uses_all_speakers_in_turn():
    found = recordings(speakers=3, each=4)
    subset = draw(found, {}, [0.06], seed=0)[0.06]
    assert Counter(one.speaker for one in subset) == {"100": 2, "101": 2, "102": 2}


def test_too_little_speech_is_refused():
    with pytest.raises(DataError, match="there are 0.12 h of speech, but 1 h"):
        draw(recordings(speakers=3, each=4), {}, [0.1, 1], seed=0)


def light() -> tuple[dict[str, list[LibriClip]], list[LibriClip]]:
    folds = {str(n): recordings(speakers=4, each=1, first=100 + 4 * n) for n in range(6)}
    nine = [
        LibriClip(Path(f"{speaker}-2-{number:04d}.flac"), 20.0 + number)
        for speaker in range(100, 124)
        for number in range(9)
    ]
    return folds, nine


def test_official_subsets_are_the_lists_and_the_five_hours_are_half_of_each_speaker():
    folds, nine = light()
    subsets = official(folds, nine, low_resource.HOURS, seed=0)
    assert subsets[0.5] == folds["0"] + folds["1"] + folds["2"]
    assert set(subsets[1.0]) == {one for fold in folds.values() for one in fold}
    assert set(subsets[10.0]) == set(subsets[1.0]) | set(nine)
    assert set(subsets[0.5]) < set(subsets[1.0]) < set(subsets[5.0]) < set(subsets[10.0])
    for speaker in {one.speaker for one in nine}:
        of = [seconds([one for one in subsets[size] if one.speaker == speaker]) for size in (5.0, 10.0)]
        assert abs(of[0] - of[1] / 2) <= 14, "half a recording"
    with pytest.raises(UsageError, match="no subset of 2 h"):
        official(folds, nine, [2.0], seed=0)


@pytest.fixture
def librispeech(tmp_path) -> Path:
    """A LibriSpeech folder of two women, two men, six clips of 9 s each."""
    root = tmp_path / "LibriSpeech"
    for split, speakers in (("train-clean-100", (11, 12, 13, 14)), ("dev-clean", (21,)), ("test-clean", (31,))):
        for speaker in speakers:
            folder = root / split / str(speaker) / "5"
            folder.mkdir(parents=True)
            names = [f"{speaker}-5-{number:04d}" for number in range(6)]
            for name in names:
                soundfile.write(folder / f"{name}.flac", np.zeros(9 * 16000, np.float32), 16000)
            (folder / f"{speaker}-5.trans.txt").write_text("".join(f"{name} ONE TWO\n" for name in names))
    (root / "SPEAKERS.TXT").write_text(
        "; ID |SEX\n11 | F | train-clean-100\n12 | F | train-clean-100\n13 | M | train-clean-100\n14 | M | train-clean-100\n"
    )
    (root / "lexicon.txt").write_text("ONE\tW AH1 N\nTWO\tT UW1\n")
    return root


def test_the_draw_does_not_know_the_disk(librispeech, tmp_path):
    found = []
    for backwards in (False, True):
        with listings.by_name(backwards):
            build(tmp_path / f"low-{backwards}", librispeech, hours=(0.01, 0.03))
        folder = tmp_path / f"low-{backwards}"
        names = sorted(path.relative_to(folder) for path in folder.rglob("*-*.flac"))
        found.append((names, (folder / "subsets.json").read_text()))
    assert found[0] == found[1] and len(found[0][0]) == 4 + 12


def test_command_writes_splits_that_the_task_reads(librispeech, tmp_path, capsys):
    out = tmp_path / "low"
    argv = ["low_resource", "--librispeech", str(librispeech), "--out", str(out), "--hours", "0.01,0.03"]
    assert prepare.main(argv) == 0
    assert (
        "train-0.03h: 0.030 h, 12 utterances, 4 speakers (seeded draw from train-clean-100)" in capsys.readouterr().out
    )
    record = json.loads((out / "subsets.json").read_text())
    assert record["source"].startswith("seeded draw") and record["subsets"]["train-0.01h"]["utterances"] == 4
    small = {path.name for path in (out / "train-0.01h").rglob("*.flac")}
    assert small < {path.name for path in (out / "train-0.03h").rglob("*.flac")}
    assert f"LIBRISPEECH={out}" in (out / "env.sh").read_text()

    class Tokenizer:
        unk_idx = -1

        def vocab_to_idx(self, phone):
            return 1

        def encode(self, text):
            return [1] * len(text.split())

    for split, count in (("train-0.01h", 4), ("dev-clean", 6), ("test-clean", 6)):
        dataset = LibriPhoneDataset([split], Tokenizer(), 1, str(out), [str(out / "lexicon.txt")])
        assert len(dataset) == count


def test_hidden_files_of_a_copy_from_macos_are_left_alone(librispeech, tmp_path):
    build(tmp_path / "low", librispeech, hours=[0.01])
    for path in [path for pattern in ("*.flac", "*.trans.txt") for path in librispeech.rglob(pattern)]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\xff\xfe")
    (librispeech / "train-clean-100/.AppleDouble").mkdir()
    (librispeech / "train-clean-100/.AppleDouble/1-2-0000.flac").write_bytes(b"x")
    build(tmp_path / "copied", librispeech, hours=[0.01])
    records = [(tmp_path / name / "subsets.json").read_text() for name in ("low", "copied")]
    assert records[0] == records[1]


def test_bad_input_is_one_sentence_and_leaves_nothing(librispeech, tmp_path):
    out = tmp_path / "low"
    with pytest.raises(DataError, match="but 10 h are asked for"):
        build(out, librispeech, hours=[10])
    with pytest.raises(DataError, match="contains no .flac file"):
        build(out, librispeech, librilight=tmp_path / "nowhere", hours=[1])
    with pytest.raises(UsageError, match="above 0"):
        build(out, librispeech, hours=[0])
    (librispeech / "train-clean-100/11/5/11-5.trans.txt").write_text("")
    with pytest.raises(DataError, match="no transcript of 11-5-"):
        build(out, librispeech, hours=[0.05])
    assert not out.exists() and not list(tmp_path.glob(".low*"))
    out.mkdir()
    with pytest.raises(UsageError, match="already exists"):
        build(out, librispeech, hours=[0.01])


def test_miniature_librispeech_of_digit_strings_keeps_the_takes_apart(tmp_path):
    for take in range(8):
        for digit, word in enumerate(("zero", "one", "two")):
            path = tmp_path / "fsdd" / "audio" / f"{digit}_ann_{take}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(4000, 0.02 * (take + 1), np.float32), 16000)
            with open(tmp_path / "fsdd" / "fsdd.tsv", "a", encoding="utf-8") as table:
                if table.tell() == 0:
                    table.write("path\tspeaker\ttext\n")
                table.write(f"fsdd/audio/{path.name}\tann\t{word}\n")
    out = tmp_path / "mini"
    mini_superb.build(out, tmp_path, tasks=["asr", "pr"], digit_strings=20)
    root = out / "librispeech"
    takes = {"train-clean-100": range(5, 8), "dev-clean": (0, 1), "test-clean": (2, 3, 4)}
    for split, count in (("train-clean-100", 12), ("dev-clean", 4), ("test-clean", 4)):
        clips = sorted((root / split).rglob("*.flac"))
        assert len(clips) == count and all(clip.name.startswith("1001-2-") for clip in clips)
        samples = np.concatenate([soundfile.read(clip)[0] for clip in clips])
        levels, counts = np.unique(np.round(samples * 50).astype(int), return_counts=True)
        found = {int(level) - 1 for level in levels[counts > 800] if level > 0}
        assert found <= set(takes[split]) and found
    lines = (root / "dev-clean" / "1001" / "2" / "1001-2.trans.txt").read_text().splitlines()
    assert all(set(line.split()[1:]) <= {"ZERO", "ONE", "TWO"} and 3 <= len(line.split()) <= 6 for line in lines)
    assert {line.split("\t")[0] for line in (root / "lexicon.txt").read_text().splitlines()} == {"ZERO", "ONE", "TWO"}
