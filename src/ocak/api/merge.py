"""Reads several answers at once and hands over whatever is ready, in one piece.

Knows no HTTP. Bounded: a reader that falls behind stops the sources. The first failure ends all of them.
Invariant: when the block is left, every source is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType

from ocak.core.events import Event

MAX_READY = 1024  # events that wait for the reader

Source = AsyncGenerator[Event, None]
Ready = list[tuple[int, Event]]


class Merge:
    """`async with Merge(sources, concurrency) as merge: while ready := await merge.ready(): …`"""

    def __init__(self, sources: Sequence[Source], concurrency: int) -> None:
        self._sources = sources
        self._ready: Ready = []
        self._failure: BaseException | None = None
        self._open = len(sources)
        self._places = asyncio.Semaphore(concurrency)
        self._wake = asyncio.Event()  # something is ready, failed or over
        self._room = asyncio.Event()
        self._room.set()

    async def __aenter__(self) -> Merge:
        self._tasks = [asyncio.create_task(self._pump(i, s)) for i, s in enumerate(self._sources)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ready(self) -> Ready:
        """Wait for events; return all that are there, `[]` at the end. Raises the first failure, once drained."""
        await self._wake.wait()
        ready, self._ready = self._ready, []
        self._room.set()
        if ready:
            if self._open and self._failure is None:
                self._wake.clear()
            return ready
        if self._failure is not None:
            raise self._failure
        return ready

    async def _pump(self, index: int, source: Source) -> None:
        try:
            async with self._places, aclosing(source) as events:
                async for event in events:
                    await self._put(index, event)
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            self._failure = self._failure or error
        finally:
            self._open -= 1
            if not self._open or self._failure is not None:
                self._wake.set()

    async def _put(self, index: int, event: Event) -> None:
        while len(self._ready) >= MAX_READY:
            self._room.clear()
            await self._room.wait()
        self._ready.append((index, event))
        self._wake.set()
