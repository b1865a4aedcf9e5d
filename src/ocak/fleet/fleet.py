"""The workers of this machine: one loop owns them all. Others ask for a ready worker by the model's key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ocak.fleet.connection import Connection
from ocak.fleet.replica import ModelSpec, Replica, cancel_and_wait

DRAIN_POLL_S = 0.05


class Fleet:
    def __init__(self, models: Iterable[ModelSpec]) -> None:
        self._replicas = {spec.key: Replica(spec) for spec in models}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to load every model; returns at once."""
        self._tasks = [
            asyncio.create_task(replica.supervise(), name=f"supervise {key}")
            for key, replica in self._replicas.items()
        ]

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Let what runs finish for up to `drain_s`, then end every worker. Their memory is back on return."""
        try:
            async with asyncio.timeout(drain_s):
                while any(replica.num_in_flight for replica in self._replicas.values()):
                    await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            pass
        await asyncio.gather(*map(cancel_and_wait, self._tasks))

    async def ready(self, key: str, *, wait_s: float) -> Connection:
        """Return the model's worker once it serves. Raises `ModelUnavailable`."""
        return await self._replicas[key].ready(wait_s)

    async def wait_ready(self, key: str, *, wait_s: float = 3600.0) -> None:
        await self._replicas[key].ready(wait_s)

    def replica(self, key: str) -> Replica:
        return self._replicas[key]
