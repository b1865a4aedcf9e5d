"""uvicorn's connection with what it lacks: limits on a request's head and on a body nobody reads, errors in our
shape, and an eye on a client that leaves while a second request waits behind the first.

It also lends the application a way to drop a connection at once (`ocak.abort` in the scope's extensions).
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ocak.api import errors
from ocak.api.errors import HeadTooLarge, HttpError
from ocak.core.errors import OcakError

MAX_HEAD_BYTES = 64 * 1024
MAX_UNREAD_BYTES = 64 * 1024 * 1024  # of a body that goes on after its answer was complete
MAX_PIPELINED = 16  # requests that wait for the answer to an earlier one
HEAD_TIMEOUT_S = 30.0


class BoundedHttp(HttpToolsProtocol):
    """Pass it to uvicorn as `http`."""

    _head_bytes = 0
    _unread_bytes = 0
    _is_in_head = False
    _head_timer: asyncio.TimerHandle | None = None
    _unanswered: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)
        self._end_unanswered()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the head of the request exceeds {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"ocak.abort": self.transport.abort}  # type: ignore[dict-item]
        self._is_in_head = True
        self._head_bytes = self._unread_bytes = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        waiting = tuple(cycle for cycle in self._unanswered if not cycle.response_complete)
        self._unanswered = (*waiting, self.cycle)
        if waiting:
            self._read_on(len(waiting))

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.abort()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(HttpError("this is not HTTP as the server reads it"))

    def _end_unanswered(self) -> None:
        """Tell every request in progress that its client has gone; uvicorn tells the newest alone."""
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _read_on(self, num_waiting: int) -> None:
        """Keep reading behind a request in progress, or its client could leave unseen."""
        if num_waiting > MAX_PIPELINED:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: OcakError) -> None:
        """Answer what is no request, or one whose body is broken, and close."""
        if any(cycle.response_started and not cycle.response_complete for cycle in self._unanswered):
            self.transport.abort()  # another answer is on its way: nothing can be said in between
            return
        self._end_unanswered()
        status, body = HTTPStatus(errors.meaning(error).status), errors.body(error)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {secrets.token_hex(16)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
