"""Speaker identification: keep the lists of audio files per corpus, and name a listed file that is missing."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from s3prl_ext.compat.listings import SortedPath
from s3prl_ext.errors import DataError
from s3prl_ext.reading import read_lines

SPLITS = {"1": "train", "2": "dev", "3": "test"}
"""First field of a line in the list ``iden_split.txt`` -> split."""

LISTS = 2  # version of the stored lists: those of 0.1.0 may name clips relative to another working directory


def cache_base() -> Path:
    """Return the folder of this package's caches: per user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3prl_ext"


def cache_dir(root: Path, meta_data: Path) -> Path:
    """Return the folder for the file lists of one corpus: per user, keyed by its root and the content of its list."""
    key = hashlib.sha256(f"{LISTS}|{root.resolve()}".encode() + b"\0" + meta_data.read_bytes()).hexdigest()[:16]
    return cache_base() / "voxceleb1" / key


def check_list(root: Path, meta_data: Path) -> None:
    """Check that the corpus folder and the list exist and that each line of the list is ``<1|2|3> <path>``.

    Raises:
        DataError: naming what is missing, or the first wrong line.
    """
    if not root.is_dir():
        raise DataError(
            f"no such VoxCeleb1 folder: {root}; set VOXCELEB1, or config.downstream_expert.datarc.file_path with -o."
        )
    if not meta_data.is_file():
        raise DataError(
            f"no such VoxCeleb1 list: {meta_data}; it is VoxCeleb1's iden_split.txt, in s3prl's git repository "
            "s3prl/downstream/voxceleb1/veri_test_class.txt: point VOXCELEB1_SPLIT at it."
        )
    for number, line in enumerate(read_lines(meta_data), start=1):
        fields = line.split()
        if len(fields) != 2 or fields[0] not in SPLITS:
            raise DataError(
                f"{meta_data}, line {number} must be '<1|2|3> id10001/<video>/00001.wav', got {line!r}: "
                "correct the list."
            )


def first_missing(root: Path, meta_data: Path, split: str) -> str | None:
    """Return the first file that the list names for `split` and that is not below ``root/*/wav/``."""
    for line in read_lines(meta_data):
        number, path = line.split()
        if SPLITS[number] == split and next(root.glob(f"*/wav/{path}"), None) is None:
            return path
    return None


def wrap_dataset(module: ModuleType) -> None:
    """Make ``SpeakerClassifiDataset`` of s3prl look for its cached file list in :func:`cache_dir`."""
    initialise = module.SpeakerClassifiDataset.__init__

    @functools.wraps(initialise)
    def initialise_with_own_cache(self, mode, file_path, meta_data, max_timestep=None) -> None:
        meta_data = Path(meta_data)
        check_list(Path(file_path), meta_data)
        # absolute, as the stored list serves every working directory; of a clip in two folders the first counts
        root = SortedPath(Path(file_path).resolve())
        folder = cache_dir(root, meta_data)
        cached = folder / f"{mode}.pkl"
        if cached.is_file():
            module.CACHE_PATH = f"{folder}{os.sep}"
            initialise(self, mode, root, meta_data, max_timestep)
            return
        # s3prl writes the list in place; several processes may do so at once, hence a folder for each.
        scratch = _make_scratch(folder)
        module.CACHE_PATH = f"{scratch}{os.sep}"
        try:
            initialise(self, mode, root, meta_data, max_timestep)
            os.replace(scratch / cached.name, cached)
        except IndexError as error:
            path = first_missing(root, meta_data, mode)
            if path is None:
                raise
            raise DataError(
                f"{meta_data} lists {path} for {mode}, which is not below {root}/*/wav/: "
                "complete the corpus or take the line out of the list."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    module.SpeakerClassifiDataset.__init__ = initialise_with_own_cache


def _make_scratch(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        raise DataError(f"cannot write the file lists of VoxCeleb1 to {folder}: set XDG_CACHE_HOME.") from error
