"""One HTTP request and its one answer, over raw ASGI. Decides how bytes go in and out, not what they mean.

The body is read within a limit of bytes and of time. Every answer carries the request's id.
Invariant: at most one answer starts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import ascii_letters, digits
from typing import Any, cast
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from ocak.api.errors import Header, RequestTimeout, UnsupportedEncoding
from ocak.core.errors import BodyTooLarge

JSON = b"application/json"
MAX_ID_CHARACTERS = 128
ID_CHARACTERS = frozenset((ascii_letters + digits + "._:-").encode())


class ClientLeft(Exception):
    """The client closed the connection or stopped reading: there is nobody to answer."""


@dataclass(slots=True)
class Note:
    """What the access log says of a request."""

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class BodyLimits:
    max_bytes: int
    idle_s: float  # the longest wait for the next piece


class Exchange:
    """Handlers read `headers`, `body()` and `tenant`, then call `answer`, or `start`, `write` and `end`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: BodyLimits) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._limits = limits
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.tenant: str | None = None  # None: not authorised
        self.status = 0  # 0: no answer yet
        self.note = Note()
        self.extra_headers: list[Header] = [
            (b"x-request-id", self.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        self.blocked_since: float | None = None  # loop time; a write waits for the client to read
        self.is_streaming = False  # between `start` and `end`
        self.num_writes = 0
        self.is_complete = False
        self.has_left = False  # the client, as far as anybody noticed

    @property
    def path(self) -> str:
        return cast(str, self.scope["path"])

    @property
    def method(self) -> str:
        return cast(str, self.scope["method"])

    def query(self, name: str) -> str | None:
        values = parse_qs(self.scope["query_string"].decode("latin-1")).get(name)
        return values[-1] if values else None

    def path_parameter(self, name: str) -> str:
        return cast(str, self.scope["path_params"][name])

    async def body(self) -> bytes:
        """Read the whole body. Raises `BodyTooLarge`, `RequestTimeout`, `UnsupportedEncoding`, `ClientLeft`."""
        self._check_encoding()
        self._check_length(int(self.headers.get(b"content-length", b"0")))
        message = await self._next_message()
        if not message.get("more_body"):
            return cast(bytes, message.get("body", b""))
        pieces = bytearray(message.get("body", b""))
        while message.get("more_body"):
            message = await self._next_message()
            pieces += message.get("body", b"")
            self._check_length(len(pieces))
        return bytes(pieces)

    async def answer(
        self, body: bytes, *, status: int = 200, content_type: bytes = JSON, headers: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [(b"content-type", content_type), length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, content_type: bytes, headers: Iterable[Header] = ()) -> None:
        """Begin an answer whose length is not known; `write` any number of times, then `end`."""
        await self._start(200, [(b"content-type", content_type), *headers])
        self.is_streaming = True

    async def write(self, data: bytes) -> None:
        self.num_writes += 1
        self.blocked_since = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.blocked_since = None

    async def end(self, data: bytes = b"") -> None:
        self.is_streaming = False
        self.blocked_since = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data})
        self.blocked_since = None
        self.is_complete = True

    def abort(self) -> None:
        """Drop the connection with what it has not sent, where the server lends the means."""
        abort: Callable[[], None] | None = self.scope.get("extensions", {}).get("ocak.abort")
        if abort is not None:
            abort()

    async def _start(self, status: int, headers: list[Header]) -> None:
        self.status = status
        if b"expect" in self.headers and status >= 400:
            headers.append((b"connection", b"close"))  # the body it waits to send never comes
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers + self.extra_headers}
        )

    async def _next_message(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._limits.idle_s):
                message = await self.receive()
        except TimeoutError:
            raise RequestTimeout(f"no more of the body came within {self._limits.idle_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return cast(dict[str, Any], message)

    def _check_encoding(self) -> None:
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise UnsupportedEncoding("compressed bodies are not accepted; send the JSON as it is")

    def _check_length(self, length: int) -> None:
        if length > self._limits.max_bytes:
            raise BodyTooLarge(
                f"the body exceeds {self._limits.max_bytes} bytes, the limit of this server (max_body_bytes)"
            )


def _request_id(given: bytes | None) -> str:
    if given and len(given) <= MAX_ID_CHARACTERS and ID_CHARACTERS.issuperset(given):
        return given.decode()
    return secrets.token_hex(16)
