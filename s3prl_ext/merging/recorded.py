"""What the record of a merge says about how a source was aligned, as far as it decides the merged weights.

A checkpoint's record is compared with the present merge by it, and runs are told apart by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Section = Mapping[str, Any]


def used_layers(source: Section, learnt: list[int]) -> list[int]:
    """Return the target's layers that something of a source is merged into, ascending.

    Args:
        source: a source of the record.
        learnt: layers with a lambda of their own to learn, whatever its first value.
    """
    merged = {layer for values in source["lambda"].values() for layer, value in enumerate(values) if value != 0.0}
    return sorted(merged.union(learnt))


def without_pairs(section: Section | None) -> dict[str, Any]:
    """Return how heads were placed without the pairs that say which are alike: what counts is the order of heads."""
    return {key: value for key, value in (section or {}).items() if key not in ("pairs", "split", "share", "seed")}


def of_basis(source: Section) -> tuple[Any, Any] | None:
    """Return what decides the basis of a source together with the models: hash of the pairs, special tokens or not."""
    basis = source.get("basis")
    return (pairs_sha256(basis), basis.get("special_tokens")) if basis else None


def pairs_sha256(section: Section | None) -> str | None:
    """Return the hash of the paired inputs behind a basis or moments; None without them."""
    pairs = (section or {}).get("pairs")
    return pairs.get("sha256") if isinstance(pairs, Mapping) else None


def pairs_of(record: Any) -> list[tuple[str, str | None]]:
    """Return file and split of all paired inputs named anywhere in a record, each once."""
    if isinstance(record, list | tuple):
        found = [one for part in record for one in pairs_of(part)]
    elif isinstance(record, Mapping):
        pairs = record.get("pairs")
        found = []
        if isinstance(pairs, Mapping) and pairs.get("file"):
            found.append((str(pairs["file"]), pairs.get("split", record.get("split"))))
        found += [one for part in record.values() for one in pairs_of(part)]
    else:
        found = []
    return list(dict.fromkeys(found))
