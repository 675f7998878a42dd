"""Downloads that were cut: resumed where the server still has the same file, else begun anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from s3prl_ext.downloads import discard, fetch, keep
from s3prl_ext.errors import DataError

OLD, NEW = b"A" * 1000, b"B" * 3000
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


class _Server(ThreadingHTTPServer):
    content: bytes
    headers: dict[str, str]  # that tell files apart
    cut_at: int | None  # bytes of each answer
    knows_if_range: bool
    asked: list[tuple[str | None, str | None]]  # Range and If-Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x.ckpt"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append((wanted, condition))
        same = not server.knows_if_range or condition in (None, *server.headers.values())
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same else None
        if start is not None and start >= len(content):
            self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
            return
        ranges = {} if start is None else {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start or 0 :]
        self._head(200 if start is None else 206, len(body), {**server.headers, **ranges})
        self.wfile.write(body[: server.cut_at])

    def _head(self, code: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    """A local server that cuts the old file after 400 bytes."""
    monkeypatch.setattr("s3prl_ext.downloads.PAUSE_S", 0.0)
    monkeypatch.setattr("s3prl_ext.downloads.TRIES", 1)
    served = _Server(("127.0.0.1", 0), _Handler)
    served.content, served.headers, served.cut_at, served.knows_if_range = OLD, {"ETag": '"old"'}, 400, True
    served.asked = []
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def cut(server: _Server, part: Path) -> None:
    """Fetch the first 400 bytes of the old file."""
    with pytest.raises(DataError, match="ended after 400 of 1000 bytes"):
        fetch(server.url, part)
    assert part.read_bytes() == OLD[:400]
    server.cut_at, server.asked = None, []


@pytest.mark.parametrize("headers", [{"ETag": '"old"'}, {"Last-Modified": DATE},
                                     {"ETag": 'W/"old"', "Last-Modified": DATE}])  # fmt: skip
def test_the_same_file_is_resumed(server, tmp_path, headers):
    server.headers, part = headers, tmp_path / ".x.part"
    cut(server, part)
    fetch(server.url, part)
    assert part.read_bytes() == OLD and server.asked == [("bytes=400-", list(headers.values())[-1])]
    fetch(server.url, part)  # as after a kill before it got its name
    assert part.read_bytes() == OLD and server.asked[1:] == [("bytes=1000-", list(headers.values())[-1])]
    keep(part, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("knows_if_range", "new"), [
    (True, NEW), (True, NEW[:300]), (True, NEW[:400]), (True, OLD), (False, NEW), (False, NEW[:300]), (False, OLD),
])  # fmt: skip
def test_another_file_is_begun_anew(server, tmp_path, knows_if_range, new, caplog):
    """Also one that is shorter than the part, which answers 416 where a server does not know If-Range."""
    part = tmp_path / ".x.part"
    cut(server, part)
    server.content, server.headers, server.knows_if_range = new, {"ETag": '"new"'}, knows_if_range
    fetch(server.url, part)
    assert part.read_bytes() == new and "is begun anew" in caplog.text
    fetch(server.url, part)
    assert part.read_bytes() == new and server.asked[-1] == (f"bytes={len(new)}-", '"new"')


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"old"'}])
def test_a_server_that_does_not_tell_files_apart_begins_anew(server, tmp_path, headers):
    server.headers, part = headers, tmp_path / ".x.part"
    cut(server, part)
    server.content = NEW
    fetch(server.url, part)
    assert part.read_bytes() == NEW and server.asked == [(None, None)]
    assert [path.name for path in tmp_path.iterdir()] == [".x.part"]


def test_parts_of_which_nothing_is_known_are_not_resumed(server, tmp_path):
    """Of an earlier version, or of another address."""
    part = tmp_path / ".x.part"
    cut(server, part)
    fetch(server.url + "?other", part)
    assert part.read_bytes() == OLD and server.asked == [(None, None)]
    discard(part)
    assert list(tmp_path.iterdir()) == []
    part.write_bytes(NEW[:100])
    fetch(server.url, part)
    assert part.read_bytes() == OLD and server.asked[1:] == [(None, None)]
