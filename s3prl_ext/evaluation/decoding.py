"""Greedy CTC decoding: the best token of each frame, repeats collapsed, blank and special tokens dropped.

The order is CTC's: repeats are collapsed while the blank is still there, special tokens are dropped from what is left.
``decode(skip_special_tokens=True)`` of transformers 5 drops the blank first, which turns "hello" into "helo".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json

BLANK = "<pad>"
DELIMITER = "|"
# What transformers' CTC tokenizers call these tokens where their files say nothing else.
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": BLANK}


class Decoded(NamedTuple):
    """One transcript, and how many special tokens (as ``[UNK]`` or ``</s>``) were left out of it."""

    text: str
    special: int


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a CTC head.

    Attributes:
        tokens: token of each output, by index.
        blank: index of the CTC blank.
        delimiter: token between words.
        lower_case: transcripts are written in lower case whatever the tokens are.
        special: tokens that stand for no letter, as ``[UNK]`` or ``</s>``; they are left out of transcripts.
    """

    tokens: tuple[str, ...]
    blank: int = 0
    delimiter: str = DELIMITER
    lower_case: bool = False
    special: frozenset[str] = frozenset()
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {token: index for index, token in enumerate(self.tokens)})

    def __len__(self) -> int:
        return len(self.tokens)

    def decode(self, ids: Iterable[int]) -> Decoded:
        """Return the transcript of one token index per frame, and the number of special tokens dropped from it.

        The text is that of ``Wav2Vec2CTCTokenizer.decode`` on the collapsed indices, with ``skip_special_tokens=True``.
        """
        collapsed = [self.tokens[index] for index, _ in groupby(ids) if index != self.blank]
        kept = [token for token in collapsed if token not in self.special]
        text = "".join(" " if token == self.delimiter else token for token in kept).strip()
        return Decoded(text.lower() if self.lower_case else text, len(collapsed) - len(kept))

    def encode(self, text: str) -> tuple[list[int], str]:
        """Return the token indices of `text` and the characters without a token, which are left out.

        A letter that is there only in the other case is written in that one.
        """
        ids, unknown = [], []
        for character in text:
            wanted = self.delimiter if character == " " else character
            found = next((t for t in (wanted, wanted.upper(), wanted.lower()) if t in self._index), None)
            if found is None:
                unknown.append(character)
            else:
                ids.append(self._index[found])
        return ids, "".join(dict.fromkeys(unknown))


def character_vocabulary(alphabet: str) -> Vocabulary:
    """Return the vocabulary of a new head: blank, word delimiter, then the characters of `alphabet`."""
    return Vocabulary((BLANK, DELIMITER, *alphabet))


def read_vocabulary(folder: Path, outputs: int | None = None) -> Vocabulary:
    """Read ``vocab.json`` and, where they are there, the other tokenizer files of a CTC model's folder.

    Args:
        folder: with ``vocab.json``, possibly ``tokenizer_config.json``, ``special_tokens_map.json``,
            ``added_tokens.json``.
        outputs: of the CTC head. Those beyond ``vocab.json`` stand for the tokens added later, the rest for none.

    Raises:
        DataError: a file is missing, unreadable or incomplete, or holds several vocabularies.
    """
    folder = Path(folder)
    if not (folder / "vocab.json").is_file():
        raise DataError(f"{folder} lacks vocab.json, the tokens of its CTC head: give the folder of a CTC model.")
    indices = _json(folder / "vocab.json")
    if any(not isinstance(index, int) for index in indices.values()):
        raise DataError(f"{folder / 'vocab.json'} must map each token to one number: it holds something else.")
    if sorted(indices.values()) != list(range(len(indices))):
        raise DataError(f"{folder / 'vocab.json'} must number its tokens 0 to {len(indices) - 1} without gaps.")
    settings = _settings(folder)
    blank, delimiter = _token(settings["pad_token"], BLANK), _token(settings.get("word_delimiter_token"), DELIMITER)
    if blank not in indices:
        raise DataError(f"{folder / 'vocab.json'} lacks the token {blank}, which is the CTC blank.")
    tokens, special = sorted(indices, key=indices.__getitem__), _special(settings)
    added = _added(folder, settings)
    for index in range(len(tokens), outputs or 0):
        tokens.append(added.get(index, f"<unused{index}>"))
        special |= {tokens[-1]} if index not in added else set()
    return Vocabulary(
        tokens=tuple(tokens),
        blank=indices[blank],
        delimiter=delimiter,
        lower_case=bool(settings.get("do_lower_case", False)),
        special=frozenset(special - {delimiter}),
    )


def greedy(logits: Tensor, lengths: Sequence[int], vocabulary: Vocabulary) -> list[Decoded]:
    """Return one transcript per clip.

    Args:
        logits: scores of the tokens, [batch, frames, tokens]; any monotonic form of them (log probabilities) will do.
        lengths: valid frames of each clip.
    """
    best = torch.argmax(logits, dim=-1).cpu()
    return [vocabulary.decode(ids[:length].tolist()) for ids, length in zip(best, lengths, strict=True)]


def _settings(folder: Path) -> dict[str, Any]:
    """Return what the tokenizer files say, in the order in which transformers lets them override each other."""
    config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    settings = SPECIAL_TOKENS | config
    if "added_tokens_decoder" not in config and (folder / "special_tokens_map.json").is_file():
        settings |= _json(folder / "special_tokens_map.json")
    return settings


def _special(settings: dict[str, Any]) -> set[str]:
    """Return the tokens that the files call special: named ones, listed ones, added ones with the mark."""
    named = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        named += listed.values() if isinstance(listed, dict) else listed
    decoder = settings.get("added_tokens_decoder") or {}
    named += [token for token in decoder.values() if isinstance(token, dict) and token.get("special")]
    return {_token(value, "") for value in named if isinstance(value, str | dict)} - {""}


def _added(folder: Path, settings: dict[str, Any]) -> dict[int, str]:
    """Return the tokens that were added to ``vocab.json`` later, by index."""
    decoder = settings.get("added_tokens_decoder")
    if decoder:
        return {int(index): _token(token, "") for index, token in decoder.items()}
    file = folder / "added_tokens.json"
    return {int(index): token for token, index in _json(file).items()} if file.is_file() else {}


def _token(value: Any, default: str) -> str:
    if isinstance(value, dict):  # an added token with its options
        value = value.get("content")
    return default if value is None else str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a mapping, but holds {type(content).__name__}.")
    return content
