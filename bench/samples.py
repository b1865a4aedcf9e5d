"""Four samples of one prompt of 2,048 tokens: how much of it is computed, and how far apart the answers start.

llama-server runs in both of its KV layouts. Every request has a prompt of its own, so nothing is there before.
"""

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

import aiohttp
import numpy as np

from bench import paths, scrape
from bench.load import FIRST_TOKEN_ID, LAST_TOKEN_ID
from bench.observed import Samples
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Program, Server, llama_server, ocak, running
from bench.throughput import abba

ANSWERS, PROMPT_TOKENS, OUTPUT_TOKENS = 4, 2048, 32
CONTEXT = PROMPT_TOKENS + 256
MOST_AGAIN = 1  # the last token of the prompt, by every answer but the first


@dataclass(slots=True)
class Starts:
    """Seconds from the request to the first chunk of each answer, and to the end of all."""

    first_s: dict[int, float] = field(default_factory=dict)
    total_s: float = 0.0

    @property
    def apart_s(self) -> float:
        """Between the first answer's first chunk and the last one's."""
        return max(self.first_s.values()) - min(self.first_s.values())


def measure(short: bool = False) -> Report:
    """One request after another, to each server in turn."""
    samples: Samples = defaultdict(list)
    with running(*_programs()) as servers:
        for server in servers:
            asyncio.run(_ask(server, [FIRST_TOKEN_ID] * 64))
        for seed, server in enumerate(servers if short else abba(servers, 1)):
            samples[server.program.name].append(_sample(server, seed))
    return _report(samples)


def _programs() -> list[Program]:
    model, unified = str(paths.model()), ("--kv-cells", str(ANSWERS * CONTEXT - 256))
    return [
        ocak(model, ANSWERS, CONTEXT),
        _named(ocak(model, ANSWERS, CONTEXT, *unified), "ocak unified"),
        _named(ocak(model, ANSWERS, CONTEXT, NO_PREFIXES), "ocak without a prefix cache"),
        llama_server(model, ANSWERS, CONTEXT, "--no-kv-unified", name="llama-server split"),
        llama_server(model, ANSWERS, CONTEXT, "--kv-unified", name="llama-server unified"),
    ]


def _named(program: Program, name: str) -> Program:
    return Program(name, program.command, program.ready_path)


def _sample(server: Server, seed: int) -> dict[str, float]:
    prompt = np.random.default_rng(seed).integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, PROMPT_TOKENS).tolist()
    before = _prompt_tokens(server)
    starts = asyncio.run(_ask(server, prompt))
    figures = {
        "computed": _prompt_tokens(server) - before,
        "first_s": min(starts.first_s.values()),
        "apart_s": starts.apart_s,
        "total_s": starts.total_s,
    }
    say(f"samples: {server.program.name}: {_figures([figures])}")
    return figures


def _prompt_tokens(server: Server) -> float:
    name = "ocak_engine_prompt_tokens_total" if server.program.is_ocak else "llamacpp:prompt_tokens_total"
    return scrape.metrics(server)[name]


async def _ask(server: Server, prompt: list[int]) -> Starts:
    body = {"model": server.program.served_name, "prompt": prompt, "n": ANSWERS, "max_tokens": OUTPUT_TOKENS}
    body |= {"temperature": 1.0, "seed": 1, "stream": True, "ignore_eos": True}
    starts, started = Starts(), time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=600)
    async with (
        aiohttp.ClientSession(server.url, timeout=timeout) as session,
        session.post(
            "/v1/completions", data=json.dumps(body), headers={"Content-Type": "application/json"}
        ) as answer,
    ):
        async for line in answer.content:
            for choice in json.loads(line[6:])["choices"] if line.startswith(b"data: {") else ():
                starts.first_s.setdefault(choice["index"], time.perf_counter() - started)
    starts.total_s = time.perf_counter() - started
    assert len(starts.first_s) == ANSWERS, starts
    return starts


def _report(samples: Samples) -> Report:
    most = PROMPT_TOKENS + (ANSWERS - 1) * MOST_AGAIN
    rows = [
        Row(
            f"prompt tokens computed: {name}",
            f"{PROMPT_TOKENS} to {most}" if name.startswith("ocak") else "reported",
            f"{_median(runs, 'computed'):.0f}",
            _median(runs, "computed") <= most if name.startswith("ocak") else None,
        )
        for name, runs in samples.items()
    ]
    rows += [
        Row(f"first answer's start, the last one's behind it, the end: {name}", "reported", _times(runs))
        for name, runs in samples.items()
    ]
    title = f"{ANSWERS} samples of one prompt of {PROMPT_TOKENS} tokens, {OUTPUT_TOKENS} out each, 0.5B Q4_0"
    notes = [f"one request at a time, n = {ANSWERS}; median of {len(samples['ocak'])} runs each"]
    return Report("samples", title, rows, notes, samples)


def _times(runs: list[dict[str, float]]) -> str:
    first, apart, total = (_median(runs, key) for key in ("first_s", "apart_s", "total_s"))
    return f"{first:.2f} s, {apart * 1e3:.0f} ms, {total:.2f} s"


def _figures(runs: list[dict[str, float]]) -> str:
    return f"{_median(runs, 'computed'):.0f} prompt tokens, {_times(runs)}"


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)
