"""One streaming client: the engine's time inside llama_decode, and the time per token.

The time per token is set beside llama-server's for the same requests, and beside
llama-bench's at the same depth (no HTTP, no sampling, no text). Neither guesses ahead, so
ocak does not here either; `lookup` measures that.
"""

import json
import subprocess
from collections import defaultdict
from statistics import median

from bench import paths
from bench.load import Load
from bench.observed import Samples, observe, warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running
from bench.throughput import abba

PROMPT_TOKENS, OUTPUT_TOKENS, CONTEXT = 128, 128, 1024


def measure(short: bool = False) -> Report:
    """Run one client on each side in turn."""
    samples: Samples = defaultdict(list)
    model, rounds = str(paths.model()), 1 if short else 3
    peer = llama_server(model, 1, CONTEXT, "--no-kv-unified")
    with running(ocak(model, 1, CONTEXT, NO_PREFIXES, "--speculation", "off"), peer) as servers:
        for server in servers:
            warm_up(server, 1)
        for number, side in enumerate(abba([*servers, None], rounds)):
            _sample(side, number // 6, samples)
    return _report(samples)


def _sample(side: Server | None, seed: int, samples: Samples) -> None:
    name = side.program.name if side else "llama-bench"
    figures = observe(side, Load(1, 2, PROMPT_TOKENS, OUTPUT_TOKENS, seed)) if side else _llama_bench()
    samples[name].append(figures)
    say(f"single: {name}: {figures['token_s'] * 1e3:.2f} ms a token")


def _llama_bench() -> dict[str, float]:
    sizes = ("-p", "0", "-n", str(OUTPUT_TOKENS), "-d", str(PROMPT_TOKENS), "-r", "2", "-t", "2")
    command = [str(paths.tool("llama-bench")), "-m", str(paths.model()), *sizes, "-o", "json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return {"token_s": 1 / json.loads(done.stdout)[0]["avg_ts"]}


def _report(samples: Samples) -> Report:
    token_ms = {name: median(run["token_s"] for run in runs) * 1e3 for name, runs in samples.items()}
    shares = median(run["decode_share"] for run in samples["ocak"])
    outside_us = median(run["outside_decode_us_per_step"] for run in samples["ocak"])
    beside = " · ".join(f"{name} {value:.2f} ms" for name, value in token_ms.items())
    rows = [
        Row("`llama_decode` of the engine's wall time per token", "≥ 97 %", f"{shares:.1%}", shares >= 0.97),
        Row("time per token", "reported", beside),
        Row("ocak / llama-bench", "reported", f"{token_ms['ocak'] / token_ms['llama-bench']:.3f} x"),
        Row("ocak / llama-server", "reported", f"{token_ms['ocak'] / token_ms['llama-server']:.3f} x"),
        Row("engine outside `llama_decode` per token", "reported", f"{outside_us:.0f} µs"),
    ]
    title = "One client: 128 tokens in, 128 out, 0.5B Q4_0"
    notes = [f"median of {len(samples['ocak'])} runs each, in ABBA order"]
    return Report("single", title, rows, notes, samples)
