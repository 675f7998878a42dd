"""File systems that list a folder in an order of their own: by name, forwards or backwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock


class _Entries(AbstractContextManager):
    """What ``os.scandir`` returns: an iterator and a context manager."""

    def __init__(self, entries: list[os.DirEntry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry]:
        return self._entries

    def __next__(self) -> os.DirEntry:
        return next(self._entries)

    def __exit__(self, *exception: object) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def by_name(backwards: bool = False) -> Iterator[None]:
    """Let every listing of this process come in the order of names, or in the opposite one."""
    listdir, scandir = os.listdir, os.scandir

    def list_sorted(path: Any = ".") -> list[Any]:
        return sorted(listdir(path), reverse=backwards)

    def scan_sorted(path: Any = ".") -> _Entries:
        with scandir(path) as entries:
            return _Entries(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    with mock.patch.object(os, "listdir", list_sorted), mock.patch.object(os, "scandir", scan_sorted):
        yield
