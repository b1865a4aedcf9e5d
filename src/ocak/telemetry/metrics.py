"""Counts what every request did, one timer a request. Knows no HTTP and no engine.

A token costs a few additions: histograms are plain lists, which the exposition reads at scrape time. One thread
writes and reads. Labels are model keys and fixed words, never what a caller sent.
Invariant: a timer reports exactly one outcome.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from ocak.core.embedding import Embedded
from ocak.core.errors import GenerationFailed, InvalidRequest, ModelUnavailable, Overloaded, WorkerLost
from ocak.core.events import Delta, Event, Finished, Started

Outcome = Literal["ok", "cancelled", "invalid", "rejected", "unavailable", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "cancelled", "invalid", "rejected", "unavailable", "failed")

QUEUE_FULL = "queue_full"

REQUEST_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_BOUNDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


class Histogram:
    """Counts per bucket, not yet cumulative, and the sum; the last count is of what exceeds every bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class ModelMeter:
    """All that is counted of one model's requests."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.rejections: Counter[str] = Counter()
        self.seconds = 0.0  # of answered requests
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.dropped_tokens = 0
        self.generation_tokens = 0
        self.queue = Histogram(WAIT_BOUNDS)
        self.first_token = Histogram(WAIT_BOUNDS)
        self.prefill = Histogram(WAIT_BOUNDS)
        self.decode = Histogram(REQUEST_BOUNDS)
        self.inter_token = Histogram(TOKEN_BOUNDS)
        self.end_to_end = Histogram(REQUEST_BOUNDS)


_meters: dict[str, ModelMeter] = {}


def meter(model_key: str) -> ModelMeter:
    """Return the model's meter. Keys come from the configuration, so there are few."""
    found = _meters.get(model_key)
    if found is None:
        found = _meters[model_key] = ModelMeter()
    return found


def meters() -> Mapping[str, ModelMeter]:
    return MappingProxyType(_meters)


class RequestTimer:
    """Times one request: when it was queued, when it started, its first text, the gaps between tokens."""

    __slots__ = ("_meter", "_begun", "_started", "_first", "_last", "_outcome", "_seconds")

    def __init__(self, model_key: str) -> None:
        self._meter = meter(model_key)
        self._begun = time.perf_counter()
        self._started = self._first = self._last = 0.0
        self._outcome: Outcome | None = None
        self._seconds: float | None = None

    def observe(self, event: Event | Embedded) -> None:
        now = time.perf_counter()
        if type(event) is Delta:
            self._token(now, event.num_tokens)
        elif type(event) is Started:
            self._start(now)
        elif type(event) is Embedded:
            self._meter.prefill.observe(now - (self._started or self._begun))
            self._end(event)
        elif type(event) is Finished:
            self._end(event)

    def fail(self, error: BaseException) -> None:
        """Note why the request has no whole answer. A reader that stops early cancels."""
        if self._outcome is None:
            self._outcome = _outcome_of(error)

    def finish(self) -> float:
        """Count the request, once, and return the seconds it took."""
        if self._seconds is None:
            self._seconds = time.perf_counter() - self._begun
            self._count(self._outcome or "cancelled", self._seconds)
        return self._seconds

    def _start(self, now: float) -> None:
        if not self._started:
            self._meter.queue.observe(now - self._begun)
        self._started = now

    def _token(self, now: float, num_tokens: int) -> None:
        meter = self._meter
        meter.generation_tokens += num_tokens
        if self._first:
            if num_tokens:
                meter.inter_token.observe((now - self._last) / num_tokens, num_tokens)
        else:
            self._first = now
            meter.first_token.observe(now - self._begun)
            meter.prefill.observe(now - (self._started or self._begun))
        self._last = now

    def _end(self, event: Finished | Embedded) -> None:
        meter, usage = self._meter, event.usage
        self._outcome = "ok"
        meter.prompt_tokens += usage.prompt_tokens
        meter.cached_tokens += usage.cached_tokens
        meter.dropped_tokens += usage.dropped_tokens
        if self._first:
            meter.decode.observe(time.perf_counter() - self._first)

    def _count(self, outcome: Outcome, seconds: float) -> None:
        meter = self._meter
        meter.outcomes[outcome] += 1
        if outcome == "rejected":
            meter.rejections[QUEUE_FULL] += 1
        if outcome == "ok":
            meter.seconds += seconds
            meter.end_to_end.observe(seconds)


def _outcome_of(error: BaseException) -> Outcome:
    match error:
        case InvalidRequest():
            return "invalid"
        case Overloaded():
            return "rejected"
        case ModelUnavailable() | WorkerLost():
            return "unavailable"
        case GenerationFailed():
            return "failed"
        case Exception():
            return "failed"
        case _:  # CancelledError, GeneratorExit: the reader left
            return "cancelled"
