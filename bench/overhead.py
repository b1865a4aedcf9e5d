"""CPU of the front process for one non-streamed chat request, and the time it adds.

The embedded model answers with one token, so that nearly all of the time is overhead.
One client asks over one connection, then sixteen at once over sixteen.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import aiohttp
import uvloop

from bench.report import Report, Row, say
from bench.servers import MODEL_NAME, NO_PREFIXES, Server, ocak, running

BODY = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "What is ocak?"}],
    "max_tokens": 1,
    "temperature": 0,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What ``clients`` at a time cost, for each request."""

    clients: int
    front_cpu_ms: float
    worker_cpu_ms: float
    latency_ms: float
    requests_per_s: float


def measure(short: bool = False) -> Report:
    """Ask many times, one and sixteen at a time, in ABBA order."""
    requests = 200 if short else 2_000
    with running(ocak("embedded", 16, 256, NO_PREFIXES)) as (server,):
        uvloop.run(_ask_all(server, 16, 200))
        costs = [_cost(server, clients, requests) for clients in (1, 16, 16, 1)]
    return _report(costs)


def _cost(server: Server, clients: int, requests: int) -> Cost:
    front, workers, started = server.front_cpu_s(), server.children_cpu_s(), time.perf_counter()
    latencies = uvloop.run(_ask_all(server, clients, requests))
    wall_s, per_request_ms = time.perf_counter() - started, 1e3 / requests
    front_ms = (server.front_cpu_s() - front) * per_request_ms
    worker_ms = (server.children_cpu_s() - workers) * per_request_ms
    latency_ms = median(latencies) * 1e3
    say(f"overhead: {clients} at a time: {front_ms:.3f} ms CPU in the front, {latency_ms:.2f} ms in all")
    return Cost(clients, front_ms, worker_ms, latency_ms, requests / wall_s)


async def _ask_all(server: Server, clients: int, requests: int) -> list[float]:
    turns = iter(range(requests))
    async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=clients)) as session:
        done = await asyncio.gather(*(_client(session, turns) for _ in range(clients)))
    return [latency for latencies in done for latency in latencies]


async def _client(session: aiohttp.ClientSession, turns: Iterator[int]) -> list[float]:
    return [await _ask(session) for _ in turns]


async def _ask(session: aiohttp.ClientSession) -> float:
    started = time.perf_counter()
    async with session.post("/v1/chat/completions", json=BODY) as response:
        answer = await response.json()
        if response.status != 200 or "choices" not in answer:
            raise RuntimeError(f"{response.status}: {answer}")
    return time.perf_counter() - started


def _report(costs: list[Cost]) -> Report:
    one, many = ([cost for cost in costs if cost.clients == clients] for clients in (1, 16))
    front_ms = median(cost.front_cpu_ms for cost in one)
    many_ms = median(cost.front_cpu_ms for cost in many)
    worker_ms, latency_ms = (
        median(cost.worker_cpu_ms for cost in one),
        median(cost.latency_ms for cost in one),
    )
    rate = median(cost.requests_per_s for cost in many)
    rows = [
        Row("CPU of the front for one request", "≤ 1 ms", f"{front_ms:.2f} ms", front_ms <= 1),
        Row("the same, 16 requests at a time", "reported", f"{many_ms:.2f} ms"),
        Row("CPU of the worker for one request (1 token)", "reported", f"{worker_ms:.2f} ms"),
        Row("time of one request (1 token)", "reported", f"{latency_ms:.2f} ms"),
        Row("requests a second, 16 at a time", "reported", f"{rate:.0f}"),
    ]
    return Report(
        "overhead", "Overhead of the front: one non-streamed chat request", rows, [], [_row(c) for c in costs]
    )


def _row(cost: Cost) -> dict[str, float]:
    return {name: getattr(cost, name) for name in cost.__slots__}
