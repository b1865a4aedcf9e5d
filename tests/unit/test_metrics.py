"""Timers, histograms and the page, without a server."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ocak.core.errors import GenerationFailed, InvalidRequest, Overloaded, WorkerLost
from ocak.core.events import Delta, Finished, Started, Usage
from ocak.core.status import EngineStats, ModelStatus
from ocak.telemetry import metrics
from ocak.telemetry.exposition import MetricsPage, Monotonic
from ocak.telemetry.metrics import Histogram, RequestTimer, meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: Clock.now)
    return Clock


@pytest.fixture
def fresh(request):
    return meter(request.node.name), request.node.name


def test_a_timer_tells_queue_prefill_and_decode_apart(clock, fresh):
    counted, key = fresh
    timer = RequestTimer(key)
    for seconds, event in [
        (2, Started(10)),
        (3, Delta("a", 1)),
        (1, Delta("bcd", 3)),
        (4, Finished("stop", Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6))),
    ]:
        clock.now += seconds
        timer.observe(event)
    assert timer.finish() == timer.finish() == 10
    assert (counted.queue.sum, counted.prefill.sum, counted.decode.sum) == (2, 3, 5)
    assert (counted.first_token.sum, counted.end_to_end.sum) == (5, 10)
    assert (sum(counted.inter_token.counts), counted.inter_token.sum) == (3, pytest.approx(1))
    assert (counted.prompt_tokens, counted.cached_tokens, counted.generation_tokens) == (10, 6, 4)
    assert counted.outcomes == {"ok": 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidRequest("x"), "invalid"),
        (Overloaded("x"), "rejected"),
        (WorkerLost("x"), "unavailable"),
        (GenerationFailed("x"), "failed"),
        (ZeroDivisionError(), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
    ],
)
def test_every_ending_has_one_outcome(fresh, error, outcome):
    counted, key = fresh
    timer = RequestTimer(key)
    timer.fail(error)
    timer.finish()
    timer.finish()
    assert counted.outcomes == {outcome: 1}
    assert counted.rejections == ({"queue_full": 1} if outcome == "rejected" else {})
    assert counted.seconds == 0


def test_a_reader_that_stops_after_the_end_has_not_cancelled(fresh):
    counted, key = fresh
    timer = RequestTimer(key)
    timer.observe(Finished("stop", Usage()))
    timer.fail(GeneratorExit())
    timer.finish()
    assert counted.outcomes == {"ok": 1}


def test_a_value_on_a_bound_belongs_below_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1]


def test_counters_survive_restarts():
    counter = Monotonic()
    key = ("model", "steps")
    readings = [(1, 5), (1, 8), (2, 3), (2, 9), (3, 20), (3, 1), (3, 2)]
    assert [counter.read(key, era, value) for era, value in readings] == [5, 8, 11, 17, 37, 38, 39]


def test_the_page_never_goes_backwards():
    statuses = [
        ModelStatus(key="m", provider="llama", kind="text", state="ready", restarts=r, engine=EngineStats(steps=s))
        for r, s in [(0, 10), (1, 4), (1, 6)]
    ]
    current: list[ModelStatus] = []
    page = MetricsPage(lambda: current)
    seen = []
    for status in statuses:
        current[:] = [status]
        text, _ = page.render()
        families = {f.name: f for f in text_string_to_metric_families(text.decode())}
        seen.append(families["ocak_engine_steps"].samples[0].value)
    assert seen == [10, 14, 16]
