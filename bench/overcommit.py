"""More sequences than the KV cache holds: 32 at once, in half the cells that they come to need.

First answers that grow (64 in, 448 out, 8,192 cells), then prompts that are long from the start (1,088 in, 32 out,
16,384 cells). Goodput counts tokens of answers that came whole, beside that of the same load with room for all.
llama-server, which shares cells in its unified layout, and llama-cpp-python's server get the same cells. The
latter reads text alone, so prompts are words, and knows no `ignore_eos`: an answer that its model ends is whole.
"""

from collections import defaultdict
from dataclasses import replace
from statistics import median

from bench import load, paths, prepare, scrape
from bench.load import Load, Outcome
from bench.observed import warm_up
from bench.report import Report, Row, say
from bench.servers import LCP, Program, Server, lcp_server, llama_server, ocak, running
from bench.throughput import abba

AT_ONCE, CONTEXT = 32, 2048
GROWING, LONG = "answers that grow", "long prompts"
WORKS = {
    GROWING: (Load(AT_ONCE, AT_ONCE, prompt_tokens=64, output_tokens=448), 8_192),
    LONG: (Load(AT_ONCE, AT_ONCE, prompt_tokens=1_088, output_tokens=32), 16_384),
}
Samples = dict[str, list[dict[str, float]]]


def measure(short: bool = False) -> Report:
    """Both loads, tight beside roomy in ABBA order; the peers once."""
    prepare.prepare_lcp()
    samples: Samples = defaultdict(list)
    words = load.words(paths.model())
    for name, (numbers, cells) in WORKS.items():
        work = replace(numbers, words=words)
        tight, roomy = _ocak(cells, "tight"), _ocak(AT_ONCE * CONTEXT, "roomy")
        for program in [tight, roomy] if short else abba([tight, roomy], 1):
            _sample(program, name, work, samples)
        for program in _peers(cells):
            _sample(program, name, work, samples)
    return _report(samples)


def _ocak(cells: int, kind: str) -> Program:
    model = str(paths.model())
    return ocak(model, AT_ONCE, CONTEXT, "--kv-cells", str(cells), name=f"ocak {kind}")


def _peers(cells: int) -> list[Program]:
    model, context = str(paths.model()), cells // AT_ONCE
    return [llama_server(model, AT_ONCE, context, "--kv-unified"), lcp_server(model, AT_ONCE, context)]


def _sample(program: Program, name: str, work: Load, samples: Samples) -> None:
    with running(program) as (server,):
        warm_up(server, AT_ONCE, work.words)
        before = _preemptions(server)
        outcome = load.run(server, work, strict=False)
        figures = _figures(outcome, work, may_end=program.name == LCP) | {
            "preemptions": _preemptions(server) - before
        }
    samples[f"{program.name}, {name}"].append(figures)
    say(f"overcommit: {program.name}, {name}: {figures['goodput']:.1f} token/s, {figures['failed']:.0f} failed")


def _figures(outcome: Outcome, work: Load, *, may_end: bool) -> dict[str, float]:
    least = 1 if may_end else work.output_tokens
    whole = [answer.num_tokens for answer in outcome.answers if answer.num_tokens >= least]
    return {
        "goodput": sum(whole) / outcome.wall_s,
        "failed": float(work.requests - len(whole)),
        "wall_s": outcome.wall_s,
    }


def _preemptions(server: Server) -> float:
    return scrape.metrics(server)["ocak_preemptions_total"] if server.program.is_ocak else 0.0


def _report(samples: Samples) -> Report:
    rows: list[Row] = []
    for name, (work, cells) in WORKS.items():
        sides = [samples[f"{program}, {name}"] for program in ("ocak tight", "ocak roomy", "llama-server", LCP)]
        tight, roomy = sides[:2]
        failed = sum(run["failed"] for run in tight)
        ratio = _goodput(tight) / _goodput(roomy)
        what = f"{name} ({work.prompt_tokens} in, {work.output_tokens} out, {cells} cells)"
        preemptions = ", ".join(f"{run['preemptions']:.0f}" for run in tight)
        rows += [
            Row(f"{what}: failed or cut short", "0", f"{failed:.0f} of {len(tight) * work.requests}", failed == 0),
            Row("– goodput / the same with room", "≥ 0.8 x", f"{ratio:.2f} x", ratio >= 0.8),
            Row("– preemptions", "counted", preemptions),
            Row(f"– goodput: ocak, with room, llama-server, {LCP}", "reported", _compared(sides)),
            Row(f"– failed: llama-server, {LCP}", "reported", _failures(sides[2:], work)),
        ]
    notes = [f"{AT_ONCE} at once; --context {CONTEXT} --parallel {AT_ONCE} --kv-cells as said; token/s"]
    return Report("overcommit", "KV cache over-committed twice, 0.5B Q4_0", rows, notes, samples)


def _compared(sides: list[list[dict[str, float]]]) -> str:
    return " · ".join(f"{_goodput(runs):.1f}" for runs in sides)


def _failures(sides: list[list[dict[str, float]]], work: Load) -> str:
    return " · ".join(f"{runs[0]['failed']:.0f} of {work.requests}" for runs in sides)


def _goodput(runs: list[dict[str, float]]) -> float:
    return median(run["goodput"] for run in runs)
