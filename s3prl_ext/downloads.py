"""Files fetched by HTTP: a hidden part that later calls resume, compared with the announced size, retried."""

from __future__ import annotations

import http.client
import logging
import time
import urllib.error
import urllib.request
from pathlib import Path

from s3prl_ext.errors import DataError
from s3prl_ext.progress import bar

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT_S = 60
TRIES = 3
PAUSE_S = 1.0  # before the second try, twice that before the third


def fetch(url: str, part: Path) -> None:
    """Append what is missing of `url` to the file `part`; a connection that ends early is tried again from there.

    A server that gives no ranges begins anew. Without a length it is not known whether the file is whole.

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


def _append(url: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return
        raise
    with answer:
        resumed = have if getattr(answer, "status", None) == 206 else 0
        length = int(answer.headers.get("Content-Length") or 0) + resumed
        with (
            open(part, "ab" if resumed else "wb") as file,
            bar(total=length or None, initial=resumed, unit="B", unit_scale=True) as progress,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = part.stat().st_size
    if length > resumed and size < length:
        raise OSError(f"the connection ended after {size} of {length} bytes")
