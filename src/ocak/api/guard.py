"""Stands before every route: the request's id, the host and origin it names, its key, and its errors.

Deny by default: an `Endpoint` is closed to callers without a key unless it is made public by name. The check sits
behind the router, on the route that matched, so no spelling of a path can slip past it.
Invariant: every request gets exactly one answer, unless its client has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ocak.api.errors import Header, ShuttingDown
from ocak.api.exchange import BodyLimits, ClientLeft, Exchange
from ocak.api.failures import heard, refuse
from ocak.api.origins import Origins
from ocak.core.errors import Unauthorized
from ocak.gateway.keys import KeyRing

Handler = Callable[[Exchange], Awaitable[None]]
EXCHANGE = "ocak.exchange"
PROBES = ("/health", "/metrics")
CLIENT_LEFT = 499  # nginx' word for it; only the log sees it

access_log = logging.getLogger("ocak.access")


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """A handler behind the key check, as an ASGI application for the router."""

    handler: Handler
    keys: KeyRing
    is_public: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        try:
            exchange.tenant = self.keys.tenant(_key(exchange))
        except Unauthorized:
            if not self.is_public:
                raise
        await self.handler(exchange)


class Guard:
    """The outermost application; `app` is the router."""

    def __init__(self, app: ASGIApp, origins: Origins, limits: BodyLimits) -> None:
        self._app = app
        self._origins = origins
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        exchange = Exchange(scope, receive, send, self._limits)
        try:
            await self._serve(exchange, send)
        finally:
            _log(exchange, begun)

    async def _serve(self, exchange: Exchange, send: Send) -> None:
        try:
            if preflight := self._origins.admit(exchange):
                await exchange.answer(b"", status=204, headers=preflight)
                return
            scope = exchange.scope
            scope[EXCHANGE] = exchange
            scope["app"] = self  # tells the router to raise what it cannot find
            await self._app(scope, exchange.receive, send)
        except ClientLeft:
            exchange.status = CLIENT_LEFT
        except asyncio.CancelledError:  # the server ends; this is its task's outermost frame, so it may end here
            if not exchange.status and not exchange.has_left:
                await refuse(exchange, ShuttingDown("the server is shutting down"), [])
        except Exception as error:  # noqa: BLE001 - the boundary: every error gets its answer here
            if exchange.status:
                raise
            await refuse(exchange, heard(error, exchange), _allow(error))


def _key(exchange: Exchange) -> str | None:
    scheme, _, token = exchange.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token:
        return token.strip().decode("utf-8", "surrogateescape")
    key = exchange.headers.get(b"x-api-key")
    return key.decode("utf-8", "surrogateescape") if key else None


def _allow(error: Exception) -> list[Header]:
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        return [(b"allow", error.headers["Allow"].encode())]
    return []


def _log(exchange: Exchange, begun: float) -> None:
    """One line a request; never a prompt, never a key. What is asked every few seconds is for debugging only."""
    level = logging.DEBUG if exchange.path.startswith(PROBES) and exchange.status < 400 else logging.INFO
    if not access_log.isEnabledFor(level):
        return
    fields = {
        "id": exchange.request_id,
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "seconds": round(time.perf_counter() - begun, 4),
        "model": exchange.note.model,
        "prompt_tokens": exchange.note.prompt_tokens,
        "completion_tokens": exchange.note.completion_tokens,
    }
    access_log.log(level, "request", extra={"fields": fields})
