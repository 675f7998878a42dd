"""Official archives of corpora: what each is (its card), how it is fetched, verified and unpacked.

A download goes to a hidden ``.part`` file that a later call resumes, is verified, and is unpacked into a hidden folder
that takes its final name last: an interrupted call leaves no half corpus behind.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from s3prl_ext.downloads import CHUNK, discard, fetch, keep
from s3prl_ext.errors import DataError
from s3prl_ext.reading import CORRUPT_ARCHIVE, is_archive
from s3prl_ext.writing import unfinished_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusCard:
    """What a corpus is and where its official archive lies.

    Attributes:
        name: the corpus with its version, such as ``"LJSpeech-1.1"``.
        licence: licence of the recordings and texts.
        homepage: page of the corpus.
        url: official archive (``.tar.bz2``, ``.tar.gz`` or ``.zip``).
        checksum: ``"sha256:..."`` or ``"md5:..."`` of the archive, empty where none is known.
        checksum_from: who published the checksum, or why there is none.
        size: bytes of the archive, 0 where unknown.
        citation: whom to cite.
        layout: the files of the corpus in one sentence.
        folder: name of the unpacked corpus folder.
        contents: files and folders, relative to `folder`, that must be there after unpacking.
        also_named: what a browser calls the archive, where that is not the last part of its address.
        unread: end of the names of files that are not unpacked, since nothing reads them; empty for none.
    """

    name: str
    licence: str
    homepage: str
    url: str
    checksum: str
    checksum_from: str
    size: int
    citation: str
    layout: str
    folder: str
    contents: tuple[str, ...]
    also_named: tuple[str, ...] = ()
    unread: str = ""

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        size = f"{self.size / 1e9:.2f} GB" if self.size else "size not stated"
        checksum = f"{self.checksum} ({self.checksum_from})" if self.checksum else f"none: {self.checksum_from}"
        return (
            f"{self.name}: {self.homepage}\n  licence   {self.licence}\n  archive   {self.url} ({size})\n"
            f"  checksum  {checksum}\n  layout    {self.layout}\n  cite      {self.citation}"
        )


class CorruptArchive(DataError):
    """An archive that is not whole.

    Args:
        archive: the file.
        problem: what is wrong with it, a clause of which the archive is the subject.
        what_next: what to do, or what was done.
    """

    def __init__(self, archive: Path, problem: str, what_next: str = "remove it, and give --download"):
        super().__init__(f"{archive} {problem}: {what_next}.")
        self.problem = problem


def download(card: CorpusCard, folder: Path) -> Path:
    """Fetch, verify and unpack the archive of `card` below `folder`; return the corpus folder.

    What already exists is not fetched again; an interrupted download is resumed. What was fetched and turns out not to
    be whole is removed; a file that was there before is not, but one that is not an archive at all is renamed
    ``NAME.incomplete``, and fetched.

    Raises:
        DataError: no connection, wrong size or checksum, unsafe, corrupt or incomplete archive.
    """
    folder = Path(folder)
    if (folder / card.folder).is_dir():
        logger.info("%s already exists: %s", card.name, folder / card.folder)
        return folder / card.folder
    archive = _archive_in(card, folder)
    if archive is not None and not _is_archive(archive):
        aside = archive.with_name(f"{archive.name}.incomplete")
        logger.warning(
            "%s is not a whole archive (it begins with %s); it is downloaded again, and what was there is now %s",
            archive,
            _beginning(archive),
            aside.name,
        )
        os.replace(archive, aside)
        archive = None
    if archive is not None:
        verify(card, archive)
        return _unpacked(card, folder, archive)
    folder.mkdir(parents=True, exist_ok=True)
    archive, part = folder / card.archive, folder / f".{card.archive}.part"
    fetch(card.url, part)
    _check_kind(card, part)
    verify(card, part)
    keep(part, archive)
    try:
        return _unpacked(card, folder, archive)
    except CorruptArchive as error:
        archive.unlink()
        raise CorruptArchive(archive, error.problem, "it was removed, give the same command again") from error


def unpack(card: CorpusCard, folder: Path) -> Path:
    """Verify and unpack the archive of `card` that lies in `folder`; return the corpus folder.

    Raises:
        DataError: the archive is missing, corrupt, unsafe or lacks a file of the corpus.
    """
    folder = Path(folder)
    if (folder / card.folder).is_dir():
        return folder / card.folder
    archive = _archive_in(card, folder)
    if archive is None:
        names = " nor ".join((card.archive, *card.also_named))
        raise DataError(
            f"{folder} holds neither {card.folder}/ nor {names}: add --download, or fetch {card.url} into it."
        )
    verify(card, archive)
    return _unpacked(card, folder, archive)


def _archive_in(card: CorpusCard, folder: Path) -> Path | None:
    """Return the archive in a folder, under one of its names."""
    return next((folder / name for name in (card.archive, *card.also_named) if (folder / name).is_file()), None)


def _unpacked(card: CorpusCard, folder: Path, archive: Path) -> Path:
    """Unpack a verified archive; return the corpus folder."""
    final = folder / card.folder
    with unfinished_folder(final) as partial:
        extract(archive, partial / "archive", card.unread)
        os.replace(_corpus_in(card, partial / "archive", archive), final)
    return final


def _is_archive(path: Path) -> bool:
    """Return whether a file is a whole zip archive, or begins as a tar archive does."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return is_archive(path) if is_zip else tarfile.is_tarfile(path)
    except CORRUPT_ARCHIVE:
        return False


