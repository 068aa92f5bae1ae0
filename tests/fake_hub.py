"""A Hub on the loopback: folders served as model repositories, over the routes that the real client uses.

Every answer is made by one function of a table: reading is at the end of this file, writing in fake_hub_writing.
What was asked for, and how many bytes of each file were served, is kept for the tests to look at.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

#: Files that the Hub keeps in LFS: their ETag is a SHA-256, that of the others git's.
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf")

_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What it gets: a body, or a span of a file."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    end: int = 0
    #: What the bytes count as in :attr:`FakeHub.served`.
    label: str = ""

    @property
    def length(self) -> int:
        return len(self.body) if self.file is None else self.end - self.start


@dataclass(kw_only=True)
class Repository:
    """Commits, each a folder, and the branches that name them."""

    commits: dict[str, Path] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    #: The checksums of what its LFS store holds besides the files of its commits.
    stored: set[str] = field(default_factory=set)
    #: What the commits that were written say: the first line, and what stands below it.
    messages: dict[str, tuple[str, str]] = field(default_factory=dict)

    def folder(self, revision: str) -> tuple[str, Path] | None:
        """The commit that a branch or hash means, and its folder."""
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class FakeHub:
    """The repositories, who may read them, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        #: Every token that exists, and whether it was let into the gated repositories.
        self.tokens: dict[str, bool] = {}
        #: Paths (as in a request, without the query) that fail, and how.
        self.failures: dict[str, Reply] = {}
        #: Answers that are given once each, by path, before the real one.
        self.next_replies: dict[str, list[Reply]] = {}
        #: Paths on which the connection is dropped, and how often, after so many bytes of the request's body.
        self.drops: dict[str, int] = {}
        self.drop_after = 0
        #: Paths whose answer is lost after the request was carried out, and how often.
        self.lost_answers: dict[str, int] = {}
        #: Tokens that may read only.
        self.readers: set[str] = set()
        #: Where uploaded files are kept; what is written needs it.
        self.storage: Path | None = None
        #: Files above so many bytes are uploaded in parts of that.
        self.part_bytes: int | None = None
        #: Whether files in LFS are kept in Xet, from where they can be copied.
        self.xet = True
        #: Bytes of each file that were uploaded, by its checksum.
        self.received: Counter[str] = Counter()
        self.lock = threading.RLock()
        #: Whether byte ranges are served, or the whole file instead, as behind some proxies.
        self.ranges = True
        self.requests: list[Request] = []
        #: Bytes of each file that were sent, by ``repository/path``.
        self.served: Counter[str] = Counter()
        self.url = ""

    def add(
        self, repo_id: str, folder: Path, *, branch: str = "main", private: bool = False, gated: bool = False
    ) -> str:
        """Makes ``folder``, as it is now, the newest commit of a branch, and gives the commit's hash."""
        repository = self.repositories.setdefault(repo_id, Repository())
        repository.private, repository.gated = private, gated
        told = "".join(f"{path} {object_id(folder / path)}\n" for path in files_of(folder))
        commit = hashlib.sha1(told.encode(), usedforsecurity=False).hexdigest()
        repository.commits[commit] = folder
        repository.branches[branch] = commit
        return commit

    def answer(self, request: Request) -> Reply:
        self.requests.append(request)
        path = urlsplit(request.path).path
        if path in self.failures:
            return self.failures[path]
        if self.next_replies.get(path):
            return self.next_replies[path].pop(0)
        if request.token is not None and request.token not in self.tokens:
            return error(401, message="Invalid credentials in Authorization header")
        from tests.fake_hub_writing import WRITING

        for method, pattern, route in (*ROUTES, *WRITING):
            found = pattern.fullmatch(path)
            if found and request.method in method:
                return route(self, request, **{k: unquote(v) for k, v in found.groupdict().items()})
        return error(404, message=f"no route for {request.method} {path}")


