"""Reads a server's own counters: Prometheus text, summed over the labels."""

import re
import urllib.request
from dataclasses import dataclass

from bench.servers import Server

_LINE = re.compile(r"^([\w:]+)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


def metrics(server: Server) -> dict[str, float]:
    """Every metric of the server now, summed over its label sets."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as response:
        return parse(response.read().decode())


def parse(text: str) -> dict[str, float]:
    """Sum each metric of a Prometheus text over its label sets."""
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Seconds and steps of ocak's engine, and CPU seconds of the front, since the start."""

    busy_s: float
    decode_s: float
    steps: float
    front_cpu_s: float

    def since(self, earlier: "EngineTimes") -> "EngineTimes":
        """The difference of two readings."""
        pairs = ((getattr(self, name), getattr(earlier, name)) for name in self.__slots__)
        return EngineTimes(*(now - before for now, before in pairs))

    @property
    def decode_share(self) -> float:
        """Share of the engine's wall time spent inside llama_decode."""
        return self.decode_s / self.busy_s if self.busy_s else 0.0


def engine_times(server: Server) -> EngineTimes:
    """Read ocak's engine counters and the front's CPU time."""
    now = metrics(server)
    return EngineTimes(
        busy_s=now["ocak_engine_busy_seconds_total"],
        decode_s=now["ocak_engine_decode_seconds_total"],
        steps=now["ocak_engine_steps_total"],
        front_cpu_s=server.front_cpu_s(),
    )
