"""A stand-in for the Hugging Face hub on this machine: what huggingface_hub asks for, from folders, with its faults."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".bin", ".safetensors", ".pt")  # files that the hub keeps elsewhere and answers with a redirect


class StandInHub:
    """A hub whose repositories are the folders ``root/OWNER/NAME``; its address is :attr:`address`.

    Attributes:
        moved: old id -> new id, answered with 307 as the hub does for ``bert-base-uncased``.
        gated: ids that want a token (401).
        cuts: file name -> number of bytes after which the connection ends; each is used once, or always where negative.
        commits: id -> commit, where it matters which.
        requests: method and path of every request.
        token: what must be given to write; None lets nobody write.
        made: id -> whether the repository that was made is private.
    """

    def __init__(self, root: Path):
        self.root = root
        self.moved: dict[str, str] = {}
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.cuts: dict[str, int] = {}
        self.requests: list[str] = []
        self.token: str | None = None
        self.made: dict[str, bool] = {}
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.elsewhere = self.address.replace(
            "127.0.0.1", "localhost"
        )  # another host, which the client treats differently

    def commit(self, repo: str) -> str:
        """Return the only commit of a repository, which is its branch ``main`` and the tag ``v1``."""
        if repo in self.commits:
            return self.commits[repo]
        repo = self.moved.get(repo, repo)
        return hashlib.sha1(repo.encode()).hexdigest()

    @contextlib.contextmanager
    def running(self) -> Iterator[StandInHub]:
        """Answer requests inside the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def downloads(self) -> list[str]:
        """Return the names of the files whose content was asked for."""
        return [
            path.rsplit("/", 1)[-1]
            for method, path in map(str.split, self.requests)
            if method == "GET" and "/api/" not in path
        ]


class _Handler(BaseHTTPRequestHandler):
    owner: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the output of the tests clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        """Take the content of a large file, under the hash that names it."""
        self.owner.requests.append(f"PUT {self.path}")
        store = self.owner.root / ".large"
        store.mkdir(exist_ok=True)
        (store / self.path.rpartition("/")[2]).write_bytes(self._body())
        self._send(200)

    def do_POST(self) -> None:
        """Take an upload: repository, kinds of files, large files, commit."""
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append(f"POST {path}")
        body = self._body()
        if path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if self.owner.token is None or self.headers.get("Authorization") != f"Bearer {self.owner.token}":
            return self._send(401, **{"X-Error-Message": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._make(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            place = f"{self.owner.address}/large/"
            objects = [
                one | {"actions": {"upload": {"href": place + one["oid"]}}} for one in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        repo, action, branch = path.removeprefix("/api/models/").rsplit("/", 2)
        if branch != "main":
            return self._send(404, **{"X-Error-Code": "RevisionNotFound"})
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if Path(name).suffix in (*LARGE, ".ckpt") else "regular" for name in files}
            return self._json(
                {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
            )
        return self._commit(repo, [json.loads(line) for line in body.splitlines()])

    def _make(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if (self.owner.root / repo).is_dir():
            return self._json({"error": "exists", "url": f"{self.owner.address}/{repo}"}, 409)
        (self.owner.root / repo).mkdir(parents=True)
        self.owner.made[repo] = asked.get("visibility") == "private" or asked.get("private") is True
        self._json({"url": f"{self.owner.address}/{repo}"})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (self.owner.root / repo / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.owner.root / repo / value["path"]).write_bytes(
                    (self.owner.root / ".large" / value["oid"]).read_bytes()
                )
            elif line["key"] == "deletedFile":
                (self.owner.root / repo / value["path"]).unlink()
        commit = self.owner.commit(repo)
        self._json({"commitUrl": f"{self.owner.address}/{repo}/commit/{commit}", "commitOid": commit})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        if path.startswith("/elsewhere/"):
            return self._content(self.owner.root / path.removeprefix("/elsewhere/"))
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/" if api else "/").split("/")
        words = ("revision", "tree") if api else ("resolve",)
        split = next((i for i, part in enumerate(parts) if part in words), len(parts))
        repo, rest = "/".join(parts[:split]), parts[split:]
        if repo in self.owner.moved:
            return self._send(307, Location=self.path.replace(repo, self.owner.moved[repo], 1))
        if not (self.owner.root / repo).is_dir():
            return self._send(401, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if repo in self.owner.gated:
            message = "Access to model is restricted and you are not in the authorized list. Please log in."
            return self._send(401, **{"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        commit = self.owner.commit(repo)
        if len(rest) > 1 and rest[1] not in ("main", "v1", commit):
            return self._send(404, **{"X-Error-Code": "RevisionNotFound"})
        return self._info(repo, commit, rest) if api else self._file(repo, commit, rest)

    def _info(self, repo: str, commit: str, rest: list[str]) -> None:
        folder = self.owner.root / repo
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if rest and rest[0] == "tree":
            body = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": _sha(p)[:40]} for n, p in zip(names, files)
            ]
            return self._send(200, json.dumps(body).encode(), **{"Content-Type": "application/json"})
        body = {
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "private": False,
            "siblings": [{"rfilename": n} for n in names],
        }
        self._send(200, json.dumps(body).encode(), **{"Content-Type": "application/json"})

    def _file(self, repo: str, commit: str, rest: list[str]) -> None:
        name = "/".join(rest[2:])
        path = self.owner.root / repo / name
        if not path.is_file():
            return self._send(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(path)[:40]}"', "Accept-Ranges": "bytes"}
        if path.suffix in LARGE:
            headers |= {"X-Linked-ETag": f'"{_sha(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            return self._send(302, Location=f"{self.owner.elsewhere}/elsewhere/{repo}/{name}", **headers)
        self._content(path, headers)

    def _content(self, path: Path, headers: dict[str, str] | None = None) -> None:
        data, status = path.read_bytes(), 200
        headers = dict(headers or {})
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            status, whole = 206, len(data)
            data = data[start:]
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        cut = self.owner.cuts.get(path.name) if self.command == "GET" else None
        if cut is not None and cut >= 0:
            del self.owner.cuts[path.name]
        self._send(status, data, limit=None if cut is None else abs(cut), **headers)

    def _send(self, status: int, body: bytes = b"", limit: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:limit])
        if limit is not None and limit < len(body):
            self.close_connection = True


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
