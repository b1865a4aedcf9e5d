"""Answers from a worker that lives in this process, on this event loop. Knows no caller.

The worker is the one that `ocak serve` starts in processes of their own: same messages, same engine.
Invariant: after `close` the model's memory is free, and whoever waited has been told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ocak.core.embedding import EmbedEvent, EmbedRequest
from ocak.core.errors import ModelUnavailable, WorkerLost
from ocak.core.events import Event
from ocak.core.request import GenerateRequest, Prompt
from ocak.core.status import EngineStats, ModelInfo, ModelStatus
from ocak.fleet.connection import Connection
from ocak.offline.pipe import End, pipe
from ocak.worker.channel import ChannelClosed
from ocak.worker.messages import FromWorker, LoadOptions
from ocak.worker.service import Worker

CLOSED = "the model is closed; load it again"
BROKEN = "the engine has stopped, the log says why; close the model and load it again"


class InProcess:
    """Where the worker lives, as `Connection` sees it."""

    def __init__(self, channel: End[FromWorker]) -> None:
        self.channel = channel
        self.pid = os.getpid()

    def kill(self) -> None:
        raise AssertionError("a worker in this process ends with it")

    async def end(self) -> str:
        self.channel.close()
        return "the model was closed"


class InProcessProvider:
    """Implements `gateway.gateway.ModelProvider`. `open` once, `close` once."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._ours, theirs = pipe()
        self._worker = Worker(theirs, self._break)
        self._connection = Connection(InProcess(self._ours))
        self._tasks: list[asyncio.Task[None]] = []
        self._unavailable: str | None = CLOSED
        self._loop = asyncio.get_running_loop()
        self.info: ModelInfo  # from `open` on

    async def open(self, options: LoadOptions) -> None:
        """Load the model. Raises `LoadFailed`."""
        self._tasks += (asyncio.create_task(self._worker.run()), asyncio.create_task(self._serve()))
        self.info = await self._connection.load(options, lambda _progress: None)
        self._connection.stats = EngineStats(slots=self.info.parallel, kv_cells=self.info.kv_cells)
        self._unavailable = None

    async def close(self) -> None:
        """End every answer and free the model."""
        self._unavailable = CLOSED
        self._ours.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._worker.close()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        try:
            async with aclosing(self._serving().generate(request)) as events:
                async for event in events:
                    yield event
        except WorkerLost as error:  # there will be no other worker to try again with
            raise ModelUnavailable(self._unavailable or error.message) from error

    async def embed(self, request: EmbedRequest) -> AsyncGenerator[EmbedEvent, None]:
        try:
            async with aclosing(self._serving().embed(request)) as events:
                async for event in events:
                    yield event
        except WorkerLost as error:
            raise ModelUnavailable(self._unavailable or error.message) from error

    async def tokenize(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]:
        return await self._serving().tokenize(prompt, add_special=add_special)

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        return await self._serving().detokenize(tokens)

    async def save_state(self, path: str, prompt: Prompt, tenant: str, cache_salt: str) -> int:
        return await self._serving().save_state(path, prompt, tenant, cache_salt)

    async def restore_state(self, path: str, tenant: str, cache_salt: str) -> int:
        return await self._serving().restore_state(path, tenant, cache_salt)

    def status(self) -> ModelStatus:
        return ModelStatus(
            key=self._key,
            provider="llama",
            kind=self.info.kind,
            state="ready" if self.is_ready() else "unloaded",
            error=self._unavailable,
            engine=self._connection.stats,
            info=self.info,
        )

    def is_ready(self) -> bool:
        return self._unavailable is None

    async def _serve(self) -> None:
        try:
            await self._connection.serve()
        except ChannelClosed:
            await self._connection.end()

    def _serving(self) -> Connection:
        if self._unavailable is not None:
            raise ModelUnavailable(self._unavailable)
        return self._connection

    def _break(self) -> None:
        """Called by the engine's thread when it can go no further."""
        self._loop.call_soon_threadsafe(self._fail)

    def _fail(self) -> None:
        self._unavailable = self._unavailable or BROKEN
        self._ours.close()
