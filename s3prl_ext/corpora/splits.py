"""Splits of corpora that come without official ones; which utterance is where depends on names alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

SPLITS = ("train", "dev", "test")


def hash_split(ids: Iterable[str]) -> dict[str, list[str]]:
    """Divide `ids` into train, dev and test in the ratio 80 : 10 : 10, in the order of the SHA-1 of each id.

    The shares are exact up to rounding, dev and test hold at least one id each from three ids on, and the order of
    `ids` has no influence. Each list is sorted.
    """
    shuffled = sorted(set(ids), key=lambda name: (hashlib.sha1(name.encode()).hexdigest(), name))
    held_out = max(1, round(len(shuffled) / 10)) if len(shuffled) >= 3 else 0
    parts = {"dev": shuffled[:held_out], "test": shuffled[held_out : 2 * held_out], "train": shuffled[2 * held_out :]}
    return {split: sorted(parts[split]) for split in SPLITS}


def group_split(sizes: Mapping[str, int], train: bool = True) -> dict[str, str]:
    """Return the split of each group, such as a speaker: a group is whole in one of them.

    From the smallest group on (equal ones in the order of the SHA-1 of their names) each goes to dev or test,
    whichever is smaller, as long as that holds at most a fifth of all utterances; all others are train. So the groups
    held out are many.

    Args:
        sizes: utterances in each group.
        train: False divides all groups between dev and test.
    """
    order = sorted(sizes, key=lambda name: (sizes[name], hashlib.sha1(name.encode()).hexdigest()))
    most = sum(sizes.values()) / (5 if train else 1)
    count = {"dev": 0, "test": 0}
    splits = {}
    for name in order:
        smaller = min(count, key=count.__getitem__)
        fits = not count[smaller] or count[smaller] + sizes[name] <= most
        splits[name] = smaller if fits else "train"
        if fits:
            count[smaller] += sizes[name]
    return splits


def split_hash(splits: Mapping[str, Iterable[str]]) -> str:
    """Return the SHA-256 of split lists: equal where every split holds the same ids in the same order."""
    return hashlib.sha256(
        json.dumps({name: list(ids) for name, ids in splits.items()}, sort_keys=True).encode()
    ).hexdigest()
