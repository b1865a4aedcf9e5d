"""From starting the process to its first 200: the front alone, and with the embedded model."""

import time
from statistics import median

from bench import servers
from bench.report import Report, Row, say
from bench.servers import OCAK, Program

NO_MODEL = Program("ocak no model", (*OCAK, "serve", "--no-models", "--port", "{port}"), "/health/live")
EMBEDDED = Program("ocak embedded", (*OCAK, "serve", "embedded", "--port", "{port}"), "/health/ready")
POLL_S = 0.005


def measure(short: bool = False) -> Report:
    """Start each several times, in turn; files are in the page cache after the first."""
    samples: dict[str, list[float]] = {NO_MODEL.name: [], EMBEDDED.name: []}
    for number in range(3 if short else 11):
        for program in (NO_MODEL, EMBEDDED):
            seconds = _seconds_to_ready(program)
            say(f"start-up: {program.name}: {seconds:.2f} s")
            if number > 0:
                samples[program.name].append(seconds)
    return _report(samples)


def _seconds_to_ready(program: Program) -> float:
    started = time.perf_counter()
    server = servers.start(program)
    try:
        servers.wait_until_ready(server, poll_s=POLL_S)
        return time.perf_counter() - started
    finally:
        servers.stop(server)


def _report(samples: dict[str, list[float]]) -> Report:
    live, ready = samples[NO_MODEL.name], samples[EMBEDDED.name]
    rows = [
        Row("front with no model: start to `/health/live`", "≤ 1.0 s", _spread(live), median(live) <= 1.0),
        Row("with the embedded model: start to `/health/ready`", "≤ 3 s", _spread(ready), median(ready) <= 3.0),
    ]
    notes = [f"median (lowest to highest) of {len(live)} starts each, after one to fill the page cache"]
    return Report("startup", "Start-up", rows, notes, samples)


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
