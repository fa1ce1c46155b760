"""What the gateway counts, for Prometheus. Labels are bounded: a model nobody knows is called `unknown`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.routing.routes import TargetKind
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelPhase, Snapshot
from meshllm.web.gateway.target import TargetQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From a cached answer to a long prompt on a slow machine.
# Models that peers serve come and go under any name: so many series and no more, the rest is counted together.
MAX_TALLIES = 4096
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _Tally:
    """Requests of one kind: how many, and how their times spread. Plain numbers: prometheus_client's own counters take
    locks and cost 20 us a request, a tenth of what a request costs in all."""

    __slots__ = ("count", "first", "first_sum", "spread", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.spread = [0] * (len(SECONDS_BUCKETS) + 1)
        self.first = [0] * (len(SECONDS_BUCKETS) + 1)
        self.first_sum = 0.0


class Metrics:
    """Counts of requests, and gauges read from the snapshot at each scrape."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        desks: Callable[[], Iterable[TargetQueue]],
        guesses: Callable[[], Mapping[str, DraftCounts]] = dict,
    ) -> None:
        self.registry = CollectorRegistry()
        self._tallies: dict[tuple[str, str, str], _Tally] = {}
        self._targets: dict[tuple[str, str], int] = {}
        self._guests: dict[tuple[str, str], int] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(snapshot, desks, guesses))
        self.registry.register(_Requests(self._tallies, self._targets, self._guests))

    def count(self, api: str, model: str, outcome: str, seconds: float, first_byte: float | None) -> None:
        """A request has ended: `outcome` in words, its whole time and the time to its first byte, in seconds."""
        tally = self._tallies.get((api, model, outcome))
        if tally is None:
            if len(self._tallies) >= MAX_TALLIES:
                model = "other"
            tally = self._tallies.get((api, model, outcome))
        if tally is None:
            tally = self._tallies[api, model, outcome] = _Tally()
        tally.count += 1
        tally.total += seconds
        tally.spread[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        if first_byte is not None:
            tally.first[bisect_left(SECONDS_BUCKETS, first_byte)] += 1
            tally.first_sum += first_byte

    def count_target(self, kind: TargetKind | None, outcome: str) -> None:
        """A request has ended that was asked of a target of this `kind` last; None: of nobody."""
        key = ("none" if kind is None else "local" if kind is TargetKind.ENGINE else kind.value, outcome)
        self._targets[key] = self._targets.get(key, 0) + 1

    def count_guest(self, model: str, outcome: str) -> None:
        """A peer's request has ended; it is in no other count."""
        key = (model, outcome)
        if key not in self._guests and len(self._guests) >= MAX_TALLIES:
            key = ("other", outcome)
        self._guests[key] = self._guests.get(key, 0) + 1

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)


def _cumulative(spread: list[int]) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in SECONDS_BUCKETS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(spread)), strict=True))


class _Requests(Collector):
    """The tallies, as Prometheus wants them."""

    def __init__(
        self,
        tallies: dict[tuple[str, str, str], _Tally],
        targets: dict[tuple[str, str], int],
        guests: dict[tuple[str, str], int],
    ) -> None:
        self._tallies = tallies
        self._targets = targets
        self._guests = guests

    def collect(self) -> Iterator[Metric]:
        labels = ("api", "model", "outcome")
        requests = CounterMetricFamily("mesh_llm_requests", "Requests that ended, by how.", labels=labels)
        seconds = HistogramMetricFamily(
            "mesh_llm_request_seconds", "From a request's arrival to its end.", labels=labels
        )
        first = HistogramMetricFamily(
            "mesh_llm_first_byte_seconds", "From a request's arrival to its answer's first byte.", labels=labels
        )
        for key, tally in self._tallies.items():
            requests.add_metric(key, tally.count)
            seconds.add_metric(key, _cumulative(tally.spread), tally.total)
            first.add_metric(key, _cumulative(tally.first), tally.first_sum)
        targets = CounterMetricFamily(
            "mesh_llm_target_requests", "Requests that ended, by who was asked last.", labels=("target", "outcome")
        )
        for label, count in self._targets.items():
            targets.add_metric(label, count)
        guests = CounterMetricFamily(
            "mesh_llm_peer_requests", "Requests of peers that ended here.", labels=("model", "outcome")
        )
        for label, count in self._guests.items():
            guests.add_metric(label, count)
        return iter((requests, seconds, first, targets, guests))


class _State(Collector):
    """What is so at the moment of the scrape."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        desks: Callable[[], Iterable[TargetQueue]],
        guesses: Callable[[], Mapping[str, DraftCounts]],
    ) -> None:
        self._snapshot = snapshot
        self._desks = desks
        self._guesses = guesses

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        phases = GaugeMetricFamily("mesh_llm_model_phase", "1 for the phase a model is in.", labels=("model", "phase"))
        restarts = CounterMetricFamily(
            "mesh_llm_engine_restarts", "Engine processes that ended without being asked to.", labels=("model",)
        )
        for model in snapshot.models:
            now = next_step.phase(snapshot.engine, model)
            for phase in ModelPhase:
                phases.add_metric((model.name, phase.value), float(phase is now))
            restarts.add_metric((model.name,), model.restarts)
        backends = GaugeMetricFamily("mesh_llm_backend_up", "Whether a backend answers.", labels=("url",))
        for backend in snapshot.backends:
            backends.add_metric((backend.url,), float(backend.healthy))
        active = GaugeMetricFamily("mesh_llm_requests_active", "Requests a target works on.", labels=("target",))
        waiting = GaugeMetricFamily("mesh_llm_requests_waiting", "Requests that wait for a target.", labels=("target",))
        for desk in self._desks():
            target = desk.target
            which = f"/{target.model}" if target.model else ""  # a peer has a desk for each of its models
            label = (f"{target.kind.value}:{target.address}{which}",)
            active.add_metric(label, desk.active)
            waiting.add_metric(label, desk.waiting)
        return iter((phases, restarts, backends, active, waiting, *self._speculation()))

    def _speculation(self) -> tuple[Metric, Metric]:
        """As of the last request that ended some moments ago."""
        name = "mesh_llm_speculation"
        drafted = CounterMetricFamily(f"{name}_drafted_tokens", "Tokens guessed ahead.", labels=("model",))
        accepted = CounterMetricFamily(
            f"{name}_accepted_tokens", "Tokens guessed ahead that were right.", labels=("model",)
        )
        for model, guesses in self._guesses().items():
            drafted.add_metric((model,), guesses.drafted)
            accepted.add_metric((model,), guesses.accepted)
        return drafted, accepted
