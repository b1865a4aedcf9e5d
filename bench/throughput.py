"""Sixteen streaming clients, 128 tokens in and 64 out: ocak, llama-server, a plain loop.

All sample greedily with two threads and as many cells. llama-server runs in its faster layout for this work,
split (unified was slower in each of six earlier runs). It computes all prompts that are there before it goes on
with answers; ocak runs as it comes, and with a longer gap between tokens allowed, which is more throughput.
Each round runs everyone twice, in ABBA order.
"""

from collections import defaultdict
from statistics import median
from typing import TypeVar

from bench import loops, paths
from bench.load import Load
from bench.observed import Samples, observe, warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running

CLIENTS, CONTEXT = 16, 1024
PATIENT = ("--inter-token-ms", "1000")
Side = TypeVar("Side")


def measure(short: bool = False) -> Report:
    """Run the rounds and compare the medians."""
    samples: Samples = defaultdict(list)
    rounds, requests = (1, CLIENTS) if short else (3, 3 * CLIENTS)
    model = str(paths.model())
    default = ocak(model, CLIENTS, CONTEXT, NO_PREFIXES)
    patient = ocak(model, CLIENTS, CONTEXT, NO_PREFIXES, *PATIENT, name="ocak, gap of 1 s allowed")
    split = llama_server(model, CLIENTS, CONTEXT, "--no-kv-unified", name="llama-server")
    with running(default, patient, split) as servers:
        for server in servers:
            warm_up(server, CLIENTS)
        for number, side in enumerate(abba([*servers, None], rounds)):
            _sample(side, Load(CLIENTS, requests, seed=number // 8), samples)
    return _report(samples, rounds)


def abba(sides: list[Side], rounds: int) -> list[Side]:
    """The order of the runs: all sides forth and back, for each round."""
    return (sides + sides[::-1]) * rounds


def _sample(side: Server | None, work: Load, samples: Samples) -> None:
    name = side.program.name if side else "plain loop"
    figures = observe(side, work) if side else loops.run("bench.plain_loop", work)
    samples[name].append(figures)
    say(f"throughput: {name}: {figures['tokens_per_s']:.1f} token/s")


def _report(samples: Samples, rounds: int) -> Report:
    speed = {name: _median(runs, "tokens_per_s") for name, runs in samples.items()}
    ours = [name for name in speed if name.startswith("ocak")]
    rows = [
        *(_ratio(name, speed, "llama-server", 0.95, "≥ 0.95 x (aim 1.05 x)") for name in ours),
        *(_ratio(name, speed, "plain loop", 0.85, "≥ 0.85 x") for name in ours),
        *(_in_decode(name, samples[name]) for name in ours),
        *(Row(f"output token/s: {name}", "reported", _spread(runs)) for name, runs in samples.items()),
        *(_latency(name, runs) for name, runs in samples.items() if name != "plain loop"),
    ]
    title = "Throughput: 16 streaming clients, 128 tokens in, 64 out, 0.5B Q4_0"
    notes = [f"{rounds} ABBA rounds; median (lowest to highest) of {len(samples['ocak'])} runs each"]
    return Report("throughput", title, rows, notes, samples)


def _ratio(name: str, speed: dict[str, float], other: str, asked: float, figure: str) -> Row:
    ratio = speed[name] / speed[other]
    return Row(f"{name} / {other}", figure, f"{ratio:.3f} x", ratio >= asked)


def _in_decode(name: str, runs: list[dict[str, float]]) -> Row:
    share, front_us = _median(runs, "decode_share"), _median(runs, "front_us_per_token")
    what = f"{name}: `llama_decode` of the engine's wall time; CPU in the front per streamed token"
    return Row(what, "≥ 95 %; reported", f"{share:.1%}; {front_us:.0f} µs", share >= 0.95)


def _latency(name: str, runs: list[dict[str, float]]) -> Row:
    first, between, gap = (_median(runs, key) for key in ("first_token_s", "token_s", "longest_gap_s"))
    what = f"time to first token, mean and longest time between tokens: {name}"
    return Row(what, "reported", f"{first:.2f} s, {between * 1e3:.0f} ms, {gap * 1e3:.0f} ms")


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def _spread(runs: list[dict[str, float]]) -> str:
    speeds = [run["tokens_per_s"] for run in runs]
    return f"{median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
