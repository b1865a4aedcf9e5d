"""The models of this machine: one loop owns them all. Others ask for a ready worker by the model's key.

What a model needs is reserved before it is loaded, and others are unloaded for it if they must (`eviction.py`).
Invariant: reservations fit within the limits, and within what other programs leave; a model is loaded once,
however many ask for it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from ocak.core.errors import DoesNotFit
from ocak.fleet.connection import Connection
from ocak.fleet.eviction import RANK, Order, Resident, expired, victims
from ocak.fleet.process import WorkerProcess
from ocak.fleet.refusal import refusal
from ocak.fleet.replica import Replica
from ocak.fleet.spec import ModelSpec
from ocak.fleet.standby import Standby
from ocak.memory.devices import bytes_left_by_others, memory_bytes
from ocak.memory.ledger import HOST, Bytes, Ledger
from ocak.memory.needs import Needs

DRAIN_POLL_S = 0.05
TEND_S = 0.25
PATIENCE_S = 60.0  # for others to finish, before a load that needs their room is given up
MEMORY_FRACTION = 0.9  # of the machine's memory that models may take
Left = Callable[[Iterable[int]], Bytes]  # by device, what other programs leave to these processes


def host_limit(fraction: float = MEMORY_FRACTION) -> Bytes:
    """So much of this machine's memory."""
    return {HOST: int(memory_bytes() * fraction)}


def _left(own: Iterable[int]) -> Bytes:
    return {HOST: bytes_left_by_others(own)}