def _beginning(path: Path) -> str:
    with open(path, "rb") as file:
        return repr(file.read(24))


def _check_kind(card: CorpusCard, part: Path) -> None:
    """Refuse, and remove, what a server gave in place of an archive, such as the page of a network's login."""
    if _is_archive(part):
        return
    beginning = _beginning(part)
    discard(part)
    raise DataError(
        f"{card.url} gave no whole archive: the file begins with {beginning}. Open the address in a browser (a "
        "network that wants a login answers with a page of its own), and give the same command again."
    )


def verify(card: CorpusCard, archive: Path) -> None:
    """Compare size and checksum of `archive` with the card; a hidden partial download that is wrong is removed.

    Raises:
        DataError: size or checksum differ.
    """
    size = archive.stat().st_size
    kind, _, expected = card.checksum.partition(":")
    problem = ""
    if card.size and size != card.size:
        problem = f"has {size} bytes instead of {card.size}"
    elif expected and (found := _digest(archive, kind)) != expected:
        problem = f"has the {kind} {found} instead of {expected}"
    if not problem:
        if not expected:
            logger.warning(
                "%s has no known checksum (%s): only its contents are checked.", card.name, card.checksum_from
            )
        return
    if archive.suffix == ".part":
        discard(archive)
        raise DataError(f"the download of {card.name} {problem}; it was removed: give the same command again.")
    raise DataError(f"the archive {archive} of {card.name} {problem}: remove it, and give --download.")


def extract(archive: Path, target: Path, unread: str = "") -> None:
    """Unpack a tar or zip archive into the new folder `target`, refusing links and paths that lead out of it.

    Args:
        unread: files whose names end so are left in the archive; empty for none.

    Raises:
        CorruptArchive: its list of files or a stream in it is corrupt, or it is cut short.
        DataError: link, device or unsafe path.
        OSError: the disk is full, or another error of it.
    """
    target.mkdir(parents=True)
    try:
        for name, size, source in (_zip_files if is_archive(archive) else _tar_files)(archive):
            if unread and name.endswith(unread):
                continue
            path = target / _safe(name, archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            if path.stat().st_size != size:
                raise CorruptArchive(archive, f"is cut short at {name}")
    except (*CORRUPT_ARCHIVE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk; streams give no number, a place before the beginning of the file gives EINVAL
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__  # tarfile lists all that it tried
        raise CorruptArchive(archive, f"is corrupt ({reason})") from error


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    with open(path, "rb") as file, tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=kind) as bar:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _zip_files(archive: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    with zipfile.ZipFile(archive) as opened:
        for member in tqdm(opened.infolist(), desc=archive.name, unit="file"):
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                raise DataError(f"{archive} holds the link {member.filename} and is not unpacked: fetch it anew.")
            if not member.is_dir():
                with opened.open(member) as source:
                    yield member.filename, member.file_size, source  # type: ignore[misc]


def _tar_files(archive: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    with tarfile.open(archive) as opened:
        for member in tqdm(opened, desc=archive.name, unit="file"):
            if member.isdir():
                continue
            source = opened.extractfile(member) if member.isfile() else None
            if source is None:
                raise DataError(f"{archive} holds {member.name}, a link or device, and is not unpacked: fetch it anew.")
            yield member.name, member.size, source  # type: ignore[misc]


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive} holds the unsafe path {name} and is not unpacked: fetch it from its homepage.")
    return path


def _corpus_in(card: CorpusCard, unpacked: Path, archive: Path) -> Path:
    """Return the folder with the corpus's contents: `unpacked` itself or the one folder in it."""
    for folder in (unpacked, *sorted(path for path in unpacked.iterdir() if path.is_dir())):
        if all((folder / name).exists() for name in card.contents):
            return folder
    raise CorruptArchive(archive, f"does not hold {', '.join(card.contents)} of {card.name}")
