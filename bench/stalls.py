"""Four streams decode while a prompt of 8,000 tokens arrives: how long do they wait, and it for its first token?

llama-server gets the same; its chunks are its batches of 2,048 tokens.
"""

import asyncio
import json
import time
from collections import defaultdict
from itertools import pairwise
from statistics import median

import aiohttp
import numpy as np
import uvloop

from bench import paths
from bench.load import FIRST_TOKEN_ID, LAST_TOKEN_ID, greedy_body
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running

STREAMS, CONTEXT = 4, 10_240
LONG_TOKENS, SHORT_TOKENS, MOST_TOKENS = 8_000, 64, 4_096
SETTLED_S = 3.0  # after which all streams decode
TARGET_MS = 200
Samples = dict[str, list[dict[str, float]]]


def measure(short: bool = False) -> Report:
    """Alone, amid the streams, amid the streams, alone: for both sides in turn."""
    samples: Samples = defaultdict(list)
    model = str(paths.model())
    ours = ocak(model, STREAMS + 1, CONTEXT, NO_PREFIXES, "--inter-token-ms", str(TARGET_MS))
    peer = llama_server(model, STREAMS + 1, CONTEXT, "--no-kv-unified")
    with running(ours, peer) as servers:
        for _ in range(1 if short else 2):
            for server in servers:
                samples[server.program.name].append(uvloop.run(_round(server)))
    return _report(samples)


async def _round(server: Server) -> dict[str, float]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
        alone_s = await _first_token(session, server)
        arrivals: list[list[float]] = [[] for _ in range(STREAMS)]
        streams = [asyncio.create_task(_stream(session, server, seen)) for seen in arrivals]
        await asyncio.sleep(SETTLED_S)
        started = time.perf_counter()
        amid_s = await _first_token(session, server)
        ended = time.perf_counter()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    gaps = [b - a for seen in arrivals for a, b in pairwise(seen) if started <= a and a <= ended]
    figures = {"alone_s": alone_s, "amid_s": amid_s, "p99_s": float(np.percentile(gaps, 99)), "max_s": max(gaps)}
    say(f"stalls: {server.program.name}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()))
    return figures


async def _first_token(session: aiohttp.ClientSession, server: Server) -> float:
    """Seconds to the first token of a long prompt."""
    started = time.perf_counter()
    async with session.post("/v1/completions", data=_body(server, LONG_TOKENS, 2)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                break
        return time.perf_counter() - started


async def _stream(session: aiohttp.ClientSession, server: Server, seen: list[float]) -> None:
    async with session.post("/v1/completions", data=_body(server, SHORT_TOKENS, MOST_TOKENS)) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                seen.append(time.perf_counter())


def _body(server: Server, num_tokens: int, max_tokens: int) -> bytes:
    prompt: list[int] = np.random.default_rng().integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, num_tokens).tolist()
    return json.dumps(greedy_body(server.program.served_name, prompt, max_tokens)).encode()


def _report(samples: Samples) -> Report:
    ours, peer = samples["ocak"], samples["llama-server"]
    p99_ms = _median(ours, "p99_s") * 1e3
    slower = _median(ours, "amid_s") / _median(ours, "alone_s")
    rows = [
        Row(
            "gap between two tokens, 99 of 100",
            f"≤ 1.2 x the target of {TARGET_MS} ms",
            f"{p99_ms:.0f} ms",
            p99_ms <= 1.2 * TARGET_MS,
        ),
        Row("the long prompt's first token / alone", "≤ 1.6 x", f"{slower:.2f} x", slower <= 1.6),
        *(Row(f"{name}: 99 of 100, longest gap", "reported", _gaps(runs)) for name, runs in samples.items()),
        *(Row(f"{name}: first token alone, amid", "reported", _firsts(runs)) for name, runs in samples.items()),
    ]
    title = f"Stalls: {STREAMS} streams while a prompt of {LONG_TOKENS:,} tokens arrives, 0.5B Q4_0"
    return Report("stalls", title, rows, [f"median of {len(peer)} rounds"], samples)


def _gaps(runs: list[dict[str, float]]) -> str:
    return f"{_median(runs, 'p99_s') * 1e3:.0f} ms, {_median(runs, 'max_s') * 1e3:.0f} ms"


def _firsts(runs: list[dict[str, float]]) -> str:
    return f"{_median(runs, 'alone_s'):.1f} s, {_median(runs, 'amid_s'):.1f} s"


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)
