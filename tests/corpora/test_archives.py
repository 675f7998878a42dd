"""Official archives: download with resume, verification, safe unpacking."""

from __future__ import annotations

import errno
import hashlib
import io
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s3prl_ext.corpora.archives import CorpusCard, CorruptArchive, download, extract, unpack, verify
from s3prl_ext.errors import DataError

FILES = {"mini/list.csv": b"a|b\n", "mini/wavs/1.wav": b"RIFF" * 1000}


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """Return a .tar.bz2 with `files`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = tar_bytes(FILES)
CARD = CorpusCard(
    name="Mini", licence="none", homepage="", url="http://localhost/mini.tar.bz2", folder="mini",
    checksum="sha256:" + hashlib.sha256(ARCHIVE).hexdigest(), checksum_from="this test", size=len(ARCHIVE),
    citation="", layout="", contents=("list.csv", "wavs"),
)  # fmt: skip


class _Server(ThreadingHTTPServer):
    ranges: list[str]
    cut_at: int | None  # bytes of each answer
    cuts: int  # answers that are cut, at most
    chunked: bool  # as GitHub: without length and ranges
    content: bytes


class _Handler(BaseHTTPRequestHandler):
    """Serve one file with byte ranges; `cut_at` closes the connection early."""

    server: _Server

    def do_GET(self) -> None:
        start, etag = 0, f'"{hashlib.sha256(self.server.content).hexdigest()}"'
        if (wanted := self.headers.get("Range")) and self.headers.get("If-Range") == etag:
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(self.server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.content)}")
            self.end_headers()
            return
        cut_at = self.server.cut_at if self.server.cuts else None
        self.server.cuts -= 1
        if self.server.chunked:
            self._in_chunks(cut_at)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body[:cut_at])

    def _in_chunks(self, cut_at: int | None) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = self.server.content[:cut_at]
        self.wfile.write(b"%x\r\n" % len(self.server.content) + body + (b"\r\n0\r\n\r\n" if cut_at is None else b""))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A local server that answers every request with ARCHIVE."""
    monkeypatch.setattr("s3prl_ext.downloads.PAUSE_S", 0.0)
    served = _Server(("127.0.0.1", 0), _Handler)
    served.ranges, served.cut_at, served.cuts, served.chunked, served.content = [], None, 99, False, ARCHIVE
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def card_of(server: _Server, **changes: object) -> CorpusCard:
    """Return CARD with its archive on the local server."""
    return replace(CARD, url=f"http://127.0.0.1:{server.server_port}/mini.tar.bz2", **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of all files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_download_verifies_and_unpacks(server, tmp_path):
    folder = download(card_of(server), tmp_path / "corpora")
    assert folder == tmp_path / "corpora" / "mini"
    assert contents(tmp_path / "corpora") == {**FILES, "mini.tar.bz2": ARCHIVE}
    server.content = b""
    assert download(card_of(server), tmp_path / "corpora") == folder  # nothing is fetched again


def test_interrupted_download_is_resumed(server, tmp_path):
    server.cut_at = 20
    with pytest.raises(DataError, match="ended after 60 of .* bytes.: the same command resumes"):
        download(card_of(server), tmp_path)
    assert contents(tmp_path)[".mini.tar.bz2.part"] == ARCHIVE[:60]  # three tries, each from where the last ended
    server.cut_at = None
    download(card_of(server), tmp_path)
    assert server.ranges == ["bytes=20-", "bytes=40-", "bytes=60-"]
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert contents(tmp_path / "mini") == {k.removeprefix("mini/"): v for k, v in FILES.items()}


def test_a_download_that_is_cut_once_goes_on_by_itself(server, tmp_path, caplog):
    server.cut_at, server.cuts = 20, 1
    assert (download(card_of(server), tmp_path) / "list.csv").is_file()
    assert server.ranges == ["bytes=20-"] and "trying again" in caplog.text


def test_an_archive_without_length_that_is_cut_in_the_middle(server, tmp_path):
    """GitHub makes its archives on request, in chunks, without length and ranges."""
    server.chunked, server.cut_at, server.cuts = True, 50, 1
    assert (download(card_of(server), tmp_path) / "list.csv").is_file()
    server.cuts = 99
    with pytest.raises(DataError, match=r"IncompleteRead.*: the same command resumes, or fetch it by hand"):
        download(card_of(server), tmp_path / "again")
    assert not (tmp_path / "again" / "mini.tar.bz2").exists()


def test_a_page_in_place_of_the_archive_is_not_kept(server, tmp_path):
    server.content = b"<!DOCTYPE html>log in!</html>"
    card = card_of(server, checksum="", size=0)
    with pytest.raises(
        DataError, match=r"gave no whole archive: the file begins with b'<!DOCTYPE html>.* same command again"
    ):
        download(card, tmp_path)
    assert contents(tmp_path) == {}
    (tmp_path / "mini.tar.bz2").write_bytes(page := server.content)  # as an earlier version left it, or by hand
    server.content = ARCHIVE
    assert (download(card, tmp_path) / "list.csv").is_file()
    assert contents(tmp_path)["mini.tar.bz2.incomplete"] == page


def test_what_nothing_reads_stays_in_the_archive(tmp_path):
    (tmp_path / "mini.tar.bz2").write_bytes(tar_bytes({**FILES, "mini/wavs/1_mic2.flac": b"x"}))
    folder = unpack(replace(CARD, checksum="", size=0, unread="_mic2.flac"), tmp_path)
    assert contents(folder) == {name.removeprefix("mini/"): content for name, content in FILES.items()}


def test_an_archive_is_hashed_once(server, tmp_path, monkeypatch):
    from s3prl_ext.corpora import archives

    calls, digest = [], archives._digest
    monkeypatch.setattr(archives, "_digest", lambda *args: calls.append(args) or digest(*args))
    download(card_of(server), tmp_path)
    assert len(calls) == 1


def test_an_archive_under_the_name_that_a_browser_gives(tmp_path):
    card = replace(CARD, also_named=("Mini-master.tar.bz2",))
    with pytest.raises(DataError, match="neither mini/ nor mini.tar.bz2 nor Mini-master.tar.bz2"):
        unpack(card, tmp_path)
    (tmp_path / "Mini-master.tar.bz2").write_bytes(ARCHIVE)
    assert (unpack(card, tmp_path) / "list.csv").is_file()
    assert (download(replace(card, folder="other", contents=()), tmp_path)).is_dir(), "nothing is fetched"


def test_complete_partial_file_is_taken(server, tmp_path, monkeypatch):
    monkeypatch.setattr("s3prl_ext.corpora.archives.verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(card_of(server), tmp_path)
    monkeypatch.undo()
    download(card_of(server), tmp_path)
    assert (tmp_path / "mini" / "list.csv").is_file() and server.ranges == [f"bytes={len(ARCHIVE)}-"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("changes", "part"), [
    ({"checksum": "md5:" + "0" * 32}, "has the md5 .* instead of 0000"),
    ({"size": 7}, "bytes instead of 7; it was removed: give the same command again"),
])  # fmt: skip
def test_wrong_archive_is_refused_and_removed(server, tmp_path, changes, part):
    with pytest.raises(DataError, match=part):
        download(card_of(server, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_connection(tmp_path):
    card = replace(CARD, url="http://127.0.0.1:9/mini.tar.bz2")
    with pytest.raises(DataError, match=r"cannot download http://127.0.0.1:9/mini.tar.bz2"):
        download(card, tmp_path)
    assert contents(tmp_path) == {}


def test_archive_fetched_by_hand(tmp_path):
    with pytest.raises(DataError, match="add --download, or fetch"):
        unpack(CARD, tmp_path)
    (tmp_path / "mini.tar.bz2").write_bytes(ARCHIVE)
    assert (unpack(CARD, tmp_path) / "wavs" / "1.wav").read_bytes() == FILES["mini/wavs/1.wav"]


def test_damaged_archive_by_hand_stays_for_the_user(tmp_path):
    (tmp_path / "mini.tar.bz2").write_bytes(ARCHIVE[:-1] + b"x")
    with pytest.raises(DataError, match="remove it, and give --download"):
        unpack(CARD, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mini.tar.bz2"]


def test_without_a_known_checksum_the_contents_are_checked(tmp_path, caplog):
    card = replace(CARD, checksum="", size=0, checksum_from="nobody publishes one")
    (tmp_path / "mini.tar.bz2").write_bytes(tar_bytes({"mini/list.csv": b""}))
    with pytest.raises(DataError, match=r"does not hold list.csv, wavs"):
        unpack(card, tmp_path)
    assert "no known checksum (nobody publishes one)" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["mini.tar.bz2"]


def test_archive_without_a_top_folder_or_under_another_name(tmp_path):
    for number, prefix in enumerate(("", "other-name/")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with zipfile.ZipFile(folder / "mini.zip", "w") as archive:
            for name, content in FILES.items():
                archive.writestr(prefix + name.removeprefix("mini/"), content)
        card = replace(CARD, url="http://localhost/mini.zip", checksum="", size=0)
        assert contents(unpack(card, folder)) == {k.removeprefix("mini/"): v for k, v in FILES.items()}


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name):
    (tmp_path / "a.tar.bz2").write_bytes(tar_bytes({name: b"x"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    for kind in ("tar.bz2", "zip"):
        with pytest.raises(DataError, match="unsafe path"):
            extract(tmp_path / f"a.{kind}", tmp_path / "inside" / kind)
    assert not [p for p in tmp_path.rglob("*evil*")]


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("mini/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("mini/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    for kind in ("tar", "zip"):
        with pytest.raises(DataError, match="link"):
            extract(tmp_path / f"a.{kind}", tmp_path / kind)


def test_truncated_archive(tmp_path):
    (tmp_path / "a.tar.bz2").write_bytes(ARCHIVE[:-20])
    with pytest.raises(DataError, match="corrupt|cut short"):
        extract(tmp_path / "a.tar.bz2", tmp_path / "out")


NOISE = {"mini/noise.wav": random.Random(0).randbytes(20000)}


def corrupt_archive(path: Path, kind: str) -> None:
    """Write an archive whose list of files is whole, but not the stream of one of them."""
    if kind.startswith("tar"):
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            info = tarfile.TarInfo("mini/noise.wav")
            info.size = len(NOISE["mini/noise.wav"])
            archive.addfile(info, io.BytesIO(NOISE["mini/noise.wav"]))
    else:
        with zipfile.ZipFile(path, "w", {"deflate": 8, "bzip2": 12, "lzma": 14}[kind]) as archive:
            archive.writestr("mini/noise.wav", NOISE["mini/noise.wav"])
    content, start = bytearray(path.read_bytes()), 60  # behind the heads of the file and of its stream
    content[start : start + 20] = bytes(255 - byte for byte in content[start : start + 20])
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["deflate", "bzip2", "lzma", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_corrupt_stream_is_one_sentence(tmp_path, kind):
    corrupt_archive(tmp_path / "archive", kind)
    with pytest.raises(CorruptArchive, match=r"/archive is corrupt \([^\n]+\): remove it, and give --download"):
        extract(tmp_path / "archive", tmp_path / "out")


def test_a_full_disk_is_not_a_corrupt_archive(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "mini.tar.bz2").write_bytes(ARCHIVE)
    monkeypatch.setattr("s3prl_ext.corpora.archives.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path / "mini.tar.bz2", tmp_path / "out")


@pytest.mark.parametrize("problem", ["corrupt", "does not hold list.csv, wavs"])
def test_a_download_that_cannot_be_unpacked_is_fetched_again(server, tmp_path, problem):
    """Nobody publishes a checksum of ESC-50: that its archive is corrupt is seen when it is unpacked."""
    corrupt_archive(tmp_path / "bad", "deflate")
    server.content = (tmp_path / "bad").read_bytes() if problem == "corrupt" else tar_bytes(NOISE)
    card = card_of(server, checksum="", size=0)
    with pytest.raises(DataError, match=f"mini.tar.bz2 .*{problem}.*: it was removed, give the same command again"):
        download(card, tmp_path / "corpora")
    assert contents(tmp_path / "corpora") == {}
    server.content = ARCHIVE
    assert (download(card, tmp_path / "corpora") / "list.csv").is_file()


def test_a_corrupt_archive_by_hand_stays_for_the_user(server, tmp_path):
    corrupt_archive(tmp_path / "mini.tar.bz2", "deflate")
    for get in (download, unpack):
        with pytest.raises(DataError, match=r"mini.tar.bz2 is corrupt .*: remove it, and give --download"):
            get(card_of(server, checksum="", size=0), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mini.tar.bz2"]


def test_verify_reads_the_checksum_kind(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    verify(replace(CARD, size=0, checksum="md5:" + hashlib.md5(b"content").hexdigest()), path)
    with pytest.raises(DataError):
        verify(replace(CARD, size=0, checksum="md5:" + hashlib.md5(b"other").hexdigest()), path)
