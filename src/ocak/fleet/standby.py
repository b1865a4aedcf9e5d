"""Workers that are started before anybody needs them: libraries imported, no model yet.

A load that finds one pays for its model alone. They know no placement, and take their memory of the same limits as
models do.
Invariant: at most `most` wait, and all have ended when `stop` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ocak.fleet.process import WorkerProcess

logger = logging.getLogger("ocak.fleet")

Spawn = Callable[[], Awaitable[WorkerProcess]]


class Standby:
    def __init__(self, most: int, spawn: Spawn = WorkerProcess.spawn) -> None:
        self._most = most
        self._wanted = 0
        self._spawn = spawn
        self._waiting: list[WorkerProcess] = []
        self._filling: asyncio.Task[None] | None = None

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._waiting]

    async def take(self) -> WorkerProcess:
        """Return a worker that waits, or start one. Raises `OSError`."""
        while self._waiting:
            process = self._waiting.pop()
            if not process.has_ended:
                return process
            await process.end()
        return await self._spawn()

    def refill(self, wanted: int) -> None:
        """Start as many as are missing of those wanted; returns at once."""
        self._wanted = min(wanted, self._most)
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="start standby workers")

    async def stop(self) -> None:
        """End them all."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        waiting, self._waiting = self._waiting, []
        await asyncio.gather(*(process.end() for process in waiting))

    async def _fill(self) -> None:
        while len(self._waiting) < self._wanted:
            try:
                self._waiting.append(await self._spawn())
            except OSError as error:
                logger.warning("no standby worker could be started: %s", error.strerror or error)
                return