class Fleet:
    def __init__(
        self,
        models: Iterable[ModelSpec],
        limits: Bytes | None = None,
        order: Order = "lru",
        left: Left = _left,
        standby: int = 0,
    ) -> None:
        self._replicas = {spec.key: Replica(spec, self) for spec in models}
        self._ledger = Ledger(host_limit() if limits is None else limits)
        self._order: Order = order
        self._left = left
        self._standby = Standby(standby)
        self._evicting = asyncio.Lock()
        self._opening: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None
        self._expiring: set[asyncio.Task[None]] = set()
        self.evictions: Counter[str] = Counter()  # by reason: expired, room

    async def start(self) -> None:
        """Begin to load the models that are to be there from the start; returns at once."""
        self._opening = asyncio.create_task(self._open(), name="load what is to be there from the start")
        self._tending = asyncio.create_task(self._tend(), name="unload what has expired")

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Let what runs finish for up to `drain_s`, then end every worker. Their memory is back on return."""
        ours = [task for task in (self._opening, self._tending) if task is not None]
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, *self._expiring, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while any(replica.num_in_flight for replica in self._replicas.values()):
                    await asyncio.sleep(DRAIN_POLL_S)
        await asyncio.gather(self._standby.stop(), *(replica.close() for replica in self._replicas.values()))

    async def ready(self, key: str, *, wait_s: float) -> Connection:
        """Return the model's worker once it serves, loading it if need be. Raises `ModelUnavailable`."""
        return await self._replicas[key].ready(wait_s)

    def want(self, key: str) -> None:
        """Have the model loaded; one that failed is tried again."""
        self._replicas[key].forgive()
        self._replicas[key].want()

    async def load(self, key: str, *, wait_s: float) -> None:
        """As `want`, and wait for it. Raises `ModelUnavailable`."""
        self.want(key)
        await self._replicas[key].ready(wait_s)

    async def unload(self, key: str, *, drain_s: float) -> None:
        """End the model's worker once its answers are finished, or after so long. Its memory is back on return."""
        await self._replicas[key].unload(drain_s=drain_s)

    def pin(self, key: str) -> None:
        """Never unload the model for another, or for being idle."""
        self._replicas[key].priority = "pinned"

    def unpin(self, key: str) -> None:
        """Let the model go when its turn comes."""
        configured = self._replicas[key].spec.priority
        self._replicas[key].priority = "normal" if configured == "pinned" else configured

    async def wait_ready(self, key: str, *, wait_s: float = 3600.0) -> None:
        await self._replicas[key].ready(wait_s)

    async def settled(self, key: str) -> str | None:
        """Wait until a model is ready or will not be, asking nothing; return why it is not."""
        if self._opening is not None:
            await asyncio.shield(self._opening)
        await self._replicas[key].settled()
        return self._replicas[key].error

    def replica(self, key: str) -> Replica:
        return self._replicas[key]

    @property
    def standby_pids(self) -> list[int]:
        return self._standby.pids

    @property
    def limits(self) -> Bytes:
        return self._ledger.limits

    @property
    def reserved(self) -> Bytes:
        return self._ledger.total

    async def make_room(self, key: str, needs: Needs) -> None:
        """Reserve what a model needs; who needs others to go takes turns. Raises `DoesNotFit`."""
        if self._has_reserved(key, needs):
            return
        async with self._evicting:
            deadline = time.monotonic() + PATIENCE_S
            while not self._has_reserved(key, needs):
                missing = self._missing(key, needs)
                if not (self._replicas[key].is_asked and await self._make_way(key, missing, deadline)):
                    raise DoesNotFit(self._refusal(key, needs, missing))

    def _has_reserved(self, key: str, needs: Needs) -> bool:
        """Reserve it, if it is there."""
        if self._missing(key, needs):
            return False
        self._ledger.reserve(key, {HOST: needs.host_bytes}, self._left_by_others())
        return True

    def _missing(self, key: str, needs: Needs) -> Bytes:
        return self._ledger.missing(key, {HOST: needs.host_bytes}, self._left_by_others())

    async def worker(self) -> WorkerProcess:
        return await self._standby.take()

    def release(self, key: str) -> None:
        self._ledger.release(key)

    async def _open(self) -> None:
        """In the order of priority, each once the one before has its room; what they load is loaded at once."""
        for replica in sorted(self._replicas.values(), key=lambda replica: -RANK[replica.priority]):
            if replica.spec.preload:
                replica.want(is_asked=False)
                await replica.placed()

    async def _make_way(self, key: str, missing: Bytes, deadline: float) -> bool:
        """Unload whom it takes, or wait until that is possible; return whether there is hope."""
        leaving = [self._ledger.held(one) for one, replica in self._replicas.items() if replica.is_leaving]
        missing = {device: size - sum(held.get(device, 0) for held in leaving) for device, size in missing.items()}
        missing = {device: size for device, size in missing.items() if size > 0}
        residents = self._residents()
        chosen = victims(missing, residents, time.monotonic(), self._order) if missing else None
        if time.monotonic() >= deadline or not (chosen or not missing or self._may_come_free(key, missing)):
            return False
        if chosen is None:
            await asyncio.sleep(DRAIN_POLL_S)
            return True
        busy = {one.key for one in residents if one.is_busy}
        for some in ([one for one in chosen if one in busy], [one for one in chosen if one not in busy]):
            patience_s = deadline - time.monotonic()
            gone = await asyncio.gather(*(self._replicas[one].make_way(patience_s) for one in some))
            self.evictions["room"] += sum(gone)
            if not all(gone):  # then idle ones would go in vain
                break
        return True

    def _may_come_free(self, key: str, missing: Bytes) -> bool:
        """Whether enough is held by models that are not pinned, though none of them can go now."""
        others = [one for one, replica in self._replicas.items() if one != key and replica.priority != "pinned"]
        return all(
            sum(self._ledger.held(one).get(device, 0) for one in others) >= size
            for device, size in missing.items()
        )

    async def _tend(self) -> None:
        """Unload what nobody has asked for as long as it was to be kept, and have workers stand by."""
        while True:
            await asyncio.sleep(TEND_S)
            states = Counter(replica.state for replica in self._replicas.values())
            if not states["planning"] + states["loading"]:  # they need the cores
                self._standby.refill(states["unloaded"])
            for key in expired(self._residents(), time.monotonic()):
                task = asyncio.create_task(self._expire(key))
                self._expiring.add(task)
                task.add_done_callback(self._expiring.discard)

    async def _expire(self, key: str) -> None:
        self.evictions["expired"] += await self._replicas[key].make_way(0)

    def _residents(self) -> list[Resident]:
        seen = (replica.as_resident(self._ledger.held(key)) for key, replica in self._replicas.items())
        return [one for one in seen if one is not None]

    def _left_by_others(self) -> Bytes:
        workers = (replica.pid for replica in self._replicas.values())
        return self._left([os.getpid(), *self._standby.pids, *(pid for pid in workers if pid is not None)])

    def _refusal(self, key: str, needs: Needs, missing: Bytes) -> str:
        free = needs.host_bytes - missing[HOST]
        holders: Mapping[str, int] = {
            one: held for one in self._replicas if (held := self._ledger.held(one).get(HOST, 0)) and one != key
        }
        return refusal(needs, free, self._ledger.limits[HOST], holders)
