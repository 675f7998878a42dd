"""LJ Speech and VCTK in their archives' layouts: reading, splits, missing files, cards, commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.commands.prepare import main as prepare_main
from s3prl_ext.corpora import ljspeech, vctk
from s3prl_ext.corpora.archives import CorpusCard
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.transcribed import read_split_file
from s3prl_ext.errors import DataError, UsageError

# Typed out from the definition of the split, not from the module.
LJ_TEST, LJ_DEV = ("LJ010", "LJ020", "LJ030", "LJ040", "LJ050"), ("LJ005", "LJ015", "LJ025", "LJ035", "LJ045")


def tone(path: Path, rate: int, seconds: float = 0.5, hz: float = 440.0) -> None:
    """Write a tone of amplitude 0.5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate), rate)


@pytest.fixture
def lj(tmp_path) -> Path:
    """LJSpeech-1.1 with one clip of each of the fifty chapters, at 22.05 kHz."""
    root = tmp_path / "LJSpeech-1.1"
    lines = []
    for chapter in range(1, 51):
        id = f"LJ{chapter:03d}-0001"
        tone(root / "wavs" / f"{id}.wav", 22050)
        lines.append(f'{id}|Chapter {chapter}, "so called"|Chapter number, "so called"\n')
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def voices(tmp_path) -> Path:
    """VCTK-Corpus-0.92 with 30 speakers and s5, two clips each, at 48 kHz; p315 and p362 are as in the archive."""
    root = tmp_path / "VCTK-Corpus-0.92"
    for speaker in [*(f"p{225 + index}" for index in range(30)), "p280", "p315", "p362", "s5"]:
        for number in ("001", "002"):
            microphones = ("mic1",) if speaker == "p280" else ("mic1", "mic2")
            for microphone in microphones:
                if not (speaker == "p362" and number == "002"):
                    tone(root / "wav48_silence_trimmed" / speaker / f"{speaker}_{number}_{microphone}.flac", 48000, 0.1)
            if speaker != "p315":
                text = root / "txt" / speaker / f"{speaker}_{number}.txt"
                text.parent.mkdir(parents=True, exist_ok=True)
                text.write_text("Please call Stella. \n", encoding="utf-8")
    (root / "speaker-info.txt").write_text("ID  AGE  GENDER  ACCENTS  REGION COMMENTS\n")
    return root


def test_ljspeech_reads_the_normalised_column(lj):
    utterances = ljspeech.read(lj)
    assert len(utterances) == 50 and utterances[0].id == "LJ001-0001" and utterances[0].group == "LJ001"
    assert utterances[0].text == 'Chapter number, "so called"'
    assert ljspeech.read(lj.parent) == utterances  # the folder around it will do


def test_hidden_files_of_a_copy_from_macos_are_left_alone(lj, voices):
    (lj / "wavs" / "._LJ001-0001.wav").write_bytes(b"x")
    flac = next((voices / "wav48_silence_trimmed" / "p225").glob("*_mic1.flac"))
    flac.with_name(f"._{flac.name}").write_bytes(b"x")
    (voices / "txt" / "p225" / "._p225_001.txt").write_bytes(b"\xff\xfe")
    assert len(ljspeech.read(lj)) == 50
    assert not [u for u in vctk.read(voices) if u.id.startswith(".")]


def test_prepare_leaves_out_a_clip_without_text_where_it_is_told_to(lj, capsys):
    table = (lj / "metadata.csv").read_text().splitlines(keepends=True)
    (lj / "metadata.csv").write_text("".join(table[1:]))
    with pytest.raises(DataError, match=r"1 recordings have no transcript: LJ001-0001.*prepare: --on-missing skip"):
        prepare_main(["ljspeech", "--validate", str(lj)])
    assert prepare_main(["ljspeech", "--validate", str(lj), "--on-missing", "skip"]) == 0
    assert "49 utterances" in capsys.readouterr().out


def test_ljspeech_splits_by_chapter(lj):
    splits = ljspeech.CORPUS.splits(ljspeech.read(lj), "chapter")
    assert {id[:5] for id in splits["test"]} == {*LJ_TEST} and {id[:5] for id in splits["dev"]} == {*LJ_DEV}
    assert len(splits["train"]) == 40


