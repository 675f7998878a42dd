"""ESC-50: table, folds, and the layouts built from recordings or computed."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from s3prl_ext.commands.prepare_esc50 import main
from s3prl_ext.corpora.audio import read_audio, write_audio
from s3prl_ext.corpora.esc50 import (
    CLASSES,
    META,
    Esc50Clip,
    dev_fold,
    folder_of,
    read_clips,
    split_clips,
    validate,
)
from s3prl_ext.corpora.recordings import Recordings
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb.esc50 import ESC10, MINI_CLASSES, MINI_CLIPS, write, write_corpus
from s3prl_ext.mini_superb.source import MiniBuild


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Return a computed miniature corpus; it is not written into."""
    folder = tmp_path_factory.mktemp("esc50") / "ESC-50-master"
    write(folder, MiniBuild(folder))
    return folder


@pytest.fixture
def own(corpus, tmp_path) -> Path:
    """Return a copy of the corpus to spoil."""
    return Path(shutil.copytree(corpus, tmp_path / "ESC-50-master"))


def replace_line(root: Path, number: int, column: int, value: str) -> None:
    """Change one field of the table; line 0 is its header."""
    with open(root / META, newline="") as file:
        rows = list(csv.reader(file))
    rows[number][column] = value
    with open(root / META, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_miniature_corpus_has_every_class_in_every_fold(corpus):
    clips = read_clips(corpus)
    assert len(clips) == MINI_CLASSES * MINI_CLIPS * 5
    assert set(Counter((clip.fold, clip.target) for clip in clips).values()) == {MINI_CLIPS}
    assert {clip.target for clip in clips} == set(ESC10[:MINI_CLASSES])
    assert all(clip.name.split("-")[0] == str(clip.fold) and clip.name.endswith(f"-{clip.target}") for clip in clips)
    samples = read_audio(clips[0].path)
    assert len(samples) == 80000 and np.abs(samples).max() > 0.05


def test_same_seed_gives_the_same_bytes(corpus, tmp_path):
    write(tmp_path / "again", MiniBuild(tmp_path))
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert all((corpus / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


def test_a_table_that_is_no_text_is_named(own):
    (own / META).write_bytes((own / META).read_bytes()[:1000] + b"\xff\xfe")
    with pytest.raises(DataError, match=r"esc50.csv is not UTF-8 text .*: unpack the archive again"):
        read_clips(own)


def test_the_folder_above_is_accepted(corpus):
    assert folder_of(corpus.parent) == folder_of(corpus) == corpus


def test_audio_of_the_archive_is_resampled(own):
    clip = read_clips(own)[0]
    tone = np.sin(2 * np.pi * 440 * np.arange(5 * 44100) / 44100)
    import soundfile

    soundfile.write(clip.path, 0.5 * tone, 44100)
    samples = read_audio(clip.path)
    assert len(samples) == 80000
    peak = np.abs(np.fft.rfft(samples)).argmax() * 16000 / 80000
    assert peak == pytest.approx(440, abs=0.5)


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_folds_are_test_dev_and_train(corpus, fold):
    splits = split_clips(read_clips(corpus), "folds", fold)
    assert {clip.fold for clip in splits["test"]} == {fold}
    assert {clip.fold for clip in splits["dev"]} == {dev_fold(fold)} == {fold + 1 if fold < 5 else 1}
    assert {clip.fold for clip in splits["train"]} == {1, 2, 3, 4, 5} - {fold, dev_fold(fold)}
    assert sum(map(len, splits.values())) == len(read_clips(corpus))


def test_hash_split_takes_a_tenth_for_dev_and_test(corpus):
    splits = split_clips(read_clips(corpus), "hash", 1)
    assert {name: len(clips) for name, clips in splits.items()} == {"train": 40, "dev": 5, "test": 5}
    assert splits == split_clips(read_clips(corpus), "hash", 3)


def test_cuts_of_one_recording_are_in_one_split():
    """ESC-50 has up to eight cuts of a recording: spread over splits, test would hold what train has heard."""
    names = [f"{1 + n % 5}-{100000 + n}-{take}-{n % 50}" for n in range(200) for take in "ABC"[: 1 + n % 3]]
    clips = [Esc50Clip(Path(f"{name}.wav"), int(name[0]), int(name.split("-")[3])) for name in names]
    splits = split_clips(clips, "hash", 1)
    recordings = {name: {clip.name.split("-")[1] for clip in those} for name, those in splits.items()}
    assert {name: len(found) for name, found in recordings.items()} == {"train": 160, "dev": 20, "test": 20}
    assert sum(map(len, splits.values())) == len(clips) and len(set().union(*recordings.values())) == 200


def test_unsuitable_splits_are_refused(corpus):
    clips = read_clips(corpus)
    for fold in (0, 6, True, "1"):
        with pytest.raises(UsageError, match="must be 1, 2, 3, 4 or 5"):
            split_clips(clips, "folds", fold)
    with pytest.raises(UsageError, match="unknown downstream_expert.split 'fold'; did you mean 'folds'"):
        split_clips(clips, "fold", 1)
    with pytest.raises(DataError, match="split 'dev' of ESC-50 is empty"):
        split_clips([clip for clip in clips if clip.fold != 2], "folds", 1)


def test_table_and_audio_must_agree(own):
    clip = read_clips(own)[3]
    clip.path.rename(own / "audio" / "9-stray.wav")
    with pytest.raises(DataError, match=rf"1 clips of .*esc50.csv have no audio, such as {clip.path.name}"):
        read_clips(own)
    shutil.copy(own / "audio" / "9-stray.wav", clip.path)
    with pytest.raises(DataError, match=r"1 files of .*audio are not in meta.esc50.csv, such as 9-stray.wav"):
        read_clips(own)


@pytest.mark.parametrize(("column", "value"), [(1, "6"), (1, ""), (2, "50"), (2, "2"), (3, "dgo"), (0, "")])
def test_bad_lines_are_named(own, column, value):
    replace_line(own, 4, column, value)
    with pytest.raises(DataError, match=r"line 5 of .*esc50.csv is not a clip of ESC-50"):
        read_clips(own)


def test_table_of_another_corpus_is_refused(own, tmp_path):
    replace_line(own, 0, 1, "split")
    with pytest.raises(DataError, match="lacks the column 'fold'"):
        read_clips(own)
    with pytest.raises(DataError, match="contains no meta/esc50.csv"):
        read_clips(tmp_path / "nowhere")
    replace_line(own, 0, 1, "fold")
    first = (own / META).read_text().splitlines()[1].split(",")[0]
    replace_line(own, 2, 0, first)
    with pytest.raises(DataError, match="twice"):
        read_clips(own)


def test_validation_names_what_differs_from_the_official_corpus(corpus):
    assert validate(corpus) == ["50 clips instead of 2000", "sampled at 16000 Hz instead of 44100 Hz"]


def recordings_folder(root: Path, targets=(0, 1), folds=(1, 2, 3, 4, 5), takes=2) -> Path:
    """Write a small table of recordings with short clips."""
    lines = ["path\tfilename\tfold\ttarget\tcategory"]
    for target in targets:
        for fold in folds:
            for take in range(takes):
                name = f"{fold}-{target}{take}-A-{target}"
                write_audio(root / "esc50" / "audio" / f"{name}.flac", np.full(800, 0.1, dtype=np.float32))
                lines.append(f"esc50/audio/{name}.flac\t{name}.wav\t{fold}\t{target}\t{CLASSES[target]}")
    (root / "esc50" / "esc50.tsv").write_text("\n".join(lines) + "\n")
    return root


def test_prepare_builds_the_layout_from_recordings(tmp_path, capsys):
    recordings = recordings_folder(tmp_path / "recordings")
    assert main(["--out", str(tmp_path), "--recordings", str(recordings), "--classes", "2", "--clips", "1"]) == 0
    assert f"export ESC50={tmp_path / 'ESC-50-master'}" in capsys.readouterr().out
    clips = read_clips(tmp_path)
    assert [(clip.fold, clip.category) for clip in clips] == [(f, c) for f in range(1, 6) for c in ("dog", "rooster")]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    with pytest.raises(UsageError, match="already exists"):
        main(["--out", str(tmp_path), "--recordings", str(recordings)])


def test_recordings_that_lack_a_fold_are_refused(tmp_path):
    recordings = Recordings(recordings_folder(tmp_path / "recordings", folds=(1, 2, 3, 4)))
    with pytest.raises(DataError, match="0 clips of dog in fold 5"):
        write_corpus(tmp_path / "out", MiniBuild(tmp_path, recordings), classes=1, clips=1)
    with pytest.raises(DataError):
        main(["--out", str(tmp_path), "--recordings", str(tmp_path / "recordings"), "--classes", "1"])
    assert not [path for path in tmp_path.iterdir() if "ESC-50" in path.name], "nothing half-written stays"


def test_prepare_without_archive_says_where_it_is(tmp_path):
    with pytest.raises(DataError, match="--download"):
        main(["--out", str(tmp_path)])


@pytest.mark.data
def test_recorded_miniature_corpus(recordings, tmp_path):
    write(tmp_path, MiniBuild(tmp_path, Recordings(recordings)))
    clips = read_clips(tmp_path)
    assert len(clips) == MINI_CLASSES * MINI_CLIPS * 5
    assert all(len(read_audio(clip.path)) == 80000 for clip in clips[::10])
