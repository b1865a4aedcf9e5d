"""A stand-in of the hub on loopback: the listing, `/resolve/`, ranges, a second host for LFS content, and faults.

Two real HTTP servers: the hub itself and the host that large files are redirected to. Everything they are asked
is recorded. Faults are queued by path and used up one a request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit

Fault = Literal["break", "corrupt", "ignore range", "wrong range", "empty"] | int
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came in."""

    host: Literal["hub", "cdn"]
    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass(slots=True)
class HubState:
    """What the stand-in serves; tests change it freely."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    outside_lfs: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    listed_digests: dict[str, str] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    asked: list[Asked] = field(default_factory=list)
    redirect_to: str | None = None
    endpoint: str = ""
    cdn: str = ""
    pause: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)

    def contents(self, host: str = "cdn") -> list[Asked]:
        """The requests for content, in order."""
        return [a for a in self.asked if a.host == host and a.method == "GET" and "/api/" not in a.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[HubState]
    host: ClassVar[Literal["hub", "cdn"]]

    def log_message(self, *_: object) -> None:
        """Say nothing: pytest's output is for failures."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.state.asked.append(
            Asked(self.host, self.command, path, headers.get("Authorization"), headers.get("Range"))
        )
        fault = self.state.faults[path].popleft() if self.state.faults[path] else None
        if isinstance(fault, int):
            return self._answer(fault, headers={"Retry-After": "0"})
        if self.host == "cdn":
            return self._content(path.removeprefix("/lfs/"), fault)
        if path.startswith("/api/models"):
            return self._api(path.removeprefix("/api/models").lstrip("/"))
        return self._resolve(path, fault)

    def _api(self, repository: str) -> None:
        if not repository:
            return self._json([{"id": name} for name in self.state.repos])
        repository = repository.partition("/revision/")[0]
        if repository not in self.state.repos:
            code = 404 if self.headers.get("Authorization") else 401
            return self._answer(code, headers={"X-Error-Code": "RepoNotFound"})
        if not self._is_welcome(repository):
            return None
        siblings = [self._sibling(repository, path) for path in self.state.repos[repository]]
        return self._json({"id": repository, "sha": COMMIT, "siblings": siblings})

    def _sibling(self, repository: str, path: str) -> dict[str, object]:
        data = self.state.repos[repository][path]
        entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
        if path not in self.state.outside_lfs:
            sha256 = self.state.listed_digests.get(path, hashlib.sha256(data).hexdigest())
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return entry

    def _resolve(self, path: str, fault: Fault | None) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if not self._is_welcome(repository):
            return None
        data = self.state.repos.get(repository, {}).get(name)
        if data is None:
            return self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
        if name in self.state.outside_lfs:
            return self._content(
                f"{repository}/{name}", fault, {"X-Repo-Commit": COMMIT, "ETag": f'"{git_sha1(data)}"'}
            )
        location = self.state.redirect_to or f"{self.state.cdn}/lfs/{repository}/{name}?signature=x%2By"
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        return self._answer(302, headers={"Location": location, "X-Repo-Commit": COMMIT, **linked})

    def _is_welcome(self, repository: str) -> bool:
        sent = self.headers.get("Authorization")
        expected = f"Bearer {self.state.token}" if self.state.token else None
        if sent is not None and self.state.token is not None and sent != expected:
            self._answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
            return False
        if repository in self.state.gated and sent is None:
            self._answer(401, headers={"X-Error-Code": "GatedRepo"})
            return False
        return True

    def _content(self, name: str, fault: Fault | None, headers: dict[str, str] | None = None) -> None:
        owner, repo, path = name.split("/", 2)
        data = self.state.repos[f"{owner}/{repo}"][path]
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start and start >= len(data):
            return self._answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
        start = {"ignore range": 0, "wrong range": start // 2}.get(str(fault), start)
        is_part = "Range" in self.headers and fault != "ignore range"
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self._send(data[start:], fault, headers or {})
        return None

    def _send(self, body: bytes, fault: Fault | None, headers: dict[str, str]) -> None:
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(0 if fault == "empty" else len(body)))
        self.end_headers()
        if self.command == "HEAD" or fault == "empty":
            return
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.state.started.set()
        self.state.pause.wait(10)
        if fault == "break":
            self.close_connection = True
            return
        self.wfile.write(body[half:])

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that left is no failure of the test."""


def git_sha1(data: bytes) -> str:
    """The id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def hub_stand_in() -> Iterator[HubState]:
    """Run the two servers; yields the state that both serve, with their addresses in it."""
    state = HubState()
    state.pause.set()
    with _serving(state, "hub") as hub, _serving(state, "cdn") as cdn:
        state.cdn = cdn
        state.endpoint = hub
        yield state


@contextmanager
def _serving(state: HubState, host: Literal["hub", "cdn"]) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"state": state, "host": host})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
