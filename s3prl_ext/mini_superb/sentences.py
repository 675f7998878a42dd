"""Short random English sentences over a small vocabulary, for synthesised read speech."""

from __future__ import annotations

import numpy as np

_SUBJECTS = ("the old man", "a young girl", "my brother", "the captain", "her mother", "the black dog")
_VERBS = ("saw", "found", "followed", "wanted", "remembered", "carried")
_OBJECTS = ("the river", "a small boat", "the open window", "some bread", "the red book", "a long letter")
_ENDINGS = ("in the morning", "after dinner", "near the house", "with a smile", "last winter", "once again")


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Return `count` different sentences in lower case without punctuation (1,296 are possible)."""
    parts = (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)
    numbers = rng.choice(6 ** len(parts), count, replace=False)
    return [" ".join(part[number // 6**place % 6] for place, part in enumerate(parts)) for number in numbers]


def phrases() -> list[str]:
    """Return the phrases that sentences are made of, verbs left out."""
    return [*_SUBJECTS, *_OBJECTS, *_ENDINGS]
