"""Guessing by a draft model, one client: one that is right in 4 of 5 places, and one that never is.

The text never repeats itself, so that look-up has no part in it. llama-server has the same draft at its defaults.
"""

import json
from collections import defaultdict
from statistics import median

from bench import load, paths, prepare, scrape
from bench.load import Load
from bench.observed import Samples, warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running
from bench.throughput import abba

CONTEXT, PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 2048, 128, 384, 3
WITH, WITHOUT, WRONG = "ocak with a draft", "ocak without", "ocak with a wrong draft"
PEER, PEER_WITHOUT = "llama-server with a draft", "llama-server without"
DRAFTED, RIGHT = "ocak_speculation_drafted_tokens_total", "ocak_speculation_accepted_drafted_tokens_total"


def measure(short: bool = False) -> Report:
    """All sides in ABBA order."""
    prepare.prepare_cycles()
    samples: Samples = defaultdict(list)
    model, draft, wrong = map(str, (paths.cycle_model(), paths.draft_model(), paths.wrong_draft()))
    peer_draft = ("-md", draft, "--spec-type", "draft-simple")
    programs = (
        ocak(model, 1, CONTEXT, NO_PREFIXES, "--draft-model", draft, name=WITH),
        ocak(model, 1, CONTEXT, NO_PREFIXES, name=WITHOUT),
        ocak(model, 1, CONTEXT, NO_PREFIXES, "--draft-model", wrong, name=WRONG),
        llama_server(model, 1, CONTEXT, "--no-kv-unified", *peer_draft, name=PEER),
        llama_server(model, 1, CONTEXT, "--no-kv-unified", name=PEER_WITHOUT),
    )
    with running(*programs) as servers:
        for server in servers:
            warm_up(server, 1)
        for number, server in enumerate(abba(servers, 1 if short else 3)):
            samples[server.program.name].append(_sample(server, number // len(servers)))
    return _report(samples)


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

    gain, beside, cost = ratio(WITH, WITHOUT), ratio(WITH, PEER), ratio(WRONG, WITHOUT, "cpu_ms")
    rows = [
        Row("token/s with a draft / without", "≥ 1.3 x", f"{gain:.2f} x", gain >= 1.3),
        Row("token/s with a draft / llama-server with it", "≥ 1 x", f"{beside:.2f} x", beside >= 1),
        Row(
            "a draft that is never right: CPU a token / without",
            "≤ 1.03 x",
            f"{cost:.3f} x",
            cost <= 1.03,
        ),
        Row("the same: token/s / without", "reported", f"{ratio(WRONG, WITHOUT):.3f} x"),
        Row("llama-server's own gain", "reported", f"{ratio(PEER, PEER_WITHOUT):.2f} x"),
        *(
            Row(
                f"{name}: token/s; ms a token; longest gap; drafted, right",
                "reported",
                f"{of(name, 'tokens_per_s'):.1f}; {of(name, 'token_ms'):.1f}; {of(name, 'longest_gap_ms'):.0f} ms"
                + (f"; {of(name, 'drafted'):.0f}, {of(name, 'right'):.0f}" if name in (WITH, WRONG) else ""),
            )
            for name in samples
        ),
    ]
    notes = [
        f"{REQUESTS} requests of {PROMPT_TOKENS} in, {OUTPUT_TOKENS} out, one after another, greedy; "
        f"{len(samples[WITH])} runs each, ABBA, medians",
        "0.5B shape with a head of its own, Q4_0; the draft has 4 layers of 256, the same vocabulary, "
        "and agrees on 80 % of the tokens; text without repetitions",
    ]
    return Report("draft", "Guessing by a draft model, one client, 0.5B Q4_0", rows, notes, samples)
