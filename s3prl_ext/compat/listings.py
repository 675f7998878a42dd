"""Orders of clips that are the same on every machine.

Corpora that s3prl finds by listing folders come in the order of names, which is the same on every disk.

A folder's own order is the file system's. It decides about the clips that a sampler draws, also on the dev split of
keyword spotting, and so about losses, scores and Fisher information. Hidden files, such as macOS leaves next to audio
(``._1.wav``), are not of the corpus.

The clips of speech recognition are sorted by length; those of one length keep the order of the table. Which of them
comes first in s3prl's sort is up to the instructions that numpy finds in the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim
from s3prl_ext.corpora.listing import visible


class SortedPath(type(Path())):  # type: ignore[misc]  # the class of paths of this system
    """A path whose listings are sorted and without hidden files; paths made from it list alike."""

    def iterdir(self) -> Iterator[SortedPath]:
        """Yield what the folder holds, by name."""
        return self._listed(super().iterdir())

    def glob(self, pattern: str, **options: Any) -> Iterator[SortedPath]:
        """Yield what matches, by name."""
        return self._listed(super().glob(pattern, **options))

    def rglob(self, pattern: str, **options: Any) -> Iterator[SortedPath]:
        """Yield what matches below, by name."""
        return self._listed(super().rglob(pattern, **options))

    def _listed(self, paths: Iterable[SortedPath]) -> Iterator[SortedPath]:
        return iter(visible(paths, self))


class StablePandas:
    """``pandas`` as s3prl's ``asr`` uses it, with a table whose equal rows keep their order when it is sorted."""

    def __init__(self, pandas: ModuleType) -> None:
        self._pandas = pandas

    def concat(self, *args: Any, **options: Any) -> Any:
        """Return the joined table of ``pandas.concat``."""
        table = self._pandas.concat(*args, **options)
        table.sort_values = functools.partial(table.sort_values, kind="stable")
        return table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pandas, name)


def _sort_stably(module: ModuleType) -> None:
    module.pd = StablePandas(module.pd)


def _sort_listings(module: ModuleType) -> None:
    module.Path = SortedPath


LISTINGS = (
    Shim(
        name=f"listing-{name}",
        module=f"s3prl.downstream.{module}",
        needed=lambda module: getattr(module, "Path", SortedPath) is not SortedPath,
        apply=_sort_listings,
        reason="s3prl takes the clips of a corpus in the order in which the file system lists them, so that another "
        "disk gives other batches and scores; it takes hidden files for clips",
        remove_when="s3prl sorts the files that it finds and leaves hidden ones out",
    )
    for name, module in (
        ("ks", "speech_commands.expert"),
        ("ks-dataset", "speech_commands.dataset"),
        ("pr", "ctc.corpus.libriphone"),
        ("sf", "ctc.corpus.snips"),
    )
)
SHIMS = (
    *LISTINGS,
    Shim(
        name="order-asr",
        module="s3prl.downstream.asr.dataset",
        needed=lambda module: not isinstance(module.pd, StablePandas),
        apply=_sort_stably,
        reason="s3prl sorts the clips of ASR by length with pandas' default sort, which orders clips of one length "
        "by the instructions of the processor, so that another machine trains on other batches",
        remove_when="s3prl sorts them with kind='stable'",
    ),
)
