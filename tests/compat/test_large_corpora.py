"""s3prl's table of LibriSpeech utterances: the same batches, in a time that grows with the corpus."""

from __future__ import annotations

import importlib

import pytest
import torch

import s3prl_ext
from s3prl_ext.compat.large_corpora import SearchedList


class Dictionary:
    """Stands for s3prl's: a token for each character."""

    symbols = tuple(map(chr, range(128)))

    def encode_line(self, line, line_tokenizer):
        return torch.tensor([ord(token) for token in line_tokenizer(line)])


class CountedName(str):
    """A name that counts how often it is compared with another one."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedName.compared += 1
        return str.__eq__(self, other)


@pytest.fixture
def dataset():
    s3prl_ext.install()
    return importlib.import_module("s3prl.downstream.asr.dataset")


def corpus(folder, utterances: int):
    """Write a LibriSpeech of transcripts and lengths; return both folders."""
    chapter = folder / "train" / "1" / "2"
    chapter.mkdir(parents=True)
    names = [f"1-2-{number:04}" for number in range(utterances)]
    (chapter / "1-2.trans.txt").write_text("".join(f"{name} HELLO\n" for name in names))
    rows = [f"{i},train/1/2/{name}.flac,{1000 + 7 * i % 1500},\n" for i, name in enumerate(names)]
    (folder / "train.csv").write_text(",file_path,length,label\n" + "".join(rows))
    return str(folder), str(folder)


def table(dataset, folder, utterances):
    libri_root, lengths = corpus(folder, utterances)
    return dataset.SequenceDataset("train", 4, Dictionary(), libri_root, lengths, train=["train"])


def test_the_batches_are_those_of_s3prls_own_list(dataset, tmp_path, monkeypatch):
    found = table(dataset, tmp_path / "one", 43)
    monkeypatch.setattr(dataset, "list", list)
    stock = table(dataset, tmp_path / "two", 43)
    assert found.X == stock.X and len(found.X) == 11
    assert {name: ids.tolist() for name, ids in found.Y.items()} == {
        name: ids.tolist() for name, ids in stock.Y.items()
    }


def test_the_number_of_comparisons_grows_with_the_corpus(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        dataset.SequenceDataset, "_parse_x_name", lambda _, x: CountedName(x.split("/")[-1].split(".")[0])
    )
    counts = []
    for utterances in (50, 200):
        CountedName.compared = 0
        table(dataset, tmp_path / str(utterances), utterances)
        counts.append(CountedName.compared)
    assert counts[1] < 8 * counts[0], "16 times as many for 4 times the utterances are s3prl's"


def test_a_searched_list_is_a_list():
    names = SearchedList("abca")
    assert names == list("abca") and "b" in names and "z" not in names and " ".join(names) == "a b c a"


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_a_transcript_is_encoded_as_by_s3prl(dataset, add, eos, backwards):
    module = importlib.import_module("s3prl.downstream.asr.fairseq_dictionary")
    found = []
    for encode in (module.Dictionary.encode_line, module.Dictionary.encode_line.__wrapped__):
        dictionary, seen = module.Dictionary(), []
        dictionary.add_symbol("A")
        options = {"add_if_not_exist": add, "append_eos": eos, "reverse_order": backwards}
        ids = encode(dictionary, "A B | A  C", consumer=lambda *pair, seen=seen: seen.append(pair), **options)
        empty = encode(dictionary, "", **options)
        found.append([ids.tolist(), ids.dtype, empty.tolist(), empty.dtype, seen, dictionary.indices, dictionary.count])
    assert found[0] == found[1] and found[0][1] == torch.int32
