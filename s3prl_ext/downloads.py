"""Files fetched by HTTP: a hidden part that later calls resume, compared with the announced size, retried.

Next to a part is a file ``PART.version`` with its address and what tells the server's file from others (``ETag`` or
``Last-Modified``): a part is resumed only where the server still has that file.
"""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from s3prl_ext.errors import DataError
from s3prl_ext.progress import bar
from s3prl_ext.writing import write_text

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT_S = 60
TRIES = 3
PAUSE_S = 1.0  # before the second try, twice that before the third


def fetch(url: str, part: Path) -> None:
    """Append what is missing of `url` to the file `part`; a connection that ends early is tried again from there.

    The file is begun anew where the server gives no ranges, has another file than before, or says neither. Without a
    length it is not known whether the file is whole. :func:`keep` or :func:`discard` ends the part.

    Raises:
        DataError: the server refuses, or the connection ends early each time.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return _append(url, part)
        except urllib.error.HTTPError as error:
            raise DataError(
                f"cannot download {url} ({error}): check the address in a browser, or fetch it by hand."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempt == TRIES or isinstance(error, urllib.error.URLError):
                raise DataError(
                    f"cannot download {url} ({reason}): the same command resumes, or fetch it by hand."
                ) from error
            logger.warning("%s: %s; trying again", url, reason)
            time.sleep(PAUSE_S * attempt)
    return None


def keep(part: Path, path: Path) -> None:
    """Give a whole part its name."""
    os.replace(part, path)
    discard(part)


def discard(part: Path) -> None:
    """Remove a part, so that nothing resumes it."""
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _append(url: str, part: Path) -> None:
    version = _version_of(url, part)
    have = part.stat().st_size if version and part.is_file() else 0
    asked = {"Range": f"bytes={have}-", "If-Range": version[1]} if version and have else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not asked:
            raise
        if _is_of(error.headers, version) and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is missing
        return _begin_anew(url, part)
    with answer:
        resumed = have if answer.status == 206 else 0
        if resumed and not (_is_of(answer.headers, version) and _begins_at(answer.headers, have)):
            return _begin_anew(url, part)  # a server that does not know If-Range
        if have and not resumed:
            logger.warning("%s is begun anew: the server has another file now, or gives no ranges", url)
        length = int(answer.headers.get("Content-Length") or 0) + resumed
        with (
            open(part, "ab" if resumed else "wb") as file,
            bar(total=length or None, initial=resumed, unit="B", unit_scale=True) as progress,
        ):
            if not resumed:  # the old part is empty by now
                _note_version(url, part, answer.headers)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if length > resumed and size < length:
        raise OSError(f"the connection ended after {size} of {length} bytes")
    return None


def _begin_anew(url: str, part: Path) -> None:
    logger.warning("%s is begun anew: the server has another file now", url)
    discard(part)
    return _append(url, part)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _version_of(url: str, part: Path) -> tuple[str, str] | None:
    """Return header and value that tell apart the server's file that a part is of; None where that is not known."""
    try:
        address, header, value = _version_file(part).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return (header, value) if address == url else None


def _note_version(url: str, part: Path, headers: Message) -> None:
    """Write what :func:`_version_of` reads; nothing where the server does not say it."""
    values = {header: headers.get(header, "") for header in ("ETag", "Last-Modified")}
    header = next((header for header, value in values.items() if value and not value.startswith("W/")), None)
    if header is None:
        _version_file(part).unlink(missing_ok=True)
    else:
        write_text(_version_file(part), f"{url}\n{header}\n{values[header]}\n")


def _is_of(headers: Message, version: tuple[str, str] | None) -> bool:
    """Return whether an answer is of the file that a part is of, as far as it says so."""
    return version is not None and headers.get(version[0], version[1]) == version[1]


def _begins_at(headers: Message, start: int) -> bool:
    """Return whether a range begins where it was asked to, as far as it says so."""
    return headers.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-")
