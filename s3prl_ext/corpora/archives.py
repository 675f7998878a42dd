"""Official archives of corpora: what each is (its card), how it is fetched, verified and unpacked.

A download goes to a hidden ``.part`` file that a later call resumes, is verified, and is unpacked into a hidden folder
that takes its final name last: an interrupted call leaves no half corpus behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from s3prl_ext.errors import DataError
from s3prl_ext.writing import folder_beside

logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT_S = 60


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


def download(card: CorpusCard, folder: Path) -> Path:
    """Fetch, verify and unpack the archive of `card` below `folder`; return the corpus folder.

    What is there already is not fetched again; an interrupted download is resumed.

    Raises:
        DataError: no connection, wrong size or checksum, unsafe or incomplete archive.
    """
    folder = Path(folder)
    if (folder / card.folder).is_dir():
        logger.info("%s is there already: %s", card.name, folder / card.folder)
        return folder / card.folder
    archive = folder / card.archive
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{card.archive}.part"
        _fetch(card.url, part)
        verify(card, part)
        os.replace(part, archive)
    return unpack(card, folder)


def unpack(card: CorpusCard, folder: Path) -> Path:
    """Verify and unpack the archive of `card` that lies in `folder`; return the corpus folder.

    Raises:
        DataError: the archive is missing, damaged, unsafe or lacks a file of the corpus.
    """
    folder = Path(folder)
    final = folder / card.folder
    if final.is_dir():
        return final
    archive = folder / card.archive
    if not archive.is_file():
        raise DataError(
            f"{folder} holds neither {card.folder}/ nor {card.archive}: add --download, or fetch {card.url} into it."
        )
    verify(card, archive)
    with folder_beside(final) as partial:
        extract(archive, partial / "archive")
        os.replace(_corpus_in(card, partial / "archive", archive), final)
    return final


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
        archive.unlink()
    raise DataError(f"the archive {archive.name} of {card.name} {problem}: remove it and download it again.")


def extract(archive: Path, target: Path) -> None:
    """Unpack a tar or zip archive into the new folder `target`, refusing links and paths that lead out of it.

    Raises:
        DataError: damaged archive, link, device or unsafe path.
    """
    target.mkdir(parents=True)
    try:
        for name, size, source in (_zip_files if zipfile.is_zipfile(archive) else _tar_files)(archive):
            path = target / _safe(name, archive)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            if path.stat().st_size != size:
                raise DataError(f"{archive} is cut short at {name}: download it again.")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): download it again.") from error


def _fetch(url: str, part: Path) -> None:
    """Append what is missing of `url` to `part`, with a progress bar."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            resumed = have and getattr(answer, "status", None) == 206
            length = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
            with (
                open(part, "ab" if resumed else "wb") as file,
                tqdm(total=length or None, initial=have if resumed else 0, unit="B", unit_scale=True) as bar,
            ):
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if length and part.stat().st_size < length:
            raise OSError("the connection ended early")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing: the file is complete and is verified next
            return
        raise DataError(f"cannot download {url} ({error}): see the corpus's homepage, or fetch it by hand.") from error
    except OSError as error:
        raise DataError(f"cannot download {url} ({error}): the same command resumes, or fetch it by hand.") from error


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
    raise DataError(f"{archive} does not hold {', '.join(card.contents)} of {card.name}: fetch {card.url} again.")
