"""s3prl's downloads: whole files only, and those of the Hugging Face hub by its client, with cache and mirrors."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import time
from pathlib import Path
from types import ModuleType

from s3prl_ext import hub
from s3prl_ext.compat.shim import Shim
from s3prl_ext.downloads import discard, fetch, keep
from s3prl_ext.errors import DataError
from s3prl_ext.reading import is_archive

logger = logging.getLogger(__name__)

_ON_THE_HUB = re.compile(r"https://(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")
NEW_ENOUGH_S = 2.0  # s3prl's: another process of the same run has just fetched the file again


def is_cut_short(path: Path) -> bool:
    """Return whether a file begins as a zip archive, as torch's files do, but has no end of one."""
    with open(path, "rb") as file:
        begins = file.read(4) == b"PK\x03\x04"
    return begins and not is_archive(path)


def download(filepath: Path, url: str, refresh: bool, new_enough_secs: float = NEW_ENOUGH_S) -> None:
    """Take the place of ``s3prl.util.download._download``: have the content of `url` in `filepath`.

    A file of the hub comes through its client, which resumes, compares sizes and keeps to ``HF_ENDPOINT``,
    ``HF_HUB_CACHE`` and ``HF_HUB_OFFLINE``; it is linked from there. A file that an earlier version kept although its
    download was cut is fetched again.

    Args:
        filepath: in s3prl's cache.
        url: address as s3prl's entry names it.
        refresh: fetch it again (``-r``), unless it is newer than `new_enough_secs`.

    Raises:
        DataError: it cannot be fetched.
    """
    from filelock import FileLock

    filepath = Path(filepath)
    filepath.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{filepath}.lock"):
        if filepath.is_file():
            cut = is_cut_short(filepath)
            if not cut and not (refresh and time.time() - filepath.stat().st_mtime > new_enough_secs):
                return
            if cut and hub.offline():
                raise DataError(
                    f"{filepath} is cut short, and HF_HUB_OFFLINE is set: give the command once without that."
                )
            if cut:
                logger.warning("%s is cut short (%d bytes): it is fetched again", filepath, filepath.stat().st_size)
        logger.info("Requesting %s", url)
        found = _ON_THE_HUB.match(url)
        temporary = filepath.with_name(f".{filepath.name}.part")
        if found:
            reference = hub.Reference(found[1], found[3], None if found[2] == "main" else found[2])
            _link(hub.file(reference, again=refresh).resolve(), temporary)
        elif hub.offline():
            raise DataError(f"{url} is not in s3prl's cache ({filepath.parent}), and HF_HUB_OFFLINE is set.")
        else:
            fetch(url, temporary)
        if is_cut_short(temporary):
            discard(temporary)
            raise DataError(f"{url} gives a file that is cut short: give the same command with -r.")
        keep(temporary, filepath)
        os.utime(filepath)


def _link(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, or a copy where the two are on different disks."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _wrap(module: ModuleType) -> None:
    wrapped = functools.wraps(module._download)(download)
    module._download = module.download = wrapped


SHIMS = (
    Shim(
        name="s3prl-downloads",
        module="s3prl.util.download",
        needed=lambda module: not hasattr(module._download, "__wrapped__"),
        apply=_wrap,
        reason="s3prl keeps a download that was cut as complete, so that every later run fails, and asks "
        "huggingface.co whatever HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE say",
        remove_when="s3prl compares sizes and uses huggingface_hub",
    ),
)