@contextmanager
def serve(hub: FakeHub | None = None) -> Iterator[FakeHub]:
    """A running Hub on a free port of the loopback; its address is ``hub.url``."""
    running = hub or FakeHub()

    class Handler(_Handler):
        answering = running

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Turns bytes on a socket into a :class:`Request`, and a :class:`Reply` into bytes."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes; the second isn't to wait for the client's acknowledgement of the first.
    disable_nagle_algorithm = True
    answering: FakeHub

    def do_any(self) -> None:
        hub, path = self.answering, urlsplit(self.path).path
        if hub.drops.get(path, 0) > 0:
            hub.drops[path] -= 1
            self.rfile.read(hub.drop_after)
            self._hang_up()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, path=self.path, headers=headers, body=body)
        reply = self.answering.answer(request)
        if hub.lost_answers.get(path, 0) > 0:
            hub.lost_answers[path] -= 1
            self._hang_up()
            return
        try:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(reply.length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(reply)
        except ConnectionError:
            # The client has what it wanted and hung up.
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_any  # noqa: N815

    def _hang_up(self) -> None:
        self.close_connection = True
        # Now, and without an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send_body(self, reply: Reply) -> None:
        self.wfile.write(reply.body)
        if reply.file is None:
            return
        with reply.file.open("rb") as handle:
            handle.seek(reply.start)
            left = reply.end - reply.start
            while left and (chunk := handle.read(min(_CHUNK, left))):
                # Counted first: a test may look as soon as the client has the last byte.
                self.answering.served[reply.label] += len(chunk)
                self.wfile.write(chunk)
                left -= len(chunk)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing: the requests are kept in :attr:`FakeHub.requests`."""


def files_of(folder: Path) -> list[str]:
    """The paths of a folder's files, as the Hub names them."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def object_id(path: Path) -> str:
    """The SHA-256 of a file in LFS, git's blob id of another."""
    raw = path.read_bytes()
    if path.suffix in LFS_SUFFIXES:
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def error(status: int, *, code: str = "", message: str = "") -> Reply:
    """An error as the Hub tells it: in headers, and in a body."""
    headers = {"Content-Type": "application/json"}
    if code:
        headers["X-Error-Code"] = code
    if message:
        headers["X-Error-Message"] = message
    return Reply(status=status, headers=headers, body=json.dumps({"error": message or code}).encode())


def as_json(value: Any) -> Reply:
    return Reply(headers={"Content-Type": "application/json"}, body=json.dumps(value).encode())


def _model_info(hub: FakeHub, request: Request, *, repo: str, revision: str | None = None) -> Reply:
    found = found_in(hub, request, repo, revision or "main")
    if isinstance(found, Reply):
        return found
    commit, folder = found
    blobs = "blobs=" in urlsplit(request.path).query
    siblings = [_sibling(folder, path) if blobs else {"rfilename": path} for path in files_of(folder)]
    repository = hub.repositories[repo]
    answer: dict[str, Any] = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
    answer |= {"private": repository.private, "gated": "manual" if repository.gated else False}
    return as_json({**answer, "cardData": card_data(folder)})


def card_data(folder: Path) -> dict[str, Any]:
    """The front matter of a folder's card."""
    card = folder / "README.md"
    text = card.read_text() if card.exists() else ""
    return yaml.safe_load(text.split("---\n")[1]) or {} if text.startswith("---\n") else {}


def _sibling(folder: Path, path: str) -> dict[str, Any]:
    size, oid = (folder / path).stat().st_size, object_id(folder / path)
    if not path.endswith(LFS_SUFFIXES):
        return {"rfilename": path, "size": size, "blobId": oid}
    lfs = {"sha256": oid, "size": size, "pointerSize": 130}
    return {"rfilename": path, "size": size, "blobId": "0" * 40, "lfs": lfs}


def _tree(hub: FakeHub, request: Request, *, repo: str, revision: str) -> Reply:
    found = found_in(hub, request, repo, revision)
    if isinstance(found, Reply):
        return found
    _commit, folder = found
    return as_json([entry(hub, folder, path) for path in files_of(folder)])


def entry(hub: FakeHub, folder: Path, path: str) -> dict[str, Any]:
    """A file as the Hub lists it."""
    size, oid = (folder / path).stat().st_size, object_id(folder / path)
    told: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        told |= {"oid": "0" * 40, "lfs": {"oid": oid, "size": size, "pointerSize": 130}}
        if hub.xet:
            told["xetHash"] = oid[::-1]
    return told


def _resolve(hub: FakeHub, request: Request, *, repo: str, revision: str, path: str) -> Reply:
    found = found_in(hub, request, repo, revision)
    if isinstance(found, Reply):
        return found
    if hub.repositories[repo].gated and not hub.tokens.get(request.token or ""):
        return error(403 if request.token else 401, code="GatedRepo", message="Access is restricted")
    commit, folder = found
    if path not in files_of(folder):
        reply = error(404, code="EntryNotFound", message="Entry not found")
        return Reply(status=404, headers={**reply.headers, "X-Repo-Commit": commit}, body=reply.body)
    return _file(hub, request, folder / path, commit, f"{repo}/{path}")


def _file(hub: FakeHub, request: Request, file: Path, commit: str, label: str) -> Reply:
    size = file.stat().st_size
    headers = {"X-Repo-Commit": commit, "ETag": f'"{object_id(file)}"', "Accept-Ranges": "bytes"}
    if file.suffix in LFS_SUFFIXES:
        headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": headers["ETag"]}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")) if hub.ranges else None
    if span is None:
        return Reply(headers=headers, file=file, end=size, label=label)
    start, end = int(span[1]), min(int(span[2] or size) + 1, size)
    if start >= end:
        return Reply(status=416, headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Reply(status=206, headers=headers, file=file, start=start, end=end, label=label)


def found_in(hub: FakeHub, request: Request, repo: str, revision: str) -> tuple[str, Path] | Reply:
    """A commit and its folder, or the error that a client gets that may not see it."""
    repository = hub.repositories.get(repo)
    if repository is None or (repository.private and request.token is None):
        # The real Hub tells a stranger the same of a private repository as of none.
        status = 404 if request.token else 401
        return error(status, code="RepoNotFound", message="Repository not found")
    found = repository.folder(revision)
    return found or error(404, code="RevisionNotFound", message=f"Invalid rev id: {revision}")


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"

#: Methods, the path they match, and what answers: it gets the hub, the request and the pattern's groups.
ROUTES: list[tuple[frozenset[str], re.Pattern[str], Callable[..., Reply]]] = [
    (frozenset({"GET"}), re.compile(rf"/api/models/{REPO}"), _model_info),
    (frozenset({"GET"}), re.compile(rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)"), _model_info),
    (frozenset({"GET"}), re.compile(rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)"), _tree),
    (frozenset({"GET", "HEAD"}), re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), _resolve),
]
