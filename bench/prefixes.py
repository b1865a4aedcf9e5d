"""Work that repeats itself: two long prefixes shared by many, and conversations that take turns.

Prompts are text, for llama-cpp-python's server reads nothing else. llama-server runs in split, its better layout
here, with its own prompt caches on. Every run has prefixes of its own, so computing them once is part of it.
The plain shared loop computes them once too, in the layout that ocak has here, split; it reads token ids.
"""

import asyncio
import json
from collections import defaultdict
from statistics import median

import aiohttp

from bench import load, loops, paths, prepare, scrape
from bench.load import FIRST_TOKEN_ID, Load, greedy_body
from bench.observed import Samples, observe, warm_up
from bench.report import Report, Row, say
from bench.servers import LCP, Server, lcp_server, llama_server, ocak, running
from bench.throughput import PATIENT, abba

CLIENTS, CONTEXT = 16, 2048
LOOP = "plain shared loop"
PREFIXES, PREFIX_TOKENS, OWN_TOKENS, OUTPUT_TOKENS = 2, 1024, 64, 32
CONVERSATIONS, TURNS, SLOTS, NEW_TOKENS, ANSWER_TOKENS = 8, 6, 4, 60, 16


def measure(short: bool = False) -> Report:
    """Shared prefixes beside the peer, then the conversations, counted."""
    prepare.prepare_lcp()
    samples: Samples = defaultdict(list)
    rounds, requests = 1, CLIENTS if short else 2 * CLIENTS  # the peer takes more than a minute for each run
    model = str(paths.model())
    caches = ("--cache-ram", "8192")  # the peer's default
    default = ocak(model, CLIENTS, CONTEXT)
    patient = ocak(model, CLIENTS, CONTEXT, *PATIENT, name="ocak, gap of 1 s allowed")
    split = llama_server(model, CLIENTS, CONTEXT, "--no-kv-unified", *caches)
    words = load.words(paths.model())
    with running(default, patient, split, lcp_server(model, CLIENTS, CONTEXT)) as servers:
        for server in servers:
            warm_up(server, CLIENTS, words)
        for seed, side in enumerate(abba([*servers, None], rounds)):
            work = Load(CLIENTS, requests, OWN_TOKENS, OUTPUT_TOKENS, seed, PREFIXES, PREFIX_TOKENS, words)
            _sample(side, work, samples)
    with running(ocak(model, SLOTS, CONTEXT)) as (server,):
        turns = asyncio.run(_converse(server))
    return _report(samples, requests, turns)


def _sample(side: Server | None, work: Load, samples: Samples) -> None:
    name = side.program.name if side else LOOP
    figures = _observe(side, work) if side else loops.run("bench.plain_loop", work)
    samples[name].append(figures)
    say(f"prefixes: {name}: {figures['tokens_per_s']:.1f} token/s")


def _observe(server: Server, work: Load) -> dict[str, float]:
    before = _prompt_tokens(server)
    figures = observe(server, work)
    return figures | {"computed": _prompt_tokens(server) - before}


def _prompt_tokens(server: Server) -> float:
    """How many the server has computed so far."""
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
    ours = [name for name in speed if name.startswith("ocak")]
    fewest = PREFIXES * PREFIX_TOKENS + requests * OWN_TOKENS
    allowed = [CONVERSATIONS * (NEW_TOKENS + (2 if turn else 0)) for turn in range(TURNS)]
    is_lean = all(count <= most for count, most in zip(turns, allowed, strict=True))
    rows = [
        *(_ratio(name, speed, "llama-server", 3.0) for name in ours),
        *(_ratio(name, speed, LCP, 2.5) for name in ours),
        *(_ratio(name, speed, LOOP, 0.9) for name in ours),
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


def _ratio(name: str, speed: dict[str, float], other: str, asked: float) -> Row:
    ratio = speed[name] / speed[other]
    return Row(f"shared prefixes: {name} / {other}", f"≥ {asked:g} x", f"{ratio:.2f} x", ratio >= asked)


def _figures(runs: list[dict[str, float]]) -> str:
    return f"{median(run['tokens_per_s'] for run in runs):.1f}, {median(run['computed'] for run in runs):.0f}"
