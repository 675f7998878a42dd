"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3prl_ext.errors import UsageError
from s3prl_ext.locks import one_writer


@contextmanager
def written(path: str | os.PathLike) -> Iterator[Path]:
    """Give the body an empty file to fill, which takes the name `path` when the body ends without an error.

    The file is next to `path` as ``.NAME.RANDOM``, has the permissions of any new file, and is removed whatever ends
    the body early, an interrupt included; a file that was at `path` then stays as it was.

    Raises:
        OSError: the folder is missing or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # what the umask allows
        yield temporary
        temporary.chmod(mode)  # some writers, such as safetensors, put a private file of their own there
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_out_file(
    out: Path, written_before: Callable[[str], bool], inputs: Iterable[Path] = (), flag: str = "--out"
) -> None:
    """Raise UsageError where a command cannot write a file, or would replace one that is not its own.

    Args:
        out: the file; a result of an earlier call may be there, and is replaced.
        written_before: tells a text that the command writes from others.
        inputs: files that the command reads; folders and missing ones do not matter.
        flag: that names `out`.
    """
    if out.is_dir():
        raise UsageError(f"{flag} {out}: this is a folder, name a file.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{flag} {out}: there is no folder {out.absolute().parent}.")
    if not out.exists():
        return
    if any(path.is_file() and path.samefile(out) for path in inputs):
        raise UsageError(f"{flag} {out} would replace a file that this command reads: name another file.")
    if not out.is_file() or not _is_text(out, written_before):
        raise UsageError(
            f"{flag} {out} is there already, and is not a file that this command writes: name another file."
        )


def _is_text(path: Path, fits: Callable[[str], bool]) -> bool:
    """Return whether a file is empty, or a text that fits."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return not text.strip() or fits(text)


@contextmanager
def unfinished_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give the body a new folder ``.NAME.partial-RANDOM`` next to `path`; what is still in it at the end is removed.

    Those of killed processes are removed as well.

    Raises:
        OSError: the folder cannot be made.
        InUse: another process is writing `path`.
    """
    path = Path(path)
    folder = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(path):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give the body a new folder to fill, which takes the name `path` when the body ends without an error.

    Raises:
        OSError: the folder cannot be made, or `path` is a file or a folder that is not empty.
    """
    with unfinished_folder(path) as folder:
        yield folder
        os.replace(folder, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> None:
    """Write plain values as JSON, indented by 2 unless `options` of :func:`json.dumps` say otherwise.

    JSON has no NaN and no infinity: such a number is written as null.
    """
    write_text(path, json.dumps(numbers_or_none(content), allow_nan=False, **{"indent": 2, **options}) + "\n")


def numbers_or_none(value: Any) -> Any:
    """Return nested plain values with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: numbers_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
