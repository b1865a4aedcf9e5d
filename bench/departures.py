"""Watches how many requests a server holds, and how long it holds one whose client has left."""

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from bench import scrape
from bench.completion import Said

POLL_PAUSE_S = 0.003
FREE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Departure:
    """One client that left; ``freed_after_s`` is infinite where its request was never given up."""

    wave: str
    streamed: bool
    chunks: int
    freed_after_s: float


@dataclass(slots=True)
class Watch:
    """Reads of one wave: when, how many requests were held, and the engine's counters."""

    moments: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)

    async def poll(self, http: aiohttp.ClientSession) -> None:
        """Read until cancelled."""
        while True:
            async with http.get("/metrics") as response:
                self.last = scrape.parse(await response.text())
            self.first = self.first or self.last
            self.held.append(_held(self.last))
            self.moments.append(time.perf_counter())
            await asyncio.sleep(POLL_PAUSE_S)

    async def until_free(self) -> bool:
        """Wait until nothing is held; False when that takes too long."""
        deadline = time.perf_counter() + FREE_WITHIN_S
        while time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
            if self.held and not any(self.held[-3:]):
                return True
        return False

    def freed_after(self, moment: float, alive: int) -> float:
        """Seconds from ``moment`` to the first read of no more than ``alive`` requests."""
        for seen, held in zip(self.moments, self.held, strict=True):
            if seen >= moment and held <= alive:
                return seen - moment
        return float("inf")

    def gaps_s(self) -> list[float]:
        """The time between reads: what a figure may be too high by."""
        return [later - earlier for earlier, later in zip(self.moments, self.moments[1:], strict=False)]

    def step_s(self) -> float | None:
        """Mean time of the engine's steps, where the server tells."""
        busy, steps = (self.last.get(name, 0) - self.first.get(name, 0) for name in STEPS)
        return busy / steps if steps else None


STEPS = ("ocak_engine_busy_seconds_total", "ocak_engine_steps_total")


def judge(wave: str, clients: list[tuple[bool, Said]], watch: Watch) -> list[Departure]:
    """Pair each client that left with the moment its request was given up; ``clients``: (streams, said)."""
    in_order = sorted((said.ended, streams, said) for streams, said in clients)
    departures = []
    for number, (moment, streams, said) in enumerate(in_order, start=1):
        freed_after_s = watch.freed_after(moment, alive=len(clients) - number)
        departures.append(Departure(wave, streams, said.chunks, freed_after_s))
    return departures


def _held(now: dict[str, float]) -> int:
    """Requests the server knows: in a slot or waiting for one."""
    if "ocak_slots_used" in now:
        running = max(now["ocak_slots_used"], now.get("ocak_requests_running", 0))
        return int(running + now.get("ocak_requests_waiting", 0))
    return int(now["llamacpp:requests_processing"] + now["llamacpp:requests_deferred"])
