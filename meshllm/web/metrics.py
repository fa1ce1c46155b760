"""What the gateway counts, for Prometheus. Labels are bounded: a model nobody knows is called `unknown`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshllm.core import serving
from meshllm.core.types import ModelPhase, Snapshot
from meshllm.web.admission import TargetDesk

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a cached answer to a long prompt on a slow machine.
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms of requests, and gauges read from the snapshot at each scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot], desks: Callable[[], Iterable[TargetDesk]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(snapshot, desks))
        self._requests = Counter(
            "mesh_llm_requests", "Requests that ended, by how.", ("api", "model", "outcome"), registry=self.registry
        )
        self._seconds = Histogram(
            "mesh_llm_request_seconds",
            "From a request's arrival to its end.",
            ("api", "model"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "mesh_llm_first_byte_seconds",
            "From a request's arrival to the first byte of its answer.",
            ("api", "model"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        # labels() costs more than the counting itself: what it returns is kept.
        self._kept: dict[tuple[str, str, str], tuple[Counter, Histogram, Histogram]] = {}

    def count(self, api: str, model: str, outcome: str, seconds: float, first_byte: float | None) -> None:
        """A request has ended: `outcome` in words, its whole time and the time to its first byte, in seconds."""
        key = (api, model, outcome)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = (
                self._requests.labels(*key),
                self._seconds.labels(api, model),
                self._first_byte.labels(api, model),
            )
        requests, total, first = kept
        requests.inc()
        total.observe(seconds)
        if first_byte is not None:
            first.observe(first_byte)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)


class _State(Collector):
    """What is so at the moment of the scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot], desks: Callable[[], Iterable[TargetDesk]]) -> None:
        self._snapshot = snapshot
        self._desks = desks

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        phases = GaugeMetricFamily("mesh_llm_model_phase", "1 for the phase a model is in.", labels=("model", "phase"))
        restarts = CounterMetricFamily(
            "mesh_llm_engine_restarts", "Engine processes that ended without being asked to.", labels=("model",)
        )
        for model in snapshot.models:
            now = serving.phase(snapshot.engine, model)
            for phase in ModelPhase:
                phases.add_metric((model.name, phase.value), float(phase is now))
            restarts.add_metric((model.name,), model.restarts)
        backends = GaugeMetricFamily("mesh_llm_backend_up", "Whether a backend answers.", labels=("url",))
        for backend in snapshot.backends:
            backends.add_metric((backend.url,), float(backend.healthy))
        active = GaugeMetricFamily("mesh_llm_requests_active", "Requests a target works on.", labels=("target",))
        waiting = GaugeMetricFamily("mesh_llm_requests_waiting", "Requests that wait for a target.", labels=("target",))
        for desk in self._desks():
            label = (f"{desk.target.kind.value}:{desk.target.address}",)
            active.add_metric(label, desk.active)
            waiting.add_metric(label, desk.waiting)
        return iter((phases, restarts, backends, active, waiting))