def test_vctk_reads_microphone_1_and_notes_what_the_archive_lacks(voices, caplog):
    caplog.set_level("INFO")
    utterances = vctk.read(voices)
    speakers = {u.group for u in utterances}
    assert "p315" not in speakers and {"p280", "p362", "s5"} <= speakers and len(utterances) == 65
    assert all(u.audio.name == f"{u.id}_mic1.flac" and u.text == "Please call Stella." for u in utterances)
    assert "2 recordings have no transcript in the official archive, such as p315_001" in caplog.text
    assert "1 transcripts have no audio in the official archive, such as p362_002" in caplog.text


def test_vctk_splits_by_speaker(voices):
    utterances = vctk.read(voices)
    speakers = sorted({u.group for u in utterances})
    splits = vctk.CORPUS.splits(utterances, "speaker")
    found = {name: sorted({id.rpartition("_")[0] for id in ids}) for name, ids in splits.items()}
    assert found["test"] == [speakers[9], speakers[19], speakers[29]]
    assert found["dev"] == [speakers[8], speakers[18], speakers[28]]
    assert sorted(name for names in found.values() for name in names) == speakers


def test_hash_split_and_a_file_of_splits(lj, tmp_path):
    utterances = ljspeech.read(lj)
    splits = ljspeech.CORPUS.splits(utterances, "hash")
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [40, 5, 5]
    file = tmp_path / "splits.json"
    file.write_text(json.dumps(splits | {"sha256": "as a run writes it"}))
    assert ljspeech.CORPUS.splits(utterances, str(file)) == splits


@pytest.mark.parametrize(("content", "part"), [
    (None, "not a file of splits"),
    ("{", "not a file of splits"),
    ('{"train": [], "dev": []}', "not a file of splits"),
    ('{"train": ["LJ001-0001"], "dev": ["LJ002-0001"], "test": ["LJ999-0001"]}', "1 utterances that the corpus lacks"),
    ('{"train": ["LJ001-0001"], "dev": ["LJ002-0001"], "test": ["LJ001-0001"]}', "LJ001-0001 twice"),
    ('{"train": ["LJ001-0001"], "dev": [], "test": ["LJ003-0001"]}', "split 'dev' .* is empty"),
])  # fmt: skip
def test_wrong_file_of_splits(lj, tmp_path, content, part):
    file = tmp_path / "splits.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=part):
        ljspeech.CORPUS.splits(ljspeech.read(lj), str(file))


def test_empty_split_says_what_to_do(lj):
    part = [u for u in ljspeech.read(lj) if u.group not in LJ_DEV]
    with pytest.raises(DataError, match=r"the split 'dev' of LJSpeech-1.1 by chapter is empty.*'hash'"):
        ljspeech.CORPUS.splits(part, "chapter")


def test_unknown_split_rule(lj):
    with pytest.raises(UsageError, match=r"unknown split rule \(or file\) 'chapters'; did you mean 'chapter'"):
        ljspeech.CORPUS.splits(ljspeech.read(lj), "chapters")


def test_transcript_without_audio_and_the_reverse(lj):
    for number in (3, 4, 5, 6):
        (lj / "wavs" / f"LJ{number:03d}-0001.wav").unlink()
    with pytest.raises(
        DataError, match=r"4 transcripts have no audio: LJ003-0001, LJ004-0001, LJ005-0001 \.\.\.; compl"
    ):
        ljspeech.read(lj)
    assert len(ljspeech.read(lj, "skip")) == 46
    for number in (3, 4, 5, 6):
        tone(lj / "wavs" / f"LJ{number:03d}-0001.wav", 22050)
    tone(lj / "wavs" / "LJ051-0001.wav", 22050)
    with pytest.raises(DataError, match=r"1 recordings have no transcript: LJ051-0001; complete"):
        ljspeech.read(lj)
    with pytest.raises(UsageError, match="unknown way with missing files"):
        ljspeech.read(lj, "ignore")


