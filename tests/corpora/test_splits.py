"""The split by hash: exact shares, independent of order, stable when utterances are added elsewhere."""

from __future__ import annotations

import random

import pytest

from s3prl_ext.corpora.splits import hash_split, split_hash


@pytest.mark.parametrize(("count", "held_out"), [(3, 1), (10, 1), (14, 1), (35, 4), (100, 10), (1001, 100)])
def test_shares(count, held_out):
    splits = hash_split(f"u{index}" for index in range(count))
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [count - 2 * held_out, held_out, held_out]
    assert sorted(id for ids in splits.values() for id in ids) == sorted(f"u{index}" for index in range(count))
    assert all(ids == sorted(ids) for ids in splits.values())


def test_order_and_repeats_have_no_influence():
    ids = [f"u{index}" for index in range(50)]
    shuffled = ids + ids[:5]
    random.Random(0).shuffle(shuffled)
    assert hash_split(shuffled) == hash_split(ids)


def test_ids_decide_not_their_position():
    splits = hash_split(f"u{index}" for index in range(50))
    assert splits["test"] != sorted(f"u{index}" for index in range(50))[-5:]
    assert split_hash(splits) == split_hash(dict(reversed(splits.items())))
    assert split_hash(splits) != split_hash(splits | {"dev": splits["test"], "test": splits["dev"]})


def test_golden_split():
    """The lists must never change: figures of earlier runs depend on them."""
    splits = hash_split(f"LJ001-{index:04d}" for index in range(1, 21))
    assert splits["dev"] + splits["test"] == ["LJ001-0014", "LJ001-0019", "LJ001-0010", "LJ001-0011"]
