"""Writes the metrics page: what the requests' meters hold and what each model's status says.

Engines count from 0 again when their worker restarts; the page never goes backwards, because `Monotonic`
keeps what the workers before had counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ocak.core.status import EngineStats, ModelStatus
from ocak.telemetry.metrics import OUTCOMES, Histogram, ModelMeter, meters

METER_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelMeter], Histogram]], ...] = (
    ("time_to_first_token_seconds", "From the request's arrival to its first text.", lambda m: m.first_token),
    ("inter_token_latency_seconds", "Between two tokens of one answer.", lambda m: m.inter_token),
    ("e2e_request_latency_seconds", "Of whole answers.", lambda m: m.end_to_end),
    ("request_queue_time_seconds", "From the request's arrival to its slot.", lambda m: m.queue),
    ("request_prefill_time_seconds", "From the slot to the first text.", lambda m: m.prefill),
    ("request_decode_time_seconds", "From the first text to the end.", lambda m: m.decode),
)
ENGINE_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("preemptions", "Sequences set aside because the KV cache was full.", lambda e: e.preemptions),
    ("engine_steps", "Steps of the engine.", lambda e: e.steps),
    ("engine_busy_seconds", "Wall time inside engine steps.", lambda e: e.busy_s),
    ("engine_decode_seconds", "Of it, inside the model's forward passes.", lambda e: e.decode_s),
    ("engine_draft_seconds", "Of it, inside those of its draft model.", lambda e: e.draft_s),
    ("engine_prompt_tokens", "Prompt tokens the engine has computed.", lambda e: e.prompt_tokens),
    ("engine_generation_tokens", "Tokens the engine has sampled.", lambda e: e.generation_tokens),
    ("speculation_guessed_tokens", "Tokens guessed ahead.", lambda e: e.guessed_tokens),
    ("speculation_accepted_tokens", "Of them, those that were right.", lambda e: e.right_guesses),
    ("speculation_drafted_tokens", "Of those guessed, the draft model's.", lambda e: e.drafted_tokens),
    ("speculation_accepted_drafted_tokens", "Of them, those that were right.", lambda e: e.right_drafts),
)
ENGINE_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("requests_running", "Requests that hold a slot.", lambda e: e.running),
    ("requests_waiting", "Requests that wait for a slot.", lambda e: e.waiting),
    ("slots", "Sequences that can run at once.", lambda e: e.slots),
    ("slots_used", "Slots taken.", lambda e: e.slots_used),
    ("kv_cells", "KV cells of the model.", lambda e: e.kv_cells),
    ("kv_cells_used", "KV cells of running requests.", lambda e: e.kv_cells_used),
    ("kv_cells_cached", "KV cells of prefixes that are kept for others.", lambda e: e.kv_cells_cached),
    ("saved_tokens", "Tokens of such prefixes in host memory.", lambda e: e.saved_tokens),
    ("kv_cache_usage_ratio", "Share of the KV cells taken, 0 to 1.", lambda e: _share(e)),
)


class Monotonic:
    """Counters that survive the restart of what they are read from."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], float] = {}
        self._seen: dict[tuple[str, str], tuple[object, float]] = {}

    def read(self, key: tuple[str, str], era: object, value: float) -> float:
        """Return `value` plus what was counted in earlier eras; a fall in the same era begins a new one."""
        last_era, last = self._seen.get(key, (era, 0.0))
        if era != last_era or value < last:
            self._before[key] = self._before.get(key, 0.0) + last
        self._seen[key] = (era, value)
        return self._before.get(key, 0.0) + value


