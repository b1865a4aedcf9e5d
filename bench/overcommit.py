"""More sequences than the KV cache holds: 32 at once, in half the cells that they come to need.

First answers that grow (64 in, 448 out, 8,192 cells), then prompts that are long from the start (1,088 in, 32 out,
16,384 cells). Goodput counts tokens of answers that came whole, beside that of the same load with room for all.
llama-server, which shares cells in its unified layout, gets the same cells.
"""

from collections import defaultdict
from statistics import median

from bench import load, paths, scrape
from bench.load import Load, Outcome
from bench.observed import warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Program, Server, llama_server, ocak, running
from bench.throughput import abba

AT_ONCE, CONTEXT = 32, 2048
GROWING, LONG = "answers that grow", "long prompts"
WORKS = {
    GROWING: (Load(AT_ONCE, AT_ONCE, prompt_tokens=64, output_tokens=448), 8_192),
    LONG: (Load(AT_ONCE, AT_ONCE, prompt_tokens=1_088, output_tokens=32), 16_384),
}
Samples = dict[str, list[dict[str, float]]]


def measure(short: bool = False) -> Report:
    """Both loads, tight beside roomy in ABBA order; the peer once."""
    samples: Samples = defaultdict(list)
    for name, (work, cells) in WORKS.items():
        tight, roomy = _ocak(cells, "tight"), _ocak(AT_ONCE * CONTEXT, "roomy")
        for program in [tight, roomy] if short else abba([tight, roomy], 1):
            _sample(program, name, work, samples)
        _sample(_peer(cells), name, work, samples)
    return _report(samples)


def _ocak(cells: int, kind: str) -> Program:
    model = str(paths.model())
    return ocak(model, AT_ONCE, CONTEXT, NO_PREFIXES, "--kv-cells", str(cells), name=f"ocak {kind}")


def _peer(cells: int) -> Program:
    return llama_server(str(paths.model()), AT_ONCE, cells // AT_ONCE, "--kv-unified")


def _sample(program: Program, name: str, work: Load, samples: Samples) -> None:
    with running(program) as (server,):
        warm_up(server, AT_ONCE)
        before = _preemptions(server)
        outcome = load.run(server, work, strict=False)
        figures = _figures(outcome, work) | {"preemptions": _preemptions(server) - before}
    samples[f"{program.name}, {name}"].append(figures)
    say(f"overcommit: {program.name}, {name}: {figures['goodput']:.1f} token/s, {figures['failed']:.0f} failed")


def _figures(outcome: Outcome, work: Load) -> dict[str, float]:
    whole = [answer for answer in outcome.answers if answer.num_tokens == work.output_tokens]
    return {
        "goodput": len(whole) * work.output_tokens / outcome.wall_s,
        "failed": float(work.requests - len(whole)),
        "wall_s": outcome.wall_s,
    }


def _preemptions(server: Server) -> float:
    return scrape.metrics(server)["ocak_preemptions_total"] if server.program.is_ocak else 0.0


def _report(samples: Samples) -> Report:
    rows: list[Row] = []
    for name, (work, cells) in WORKS.items():
        tight, roomy, peer = (
            samples[f"{program}, {name}"] for program in ("ocak tight", "ocak roomy", "llama-server")
        )
        failed = sum(run["failed"] for run in tight)
        ratio = _goodput(tight) / _goodput(roomy)
        what = f"{name} ({work.prompt_tokens} in, {work.output_tokens} out, {cells} cells)"
        preemptions = ", ".join(f"{run['preemptions']:.0f}" for run in tight)
        rows += [
            Row(f"{what}: failed or cut short", "0", f"{failed:.0f} of {len(tight) * work.requests}", failed == 0),
            Row("– goodput / the same with room", "≥ 0.8 x", f"{ratio:.2f} x", ratio >= 0.8),
            Row("– preemptions", "counted", preemptions),
            Row("– goodput: ocak, with room, llama-server", "reported", _compared(tight, roomy, peer)),
            Row("– llama-server: failed", "reported", f"{peer[0]['failed']:.0f} of {work.requests}"),
        ]
    notes = [f"{AT_ONCE} at once; --context {CONTEXT} --parallel {AT_ONCE} --kv-cells as said; token/s"]
    return Report("overcommit", "KV cache over-committed twice, 0.5B Q4_0", rows, notes, samples)


def _compared(*sides: list[dict[str, float]]) -> str:
    return " · ".join(f"{_goodput(runs):.1f}" for runs in sides)


def _goodput(runs: list[dict[str, float]]) -> float:
    return median(run["goodput"] for run in runs)
