"""Greedy CTC decoding against transformers' tokenizer, and vocabularies that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.decoding import Vocabulary, character_vocabulary, greedy, read_vocabulary
from tests import factories

TOKENS = factories.CTC_VOCABULARY


def write_tokenizer(folder: Path, **settings: object) -> Path:
    """Write the two files of a CTC tokenizer."""
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"} | names | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}], ids=["as is", "lower case"])
def test_transcripts_equal_those_of_transformers(tmp_path, settings):
    from transformers import Wav2Vec2CTCTokenizer

    folder = write_tokenizer(tmp_path, **settings)
    ours, theirs = read_vocabulary(folder), Wav2Vec2CTCTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    # Few tokens, so that repeats, blanks and delimiters meet at the ends and in the middle.
    for high in (6, 8, len(TOKENS)):
        ids = torch.randint(high, (40, 30), generator=generator)
        assert [ours.text(row.tolist()) for row in ids] == theirs.batch_decode(ids)


def test_collapse_blank_and_delimiter():
    vocabulary = character_vocabulary("ab")
    blank, space, a, b = range(4)
    assert vocabulary.text([space, a, a, blank, a, space, space, b, b, blank]) == "aa b"
    assert vocabulary.text([blank, blank]) == vocabulary.text([]) == ""


def test_greedy_reads_valid_frames_only():
    vocabulary = character_vocabulary("ab")
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 3, 2], [3, 3, 2]]), 4).float()
    assert greedy(logits, [3, 2], vocabulary) == ["aba", "b"]


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
