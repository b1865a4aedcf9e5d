"""The engine alone, in one process: what it does besides `llama_decode` and sampling, with 16 and 128 sequences.

Greedy, 128 tokens in, 64 out, twice as many requests as run at once, two threads, all settings the server's
defaults, the prefix cache among them. The rest is the scheduler's and the filling of batches.
"""

from collections import defaultdict
from statistics import median

from bench import loops
from bench.load import Load
from bench.observed import Samples
from bench.report import Report, Row, say
from bench.throughput import abba
from ocak.fleet.process import ENVIRONMENT

MOST = {16: 0.02, 128: 0.05}  # of the engine's time, by sequences at once


def measure(short: bool = False) -> Report:
    """Run the engine with either number of sequences."""
    samples: Samples = defaultdict(list)
    sides = list(MOST) if short else abba(list(MOST), 1)
    for seed, sequences in enumerate(sides):
        figures = loops.run("bench.engine_loop", Load(sequences, 2 * sequences, seed=seed), ENVIRONMENT)
        samples[str(sequences)].append(figures)
        say(f"scheduler: {sequences} sequences: {figures['rest_share']:.2%} outside llama_decode and sampling")
    return _report(samples)


def _report(samples: Samples) -> Report:
    shares = {sequences: _median(runs, "rest_share") for sequences, runs in samples.items()}
    rows = [
        Row(
            f"{sequences} sequences: outside `llama_decode` and sampling",
            f"≤ {MOST[int(sequences)]:.0%} of the engine's time",
            f"{share:.2%}",
            share <= MOST[int(sequences)],
        )
        for sequences, share in shares.items()
    ]
    rows += [
        Row(f"{sequences} sequences: a step; of it outside; the longest", "reported", _times(runs))
        for sequences, runs in samples.items()
    ]
    rows += [
        Row(f"{sequences} sequences: `llama_decode`, sampling; output token/s", "reported", _shares(runs))
        for sequences, runs in samples.items()
    ]
    title = "The scheduler's own time, 0.5B Q4_0"
    notes = [f"the engine without HTTP and text; median of {len(samples['16'])} runs each, in ABBA order"]
    return Report("scheduler", title, rows, notes, samples)


def _times(runs: list[dict[str, float]]) -> str:
    step, rest, longest = (_median(runs, key) for key in ("step_us", "rest_us", "longest_rest_us"))
    return f"{step / 1e3:.1f} ms; {rest:.0f} µs; {longest / 1e3:.1f} ms"


def _shares(runs: list[dict[str, float]]) -> str:
    decode, sampling, speed = (_median(runs, key) for key in ("decode_share", "sampling_share", "tokens_per_s"))
    return f"{decode:.1%}, {sampling:.1%}; {speed:.0f}"


def _median(runs: list[dict[str, float]], key: str) -> float:
    return median(run[key] for run in runs)
