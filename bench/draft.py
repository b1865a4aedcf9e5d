"""Guessing by a draft model, one client: drafts that are right in 19 of 20 places, in 4 of 5, and never.

The text never repeats itself, so that look-up has no part in it. llama-server has the same drafts at its defaults.
Whether a draft pays depends on what more rows cost: where four of them take more than two steps, one that is right
in 4 of 5 places wins nothing.
"""

import json
from collections import defaultdict
from statistics import median

from bench import load, paths, prepare, scrape
from bench.load import Load
from bench.observed import Samples, warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Program, Server, llama_server, ocak, running
from bench.throughput import abba

CONTEXT, PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 2048, 128, 384, 3
GOOD, FAIR, WRONG, WITHOUT = "ocak, 95 %", "ocak, 80 %", "ocak, 0 %", "ocak, no draft"
PEER_GOOD, PEER_FAIR, PEER = "llama-server, 95 %", "llama-server, 80 %", "llama-server, no draft"
DRAFTED, RIGHT = "ocak_speculation_drafted_tokens_total", "ocak_speculation_accepted_drafted_tokens_total"


def measure(short: bool = False) -> Report:
    """All sides in ABBA order."""
    prepare.prepare_cycles()
    samples: Samples = defaultdict(list)
    model = str(paths.cycle_model())
    drafts = {GOOD: paths.good_draft(), FAIR: paths.draft_model(), WRONG: paths.wrong_draft()}
    peers = {PEER_GOOD: drafts[GOOD], PEER_FAIR: drafts[FAIR]}
    programs = [ocak(model, 1, CONTEXT, NO_PREFIXES, name=WITHOUT), _peer(model, PEER)]
    programs += [
        ocak(model, 1, CONTEXT, NO_PREFIXES, "--draft-model", str(draft), name=name)
        for name, draft in drafts.items()
    ]
    programs += [_peer(model, name, "-md", str(draft), *PEER_DRAFTS) for name, draft in peers.items()]
    with running(*programs) as servers:
        for server in servers:
            warm_up(server, 1)
        for number, server in enumerate(abba(servers, 1 if short else 2)):
            samples[server.program.name].append(_sample(server, number // len(servers)))
    return _report(samples)


def _peer(model: str, name: str, *options: str) -> Program:
    return llama_server(model, 1, CONTEXT, "--no-kv-unified", *options, name=name)


PEER_DRAFTS = ("--spec-type", "draft-simple")  # all else at its defaults


def _sample(server: Server, seed: int) -> dict[str, float]:
    before, cpu_s = scrape.metrics(server), _cpu_s(server)
    outcome = load.run(server, Load(1, REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS, seed))
    after = scrape.metrics(server)
    figures = {
        "tokens_per_s": outcome.tokens_per_s,
        "token_ms": outcome.token_s * 1e3,
        "longest_gap_ms": max(answer.longest_gap_s for answer in outcome.answers) * 1e3,
        "cpu_ms": (_cpu_s(server) - cpu_s) / outcome.num_tokens * 1e3,
        "drafted": after.get(DRAFTED, 0.0) - before.get(DRAFTED, 0.0),
        "right": after.get(RIGHT, 0.0) - before.get(RIGHT, 0.0),
    }
    say(f"draft: {server.program.name}: " + json.dumps({key: round(value, 2) for key, value in figures.items()}))
    return figures


def _cpu_s(server: Server) -> float:
    """Of what computes: ocak's worker, or the peer itself."""
    return server.children_cpu_s() if server.program.is_ocak else server.front_cpu_s()


def _report(samples: Samples) -> Report:
    def of(name: str, key: str) -> float:
        return median(run[key] for run in samples[name])

    def ratio(one: str, other: str, key: str = "tokens_per_s") -> float:
        return of(one, key) / of(other, key)

    gain, beside, fair = ratio(GOOD, WITHOUT), ratio(GOOD, PEER_GOOD), ratio(FAIR, WITHOUT)
    cost = ratio(WRONG, WITHOUT, "cpu_ms")
    rows = [
        Row("right in 95 %: token/s with the draft / without", "≥ 1.3 x", f"{gain:.2f} x", gain >= 1.3),
        Row("the same / llama-server with that draft", "≥ 1 x", f"{beside:.2f} x", beside >= 1),
        Row("right in 80 %: token/s with the draft / without", "≥ 0.97 x", f"{fair:.2f} x", fair >= 0.97),
        Row(
            "never right: worker's CPU a token with the draft / without", "≤ 1.03 x", f"{cost:.3f} x", cost <= 1.03
        ),
        Row("the same: token/s", "reported", f"{ratio(WRONG, WITHOUT):.3f} x"),
        Row(
            "llama-server with a draft / without: right in 95 %, in 80 %",
            "reported",
            f"{ratio(PEER_GOOD, PEER):.2f} x, {ratio(PEER_FAIR, PEER):.2f} x",
        ),
    ]
    for name in samples:
        figures = f"{of(name, 'tokens_per_s'):.1f}; {of(name, 'longest_gap_ms'):.0f} ms"
        drafted = f"; {of(name, 'drafted'):.0f}, {of(name, 'right'):.0f}" if name in (GOOD, FAIR, WRONG) else ""
        rows.append(Row(f"{name}: token/s; longest gap; drafted, right", "reported", figures + drafted))
    notes = [
        f"{REQUESTS} requests of {PROMPT_TOKENS} in, {OUTPUT_TOKENS} out, one after another, greedy; "
        f"{len(samples[GOOD])} runs each, ABBA, medians",
        "0.5B shape with a head of its own, Q4_0; the drafts have 4 layers of 256 and the same vocabulary; "
        "text without repetitions",
    ]
    return Report("draft", "Guessing by a draft model, one client, 0.5B Q4_0", rows, notes, samples)
