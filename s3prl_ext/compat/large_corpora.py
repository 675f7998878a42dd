"""Corpora of real size: what s3prl does in quadratic time is done in linear time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from s3prl_ext.compat.shim import Shim

if TYPE_CHECKING:
    import torch


class SearchedList(list):  # stands for the built-in in the module of s3prl
    """A list that finds its entries in a set, made at the first search; the list must not change after that."""

    @cached_property
    def _entries(self) -> frozenset[object]:
        return frozenset(self)

    def __contains__(self, entry: object) -> bool:
        return entry in self._entries


def _search_by_hash(module: ModuleType) -> None:
    vars(module)["list"] = SearchedList


def _encode_at_once(module: ModuleType) -> None:
    encode_line = module.Dictionary.encode_line

    @functools.wraps(encode_line)
    def encode_list(
        self: Any,
        line: str,
        line_tokenizer: Callable[[str], Sequence[str]] = module.tokenize_line,
        add_if_not_exist: bool = True,
        consumer: Callable[[str, int], object] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> torch.Tensor:
        words = line_tokenizer(line)
        look_up = self.add_symbol if add_if_not_exist else self.index
        ids = []
        for word in reversed(words) if reverse_order else words:
            ids.append(look_up(word))
            if consumer is not None:
                consumer(word, ids[-1])
        return module.torch.tensor(ids + [self.eos_index] * append_eos, dtype=module.torch.int32)

    module.Dictionary.encode_line = encode_list


SHIMS = (
    Shim(
        name="asr-table",
        module="s3prl.downstream.asr.dataset",
        needed=lambda module: "list" not in vars(module),
        apply=_search_by_hash,
        reason="s3prl searches the list of all utterances for each of them: 15 s of CPU time for LibriSpeech's 100 "
        "hours, some 25 minutes for 960 hours, at every start",
        remove_when="s3prl searches a set",
    ),
    Shim(
        name="asr-encoding",
        module="s3prl.downstream.asr.fairseq_dictionary",
        needed=lambda module: not hasattr(module.Dictionary.encode_line, "__wrapped__"),
        apply=_encode_at_once,
        reason="s3prl writes the tokens of a transcript into a tensor one by one, which is most of what is left of "
        "that time",
        remove_when="s3prl makes the tensor from a list",
    ),
)
"""The utterances of LibriSpeech with a transcript are a list.

``list`` is looked up in the module before the built-ins.
"""
