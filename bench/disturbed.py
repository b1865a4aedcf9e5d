"""The load of the throughput benchmark while another process keeps one core busy.

Threads that spin at barriers lose nearly everything to a neighbour; threads that yield
lose only its share.
"""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

from bench import load, paths
from bench.load import Load
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running

CLIENTS, CONTEXT = 16, 1024
QUIET_BUSY_BUSY_QUIET = (False, True, True, False)
Samples = dict[str, list[float]]


def measure(short: bool = False) -> Report:
    """Run quiet and disturbed in ABBA order; llama-server too, for comparison."""
    samples: Samples = defaultdict(list)
    model, rounds = str(paths.model()), 1 if short else 2
    peer = llama_server(model, CLIENTS, CONTEXT, "--no-kv-unified")
    with running(ocak(model, CLIENTS, CONTEXT, NO_PREFIXES), peer) as servers:
        for seed, is_disturbed in enumerate(QUIET_BUSY_BUSY_QUIET * rounds):
            for server in servers:
                _sample(server, is_disturbed, seed, samples)
    return _report(samples)


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy from another process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _sample(server: Server, is_disturbed: bool, seed: int, samples: Samples) -> None:
    kind = "disturbed" if is_disturbed else "quiet"
    with busy_core() if is_disturbed else nullcontext():
        outcome = load.run(server, Load(CLIENTS, CLIENTS, seed=seed))
    samples[f"{server.program.name} {kind}"].append(outcome.tokens_per_s)
    say(f"disturbed: {server.program.name} {kind}: {outcome.tokens_per_s:.1f} token/s")


def _report(samples: Samples) -> Report:
    speed = {name: median(runs) for name, runs in samples.items()}
    ocak_ratio, peer_ratio = (
        speed[f"{name} disturbed"] / speed[f"{name} quiet"] for name in ("ocak", "llama-server")
    )
    rows = [
        Row("ocak: disturbed / undisturbed", "≥ 0.45 x", f"{ocak_ratio:.2f} x", ocak_ratio >= 0.45),
        Row("llama-server: disturbed / undisturbed", "reported", f"{peer_ratio:.2f} x"),
        *(Row(f"output token/s: {name}", "reported", f"{value:.1f}") for name, value in speed.items()),
    ]
    title = "The same load beside a process that keeps one core busy"
    notes = [f"median of {len(samples['ocak quiet'])} runs each, quiet and disturbed in ABBA order"]
    return Report("disturbed", title, rows, notes, samples)
