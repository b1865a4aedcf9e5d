"""Work that repeats itself: two long prefixes shared by many, and conversations that take turns.

llama-server runs in both of its KV layouts with its own prompt caches on; the faster one is
the peer. Every run has prefixes of its own, so computing them once is part of it.
"""

import asyncio
import json
from collections import defaultdict
from statistics import median

import aiohttp

from bench import paths, scrape
from bench.load import FIRST_TOKEN_ID, Load, greedy_body
from bench.observed import Samples, observe, warm_up
from bench.report import Report, Row, say
from bench.servers import Server, llama_server, ocak, running
from bench.throughput import abba

CLIENTS, CONTEXT = 16, 2048
PREFIXES, PREFIX_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 2, 1024, 64, 32
CONVERSATIONS, TURNS, SLOTS, NEW_TOKENS, ANSWER_TOKENS = 8, 6, 4, 60, 16


def measure(short: bool = False) -> Report:
    """Shared prefixes beside the peer, then the conversations, counted."""
    samples: Samples = defaultdict(list)
    rounds, requests = 1, CLIENTS if short else 2 * CLIENTS  # the peer takes more than a minute for each run
    model = str(paths.model())
    caches = ("--cache-ram", "8192")  # the peer's default
    split = llama_server(model, CLIENTS, CONTEXT, "--no-kv-unified", *caches, name="llama-server split")
    unified = llama_server(model, CLIENTS, CONTEXT, "--kv-unified", *caches, name="llama-server unified")
    with running(ocak(model, CLIENTS, CONTEXT), split, unified) as servers:
        for server in servers:
            warm_up(server, CLIENTS)
        for seed, server in enumerate(abba(servers, rounds)):
            _sample(server, requests, seed, samples)
    with running(ocak(model, SLOTS, CONTEXT)) as (server,):
        turns = asyncio.run(_converse(server))
    return _report(samples, requests, turns)


def _sample(server: Server, requests: int, seed: int, samples: Samples) -> None:
    work = Load(CLIENTS, requests, OWN_TOKENS, OUTPUT_TOKENS, seed, PREFIXES, PREFIX_TOKENS)
    before = _prompt_tokens(server)
    figures = observe(server, work) | {"computed": _prompt_tokens(server) - before}
    samples[server.program.name].append(figures)
    say(f"prefixes: {server.program.name}: {figures['tokens_per_s']:.1f} token/s")


def _prompt_tokens(server: Server) -> float:
    name = "ocak_engine_prompt_tokens_total" if server.program.is_ocak else "llamacpp:prompt_tokens_total"
    return scrape.metrics(server)[name]


async def _converse(server: Server) -> list[float]:
    """All conversations take a turn at once, six times; return the prompt tokens computed in each turn."""
    histories = [[FIRST_TOKEN_ID + 1000 * which + i for i in range(NEW_TOKENS)] for which in range(CONVERSATIONS)]
    computed = []
    async with aiohttp.ClientSession(server.url) as session:
        for turn in range(TURNS):
            before = _prompt_tokens(server)
            await asyncio.gather(*(_answer(session, server, history) for history in histories))
            computed.append(_prompt_tokens(server) - before)
            for which, history in enumerate(histories):
                history += [FIRST_TOKEN_ID + 1000 * which + 100 * (turn + 1) + i for i in range(NEW_TOKENS)]
    return computed


async def _answer(session: aiohttp.ClientSession, server: Server, history: list[int]) -> None:
    """Have the answer be one known token, again and again, so that the next turn can hold its ids."""
    body = greedy_body(server.program.served_name, history, ANSWER_TOKENS, stream=False)
    body["logit_bias"] = {str(FIRST_TOKEN_ID): 100}
    async with session.post("/v1/completions", data=json.dumps(body)) as response:
        usage = (await response.json())["usage"]
    assert usage["completion_tokens"] == ANSWER_TOKENS, usage
    history += [FIRST_TOKEN_ID] * ANSWER_TOKENS


def _report(samples: Samples, requests: int, turns: list[float]) -> Report:
    speed = {name: median(run["tokens_per_s"] for run in runs) for name, runs in samples.items()}
    peer = max((name for name in speed if name.startswith("llama-server")), key=speed.__getitem__)
    ratio = speed["ocak"] / speed[peer]
    fewest = PREFIXES * PREFIX_TOKENS + requests * OWN_TOKENS
    allowed = [CONVERSATIONS * (NEW_TOKENS + (2 if turn else 0)) for turn in range(TURNS)]
    is_lean = all(count <= most for count, most in zip(turns, allowed, strict=True))
    rows = [
        Row(f"shared prefixes: ocak / {peer}", "≥ 3 x", f"{ratio:.2f} x", ratio >= 3),
        *(
            Row(f"output token/s, prompt tokens computed: {name}", f"fewest possible: {fewest}", _figures(runs))
            for name, runs in samples.items()
        ),
        Row(
            "conversations: prompt tokens computed in each turn",
            f"≤ {allowed[0]}, then {allowed[1]}",
            ", ".join(f"{count:.0f}" for count in turns),
            is_lean,
        ),
    ]
    title = "Shared prefixes and conversations, 0.5B Q4_0"
    notes = [
        f"{requests} requests of {PREFIX_TOKENS} shared and {OWN_TOKENS} own tokens in, {OUTPUT_TOKENS} out, "
        f"{CLIENTS} at a time, {PREFIXES} prefixes; median of {len(samples['ocak'])} runs each, in ABBA order",
        f"{CONVERSATIONS} conversations in {SLOTS} slots, {NEW_TOKENS} new tokens a turn, {ANSWER_TOKENS} out",
    ]
    return Report("prefixes", title, rows, notes, samples)


def _figures(runs: list[dict[str, float]]) -> str:
    return f"{median(run['tokens_per_s'] for run in runs):.1f}, {median(run['computed'] for run in runs):.0f}"
