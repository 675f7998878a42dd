"""Progress bars: a bar on a terminal; in a log file a line every half minute, and none for what takes less."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 30.0  # between two lines of a bar in a log file


class _Lines:
    """A stream on which every frame of a bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, frame: str) -> None:
        if frame.strip():
            self._stream.write(f"{frame.strip()}\n")

    def flush(self) -> None:
        self._stream.flush()


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a progress bar on stderr.

    Args:
        iterable: what it goes over, or None where it is moved by ``update``.
        **options: of tqdm, such as `total`, `desc` and `unit`.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    lines: Any = _Lines(sys.stderr)
    seconds = {"mininterval": LOG_SECONDS, "maxinterval": 2 * LOG_SECONDS, "delay": LOG_SECONDS}
    return tqdm(iterable, file=lines, miniters=1, ncols=100, **seconds, **options)


def printing() -> AbstractContextManager[None]:
    """Take the bars off the terminal while something is printed, so that it has a line of its own."""
    return tqdm.external_write_mode()


def quiet_bars_of_others() -> None:
    """Let the bars of other packages draw a frame every half minute where stderr is not a terminal; call it early."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", f"{LOG_SECONDS:g}")
        os.environ.setdefault("TQDM_DELAY", f"{LOG_SECONDS:g}")