def test_other_speakers_of_vctk_must_be_complete(voices):
    (voices / "txt" / "p226" / "p226_001.txt").write_text("\n")
    with pytest.raises(DataError, match=r"1 recordings have no transcript: p226_001"):
        vctk.read(voices)
    assert len(vctk.read(voices, "skip")) == 64


@pytest.mark.parametrize(("line", "part"), [
    ("LJ001-0002|only two", "line 51 of .* must read"),
    ("LJ001-0001|a|a", "names LJ001-0001 a second time"),
])  # fmt: skip
def test_malformed_metadata(lj, line, part):
    with open(lj / "metadata.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=part):
        ljspeech.read(lj)


def test_no_corpus_there(tmp_path):
    with pytest.raises(DataError, match=r"is not a folder of LJSpeech-1.1: it lacks metadata.csv and wavs"):
        ljspeech.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is not a folder of VCTK-Corpus-0.92"):
        vctk.read(tmp_path)


@pytest.mark.parametrize("inside", [False, True])
def test_an_older_vctk_is_named(voices, tmp_path, inside):
    folder = voices.rename(tmp_path / "VCTK-Corpus")
    (folder / "wav48_silence_trimmed").rename(folder / "wav48")
    with pytest.raises(DataError, match=r"VCTK-Corpus is an older version of VCTK \(0\.80: wav48, one microphone"):
        vctk.read(tmp_path if inside else folder)
    (folder / "wav48").rename(folder / "audio")
    with pytest.raises(DataError, match=r"it lacks wav48_silence_trimmed; give the folder that holds txt and wav48_s"):
        vctk.read(folder)


@pytest.mark.parametrize("rate", [22050, 48000])
def test_audio_is_resampled_on_reading(tmp_path, rate):
    path = tmp_path / "tone.wav"
    tone(path, rate, seconds=1.0)
    samples = read_audio(path)
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) <= 1
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(samples)) / 16000)
    assert np.abs(samples - wanted)[200:-200].max() < 2e-3
    assert np.array_equal(samples, read_audio(path))


@pytest.mark.parametrize("card", [ljspeech.CARD, vctk.CARD], ids=lambda card: card.name)
def test_cards_are_complete(card: CorpusCard):
    kind, _, digest = card.checksum.partition(":")
    assert kind == "sha256" and len(digest) == 64 and int(digest, 16)
    assert card.url.startswith("https://") and card.size > 10**9 and card.licence and card.citation
    assert card.url in str(card) and card.licence in str(card)


def test_prepare_validates_a_folder(lj, voices, capsys):
    assert prepare_main(["ljspeech", "--validate", str(lj)]) == 0
    shown = capsys.readouterr().out
    assert "50 utterances, 50 chapters, 0.01 h, 22050 Hz" in shown and f"export LJSPEECH={lj}" in shown
    assert prepare_main(["vctk", "--out", str(voices.parent)]) == 0  # already unpacked
    assert "65 utterances, 33 speakers" in capsys.readouterr().out


def test_prepare_without_archive_or_with_a_broken_clip(lj, tmp_path, capsys):
    with pytest.raises(DataError, match=r"add --download, or fetch https://data.keithito.com"):
        prepare_main(["ljspeech", "--out", str(tmp_path / "empty")])
    (lj / "wavs" / "LJ001-0001.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"LJ001-0001.wav"):
        prepare_main(["ljspeech", "--validate", str(lj)])


def test_a_split_file_keeps_its_further_lists(tmp_path):
    """Those of LibriSpeech have two test sets and two dev sets."""
    lists = {"train": ["a"], "dev": ["b"], "test": ["c"], "test-other": ["d"], "all-test": ["c", "d"]}
    file = tmp_path / "splits.json"

    def read(**changes):
        file.write_text(json.dumps(lists | changes))
        return read_split_file(file, {"a", "b", "c", "d"})

    assert read(sha256="0", seed=3) == lists
    for change in ({"test-other": ["b"]}, {"test": ["c", "c"]}, {"test": ["a"]}, {"test-other": ["d", "d"]}):
        with pytest.raises(DataError, match="names the utterance . twice"):
            read(**change)
    file.write_text("[]")
    with pytest.raises(DataError, match="is not a file of splits"):
        read_split_file(file, set())
