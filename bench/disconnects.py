"""Clients that leave at random moments: queued, in prefill, while decoding; streaming or not.

They come in waves on a model of real shape with 4 slots, and nobody new comes before the
last has left. Every answer would go on much longer than its client stays. A departure is
over once the server holds (in slots and queued) no more requests than clients are left.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import quantiles

import aiohttp
import uvloop

from bench import paths, scrape
from bench.completion import Leaving, Said, ask, session
from bench.departures import Departure, Watch, judge
from bench.load import Load, greedy_body
from bench.report import Report, Row, say
from bench.servers import Program, Server, ocak, running

SLOTS, CONTEXT = 4, 1024
SHORT_PROMPT, LONG_PROMPT, OUTPUT_TOKENS = 16, 768, 240
CLIENTS_A_ROUND = 20
PREFILL_LIMIT_S = 0.25
FLAT_GROWTH = 0.02
HELD = ("ocak_slots_used", "ocak_kv_cells_used", "ocak_requests_running", "ocak_requests_waiting")
Client = tuple[bool, asyncio.Task[Said]]


@dataclass(slots=True)
class Findings:
    """Everything seen over all waves; ``rss_mib`` holds (clients so far, front, workers)."""

    departures: list[Departure] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    decode_steps_s: list[float] = field(default_factory=list)
    rss_mib: list[tuple[int, float, float]] = field(default_factory=list)
    stuck_waves: int = 0
    held_at_the_end: dict[str, float] = field(default_factory=dict)


def measure(short: bool = False) -> Report:
    """Let 500 clients leave (short: 60)."""
    return measure_on(ocak(str(paths.model()), SLOTS, CONTEXT), 60 if short else 500)


def measure_on(program: Program, num_clients: int) -> Report:
    """The same for any server of the model."""
    with running(program) as (server,):
        findings = uvloop.run(_all_waves(server, num_clients // CLIENTS_A_ROUND))
    return _report(findings)


async def _all_waves(server: Server, rounds: int) -> Findings:
    found, crowd = Findings(), Crowd(server)
    waves = {"queued": crowd.queued, "prefill": crowd.prefill, "mixed": crowd.mixed}
    for _ in range(rounds):
        for name, wave in waves.items():
            async with session(server.url) as http, aiohttp.ClientSession(server.url) as poll:
                await _watched_wave(name, partial(wave, http), poll, found)
        found.rss_mib.append((len(found.departures), *server.rss_mib()))
    await asyncio.sleep(1)
    now = scrape.metrics(server)
    found.held_at_the_end = {name: now[name] for name in HELD if name in now}
    return found


async def _watched_wave(
    name: str, wave: Callable[[], Awaitable[list[Client]]], poll: aiohttp.ClientSession, found: Findings
) -> None:
    watch = Watch()
    watching = asyncio.create_task(watch.poll(poll))
    clients = [(streams, await task) for streams, task in await wave()]
    found.stuck_waves += not await watch.until_free()
    if watching.done():
        watching.result()
    watching.cancel()
    _note(name, clients, watch, found)


def _note(name: str, clients: list[tuple[bool, Said]], watch: Watch, found: Findings) -> None:
    departures = judge(name, clients, watch)
    found.departures += departures
    found.gaps_s += watch.gaps_s()
    found.errors += [said.error or "ended early" for _, said in clients if not said.left]
    if name == "queued" and (step_s := watch.step_s()):
        found.decode_steps_s.append(step_s)
    slowest_ms = max(departure.freed_after_s for departure in departures) * 1e3
    say(f"disconnects: {len(found.departures)} left; {name}: free after {slowest_ms:.0f} ms at most")


class Crowd:
    """Makes clients and lets them leave; the stays are random, from a fixed seed."""

    def __init__(self, server: Server) -> None:
        self._served_name = server.program.served_name
        self._rng = random.Random(0)
        self._num_clients = 0

    async def queued(self, http: aiohttp.ClientSession) -> list[Client]:
        """Four decode, four wait behind them; the queued leave first, the others while decoding."""
        holders = [self._client(http, SHORT_PROMPT, 1.2, 2.0) for _ in range(SLOTS)]
        await asyncio.sleep(0.4)
        return holders + [self._client(http, SHORT_PROMPT, 0.02, 0.6) for _ in range(SLOTS)]

    async def prefill(self, http: aiohttp.ClientSession) -> list[Client]:
        """Four long prompts, left while most are still being computed."""
        return [self._client(http, LONG_PROMPT, 0.05, 2.5) for _ in range(SLOTS)]

    async def mixed(self, http: aiohttp.ClientSession) -> list[Client]:
        """Eight of either length that leave whenever."""
        lengths = [self._rng.choice((SHORT_PROMPT, LONG_PROMPT)) for _ in range(2 * SLOTS)]
        return [self._client(http, length, 0.0, 2.5) for length in lengths]

    def _client(self, http: aiohttp.ClientSession, prompt_tokens: int, least_s: float, most_s: float) -> Client:
        self._num_clients += 1
        prompt = Load(1, 1, prompt_tokens, seed=self._num_clients).prompts()[0]
        streams = self._rng.random() < 0.5
        body = greedy_body(self._served_name, prompt, OUTPUT_TOKENS, streams)
        leaving = Leaving(after_s=self._rng.uniform(least_s, most_s))
        return streams, asyncio.create_task(ask(http, body, leaving))


def _report(found: Findings) -> Report:
    gap_s = _percentile(found.gaps_s, 99)
    step_s = max(found.decode_steps_s, default=0.0)
    queued = [d.freed_after_s for d in found.departures if d.wave == "queued"]
    slowest_s = max(d.freed_after_s for d in found.departures)
    growth = _growth(found.rss_mib)
    held = ", ".join(f"{name.removeprefix('ocak_')} {value:.0f}" for name, value in found.held_at_the_end.items())
    rows = [
        Row("slot free after a client left, slowest of all", f"≤ {_ms(PREFILL_LIMIT_S)}", _ms(slowest_s),
            slowest_s <= PREFILL_LIMIT_S + gap_s),
        Row("the same while only decoding (queued waves), 95 of 100", f"≤ one step ({_ms(step_s)})",
            _ms(_percentile(queued, 95)), _percentile(queued, 95) <= step_s + gap_s if step_s else None),
        *(_wave_row(name, found) for name in ("queued", "prefill", "mixed")),
        Row("held at the end", "0", held or "–", not any(found.held_at_the_end.values())),
        Row("waves after which something stayed held", "0", str(found.stuck_waves), not found.stuck_waves),
        Row("resident memory: growth of front, worker", f"flat (≤ {FLAT_GROWTH:.0%})",
            ", ".join(f"{part:+.1%}" for part in growth), max(growth) <= FLAT_GROWTH),
        Row("clients that got an error or an early end", "0", str(len(found.errors)), not found.errors),
    ]  # fmt: skip
    notes = [f"the poller reads every {_ms(_percentile(found.gaps_s, 50))} ({_ms(gap_s)} at worst, 99 of 100): "
             "figures may be too high by that"]  # fmt: skip
    notes.append("resident MiB after n clients (front, worker): " + "; ".join(_memory(found.rss_mib)))
    return Report("disconnects", f"{len(found.departures)} clients that leave", rows, notes, asdict(found))


def _wave_row(name: str, found: Findings) -> Row:
    freed = [d.freed_after_s for d in found.departures if d.wave == name]
    figures = " / ".join(_ms(value) for value in (_percentile(freed, 50), _percentile(freed, 95), max(freed)))
    return Row(f"{name} waves ({len(freed)} clients): median / 95 of 100 / slowest", "reported", figures)


def _growth(rss_mib: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Relative growth of front and workers from a fifth of the run to its end."""
    _, front_before, workers_before = rss_mib[len(rss_mib) // 5]
    _, front, workers = rss_mib[-1]
    return front / front_before - 1, workers / workers_before - 1 if workers_before else 0.0


def _memory(rss_mib: list[tuple[int, float, float]]) -> list[str]:
    every = max(1, len(rss_mib) // 10)
    return [f"{clients}: {front:.0f}, {workers:.0f}" for clients, front, workers in rss_mib[::every]]


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
