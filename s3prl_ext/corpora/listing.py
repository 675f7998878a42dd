"""The files of a corpus in a folder: by name, without those that are none of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

PathType = TypeVar("PathType", bound=Path)


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return what matches `pattern` below a folder, sorted, without hidden files and what hidden folders hold.

    A copy from macOS leaves a file ``._1.wav`` next to ``1.wav``.

    Args:
        folder: where to look; one that does not exist holds nothing.
        pattern: of :meth:`pathlib.Path.glob`, such as ``*/*.flac``; with ``**/`` before a single name, at any depth,
            also in folders that are links, as for a corpus on two disks.
    """
    start, _, name = pattern.partition("**/")
    if start or "/" in name or not name:
        return visible(folder.glob(pattern), folder)
    return visible((path for path in below(folder) if fnmatchcase(path.name, name)), folder)


def below(folder: Path) -> Iterator[Path]:
    """Yield every file and folder below a folder, through links to folders too.

    What links lead to is walked after all that lies in the folder itself, and once, so that links in a circle end.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links = []
        for place, folders, files in os.walk(waiting.pop(0)):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            inside = [Path(place) / name for name in folders]
            links += [path for path in inside if path.is_symlink()]
            yield from inside
            yield from (Path(place) / name for name in files)
        waiting += sorted(links)


def visible(paths: Iterable[PathType], folder: Path) -> list[PathType]:
    """Return paths below `folder`, sorted, without those that are hidden in it."""
    depth = len(folder.parts)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.parts[depth:]))
