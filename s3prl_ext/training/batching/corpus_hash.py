"""What a run's corpus and its division were, as hashes.

Names and sizes of the files that its task reads, and its lists.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict

from s3prl_ext.configs import Section, value_at
from s3prl_ext.tasks import Task, task_of

SPLITS_RULE = 1  # version of what is hashed as the division of a corpus
WITH_PATHS = ("wav.scp",)  # Kaldi's tables of absolute paths


class CorpusHash(TypedDict):
    """What the corpus of a run was; ``splits_sha256`` is added where its division is known."""

    sha256: str
    files: int
    bytes: int
    covers: str
    splits_sha256: NotRequired[str | None]


class Corpus:
    """The corpus of a run: its folders are listed once, when the first of its hashes is asked for.

    Args:
        task: name for ``-d``.
        config: the task file with its variables expanded.
    """

    def __init__(self, task: str, config: Section) -> None:
        self._expert = config.get("downstream_expert") or {}
        self._task = task_of(task, self._expert)

    @property
    def hash(self) -> CorpusHash | None:
        """The SHA-256 over the sorted relative names and sizes of the files that the task reads.

        The bytes of the files are not read, so that a corpus of 100,000 files takes less than a second. Hidden files
        and tables of absolute paths are left out: the place of the corpus has no influence. None for an unknown task,
        or where nothing is there.
        """
        return self._hashes[0]

    @property
    def splits_sha256(self) -> str | None:
        """The SHA-256 of what divides the corpus, as the task's record says: lists, or else the names of its files.

        Lists in the task file count, such as the speakers of SF and the folders of LibriSpeech; the place of the corpus
        does not. None for other tasks, or where nothing is there.
        """
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[CorpusHash | None, str | None]:
        """List the files and hash them; the names are not kept."""
        rows: list[tuple[str, int]] = []
        lists: list[tuple[str, str]] = []
        covered = []
        for reads in self._task.reads:
            key, divides, parts = reads.key, reads.divides, reads.parts
            value = value_at(self._expert, key)
            before = len(rows)
            for number, path in enumerate(value if isinstance(value, (list, tuple)) else [value]):
                if isinstance(path, str) and Path(path).exists():
                    place = reads.place(Path(path))
                    files = list(_files(place, _parts(self._expert, parts)))
                    rows += [(f"{key}/{number}/{name}", size) for name, size in files]
                    if divides is not None:
                        lists += (
                            _lists(key, place, divides) if divides else [(f"{key}/{name}", "") for name, _ in files]
                        )
            if len(rows) > before:
                covered.append(key)
        return _names_and_sizes(rows, covered), self._division(lists)

    def _division(self, lists: list[tuple[str, str]]) -> str | None:
        if not lists:
            return None
        named = named_lists(self._task, self._expert)
        return hashlib.sha256(json.dumps([sorted(lists), named], sort_keys=True, default=str).encode()).hexdigest()


def named_lists(task: Task, expert: Section) -> dict[str, list[object]]:
    """Return the lists of section ``downstream_expert`` that take part in the division, such as the speakers of SF."""
    section = expert.get(task.settings) or {}
    return {name: value for name, value in section.items() if isinstance(value, list) and name != "lexicon"}


def _names_and_sizes(rows: list[tuple[str, int]], covered: list[str]) -> CorpusHash | None:
    if not rows:
        return None
    digest = hashlib.sha256()
    for name, size in sorted(rows):
        digest.update(f"{name}\t{size}\n".encode(errors="surrogateescape"))
    covers = f"names and sizes of the files of {', '.join(covered)}"
    return {
        "sha256": digest.hexdigest(), "files": len(rows), "bytes": sum(size for _, size in rows), "covers": covers
    }  # fmt: skip


def _lists(key: str, root: Path, patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Return name and SHA-256 of the lists below `root`, or of `root` itself for an empty pattern."""
    paths = [path for pattern in patterns for path in (root.glob(pattern) if pattern else [root])]
    return [(f"{key}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def _parts(expert: Section, key: str | None) -> list[str]:
    """Return the names in the lists of the section that divides the corpus, or none where all of it is read."""
    section = value_at(expert, key) if key else None
    values = section.values() if isinstance(section, Mapping) else ()
    lists = [value for value in values if isinstance(value, (list, tuple))]
    return sorted({name for names in lists for name in names if isinstance(name, str) and not Path(name).is_absolute()})


def _files(root: Path, parts: list[str]) -> Iterator[tuple[str, int]]:
    """Yield name below `root` and size of each file; with `parts` only of those folders and of `root` itself.

    Each file costs one call of the system: a corpus may lie on a network disk.
    """
    if root.is_file():
        yield root.name, root.stat().st_size
        return
    chosen = {name for name in parts if (root / name).is_dir()}
    seen: set[str] = set()
    waiting = [("", os.path.realpath(root))]  # name below the root with a slash, place without links
    while waiting:
        prefix, real = waiting.pop()
        if real in seen:  # a link that leads back
            continue
        seen.add(real)
        folders = []
        for entry in _entries(real):
            if entry.is_dir():
                if prefix or not chosen or entry.name in chosen:
                    place = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    folders.append((entry.name, place))
            elif entry.name not in WITH_PATHS and entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
        # sorted: of two links to one folder, the same one counts on every disk
        waiting += [(f"{prefix}{name}/", place) for name, place in sorted(folders, reverse=True)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return what a folder holds but for hidden files; nothing of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
