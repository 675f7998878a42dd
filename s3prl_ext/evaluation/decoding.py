"""Greedy CTC decoding: the best token of each frame, repeats collapsed, the blank dropped, ``|`` read as a space."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.errors import DataError

BLANK = "<pad>"
DELIMITER = "|"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a CTC head.

    Attributes:
        tokens: token of each output, by index.
        blank: index of the CTC blank.
        delimiter: token that stands between words.
        lower_case: transcripts are written in lower case whatever the tokens are.
    """

    tokens: tuple[str, ...]
    blank: int = 0
    delimiter: str = DELIMITER
    lower_case: bool = False
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {token: index for index, token in enumerate(self.tokens)})

    def __len__(self) -> int:
        return len(self.tokens)

    def text(self, ids: Iterable[int]) -> str:
        """Return the transcript of one token index per frame, as ``Wav2Vec2CTCTokenizer.decode`` writes it."""
        kept = [self.tokens[index] for index, _ in groupby(ids) if index != self.blank]
        text = "".join(" " if token == self.delimiter else token for token in kept).strip()
        return text.lower() if self.lower_case else text

    def encode(self, text: str) -> tuple[list[int], str]:
        """Return the token indices of `text` and the characters that no token stands for, which are left out.

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


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read ``vocab.json`` and, where there is one, ``tokenizer_config.json`` of a CTC model's folder.

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
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    blank = _token(settings.get("pad_token"), BLANK)
    if blank not in indices:
        raise DataError(f"{folder / 'vocab.json'} lacks the token {blank}, which is the CTC blank.")
    return Vocabulary(
        tokens=tuple(sorted(indices, key=indices.__getitem__)),
        blank=indices[blank],
        delimiter=_token(settings.get("word_delimiter_token"), DELIMITER),
        lower_case=bool(settings.get("do_lower_case", False)),
    )


def greedy(logits: Tensor, lengths: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """Return one transcript per clip.

    Args:
        logits: scores of the tokens, [batch, frames, tokens]; any monotonic form of them (log probabilities) will do.
        lengths: valid frames of each clip.
    """
    best = torch.argmax(logits, dim=-1).cpu()
    return [vocabulary.text(ids[:length].tolist()) for ids, length in zip(best, lengths, strict=True)]


def _token(value: Any, default: str) -> str:
    if isinstance(value, dict):  # an added token with its options
        value = value.get("content")
    return default if value is None else str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a mapping, but holds {type(content).__name__}.")
    return content
