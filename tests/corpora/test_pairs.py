"""Tables of pairs, corpus folders, the draw of a part, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ext.corpora.pairs import Pair, check_audio, content_hash, draw_pairs, read_corpus, read_pairs
from s3prl_ext.errors import DataError, UsageError


def clip(path, samples=4000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(samples, 0.1, dtype=np.float32), 16000)
    return path


def table(tmp_path, *rows, head="path\ttext"):
    for name in "abc":
        clip(tmp_path / f"{name}.wav")
    (tmp_path / "pairs.tsv").write_text("\n".join([head, *rows]) + "\n")
    return tmp_path / "pairs.tsv"


def test_rows_are_read_with_quotes_and_further_columns(tmp_path):
    path = table(tmp_path, 'a.wav\t3\t"she said ""no"" twice"', "", "b.wav\t4\tyes", head="path\tn\ttext")
    assert read_pairs(path) == [Pair(tmp_path / "a.wav", 'she said "no" twice'), Pair(tmp_path / "b.wav", "yes")]
    assert read_pairs(path, root=tmp_path) == read_pairs(path)
    assert read_pairs(path, "speech")[0] == Pair(tmp_path / "a.wav", tmp_path / "a.wav")
    second = table(tmp_path, "a.wav\tb.wav", head="path\tsource_path")
    assert read_pairs(second, "speech") == [Pair(tmp_path / "a.wav", tmp_path / "b.wav")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.wav\tone", "x.wav\ttwo"], r"line 3 has a transcript without audio \(.*x.wav does not exist\): complete"),
        (["\tone"], "line 2 has a transcript without audio:"),
        (["a.wav\t", "b.wav\tx"], r"line 2 has audio without transcript \(a.wav\)"),
        (["a.wav"], r"line 2 has audio without transcript \(a.wav\)"),
        ([f"{i}.wav\tx" for i in range(5)], "line 4 .*; and 2 more rows: complete"),
        (['a.wav\t"one', "b.wav\ttwo"], "a quotation mark is left open"),
        ([], "contains no pairs"),
    ],
)
def test_incomplete_rows_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_pairs(table(tmp_path, *rows))


def test_columns_images_and_kinds_are_checked(tmp_path):
    path = table(tmp_path, "a.wav\tx.png", head="path\timage")
    with pytest.raises(DataError, match="lacks the column 'text': .*names path, image"):
        read_pairs(path)
    with pytest.raises(DataError, match=r"audio without image \(.*x.png does not exist"):
        read_pairs(path, "image")
    with pytest.raises(UsageError, match="unknown kind of paired input 'video'"):
        read_pairs(path, "video")
    with pytest.raises(UsageError, match="no such table of pairs"):
        read_pairs(tmp_path / "none.tsv")
    path.write_bytes(b"path\ttext\na.wav\t\xff\n")
    with pytest.raises(DataError, match="not readable as a table of UTF-8 text"):
        read_pairs(path)


def test_the_draw_is_seeded_and_keeps_the_order(tmp_path):
    pairs = [Pair(tmp_path / f"{i:03d}", str(i)) for i in range(100)]
    state = torch.get_rng_state()
    drawn = draw_pairs(pairs, 0.1, 0, "t")
    assert len(drawn) == 10 and drawn == sorted(drawn, key=lambda pair: pair.audio) and set(drawn) < set(pairs)
    assert drawn == draw_pairs(pairs, 0.1, 0, "t") != draw_pairs(pairs, 0.1, 1, "t")
    assert draw_pairs(pairs, 1.0, 3, "t") == pairs
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(DataError, match="t holds too few pairs: 0.1 of 14 is 1, but at least 2 are needed"):
        draw_pairs(pairs[:14], 0.1, 0, "t")


def test_audio_is_checked_from_its_header(tmp_path):
    check_audio([Pair(clip(tmp_path / "a.wav"), "")])
    with pytest.raises(DataError, match=r"short.wav lasts 0.006 s, too short"):
        check_audio([Pair(clip(tmp_path / "short.wav", 100), "")])
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(DataError, match="cannot read the audio file"):
        check_audio([Pair(tmp_path / "text.wav", "")])


def test_content_counts_not_names(tmp_path):
    first, second = clip(tmp_path / "a.wav"), clip(tmp_path / "b.wav")
    assert content_hash(first) == content_hash(second) != content_hash(clip(tmp_path / "c.wav", 5000))
    assert content_hash("a") != content_hash("b")


def ljspeech(root):
    folder = root / "LJSpeech-1.1"
    names = [f"LJ{chapter:03d}-0001" for chapter in (1, 2, 5, 10)]
    for name in names:
        clip(folder / "wavs" / f"{name}.wav")
    (folder / "metadata.csv").write_text("".join(f"{name}|Mr. {name}|mister {name}\n" for name in names))
    return folder


def test_training_pairs_of_ljspeech(tmp_path):
    folder = ljspeech(tmp_path)
    for place in (folder, tmp_path):
        pairs = read_corpus(str(place), "text")
        assert [(pair.audio.stem, pair.other) for pair in pairs] == [
            ("LJ001-0001", "mister LJ001-0001"),
            ("LJ002-0001", "mister LJ002-0001"),
        ]
    assert len(read_corpus(str(folder), "text", split="hash")) == 2
    assert read_corpus(str(folder), "speech")[0].other == folder / "wavs" / "LJ001-0001.wav"
    (folder / "wavs" / "LJ001-0001.wav").unlink()
    with pytest.raises(DataError, match="1 transcripts have no audio: LJ001-0001"):
        read_corpus(str(folder), "text")


@pytest.mark.parametrize(("kept", "training"), [(("LJ001", "LJ002"), ["LJ001-0001", "LJ002-0001"]), (("LJ005",), None)])
def test_a_part_of_ljspeech_needs_its_training_split_only(kept, training, tmp_path):
    folder = ljspeech(tmp_path)
    lines = (folder / "metadata.csv").read_text().splitlines(keepends=True)
    (folder / "metadata.csv").write_text("".join(line for line in lines if line.startswith(kept)))
    for path in (folder / "wavs").glob("*.wav"):
        if not path.name.startswith(kept):
            path.unlink()
    if training:
        assert [pair.audio.stem for pair in read_corpus(str(folder), "text")] == training
        return
    with pytest.raises(DataError, match="the split 'train' of LJSpeech-1.1 by chapter is empty"):
        read_corpus(str(folder), "text")


def test_training_pairs_of_vctk(tmp_path):
    for speaker in range(225, 236):
        clip(tmp_path / f"wav48_silence_trimmed/p{speaker}/p{speaker}_001_mic1.flac")
        text = tmp_path / f"txt/p{speaker}/p{speaker}_001.txt"
        text.parent.mkdir(parents=True)
        text.write_text("Please call Stella.\n")
    speakers = [pair.audio.parent.name for pair in read_corpus(str(tmp_path), "text")]
    assert speakers == [f"p{number}" for number in (225, 226, 227, 228, 229, 230, 231, 232, 235)]


def test_what_does_not_belong_together_is_refused(tmp_path):
    folder, path = ljspeech(tmp_path / "lj"), table(tmp_path, "a.wav\tone")
    for arguments, message in (
        ((str(path), "text", None, "hash"), "split belongs to a corpus folder"),
        ((str(folder), "text", "/x"), "root belongs to a table of pairs"),
        ((str(folder), "image"), "has no images"),
        ((str(tmp_path), "text"), "is not a folder of LJSpeech-1.1 or VCTK-Corpus-0.92"),
    ):
        with pytest.raises(UsageError, match=message):
            read_corpus(*arguments)
