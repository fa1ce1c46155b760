"""Prometheus metrics of the node. `DESCRIPTIONS` is the complete table of names, types, labels and meanings.

Labels are bounded and stable: a model name is a label only if such a model exists, a target is its id (never a socket
path), a peer is never a label of a counter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshllm.core.membership.views import PeerStatus
from meshllm.core.memory.speculation import DraftCounts
from meshllm.core.routing.routes import TargetKind
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelPhase, Snapshot
from meshllm.web.gateway.request_log import REFUSED, Outcome, RequestTrace
from meshllm.web.gateway.target import TargetQueue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Models of peers come and go under any name: this many series and no more; the rest is counted as "other".
MAX_TALLIES = 4096
# From a cached answer to a long prompt on a slow machine.
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class MetricDescription(NamedTuple):
    """A metric: "counter" (its name gets the suffix `_total`), "gauge" or "histogram"; label names; meaning."""

    kind: str
    labels: tuple[str, ...]
    help: str


DESCRIPTIONS: dict[str, MetricDescription] = {
    "mesh_llm_requests": MetricDescription(
        "counter",
        ("api", "model", "outcome"),
        "Requests for a model that ended, and refused requests of any kind; without those of peers.",
    ),
    "mesh_llm_request_seconds": MetricDescription(
        "histogram", ("api", "model", "outcome"), "From a request's arrival to its end; refused requests do not count."
    ),
    "mesh_llm_first_byte_seconds": MetricDescription(
        "histogram", ("api", "model", "outcome"), "From a request's arrival to the first byte (token) of its response."
    ),
    "mesh_llm_queue_seconds": MetricDescription(
        "histogram", ("api", "model", "outcome"), "Time a request waited for a slot or for its model to load."
    ),
    "mesh_llm_attempts": MetricDescription(
        "counter", ("target", "outcome"), "Attempts at targets, by kind of target: local, backend or peer."
    ),
    "mesh_llm_target_requests": MetricDescription(
        "counter",
        ("target", "outcome"),
        "Requests for a model that ended, by their last target; none: no target was tried. Without invalid requests.",
    ),
    "mesh_llm_peer_requests": MetricDescription(
        "counter", ("model", "outcome"), "Requests of peers that ended here; they are in no other count."
    ),
    "mesh_llm_tokens": MetricDescription(
        "counter", ("model", "kind"), "Tokens that responses reported: prompt, cached (part of prompt), completion."
    ),
    "mesh_llm_engine_tokens": MetricDescription(
        "counter",
        ("model", "kind"),
        "Tokens of the engines here, for callers and peers: computed (of prompts), cached (of prompts, taken from the "
        "prompt cache), written. Of requests that were answered.",
    ),
    "mesh_llm_requests_active": MetricDescription("gauge", ("target",), "Requests that a target is processing."),
    "mesh_llm_requests_waiting": MetricDescription("gauge", ("target",), "Requests in a target's queue."),
    "mesh_llm_model_phase": MetricDescription("gauge", ("model", "phase"), "1 for the phase a model is in, else 0."),
    "mesh_llm_engine_restarts": MetricDescription(
        "counter", ("model",), "Engine processes that ended unexpectedly and were restarted."
    ),
    "mesh_llm_backend_up": MetricDescription("gauge", ("url",), "1 if a backend answers, else 0."),
    "mesh_llm_speculation_drafted_tokens": MetricDescription(
        "counter", ("model",), "Draft tokens of speculative decoding."
    ),
    "mesh_llm_speculation_accepted_tokens": MetricDescription(
        "counter", ("model",), "Draft tokens that were accepted."
    ),
    "mesh_llm_peers": MetricDescription("gauge", ("state",), "Nodes of the mesh known here, by membership state."),
    "mesh_llm_links": MetricDescription("gauge", (), "QUIC connections to peers."),
    "mesh_llm_lanes": MetricDescription("gauge", (), "Open TLS/TCP connections to peers."),
    "mesh_llm_clients": MetricDescription("gauge", (), "Clients connected to this node."),
    "mesh_llm_leases": MetricDescription(
        "gauge", ("role",), "Leases of split models: as host (models split here) and as worker (layers served here)."
    ),
    "mesh_llm_records_written": MetricDescription(
        "counter", (), "Versions of this node's record since it started; each is sent through the whole mesh."
    ),
    "mesh_llm_messages": MetricDescription(
        "counter", ("direction", "type"), "Mesh messages (gossip, probes, leases), sent or received, by message type."
    ),
    "mesh_llm_message_bytes": MetricDescription("counter", ("direction",), "Bytes of mesh messages."),
    "mesh_llm_messages_rate_limited": MetricDescription(
        "counter", (), "Messages of peers beyond their rate limit; each ends the link."
    ),
    "mesh_llm_transfer_bytes": MetricDescription(
        "counter", ("direction",), "Bytes of model files exchanged with peers: upload or download."
    ),
    "mesh_llm_event_loop_lag_seconds": MetricDescription(
        "gauge", (), "Event-loop lag: the greatest delay of a timer in the last minute, sampled once a second."
    ),
}


@dataclass(frozen=True, slots=True)
class NodeCounters:
    """What the daemon counts for the metrics. `messages`: by direction ("sent", "received") and message type."""

    lanes: int = 0
    loop_lag_seconds: float = 0.0
    messages: Mapping[tuple[str, str], int] = field(default_factory=dict)
    message_bytes: Mapping[str, int] = field(default_factory=dict)
    rate_limited: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0


# API, model, outcome, and kind of the last target: `_NO_TARGET` if none was tried, `_INVALID` if it had no model.
_TallyKey = tuple[str, str, str, str]
_NO_TARGET = "none"
_INVALID = ""


class _Histogram:
    """A histogram in plain numbers: prometheus_client's own takes locks and costs 20 us a request, a tenth of all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.counts = [0] * (len(SECONDS_BUCKETS) + 1)

    @property
    def used(self) -> bool:
        return any(self.counts)

    def add(self, other: _Histogram) -> None:
        self.total += other.total
        self.counts = [one + two for one, two in zip(self.counts, other.counts, strict=True)]

    def cumulative(self) -> list[tuple[str, float]]:
        bounds = [*(str(bound) for bound in SECONDS_BUCKETS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class _Tally:
    """Requests: their number, times, and tokens (prompt, cached, completion)."""

    __slots__ = ("cached", "completion", "count", "first_byte", "prompt", "queue", "seconds")

    def __init__(self) -> None:
        self.count = self.prompt = self.cached = self.completion = 0
        self.seconds = _Histogram()
        self.first_byte = _Histogram()
        self.queue = _Histogram()

    def add(self, other: _Tally) -> None:
        self.count += other.count
        self.seconds.add(other.seconds)
        self.first_byte.add(other.first_byte)
        self.queue.add(other.queue)


class Metrics:
    """Counts requests as they end; all else is read when the metrics are."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        queues: Callable[[], Iterable[TargetQueue]],
        draft_counts: Callable[[], Mapping[str, DraftCounts]] = dict,
        counters: Callable[[], NodeCounters] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        # By API, model, outcome and kind of target: one look-up for each request. Sums are made when they are read.
        self._tallies: dict[_TallyKey, _Tally] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._peers: dict[tuple[str, str], int] = {}
        # By model: tokens computed, cached, written.
        self._engine: dict[str, list[int]] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(_NodeCollector(snapshot, queues, draft_counts, counters or NodeCounters))
        self.registry.register(_RequestCollector(self))

    def count_request(self, model: str, kind: TargetKind | None, trace: RequestTrace) -> None:
        """A request has ended. `kind`: that of its last target; None: it had none."""
        outcome, started = trace.outcome, trace.started
        assert outcome is not None
        # `_value_`: the property `value` and the hash of an Enum are Python code, too slow for each request.
        key = (trace.api, model, outcome._value_, _NO_TARGET if kind is None else kind._value_)
        tally = self._tallies.get(key) or self._tally(key)
        tally.count += 1
        # Not by methods of the histograms: three calls cost each request some microseconds.
        if outcome is not REFUSED:
            seconds = (trace.ended or started) - started
            times = tally.seconds
            times.total += seconds
            times.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        if (first_byte := trace.first_byte) is not None:
            seconds = first_byte - started
            times = tally.first_byte
            times.total += seconds
            times.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        if (queued := trace.queue_seconds) is not None:
            times = tally.queue
            times.total += queued
            times.counts[bisect_left(SECONDS_BUCKETS, queued) if queued else 0] += 1
        if (tokens := trace.prompt_tokens) is not None:
            tally.prompt += tokens
            tally.cached += trace.cached_tokens or 0
        if (tokens := trace.completion_tokens) is not None:
            tally.completion += tokens

    def _tally(self, key: _TallyKey) -> _Tally:
        if key not in self._tallies and len(self._tallies) >= MAX_TALLIES:
            key = (key[0], "other", *key[2:])
        return self._tallies.setdefault(key, _Tally())

    def count_rejected(self, api: str) -> None:
        """A request was rejected before it had a model."""
        self._tally((api, "unknown", REFUSED._value_, _INVALID)).count += 1

    def count_attempt(self, kind: TargetKind | None, outcome: Outcome) -> None:
        """An attempt at a target has ended."""
        key = (_NO_TARGET if kind is None else kind._value_, outcome._value_)
        self._attempts[key] = self._attempts.get(key, 0) + 1

    def count_peer_request(self, model: str, outcome: Outcome) -> None:
        """A peer's request has ended; it is in no other count."""
        key = (model, outcome._value_)
        if key not in self._peers and len(self._peers) >= MAX_TALLIES:
            key = ("other", outcome._value_)
        self._peers[key] = self._peers.get(key, 0) + 1

    def count_engine_tokens(self, model: str, trace: RequestTrace) -> None:
        """An engine here has ended a request, of a caller or a peer."""
        if model not in self._engine and len(self._engine) >= MAX_TALLIES:
            model = "other"
        counts = self._engine.setdefault(model, [0, 0, 0])
        cached = trace.cached_tokens or 0
        counts[0] += max(0, (trace.prompt_tokens or 0) - cached)
        counts[1] += cached
        counts[2] += trace.completion_tokens or 0

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        return generate_latest(self.registry)


def _by_kind(counts: Mapping[tuple[str, str], int]) -> list[tuple[tuple[str, str], int]]:
    """Counts by kind of target and outcome; engines are called "local"."""
    return [(("local" if kind == TargetKind.ENGINE.value else kind, how), n) for (kind, how), n in counts.items()]


def _counter(name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> CounterMetricFamily:
    description = DESCRIPTIONS[name]
    family = CounterMetricFamily(name, description.help, labels=description.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _gauge(name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    description = DESCRIPTIONS[name]
    family = GaugeMetricFamily(name, description.help, labels=description.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _histogram(name: str, values: Iterable[tuple[tuple[str, ...], _Histogram]]) -> HistogramMetricFamily:
    description = DESCRIPTIONS[name]
    family = HistogramMetricFamily(name, description.help, labels=description.labels)
    for labels, histogram in values:
        if histogram.used:
            family.add_metric(labels, histogram.cumulative(), histogram.total)
    return family


class _RequestCollector(Collector):
    """The counts of requests."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        m = self._metrics
        by_outcome: dict[tuple[str, str, str], _Tally] = {}
        targets, tokens = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for (api, model, outcome, target), tally in m._tallies.items():
            by_outcome.setdefault((api, model, outcome), _Tally()).add(tally)
            if target != _INVALID:
                targets[target, outcome] += tally.count
            if tally.prompt or tally.completion:
                tokens[model, "prompt"] += tally.prompt
                tokens[model, "cached"] += tally.cached
                tokens[model, "completion"] += tally.completion
        tallies = list(by_outcome.items())
        yield _counter("mesh_llm_requests", [(key, tally.count) for key, tally in tallies])
        yield _histogram("mesh_llm_request_seconds", [(key, tally.seconds) for key, tally in tallies])
        yield _histogram("mesh_llm_first_byte_seconds", [(key, tally.first_byte) for key, tally in tallies])
        yield _histogram("mesh_llm_queue_seconds", [(key, tally.queue) for key, tally in tallies])
        yield _counter("mesh_llm_attempts", _by_kind(m._attempts))
        yield _counter("mesh_llm_target_requests", _by_kind(targets))
        yield _counter("mesh_llm_peer_requests", m._peers.items())
        yield _counter("mesh_llm_tokens", tokens.items())
        kinds = ("computed", "cached", "written")
        engine = [
            ((model, kind), n) for model, counts in m._engine.items() for kind, n in zip(kinds, counts, strict=True)
        ]
        yield _counter("mesh_llm_engine_tokens", engine)


class _NodeCollector(Collector):
    """The state of the node at the moment of the scrape, and the daemon's counters."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        queues: Callable[[], Iterable[TargetQueue]],
        draft_counts: Callable[[], Mapping[str, DraftCounts]],
        counters: Callable[[], NodeCounters],
    ) -> None:
        self._snapshot = snapshot
        self._queues = queues
        self._draft_counts = draft_counts
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot()
        yield from self._models(snapshot)
        yield from self._targets()
        yield from _mesh(snapshot)
        counters = self._counters()
        yield _gauge("mesh_llm_lanes", [((), counters.lanes)])
        yield _gauge("mesh_llm_event_loop_lag_seconds", [((), counters.loop_lag_seconds)])
        yield _counter("mesh_llm_messages", counters.messages.items())
        yield _counter("mesh_llm_message_bytes", [((way,), n) for way, n in counters.message_bytes.items()])
        yield _counter("mesh_llm_messages_rate_limited", [((), counters.rate_limited)])
        transferred = (("upload",), counters.uploaded_bytes), (("download",), counters.downloaded_bytes)
        yield _counter("mesh_llm_transfer_bytes", transferred)

    def _models(self, snapshot: Snapshot) -> Iterator[Metric]:
        phases = [
            ((model.name, phase.value), float(phase is next_step.phase(snapshot.engine, model)))
            for model in snapshot.models
            for phase in ModelPhase
        ]
        yield _gauge("mesh_llm_model_phase", phases)
        yield _counter("mesh_llm_engine_restarts", [((model.name,), model.restarts) for model in snapshot.models])
        yield _gauge("mesh_llm_backend_up", [((each.url,), float(each.healthy)) for each in snapshot.backends])
        counts = self._draft_counts()  # as of the last request that ended some moments ago
        drafted = [((model,), count.drafted) for model, count in counts.items()]
        accepted = [((model,), count.accepted) for model, count in counts.items()]
        yield _counter("mesh_llm_speculation_drafted_tokens", drafted)
        yield _counter("mesh_llm_speculation_accepted_tokens", accepted)

    def _targets(self) -> Iterator[Metric]:
        # Two engine processes of a model that follow one another have the same id.
        active, waiting = Counter[str](), Counter[str]()
        for queue in self._queues():
            active[queue.id] += queue.active
            waiting[queue.id] += queue.waiting
        yield _gauge("mesh_llm_requests_active", [((target,), n) for target, n in active.items()])
        yield _gauge("mesh_llm_requests_waiting", [((target,), n) for target, n in waiting.items()])


def _mesh(snapshot: Snapshot) -> Iterator[Metric]:
    mesh = snapshot.mesh
    peers = mesh.peers if mesh is not None else ()
    states = Counter(peer.status for peer in peers)
    yield _gauge("mesh_llm_peers", [((status.value,), states[status]) for status in PeerStatus])
    yield _gauge("mesh_llm_links", [((), sum(peer.linked for peer in peers))])
    yield _gauge("mesh_llm_clients", [((), len(mesh.clients) if mesh is not None else 0)])
    hosted = sum(model.split is not None and model.split.lease is not None for model in snapshot.models)
    leases = ((("host",), hosted), (("worker",), int(snapshot.worker_lease is not None)))
    yield _gauge("mesh_llm_leases", leases)
    written = mesh.record.version.version if mesh is not None and mesh.record is not None else 0
    yield _counter("mesh_llm_records_written", [((), written)])
