"""Greedy CTC decoding against transformers' tokenizer, and vocabularies that are refused."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.decoding import Vocabulary, character_vocabulary, greedy, read_vocabulary
from tests.support import factories

TOKENS = factories.CTC_VOCABULARY


def write_tokenizer(folder: Path, tokens: list[str] = TOKENS, **settings: object) -> Path:
    """Write the two files of a CTC tokenizer."""
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"} | names | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def transformers_text(tokenizer: Any, ids: list[int]) -> str:
    """Decode with transformers, which drops the blank with the special tokens and so has to be given collapsed ids."""
    collapsed = [index for index, _ in groupby(ids)]
    return tokenizer.decode(collapsed, skip_special_tokens=True, group_tokens=False)


def check_against_transformers(folder: Path, size: int) -> None:
    """Compare transcripts and special tokens of random indices."""
    from transformers import Wav2Vec2CTCTokenizer

    ours, theirs = read_vocabulary(folder, outputs=size), Wav2Vec2CTCTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    special = set(theirs.all_special_ids) - {theirs.pad_token_id, theirs.word_delimiter_token_id}
    # Few tokens, so that repeats, blanks, delimiters and special tokens meet at the ends and in the middle.
    for high in (6, 8, size):
        for row in torch.randint(high, (40, 30), generator=generator).tolist():
            text, dropped = ours.decode(row)
            assert text == transformers_text(theirs, row).strip()
            unknown = {index for index in row if index >= len(theirs)}
            assert dropped == sum(index in special | unknown for index, _ in groupby(row))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True},
        {"unk_token": "[UNK]"},
        {"unk_token": None, "eos_token": None},
        {"additional_special_tokens": ["Z", "<s>"]},
    ],
    ids=["as is", "lower case", "unknown", "none", "listed"],
)
def test_transcripts_equal_those_of_transformers(tmp_path, settings):
    tokens = ["[UNK]" if token == "<unk>" and settings.get("unk_token") == "[UNK]" else token for token in TOKENS]
    check_against_transformers(write_tokenizer(tmp_path, tokens, **settings), len(tokens))


def test_special_tokens_of_the_older_files(tmp_path):
    """Tutorials of 2021 leave special_tokens_map.json and added_tokens.json, with indices beyond vocab.json."""
    folder = write_tokenizer(tmp_path, ["[PAD]", "[UNK]", "|", *"ABCDE"], pad_token=None, unk_token=None)
    (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|"}))
    names = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 8, "</s>": 9, "é": 10}))
    assert read_vocabulary(folder, outputs=12).tokens[8:] == ("<s>", "</s>", "é", "<unused11>")
    assert read_vocabulary(folder, outputs=12).decode([3, 1, 1, 4, 8, 9, 10, 11, 0, 3]) == ("ABéA", 4)
    check_against_transformers(folder, 12)


def test_added_tokens_with_the_mark_are_special(tmp_path):
    marks = {str(index): {"content": TOKENS[index], "special": index == 7} for index in (7, 8)}
    folder = write_tokenizer(tmp_path, added_tokens_decoder=marks)
    assert read_vocabulary(folder).decode([7, 8]) == (TOKENS[8], 1)


def test_a_repeated_letter_stays_where_a_blank_parts_it():
    vocabulary = Vocabulary(("<pad>", "|", "<unk>", *"HELO"), special=frozenset({"<pad>", "<unk>"}))
    assert vocabulary.decode([3, 4, 5, 0, 5, 2, 6]) == ("HELLO", 1)


def test_collapse_blank_and_delimiter():
    vocabulary = character_vocabulary("ab")
    blank, space, a, b = range(4)
    assert vocabulary.decode([space, a, a, blank, a, space, space, b, b, blank]) == ("aa b", 0)
    assert vocabulary.decode([blank, blank]) == vocabulary.decode([]) == ("", 0)


def test_greedy_reads_valid_frames_only():
    vocabulary = character_vocabulary("ab")
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 3, 2], [3, 3, 2]]), 4).float()
    assert greedy(logits, [3, 2], vocabulary) == [("aba", 0), ("b", 0)]


def test_encode_uses_the_other_case_and_names_unknown_characters():
    vocabulary = Vocabulary(("<pad>", "|", "A", "b"))
    assert vocabulary.encode("a B?é?") == ([2, 1, 3], "?é")


def test_missing_and_broken_vocabularies(tmp_path):
    with pytest.raises(DataError, match=r"lacks vocab.json"):
        read_vocabulary(tmp_path)
    file = tmp_path / "vocab.json"
    for content, part in (
        ("{", "not readable as JSON"),
        ("[1]", "must hold a mapping"),
        ('{"<pad>": 0, "A": 2}', "without gaps"),
        ('{"eng": {"A": 0}}', "one number"),
        ('{"A": 0, "B": 1}', "lacks the token <pad>"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=part):
            read_vocabulary(tmp_path)


def test_added_token_as_blank(tmp_path):
    write_tokenizer(tmp_path, pad_token={"content": "<s>", "lstrip": False})
    assert read_vocabulary(tmp_path).blank == 1