class MetricsPage:
    """The page that Prometheus reads; `statuses` is asked anew at every scrape."""

    def __init__(self, statuses: Callable[[], Iterable[ModelStatus]]) -> None:
        self._statuses = statuses
        self._monotonic = Monotonic()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(_Families(self._families)), content_type

    def _families(self) -> Iterator[Metric]:
        statuses = tuple(self._statuses())
        yield from REGISTRY.collect()
        yield from _request_families()
        yield from _gauge_families(statuses)
        yield from self._engine_counters(statuses)

    def _engine_counters(self, statuses: tuple[ModelStatus, ...]) -> Iterator[Metric]:
        for name, text, value in ENGINE_COUNTERS:
            family = CounterMetricFamily(f"ocak_{name}", text, labels=["model"])
            for status in statuses:
                era = (status.restarts, status.worker_pid)
                total = self._monotonic.read((status.key, name), era, value(status.engine))
                family.add_metric([status.key], total)
            yield family
        family = CounterMetricFamily("ocak_worker_restarts", "Workers started again.", labels=["model"])
        for status in statuses:
            family.add_metric([status.key], self._monotonic.read((status.key, "restarts"), None, status.restarts))
        yield family


class _Families(Collector):
    """What prometheus_client's encoders ask of a registry: an iterable of metric families."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _request_families() -> Iterator[Metric]:
    requests = CounterMetricFamily("ocak_inference_requests", "Requests by outcome.", labels=["model", "outcome"])
    seconds = SummaryMetricFamily("ocak_inference_time_seconds", "Time of whole answers.", labels=["model"])
    rejections = CounterMetricFamily(
        "ocak_admission_rejections", "Requests turned away by a full queue.", labels=["model", "reason"]
    )
    for key, meter in meters().items():
        for outcome in OUTCOMES:
            requests.add_metric([key, outcome], meter.outcomes[outcome])
        seconds.add_metric([key], count_value=meter.outcomes["ok"], sum_value=meter.seconds)
        for reason, count in meter.rejections.items():
            rejections.add_metric([key, reason], count)
    yield requests
    yield seconds
    yield rejections
    yield from _token_families()
    yield from _histogram_families()


def _token_families() -> Iterator[Metric]:
    prompt = CounterMetricFamily(
        "ocak_prompt_tokens", "Prompt tokens of whole answers.", labels=["model", "cached"]
    )
    generation = CounterMetricFamily("ocak_generation_tokens", "Tokens handed out.", labels=["model"])
    shifted = CounterMetricFamily(
        "ocak_context_shift_tokens", "Tokens dropped to fit a context.", labels=["model"]
    )
    for key, meter in meters().items():
        prompt.add_metric([key, "true"], meter.cached_tokens)
        prompt.add_metric([key, "false"], meter.prompt_tokens - meter.cached_tokens)
        generation.add_metric([key], meter.generation_tokens)
        shifted.add_metric([key], meter.dropped_tokens)
    yield from (prompt, generation, shifted)


def _histogram_families() -> Iterator[Metric]:
    for name, text, histogram_of in METER_HISTOGRAMS:
        family = HistogramMetricFamily(f"ocak_{name}", text, labels=["model"])
        for key, meter in meters().items():
            histogram = histogram_of(meter)
            family.add_metric([key], buckets=_cumulative(histogram), sum_value=histogram.sum)
        yield family


def _gauge_families(statuses: tuple[ModelStatus, ...]) -> Iterator[Metric]:
    for name, text, value in ENGINE_GAUGES:
        family = GaugeMetricFamily(f"ocak_{name}", text, labels=["model"])
        for status in statuses:
            family.add_metric([status.key], value(status.engine))
        yield family
    ready = GaugeMetricFamily("ocak_model_ready", "1 while the model answers.", labels=["model"])
    memory = GaugeMetricFamily("ocak_memory_bytes", "Memory of the model.", labels=["model", "kind"])
    load = GaugeMetricFamily("ocak_model_load_seconds", "Time of the last load.", labels=["model"])
    for status in statuses:
        ready.add_metric([status.key], float(status.state == "ready"))
        for kind in ("estimated", "reserved", "resident"):
            memory.add_metric([status.key, kind], getattr(status.memory, kind))
        if status.load.last_seconds is not None:
            load.add_metric([status.key], status.load.last_seconds)
    yield from (ready, memory, load)


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _share(engine: EngineStats) -> float:
    return engine.kv_cells_used / engine.kv_cells if engine.kv_cells else 0.0
