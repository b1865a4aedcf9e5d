"""Serves an application on a free loopback port, inside the test's own loop, with the real connection class."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import uvicorn
from uvicorn.server import ServerState

from ocak.api.connection import BoundedHttp
from ocak.api.http import HttpOptions, create_app
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Gateway, ServedModel
from ocak.gateway.keys import KeyRing
from ocak.providers.echo import EchoProvider

PATIENCE_S = 10.0  # a test that waits longer has failed


@dataclass
class Served:
    """A running server, its first provider, and a client session with its address."""

    host: str
    port: int
    echo: EchoProvider
    gateway: Gateway
    http: aiohttp.ClientSession
    state: ServerState

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def served_model(
    provider: EchoProvider, *, parallel: int = 16, max_queued: int = 128, names: tuple[str, ...] = ()
):
    admission = Admission(QueueLimits(parallel=parallel, max_queued=max_queued))
    return ServedModel(key=provider.key, provider=provider, admission=admission, names=names, created=1)


@asynccontextmanager
async def serving(
    models: Iterable[ServedModel], *, keys: Iterable[str] = (), options: HttpOptions | None = None
) -> AsyncIterator[Served]:
    gateway = Gateway(models)
    app = create_app(gateway, keys=KeyRing(keys), options=options)
    state = ServerState()
    config = uvicorn.Config(app, http=BoundedHttp, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: BoundedHttp(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    host, port = server.sockets[0].getsockname()
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            yield Served(host, port, _first_provider(gateway), gateway, http, state)
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=PATIENCE_S)


def _first_provider(gateway: Gateway) -> EchoProvider:
    """One that nobody asks, where a real model is served."""
    first = gateway.models[0].provider if gateway.models else None
    return first if isinstance(first, EchoProvider) else EchoProvider()


@asynccontextmanager
async def serving_echo(
    echo: EchoProvider | None = None, *, keys: Iterable[str] = (), options: HttpOptions | None = None
) -> AsyncIterator[Served]:
    """Serve one echo; at the end nothing may be left open."""
    provider = echo or EchoProvider()
    async with serving([served_model(provider, names=("alias",))], keys=keys, options=options) as served:
        yield served
    assert provider.open_streams == 0
    assert served.gateway.models[0].admission.in_flight == 0


async def raw(served: Served, data: bytes) -> tuple[int, dict]:
    """Send bytes as they are; return the status and the body of the answer."""
    reader, writer = await asyncio.open_connection(served.host, served.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(data)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return int(head.split()[1]), json.loads(await reader.readexactly(length))
    finally:
        writer.close()


class Gate:
    """A pause that a test opens: `reached(step)` waits until the provider is there, `open()` lets it go on."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._is_reached = asyncio.Event()
        self._is_open = asyncio.Event()
        self.was_cancelled = asyncio.Event()

    async def __call__(self, step: int) -> None:
        if step != self._step:
            return
        self._is_reached.set()
        try:
            await self._is_open.wait()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise

    async def reached(self) -> None:
        await asyncio.wait_for(self._is_reached.wait(), PATIENCE_S)

    async def cancelled(self) -> None:
        await asyncio.wait_for(self.was_cancelled.wait(), PATIENCE_S)

    def open(self) -> None:
        self._is_open.set()
