"""Reading files that others may have written, or that a disk or a network may have corrupted."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError

EXPORT_FILE = "export.json"  # the record that `s3prl-ext export` leaves next to a model
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.ckpt")

# What the standard library raises for corrupt bytes of an archive: of its list of parts, and of their streams. Some of
# its streams also raise OSError.
CORRUPT_ARCHIVE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    RuntimeError,
)


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        start = text[:80] if isinstance(text, str) else text[:80].decode(errors="replace")
        raise json.JSONDecodeError("nested too deeply", start, 0) from None


def read_lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a UTF-8 text that belongs to a corpus; see :func:`read_text`."""
    return lines_of(read_text(path))


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that was read as such: ``str.splitlines`` also divides at a form feed or U+2028."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def read_text(path: str | os.PathLike) -> str:
    """Return a UTF-8 text that belongs to a corpus.

    Raises:
        DataError: it is not such a text.
        OSError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): unpack the corpus again.") from error


def check_closed(fields: Iterable[str | None], where: str) -> None:
    """Check that no field of a row of a table goes on on further lines, which are rows of their own.

    ``csv`` takes a quotation mark at the beginning of a field for one that another one closes.

    Raises:
        DataError: one does.
    """
    if any(field and "\n" in field for field in fields):
        raise DataError(
            f"{where}: a quotation mark is left open before it: close it, or put a text that begins with one in "
            "quotation marks and double each of its own."
        )


def is_archive(path: str | os.PathLike) -> bool:
    """Return whether a file is a zip archive, as those of torch 1.6 and later are, whose list of parts is readable."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # corrupt bytes may read as an archive of several disks
        return False


def check_archive(path: str | os.PathLike) -> None:
    """Compare what a torch file holds with the checksums in it, which torch itself does not read.

    About 1 s per GB; a file that was checked is not read again in this process until it changes. Files of torch before
    1.6 and safetensors have no checksums, nor has one that was written with
    ``torch.serialization.set_crc32_options(False)``.

    Raises:
        DataError: a part of it is corrupt.
    """
    path = Path(path)
    if path.is_file() and is_archive(path):
        state = path.stat()
        record = _corrupt_record(path.resolve(), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if record is not None:
            raise DataError(
                f"{path} is corrupt: {record} does not match its checksum; "
                "copy or download it again, or take an earlier one."
            )


@lru_cache(maxsize=256)
def _corrupt_record(path: Path, *state: int) -> str | None:
    """Return what of a zip archive does not match its checksum, or None; `state` tells a file from a later one."""
    name = "the list of its parts"
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.CRC == 0:  # empty, or written without checksums
                    continue
                name = f"its part {record.filename}"
                with archive.open(record) as content:
                    while content.read(1 << 20):
                        pass
    except (*CORRUPT_ARCHIVE, OSError):
        return name
    return None


def check_model(name: str | os.PathLike) -> None:
    """Compare a model's files with the checksums that there are: torch's own, and those that its export has stored.

    Args:
        name: a folder or checkpoint file; anything else, such as a hub id, has no files here.

    Raises:
        DataError: a file is corrupt or was changed.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return
    stored = _exported_files(path if path.is_dir() else path.parent)
    for file in weight_files(path) if path.is_dir() else [path]:
        check_archive(file)
        if file.name in stored and file_sha256(file) != stored[file.name]:
            raise DataError(
                f"{file} is corrupt or was changed: it does not match the SHA-256 in {EXPORT_FILE}; export again, or "
                f"delete {EXPORT_FILE} if the change was meant."
            )


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold weights, by name."""
    return sorted({file for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file()})


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exported_files(folder: Path) -> dict[str, str]:
    try:
        stored = parse_json((folder / EXPORT_FILE).read_text(encoding="utf-8"))["files"]
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ):  # no export, or one of 0.1.0, whose `predict` compares tensors
        return {}
    return stored if isinstance(stored, dict) else {}
