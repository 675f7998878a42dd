"""Corpora of real size: what s3prl does in a time that grows with the square of a corpus grows with the corpus itself."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType

from s3prl_ext.compat.shim import Shim


class SearchedList(list):  # stands for the built-in in the module of s3prl
    """A list that finds its entries in a set, made at the first search; the list must not change after that."""

    @cached_property
    def _entries(self) -> frozenset[object]:
        return frozenset(self)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries


def _search_by_hash(module: ModuleType) -> None:
    vars(module)["list"] = SearchedList


SHIMS = (
    Shim(
        name="asr-table",
        module="s3prl.downstream.asr.dataset",
        needed=lambda module: "list" not in vars(module),
        apply=_search_by_hash,
        reason="s3prl searches the list of all utterances for each of them: 15 s of CPU time for LibriSpeech's 100 hours, some "
        "25 minutes for 960 hours, at every start",
        remove_when="s3prl searches a set",
    ),
)
"""The utterances of LibriSpeech with a transcript are a list; ``list`` is looked up in the module before the built-ins."""
