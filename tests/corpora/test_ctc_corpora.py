"""The corpora of s3prl's ctc downstream: what the clone's own classes hand out, and what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

import s3prl_ext
from s3prl_ext.compat.ctc.corpus.libriphone import LibriPhoneDataset
from s3prl_ext.compat.ctc.corpus.snips import SnipsDataset
from s3prl_ext.configs import shipped_dir
from s3prl_ext.errors import DataError, UsageError


class Words:
    """Stand-in for s3prl's word-level text encoder."""

    token_type, eos_idx, unk_idx = "word", 1, 2

    def __init__(self, words):
        self.index = {word: number for number, word in enumerate(words, 3)}

    def vocab_to_idx(self, word):
        return self.index.get(word, self.unk_idx)

    def encode(self, text):
        return [self.vocab_to_idx(word) for word in text.split()] + [1]


class Slots(Words):
    """Stand-in for an encoder with slots: as many tokens as words."""

    token_type = "character-slot"

    def encode(self, text):
        return super().encode(text.split("\t")[0])


@pytest.fixture
def phones() -> Words:
    return Words((shipped_dir("downstream_configs") / "pr" / "phoneme.txt").read_text().split())


@pytest.fixture
def libri(tmp_path) -> Path:
    """Return a LibriSpeech-like tree with five utterances of 1 to 5 words and a lexicon."""
    folder = tmp_path / "train" / "1" / "2"
    folder.mkdir(parents=True)
    lines = []
    for n in range(5):
        (folder / f"1-2-{n}.flac").touch()
        lines.append(f"1-2-{n} " + " ".join(["GO"] * (n + 1)))
    (folder / "1-2.trans.txt").write_text("\n".join(lines))  # the last line lacks its newline
    (tmp_path / "lexicon.txt").write_text("GO\tG OW1\nGO\tG OW2\n")
    return tmp_path


def dataset(libri: Path, phones: Words, bucket_size: int, **changes) -> LibriPhoneDataset:
    """Return the dataset over the tree of `libri`."""
    return LibriPhoneDataset(
        ["train"],
        phones,
        bucket_size,
        **{"path": libri, "lexicon": [libri / "lexicon.txt"], "train": ["train"]} | changes,
    )


def test_longest_labels_come_first_and_the_first_pronunciation_counts(libri, phones):
    data = dataset(libri, phones, 1)
    assert [path.stem for path in data.file_list] == [f"1-2-{n}" for n in (4, 3, 2, 1, 0)]
    assert data.text[-1] == [phones.vocab_to_idx("G"), phones.vocab_to_idx("OW1"), 1]
    assert data[0] == (data.file_list[0], data.text[0]) and len(data) == 5
    assert dataset(libri, phones, 1, ascending=True).file_list == data.file_list[::-1]


def test_a_bucket_is_neighbours_and_the_last_ones_start_earlier(libri, phones):
    data = dataset(libri, phones, 3)
    assert data.bucket_size == 3 and len(data) == 5
    names = [[path.stem[-1] for path, _ in data[index]] for index in range(5)]
    assert names == [["4", "3", "2"], ["3", "2", "1"], ["2", "1", "0"], ["2", "1", "0"], ["2", "1", "0"]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "lexicon.txt").write_text("STOP\tS T\n"), "the word GO of 1-2-0.flac is in no lexicon"),
        (lambda root: (root / "lexicon.txt").write_text("GO\tG XX9\n"), "phone 'XX9' of GO is not in the vocabulary"),
        (lambda root: (root / "lexicon.txt").write_bytes(b"GO\tG \xff"), "lexicon.txt is not UTF-8 text .*: unpack"),
        (
            lambda root: next(root.rglob("*.trans.txt")).write_bytes(b"1-2-0 \xff"),
            "trans.txt is not UTF-8 text .*: unpack",
        ),
        (lambda root: (root / "lexicon.txt").unlink(), "no such lexicon: .*lexicon.txt"),
        (lambda root: (root / "train/1/2/1-2.trans.txt").write_text("1-2-0 GO\n"), "no transcript of 1-2-1.flac"),
    ],
)
def test_incomplete_libriphone_is_named(libri, phones, spoil, message):
    spoil(libri)
    with pytest.raises(DataError, match=message):
        dataset(libri, phones, 1)


def test_a_bucket_larger_than_the_corpus_is_refused(libri, phones):
    with pytest.raises(DataError, match="only 5 were found: lower downstream_expert.corpus.batch_size"):
        dataset(libri, phones, 6)
    with pytest.raises(DataError, match="no .flac files under"):
        LibriPhoneDataset(["dev"], phones, 1, path=libri, lexicon=[libri / "lexicon.txt"])


