"""The loads of `throughput` and `prefixes` beside transformers' `generate`, one request after another.

That is what the field's headlines are measured against. Its model is the same shape in bfloat16, ocak's is Q4_0.
"""

import json
import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import median

from bench import load, paths, prefixes, prepare, throughput
from bench.load import Load
from bench.observed import warm_up
from bench.report import Report, Row, say
from bench.servers import Server, ocak, running

CLIENTS, CONTEXT, ALONE = 16, 2048, 4
LOADS = {
    "private": (Load(CLIENTS, 3 * CLIENTS), 9.0),
    "shared": (
        Load(
            CLIENTS,
            2 * CLIENTS,
            prefixes.OWN_TOKENS,
            prefixes.OUTPUT_TOKENS,
            prefixes=prefixes.PREFIXES,
            prefix_tokens=prefixes.PREFIX_TOKENS,
        ),
        14.0,
    ),
}
Samples = dict[str, list[float]]


def measure(short: bool = False) -> Report:
    """Each load on both sides, in ABBA order; generate gets a few requests of it."""
    prepare.prepare_transformers()
    samples: Samples = defaultdict(list)
    with running(ocak(str(paths.model()), CLIENTS, CONTEXT, *throughput.PATIENT)) as (server,):
        warm_up(server, CLIENTS)
        for name, (work, _) in LOADS.items():
            for is_ocak in (True, False) if short else (True, False, False, True):
                _sample(server if is_ocak else None, name, work, samples)
    return _report(samples)


def _sample(server: Server | None, name: str, work: Load, samples: Samples) -> None:
    side = "ocak" if server else "generate"
    speed = load.run(server, work).tokens_per_s if server else _generate(work)
    samples[f"{side} {name}"].append(speed)
    say(f"one_by_one: {side} {name}: {speed:.1f} token/s")


def _generate(work: Load) -> float:
    sizes = (work.prefix_tokens + work.prompt_tokens, work.output_tokens, ALONE)
    script = Path(__file__).with_name("transformers_loop.py")
    command = [str(paths.transformers_python()), str(script), *map(str, sizes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return float(json.loads(done.stdout)["tokens_per_s"])


def _report(samples: Samples) -> Report:
    rows = []
    for name, (work, asked) in LOADS.items():
        ours, theirs = (median(samples[f"{side} {name}"]) for side in ("ocak", "generate"))
        what = f"{work.prefix_tokens} shared and {work.prompt_tokens} own tokens in, {work.output_tokens} out"
        rows += [
            Row(f"{what}: ocak / generate", f"≥ {asked:g} x", f"{ours / theirs:.1f} x", ours / theirs >= asked),
            Row("– output token/s: ocak, generate", "reported", f"{ours:.1f}, {theirs:.1f}"),
        ]
    notes = [
        f"{CLIENTS} at a time on ocak with a gap of 1 s allowed; {ALONE} requests on generate, bf16, 2 threads"
    ]
    return Report("one_by_one", "Beside transformers' generate, one after another", rows, notes, samples)
