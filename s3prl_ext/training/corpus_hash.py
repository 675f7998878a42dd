"""What a run's corpus and its division were, as hashes: names and sizes of the files that its task reads, and its lists."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from s3prl_ext.tasks import task_of

WITH_PATHS = ("wav.scp",)  # Kaldi's tables of absolute paths


class CorpusHash(TypedDict):
    """What the corpus of a run was; ``splits_sha256`` is added where its division is known."""

    sha256: str
    files: int
    bytes: int
    covers: str
    splits_sha256: NotRequired[str | None]


def corpus_hash(task: str, config: Mapping[str, Any]) -> CorpusHash | None:
    """Return the SHA-256 over the sorted relative names and sizes of the files that a task reads, or None.

    The bytes of the files do not count, so that a corpus of 100,000 files takes a second or two. Hidden files and tables
    of absolute paths are left out: the place of the corpus has no influence.

    Args:
        task: name for ``-d``.
        config: the task file with its variables expanded.

    Returns:
        None for an unknown task, or where nothing is there.
    """
    expert = config.get("downstream_expert") or {}
    rows: list[tuple[str, int]] = []
    covered = []
    for key, _, parts in task_of(task, expert).reads:
        value = value_at(expert, key)
        before = len(rows)
        for number, path in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(path, str) and Path(path).exists():
                rows += [(f"{key}/{number}/{name}", size) for name, size in _files(Path(path), _parts(expert, parts))]
        if len(rows) > before:
            covered.append(key)
    if not rows:
        return None
    digest = hashlib.sha256()
    for name, size in sorted(rows):
        digest.update(f"{name}\t{size}\n".encode(errors="surrogateescape"))
    covers = f"names and sizes of the files of {', '.join(covered)}"
    return {
        "sha256": digest.hexdigest(), "files": len(rows), "bytes": sum(size for _, size in rows), "covers": covers
    }  # fmt: skip


def splits_hash(task: str, config: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of what divides the corpus of a task, as its record says: lists, or else the names of its files.

    Lists in the task file count, such as the speakers of SF and the folders of LibriSpeech; the place of the corpus does
    not.

    Args:
        task: name for ``-d``.
        config: the task file with its variables expanded.

    Returns:
        None for other tasks, or where nothing is there.
    """
    expert = config.get("downstream_expert") or {}
    known = task_of(task, expert)
    rows: list[tuple[str, str]] = []
    for key, patterns, parts in known.reads:
        value = value_at(expert, key)
        if patterns is None or not isinstance(value, str) or not Path(value).exists():
            continue
        root = Path(value)
        lists = [path for pattern in patterns for path in (root.glob(pattern) if pattern else [root])]
        rows += [(f"{key}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest()) for path in lists]
        rows += [] if patterns else [(f"{key}/{name}", "") for name, _ in _files(root, _parts(expert, parts))]
    if not rows:
        return None
    section = expert.get(known.settings) or {}
    named = {name: value for name, value in section.items() if isinstance(value, list) and name != "lexicon"}
    return hashlib.sha256(json.dumps([sorted(rows), named], sort_keys=True, default=str).encode()).hexdigest()


def value_at(section: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key of a section, or None."""
    value: Any = section
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _parts(expert: Mapping[str, Any], key: str | None) -> list[str]:
    """Return the names in the lists of the section that divides the corpus, or none where all of it is read."""
    section = value_at(expert, key) if key else None
    values = section.values() if isinstance(section, Mapping) else ()
    lists = [value for value in values if isinstance(value, (list, tuple))]
    return sorted({name for names in lists for name in names if isinstance(name, str) and not Path(name).is_absolute()})


def _files(root: Path, parts: list[str]) -> Iterator[tuple[str, int]]:
    """Yield name below `root` and size of each file; with `parts` only of those folders and of `root` itself."""
    if root.is_file():
        yield root.name, root.stat().st_size
        return
    chosen = [name for name in parts if (root / name).is_dir()]
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        # sorted: of two links to one folder, the same one counts on every disk
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if chosen and folder == str(root):
            folders[:] = [name for name in folders if name in chosen]
        if real in seen:  # a link that leads back
            continue
        seen.add(real)
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and name not in WITH_PATHS and path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size
