"""Guessing by look-up, one client: text that repeats itself, and text that does not, with guesses and without.

The model's weights are random, so its text is made repetitive by leaving it few words, and made not to repeat by
drawing at temperature 1. Guessing must win on the one and cost next to nothing on the other.
"""

import asyncio
import json
import time
from collections import defaultdict
from statistics import median
from typing import Any

import aiohttp
import numpy as np

from bench import paths, scrape
from bench.load import FIRST_TOKEN_ID, LAST_TOKEN_ID, greedy_body
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, ocak, running
from bench.throughput import abba

CONTEXT, PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 2048, 128, 384, 3
FEW_WORDS = list(range(FIRST_TOKEN_ID, FIRST_TOKEN_ID + 16))
KINDS: dict[str, dict[str, Any]] = {
    "repetitive": {"allowed_token_ids": FEW_WORDS},
    "not repetitive": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1},
}
Samples = dict[str, list[dict[str, float]]]


def measure(short: bool = False) -> Report:
    """Both kinds of text on both servers, in ABBA order."""
    samples: Samples = defaultdict(list)
    model, rounds = str(paths.model()), 1 if short else 2
    guessing = ocak(model, 1, CONTEXT, NO_PREFIXES, name="ocak")
    plain = ocak(model, 1, CONTEXT, NO_PREFIXES, "--speculation", "off", name="ocak without")
    with running(guessing, plain) as servers:
        for seed, server in enumerate(abba(servers, rounds)):
            for kind, fields in KINDS.items():
                samples[f"{server.program.name}, {kind}"].append(asyncio.run(_sample(server, seed, fields)))
    return _report(samples)


async def _sample(server: Server, seed: int, fields: dict[str, Any]) -> dict[str, float]:
    rng = np.random.default_rng(seed // 2)
    before = scrape.metrics(server)
    started, cpu_s = time.perf_counter(), server.children_cpu_s()
    async with aiohttp.ClientSession(server.url) as session:
        for _ in range(REQUESTS):
            prompt: list[int] = rng.integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, PROMPT_TOKENS).tolist()
            body = greedy_body(server.program.served_name, prompt, OUTPUT_TOKENS, stream=False) | fields
            async with session.post("/v1/completions", data=json.dumps(body)) as response:
                assert (await response.json())["usage"]["completion_tokens"] == OUTPUT_TOKENS
    seconds, num_tokens = time.perf_counter() - started, REQUESTS * OUTPUT_TOKENS
    after = scrape.metrics(server)
    figures = {
        "tokens_per_s": num_tokens / seconds,
        "cpu_ms": (server.children_cpu_s() - cpu_s) / num_tokens * 1e3,
        "guessed": after[GUESSED] - before[GUESSED],
        "right": after[RIGHT] - before[RIGHT],
    }
    say(f"lookup: {server.program.name}: " + ", ".join(f"{key} {value:.1f}" for key, value in figures.items()))
    return figures


GUESSED, RIGHT = "ocak_speculation_guessed_tokens_total", "ocak_speculation_accepted_tokens_total"


def _report(samples: Samples) -> Report:
    def ratio(kind: str, key: str) -> float:
        return _median(samples[f"ocak, {kind}"], key) / _median(samples[f"ocak without, {kind}"], key)

    gain, cost = ratio("repetitive", "tokens_per_s"), ratio("not repetitive", "cpu_ms")
    rows = [
        Row("repetitive text: token/s with guesses / without", "≥ 1.5 x", f"{gain:.2f} x", gain >= 1.5),
        Row("other text: worker's CPU a token with / without", "≤ 1.03 x", f"{cost:.3f} x", cost <= 1.03),
        *(Row(f"{name}: token/s; guessed, right", "reported", _figures(runs)) for name, runs in samples.items()),
    ]
    notes = [f"{REQUESTS} requests of {PROMPT_TOKENS} in, {OUTPUT_TOKENS} out, one after another; ABBA, medians"]
    return Report("lookup", "Guessing by look-up, one client, 0.5B Q4_0", rows, notes, samples)


def _figures(runs: list[dict[str, float]]) -> str:
    guessed, right = _median(runs, "guessed"), _median(runs, "right")
    return f"{_median(runs, 'tokens_per_s'):.1f}; {guessed:.0f}, {right:.0f}"


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)