def test_hidden_files_of_a_copy_from_macos_are_left_alone(libri, phones):
    for name in ("1-2-0.flac", "1-2.trans.txt"):
        (libri / "train/1/2" / f"._{name}").write_bytes(b"\xff\xfe")
    assert len(dataset(libri, phones, 1)) == 5


def test_snips_takes_the_speakers_of_the_split(tmp_path):
    (tmp_path / "valid").mkdir()
    for name in ("Amy-1", "Amy-2", "Joey-1", "Amy-3"):
        (tmp_path / "valid" / f"{name}.wav").touch()
    (tmp_path / "all.iob.snips.txt").write_text(
        "Amy-1 BOS PLAY EOS\tO O X\nAmy-2 BOS PLAY JAZZ EOS\tO O genre X\nJoey-1 BOS PLAY EOS\tO O X\n"
    )
    words = Slots(["BOS", "EOS", "PLAY", "JAZZ"])
    data = SnipsDataset(["valid"], words, 1, path=tmp_path, valid_speakers=["Amy"], num_workers=0)
    assert [path.stem for path in data.file_list] == ["Amy-2", "Amy-1"]
    assert data.text[0] == words.encode("BOS PLAY JAZZ EOS\t")
    with pytest.raises(DataError, match="no clip of the speakers Ivy"):
        SnipsDataset(["valid"], words, 1, path=tmp_path, valid_speakers=["Ivy"])
    with pytest.raises(DataError, match="no clip of the speakers Salli in .*valid"):
        SnipsDataset(["valid"], words, 1, path=tmp_path, valid_speakers=["Amy", "Salli"])
    with pytest.raises(DataError, match="all-trans.txt do not exist"):
        SnipsDataset(["valid"], Words([]), 1, path=tmp_path, valid_speakers=["Amy"])


def test_only_line_ends_divide_transcripts(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "Amy-1.wav").touch()
    (tmp_path / "all.iob.snips.txt").write_text(
        "Amy-1 BOS PLAY\x85 \u2028JAZZ\x0c EOS\tO O genre X\r\n", encoding="utf-8"
    )
    words = Slots(["BOS", "EOS", "PLAY", "JAZZ"])
    data = SnipsDataset(["valid"], words, 1, path=tmp_path, valid_speakers=["Amy"])
    assert data.text[0] == words.encode("BOS PLAY JAZZ EOS\t")


def test_texts_in_another_case_than_the_vocabulary_are_refused(tmp_path):
    s3prl_ext.install()
    from s3prl.downstream.ctc.text import load_text_encoder

    (tmp_path / "slots.txt").write_text("O\ngenre\n")
    vocabulary = shipped_dir("downstream_configs") / "sf" / "character.txt"
    encoder = load_text_encoder("character-slot", str(vocabulary), str(tmp_path / "slots.txt"))
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "Amy-1.wav").touch()
    line = "Amy-1 BOS PLAY JAZZ EOS\tO O genre X\n"
    for text, message in (
        (line, None),
        (line.replace("PLAY JAZZ", "play jazz"), "8 of .* are not in text.vocab_file, .*its case"),
    ):
        (tmp_path / "all.iob.snips.txt").write_text(text)
        with pytest.raises(DataError, match=message) if message else nullcontext():
            SnipsDataset(["valid"], encoder, 1, path=tmp_path, valid_speakers=["Amy"])


def test_shipped_configuration_reads_the_miniature_corpora(mini_superb, phones):
    root = mini_superb / "librispeech"
    data = LibriPhoneDataset(["train-clean-100"], phones, 4, path=root, lexicon=[root / "lexicon.txt"])
    assert len(data) == 48 and all(phones.unk_idx not in tokens for tokens in data.text)
    assert all(len(data[index]) == 4 for index in (0, 47))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "LibriSpeech",
            r"corpus.name LibriSpeech needs downstream/ctc/corpus/librispeech.py of s3prl's git repository",
        ),
        ("snip", r"downstream_expert.corpus.name: unknown corpus 'snip'; did you mean 'snips'\? Known: common_voice, "),
    ],
)
def test_a_corpus_that_is_not_there_is_named(name, message):
    s3prl_ext.install()
    from s3prl.downstream.ctc.data import load_dataset

    with pytest.raises(UsageError, match=message):
        load_dataset("train", None, {"name": name, "bucketing": True, "batch_size": 2, "train": ["a"]})
