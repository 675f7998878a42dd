"""The files of a corpus in a folder: by name, without those that are none of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

PathType = TypeVar("PathType", bound=Path)


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return what matches `pattern` below a folder, sorted, without hidden files and what hidden folders hold.

    A copy from macOS leaves a file ``._1.wav`` next to ``1.wav``.

    Args:
        folder: where to look; one that does not exist holds nothing.
        pattern: of :meth:`pathlib.Path.glob`, such as ``**/*.flac``.
    """
    return visible(folder.glob(pattern), folder)


def visible(paths: Iterable[PathType], folder: Path) -> list[PathType]:
    """Return paths below `folder`, sorted, without those that are hidden in it."""
    depth = len(folder.parts)
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.parts[depth:]))
