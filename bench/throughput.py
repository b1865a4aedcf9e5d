"""Sixteen streaming clients, 128 tokens in and 64 out: ocak, llama-server, a plain loop.

All sample greedily with two threads and as many cells. llama-server runs in both of its
KV layouts; the faster one is the peer. Each round runs everyone twice, in ABBA order.
"""

import json
import subprocess
import sys
from collections import defaultdict
from statistics import median
from typing import TypeVar

from bench import paths
from bench.load import Load
from bench.observed import Samples, observe, warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running

CLIENTS, CONTEXT = 16, 1024
Side = TypeVar("Side")


def measure(short: bool = False) -> Report:
    """Run the rounds and compare the medians."""
    samples: Samples = defaultdict(list)
    rounds, requests = (1, CLIENTS) if short else (3, 4 * CLIENTS)
    model = str(paths.model())
    split = llama_server(model, CLIENTS, CONTEXT, "--no-kv-unified", name="llama-server split")
    unified = llama_server(model, CLIENTS, CONTEXT, "--kv-unified", name="llama-server unified")
    with running(ocak(model, CLIENTS, CONTEXT, NO_PREFIXES), split, unified) as servers:
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
    figures = observe(side, work) if side else _loop(work)
    samples[name].append(figures)
    say(f"throughput: {name}: {figures['tokens_per_s']:.1f} token/s")


def _loop(work: Load) -> dict[str, float]:
    sizes = (("clients", work.clients), ("requests", work.requests), ("seed", work.seed))
    options = [part for name, value in sizes for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench.plain_loop", str(paths.model()), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=paths.ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _report(samples: Samples, rounds: int) -> Report:
    speed = {name: _median(runs, "tokens_per_s") for name, runs in samples.items()}
    peer = max((name for name in speed if name.startswith("llama-server")), key=speed.__getitem__)
    to_peer, to_loop = speed["ocak"] / speed[peer], speed["ocak"] / speed["plain loop"]
    decode_share = _median(samples["ocak"], "decode_share")
    in_decode = median(run["decode_share"] * run["engine_busy_share"] for run in samples["ocak"])
    front_us = _median(samples["ocak"], "front_us_per_token")
    rows = [
        Row(f"ocak / {peer}", "≥ 0.95 x (aim 1.05 x)", f"{to_peer:.3f} x", to_peer >= 0.95),
        Row("ocak / plain in-process loop", "≥ 0.85 x", f"{to_loop:.3f} x", to_loop >= 0.85),
        Row("`llama_decode` of the engine's wall time", "≥ 95 %", f"{decode_share:.1%}", decode_share >= 0.95),
        Row("`llama_decode` of the whole run's wall time", "reported", f"{in_decode:.1%}"),
        Row("CPU in the front per streamed token", "reported", f"{front_us:.0f} µs"),
        *(Row(f"output token/s: {name}", "reported", _spread(runs)) for name, runs in samples.items()),
        *(_first_token(name, runs) for name, runs in samples.items() if name != "plain loop"),
    ]
    title = "Throughput: 16 streaming clients, 128 tokens in, 64 out, 0.5B Q4_0"
    notes = [f"{rounds} ABBA rounds; median (lowest to highest) of {len(samples['ocak'])} runs each"]
    return Report("throughput", title, rows, notes, samples)


def _first_token(name: str, runs: list[dict[str, float]]) -> Row:
    first, between = _median(runs, "first_token_s"), _median(runs, "token_s")
    what = f"time to first token, time between tokens: {name}"
    return Row(what, "reported", f"{first:.2f} s, {between * 1e3:.1f} ms")


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def _spread(runs: list[dict[str, float]]) -> str:
    speeds = [run["tokens_per_s"] for run in runs]
    return f"{median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"
