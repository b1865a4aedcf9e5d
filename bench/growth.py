"""Cost as it grows: token/s and the time to the first token, from 1 to 256 sequences and from 128 to 32k tokens.

Each size is asked of ocak and of llama-server in turn. Neither keeps prefixes or guesses. Sequences are short and
come all at once; a context is filled by one sequence, so that the speeds of reading and writing can be told apart.

    python -m bench.growth SAMPLES.json    draws what was measured before anew

Points are kept as they come (`growth-unfinished.json` among the samples), for a run takes a quarter of an hour.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from bench import growth_plot, load, paths
from bench.load import Load
from bench.observed import warm_up
from bench.report import Report, Row, say
from bench.servers import NO_PREFIXES, Server, llama_server, ocak, running

MOST_SEQUENCES, PROMPT_TOKENS, OUTPUT_TOKENS = 256, 64, 32
CELLS = 256  # a sequence: llama.cpp gives no fewer
FEWEST_REQUESTS = 16
CONTEXTS = {128: 8, 512: 4, 2048: 2, 8192: 1, 32768: 1}  # by size how many requests: the last take minutes
OURS_ALONE = 32768  # from this size on: nearly ten minutes for each server
SPARE_TOKENS = 64  # of a context: the answer, and some that stay empty
Curves = dict[str, list["Point"]]


@dataclass(frozen=True, slots=True)
class Point:
    """What one server did at one size; times in seconds."""

    server: str
    size: int
    tokens_per_s: float  # output, prefill included
    first_token_s: float
    token_s: float
    prompt_tokens: int

    @property
    def prefill_per_s(self) -> float:
        """Prompt tokens a second, up to the first token of the answer."""
        return self.prompt_tokens / self.first_token_s

    @property
    def decode_per_s(self) -> float:
        """Tokens of one answer a second."""
        return 1 / self.token_s


def measure(short: bool = False) -> Report:
    """Measure both curves and draw them."""
    most, contexts = (8, {128: 2, 512: 1}) if short else (MOST_SEQUENCES, CONTEXTS)
    drawn: Curves = {"sequences": [], "contexts": []}
    for curve, points in zip(drawn, (_over_sequences(most), _over_contexts(contexts)), strict=True):
        for point in points:
            drawn[curve].append(point)
            _keep(drawn)
    notes = [
        f"{PROMPT_TOKENS} tokens in, {OUTPUT_TOKENS} out for each sequence; one run each, median of its requests",
        f"one sequence fills a context but for {SPARE_TOKENS} tokens, and answers {OUTPUT_TOKENS} of those; "
        f"{OURS_ALONE} tokens are asked of ocak alone, for they take minutes",
        growth_plot.draw(**drawn) if not short else "a short run is not drawn",
    ]
    missing = contexts.keys() - {point.size for point in drawn["contexts"]}
    notes += [f"no answer within {load.REQUEST_WITHIN_S} s: {size} tokens" for size in sorted(missing)]
    rows = [_sequences_row(points) for points in by_size(drawn["sequences"])]
    rows += [_context_row(points) for points in by_size(drawn["contexts"])]
    title = "Cost as it grows: 1 to 256 sequences, 128 to 32k tokens, 0.5B Q4_0"
    return Report("growth", title, rows, notes, _samples(drawn))


def _samples(drawn: Curves) -> dict[str, list[dict[str, object]]]:
    return {curve: [asdict(point) for point in points] for curve, points in drawn.items()}


def _keep(drawn: Curves) -> None:
    paths.samples().mkdir(parents=True, exist_ok=True)
    (paths.samples() / "growth-unfinished.json").write_text(json.dumps({"samples": _samples(drawn)}, indent=1))


def _over_sequences(most: int) -> Iterator[Point]:
    sizes = [1 << power for power in range(most.bit_length())]
    with _both(most, CELLS) as servers:
        for server in servers:
            warm_up(server, min(16, most))
        for place, size in enumerate(sizes):
            work = Load(size, max(FEWEST_REQUESTS, size), PROMPT_TOKENS, OUTPUT_TOKENS, place)
            yield from _points(_in_turn(servers, place), size, work)


def _over_contexts(requests: dict[int, int]) -> Iterator[Point]:
    with _both(1, max(requests)) as servers:
        for server in servers:
            warm_up(server, 1)
        for place, size in enumerate(requests):
            work = Load(1, requests[size], size - SPARE_TOKENS, OUTPUT_TOKENS, place)
            sides = servers[:1] if size >= OURS_ALONE else _in_turn(servers, place)
            yield from _points(sides, size, work)


def _both(parallel: int, context: int) -> AbstractContextManager[list[Server]]:
    model = str(paths.model())
    ours = ocak(model, parallel, context, NO_PREFIXES, "--speculation", "off")
    return running(ours, llama_server(model, parallel, context, "--no-kv-unified"))


def _in_turn(servers: list[Server], place: int) -> list[Server]:
    return servers[::-1] if place % 2 else servers


def _points(servers: list[Server], size: int, work: Load) -> Iterator[Point]:
    """One for each server that answers in time."""
    for server in servers:
        try:
            yield _point(server, size, work)
        except TimeoutError:
            say(f"growth: {size}, {server.program.name}: no answer within {load.REQUEST_WITHIN_S} s")


def _point(server: Server, size: int, work: Load) -> Point:
    outcome = load.run(server, work)
    point = Point(
        server=server.program.name,
        size=size,
        tokens_per_s=outcome.tokens_per_s,
        first_token_s=outcome.first_token_s,
        token_s=outcome.token_s,
        prompt_tokens=work.prompt_tokens,
    )
    say(f"growth: {size}, {point.server}: {point.tokens_per_s:.1f} token/s, first {point.first_token_s:.2f} s")
    return point


def by_size(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each size together, ocak's first."""
    ordered = sorted(points, key=lambda point: (point.size, point.server != "ocak"))
    return [list(same) for _, same in groupby(ordered, key=lambda point: point.size)]


def _sequences_row(points: list[Point]) -> Row:
    told = (f"{p.server} {p.tokens_per_s:.0f}, {p.first_token_s:.2f} s" for p in points)
    size = points[0].size
    return Row(f"{size} sequence{'s' * (size > 1)}: output token/s, first token", "reported", " · ".join(told))


def _context_row(points: list[Point]) -> Row:
    told = (f"{p.server} {p.prefill_per_s:.0f}, {p.first_token_s:.2f} s, {p.token_s * 1e3:.1f} ms" for p in points)
    what = f"{points[0].size} tokens: prompt token/s, first token, time per token"
    return Row(what, "reported", " · ".join(told))


def main() -> None:
    """Draw the samples of an earlier run."""
    samples = json.loads(Path(sys.argv[1]).read_text())["samples"]
    say(growth_plot.draw(**{curve: [Point(**point) for point in points] for curve, points in samples.items()}))


if __name__ == "__main__":
    main()
