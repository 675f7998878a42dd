"""The miniature corpora read the way s3prl's tasks read them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.mini_superb import ic, ks, librispeech, sd, sf, sid


@pytest.fixture(scope="module", params=["synthesised", pytest.param("recorded", marks=pytest.mark.data)])
def corpus(request) -> Path:
    """Return the corpora from synthesis or from recordings."""
    return request.getfixturevalue("mini_superb" if request.param == "synthesised" else "recorded_superb")


def test_all_audio_is_16_khz_mono_16_bit_and_audible(corpus):
    files = [path for suffix in ("wav", "flac") for path in corpus.rglob(f"*.{suffix}")]
    assert len(files) > 500
    for path in files:
        info = soundfile.info(str(path))
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16"), path
        assert info.frames >= 8000, path
    for path in files[::20]:
        assert np.abs(soundfile.read(str(path))[0]).max() > 0.01, path


def test_size_is_under_ten_megabytes_a_corpus(corpus):
    folders = [path for path in corpus.iterdir() if path.is_dir()]
    assert sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) < 10e6 * len(folders)


def test_keyword_spotting_has_all_classes_in_each_split(corpus):
    root = corpus / "speech_commands"
    words: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    counts = dict.fromkeys(words, 0)
    for path in (root / ks.TRAIN_FOLDER).glob("[!_]*/*.wav"):
        split = ks.hash_split(path.name.split("_nohash_")[0])
        words[split].add(path.parent.name)
        counts[split] += 1
    assert words == {"train": {*ks.KEYWORDS, "other"}, "dev": {*ks.KEYWORDS, "other"}, "test": set()}
    assert counts["train"] >= 150 and counts["dev"] >= 8
    test_classes = {path.name for path in (root / ks.TEST_FOLDER).iterdir()}
    assert test_classes == {*ks.KEYWORDS, "_unknown_", "_silence_"}
    assert all(any(folder.glob("*.wav")) for folder in (root / ks.TEST_FOLDER).iterdir())
    for noise in (root / ks.TRAIN_FOLDER / "_background_noise_").glob("*.wav"):
        assert soundfile.info(str(noise)).frames > 16000


def test_intent_slots_of_valid_and_test_occur_in_train(corpus):
    tables = {}
    for split in ("train", "valid", "test"):
        with open(corpus / "fluent_speech_commands" / "data" / f"{split}_data.csv", newline="") as file:
            tables[split] = list(csv.DictReader(file))
        assert list(tables[split][0]) == ["", "path", "speakerId", "transcription", *ic.SLOTS]
        assert all((corpus / "fluent_speech_commands" / row["path"]).is_file() for row in tables[split])
    assert len(tables["train"]) >= 32 and min(map(len, tables.values())) >= 5
    for slot in ic.SLOTS:
        trained = {row[slot] for row in tables["train"]}
        assert len(trained) > 1 and "" not in trained
        assert {row[slot] for row in tables["valid"] + tables["test"]} <= trained
    paths = [row["path"] for table in tables.values() for row in table]
    assert len(paths) == len(set(paths))


def test_every_speaker_is_in_all_three_splits_with_own_recordings(corpus):
    root = corpus / "voxceleb1"
    videos: dict[str, dict[str, str]] = {}
    speakers: dict[str, set[str]] = {"1": set(), "2": set(), "3": set()}
    for line in (root / sid.META_DATA).read_text().splitlines():
        code, name = line.split()
        assert len(list(root.glob(f"*/wav/{name}"))) == 1
        speaker, video, _ = name.split("/")
        speakers[code].add(speaker)
        assert videos.setdefault(speaker, {}).setdefault(video, code) == code, "a recording is in two splits"
    assert speakers["1"] == speakers["2"] == speakers["3"]
    assert sorted(speakers["1"]) == [f"id{10001 + number}" for number in range(len(speakers["1"]))]
    assert len(speakers["1"]) >= 6


def test_lengths_and_transcripts_of_librispeech_agree_with_the_audio(corpus):
    root = corpus / "librispeech"
    symbols = {line.split()[0] for line in _shipped("asr/char.dict").read_text().splitlines()}
    seen: set[str] = set()
    for split, least in zip(librispeech.SPLITS, (32, 4, 4)):
        with open(root / "len_for_bucket" / f"{split}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) >= least and list(rows[0]) == ["", "file_path", "length", "label"]
        for row in rows:
            path = root / row["file_path"]
            assert soundfile.info(str(path)).frames == int(row["length"]) <= librispeech.LONGEST_S * 16000
            speaker, chapter = path.parts[-3:-1]
            content = (path.parent / f"{speaker}-{chapter}.trans.txt").read_text()
            assert content.endswith("\n")
            text = dict(line.split(" ", 1) for line in content.splitlines())[path.stem]
            assert set(text.replace(" ", "|")) <= symbols
            assert path.stem not in seen
            seen.add(path.stem)
    assert len(seen) == len(list(root.rglob("*.flac")))


def test_lexicon_covers_every_word_with_known_phones(corpus):
    root = corpus / "librispeech"
    phones = set(_shipped("pr/phoneme.txt").read_text().split())
    lexicon = dict(line.split("\t") for line in (root / "lexicon.txt").read_text().splitlines())
    assert all(set(pronunciation.split()) <= phones for pronunciation in lexicon.values())
    transcripts = [line for file in root.rglob("*.trans.txt") for line in file.read_text().splitlines()]
    assert {word for line in transcripts for word in line.split()[1:]} == set(lexicon)


def test_slot_filling_labels_fit_words_and_slots(mini_superb):
    root = mini_superb / "audio_snips"
    slots = (root / "slots.txt").read_text().split("\n")
    assert slots[0] == "O" and all(slots)
    transcripts = {}
    for line in (root / "all.iob.snips.txt").read_text().splitlines():
        head, labels = line.split("\t")
        name, *words = head.split(" ")
        assert (words[0], words[-1]) == ("BOS", "EOS") and len(words) == len(labels.split(" "))
        used = set(labels.split(" ")[1:-1]) - {"O"}
        assert used and used <= set(slots[1:])
        transcripts[name] = used
    for split, speakers in sf.SPEAKERS.items():
        names = {path.stem for path in (root / split).glob("*.wav")}
        assert len(names) >= 8 and names <= transcripts.keys()
        assert {name.split("-")[0] for name in names} == set(speakers)


def test_diarization_folders_hold_two_overlapping_speakers(corpus):
    for split in ("train", "dev", "test"):
        folder = corpus / "libri2mix_diarization" / split
        table = {name: _table(folder / name) for name in ("wav.scp", "segments", "utt2spk", "spk2utt", "reco2dur")}
        speaker_of = dict(table["utt2spk"])
        assert {name for _, *names in table["spk2utt"] for name in names} == speaker_of.keys()
        durations = {name: float(seconds) for name, seconds in table["reco2dur"]}
        turns: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for utterance, recording, start, end in table["segments"]:
            assert 0 <= float(start) < float(end) <= durations[recording] + 1e-3
            turns.setdefault(recording, {}).setdefault(speaker_of[utterance], []).append((float(start), float(end)))
        assert turns.keys() == durations.keys() == dict(table["wav.scp"]).keys() and len(turns) >= 4
        for recording, wav in table["wav.scp"]:
            info = soundfile.info(wav)
            assert info.frames / 16000 == pytest.approx(durations[recording], abs=1e-3)
            assert info.frames < 2000 * 160, "longer than a chunk: s3prl would lose segments"
            first, second = turns[recording].values()
            assert any(a < d and c < b for a, b in first for c, d in second), "the speakers never overlap"
        assert len(_table(folder / "rttm")) == len(table["segments"])


def test_activity_finds_tones_bridges_short_pauses_and_drops_clicks():
    def tone(seconds: float, level: float = 1.0) -> np.ndarray:
        return level * np.sin(2 * np.pi * 200 * np.arange(round(seconds * 16000)) / 16000)

    parts = [(0.5, 0), (1, 1), (0.2, 0), (1, 1), (1, 0), (0.04, 1), (1, 0), (0.5, 1)]
    wave = np.concatenate([tone(*part) for part in parts])
    assert np.allclose(sd.activity(wave), [(0.5, 2.7), (4.74, 5.24)], atol=0.011)


def test_speaker_ids_fall_into_the_wanted_split():
    for split in ("train", "dev"):
        assert {ks.hash_split(ks.speaker_id(f"speaker{n}", split)) for n in range(20)} == {split}


def test_words_without_pronunciation_are_spelled():
    assert librispeech.spell("IT'S") == "AY1 T IY1 EH1 S"
    assert librispeech.spell("'") == "SPN"


def _shipped(name: str) -> Path:
    from s3prl_ext.configs import shipped_dir

    return shipped_dir("downstream_configs") / name


def _table(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]
