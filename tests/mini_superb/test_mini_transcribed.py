"""Miniature LJ Speech and VCTK: their own modules read them; strings of digits keep the official test takes apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.corpora import ljspeech, vctk
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.splits import hash_split
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import build
from s3prl_ext.mini_superb.ks import DIGIT_WORDS
from s3prl_ext.mini_superb.transcribed import split_sizes

CORPORA = {"LJSpeech-1.1": ljspeech.CORPUS, "VCTK-Corpus-0.92": vctk.CORPUS}


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory) -> Path:
    """Recordings with fsdd alone: two speakers, ten takes; the level of a clip tells its take."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "fsdd/audio").mkdir(parents=True)
    lines = ["path\tspeaker\ttext"]
    for speaker in ("ann", "bob"):
        for take in range(10):
            for number, digit in enumerate(DIGIT_WORDS):
                path = f"fsdd/audio/{number}_{speaker}_{take}.flac"
                soundfile.write(str(folder / path), np.full(1600, (take + 1) / 20), 16000, subtype="PCM_16")
                lines.append(f"{path}\t{speaker}\t{digit}")
    (folder / "fsdd/fsdd.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def digits(fsdd, tmp_path_factory) -> Path:
    """Both corpora made of 30 strings of digits."""
    out = tmp_path_factory.mktemp("digits") / "mini"
    build(out, fsdd, tasks=["ljspeech", "vctk"], digit_strings=30)
    return out


@pytest.mark.parametrize("folder", CORPORA)
def test_synthesised_corpora_are_read_and_split_by_hash(mini_superb, folder):
    corpus, root = CORPORA[folder], mini_superb / folder
    utterances = corpus.read(root, "error")
    assert len(utterances) == 40 and len({u.text for u in utterances}) == 40
    assert all(u.text[0].isupper() and u.text.endswith(".") for u in utterances)
    assert json.loads((root / "splits.json").read_text()) == hash_split(u.id for u in utterances)
    assert len({u.group for u in utterances}) == {"LJSpeech-1.1": 1, "VCTK-Corpus-0.92": 4}[folder]


@pytest.mark.parametrize("folder", CORPORA)
def test_strings_of_digits(digits, folder):
    corpus, root = CORPORA[folder], digits / folder
    utterances = {u.id: u for u in corpus.read(root, "error")}
    splits = corpus.splits(list(utterances.values()), str(root / "splits.json"))
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [18, 6, 6]
    takes: dict[str, set[int]] = {name: set() for name in splits}
    for name, ids in splits.items():
        for id in ids:
            words = utterances[id].text.split()
            assert 2 <= len(words) <= 5 and set(words) <= set(DIGIT_WORDS)
            samples = read_audio(utterances[id].audio)
            assert len(samples) > 1600 * len(words)
            levels = np.round(samples * 20).astype(int)
            takes[name] |= {
                int(level) - 1 for level in np.unique(levels) if (levels == level).sum() > 800 and level > 0
            }
    assert takes["train"] <= set(range(5, 10)) and takes["dev"] <= {0, 1} and takes["test"] <= {2, 3, 4}
    assert all(takes.values())


def test_as_many_strings_as_asked_for():
    for strings in range(5, 1000):
        sizes = split_sizes(strings)
        each_rounded = {"train": round(0.6 * strings), "dev": round(0.2 * strings), "test": round(0.2 * strings)}
        assert sum(sizes.values()) == strings and min(sizes.values()) > 0
        assert all(abs(sizes[split] - each_rounded[split]) <= 1 for split in sizes)
        assert sizes == each_rounded or sum(each_rounded.values()) != strings
    assert split_sizes(7) == {"train": 4, "dev": 2, "test": 1}


def test_chapters_of_strings_follow_their_split(digits):
    utterances = ljspeech.read(digits / "LJSpeech-1.1")
    by_file = ljspeech.CORPUS.splits(utterances, str(digits / "LJSpeech-1.1" / "splits.json"))
    assert ljspeech.CORPUS.splits(utterances, "chapter") == by_file


def test_vctk_keeps_the_speakers_of_the_digits(digits):
    assert {u.group for u in vctk.read(digits / "VCTK-Corpus-0.92")} == {"ann", "bob"}


def test_digits_are_the_same_every_time_and_need_recordings(digits, fsdd, tmp_path):
    build(tmp_path / "again", fsdd, tasks=["vctk"], digit_strings=30)
    first = {p.name: p.read_bytes() for p in (digits / "VCTK-Corpus-0.92").rglob("*.*")}
    again = {p.name: p.read_bytes() for p in (tmp_path / "again" / "VCTK-Corpus-0.92").rglob("*.*")}
    assert first == again
    for recordings, count, part in ((None, 30, "--digits needs recordings"), (fsdd, 3, "--digits 3 is too few")):
        with pytest.raises(UsageError, match=part):
            build(tmp_path / "no", recordings, tasks=["ljspeech"], digit_strings=count)
    assert not (tmp_path / "no").exists()


@pytest.mark.data
def test_recordings_keep_their_ids_and_texts(recordings, tmp_path):
    out = tmp_path / "mini"
    build(out, recordings, tasks=["ljspeech", "vctk"])
    lj, voices = ljspeech.read(out / "LJSpeech-1.1"), vctk.read(out / "VCTK-Corpus-0.92")
    assert "LJ001-0002" in {u.id for u in lj} and "p225_003" in {u.id for u in voices}
    assert next(u.text for u in lj if u.id == "LJ001-0002") == "in being comparatively modern."
    assert len(lj) >= 30 and len(voices) >= 60 and len({u.group for u in voices}) >= 12
    assert all(u.audio.is_file() and u.text for u in [*lj, *voices])
