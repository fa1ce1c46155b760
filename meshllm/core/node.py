"""The core of a node: events in, commands out.

Law: `handle` is the only way in, and neither waits nor fails; the caller passes the time. Events that belong to an
engine process that is no more (an older generation) change nothing. Readers get `snapshot()`, a frozen value, made when
it is asked for. What is of other nodes is delegated: to `peers.Peers`, or for a client to `guest.Guest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.client import ClientMember
from meshllm.core.membership.links import Rng
from meshllm.core.membership.member import Member, MeshConfig
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import (
    MAX_BACKEND_MODELS,
    MAX_DEVICES,
    MAX_ON_DISK,
    MAX_SERVED,
    MAX_SPLITS,
    MAX_WANTED,
    ModelLoad,
    NodeId,
    Role,
    ServedModel,
    SplitCandidate,
)
from meshllm.core.serving import placement
from meshllm.core.serving.local_models import LocalModels
from meshllm.core.snapshot import BackendState, ServerPhase, Snapshot
from meshllm.core.split.coordinator import SplitCoordinator
from meshllm.core.split.lease import LeaseMessage
from meshllm.util.backoff import backoff

# A healthy backend is asked for its models this often; a silent one sooner at first, then ever less often.
BACKEND_PROBE_SECONDS = 10.0
BACKEND_RETRY_BASE_SECONDS = 0.5
BACKEND_RETRY_CAP_SECONDS = 15.0
# A node without a model of its own looks this often what the mesh could use; the first time after the table has come
# and most of those in it have shown that they live.
PLACEMENT_SECONDS = 3.0


class NodeCore:
    """One node's knowledge and its decisions."""

    def __init__(self, config: MeshConfig | None = None, rng: Rng | None = None) -> None:
        """Without `config` this node is in no mesh. With it, `rng` is needed as well."""
        self._backends: dict[str, BackendState] = {}
        self._wishes: dict[str, None] = {}
        self._on_disk: tuple[str, ...] = ()
        self._aliases: tuple[tuple[str, str], ...] = ()
        self._memory = 0
        self._devices: tuple[int, ...] = ()
        self._loads: tuple[ModelLoad, ...] = ()
        self._taken: str | None = None  # served because the mesh needed it
        self._placement_at: float | None = None
        self._due: float | None = None  # when a model or a backend is to be looked at again
        self._peers: Member | ClientMember | None = None
        if config is not None:
            if rng is None:
                raise ValueError("a node of a mesh needs randomness")
            self._peers = Member(config, rng) if config.role is Role.NODE else ClientMember(config, rng)
        self._splitting: SplitCoordinator | None = None
        if config is not None and rng is not None and isinstance(self._peers, Member):
            peers = self._peers
            self._splitting = SplitCoordinator(config.node, peers.tending, rng, lambda: peers.view().phase)
        self._local = LocalModels(self._splitting)
        self._stopping = False
        self._finished = False
        self._snapshot = Snapshot()
        self._dirty = self._peers is not None
        self._handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            **self._local.handlers,
            e.MeshModelRequested: self._model_wished,
            e.DiskScanned: self._disk_scanned,
            e.SpeedMeasured: self._speed_measured,
            e.LoadsChanged: self._loads_changed,
            e.BackendAdded: self._backend_added,
            e.StopWanted: self._stop_wanted,
            e.BackendAnswered: self._backend_answered,
            e.BackendSilent: self._backend_silent,
        }

    # -- what the daemon calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` at `now` (seconds, monotonic); return what is to be done about it, in order."""
        todo: list[c.Command] = []
        handler = self._handlers.get(type(event))
        # Most of what happens is between nodes and over in microseconds: only what concerns this one is looked at here.
        if handler is not None or (self._due is not None and self._due <= now):
            if handler is not None:
                handler(event, now)
            todo = self._decide(now)
            self._dirty = True
        if self._peers is not None:
            # What this node says of itself changes by what happens to it; the leaving is a record of its own.
            if handler is not None and not isinstance(event, e.TimePassed | e.StopWanted):
                todo += self._peers.local(now, **self._said())
            todo += self._peers.handle(event, now)
            todo += self._split(event, now)
            todo += self._take(now)
        if self._stopping and not self._finished and self._local.at_rest:
            self._finished = True
            todo.append(c.Finish())
        return todo

    def next_deadline(self) -> float | None:
        """When to send `TimePassed` if nothing else happens before (seconds, same clock), or None."""
        times = [self._due]
        if self._peers is not None:
            times.append(self._peers.next_deadline())
            if not self._stopping:
                times.append(self._placement_at)
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> Snapshot:
        """What is known now. The same object until something changes."""
        if self._dirty or (self._peers is not None and self._peers.dirty):
            self._dirty = False
            self._publish()
        return self._snapshot

    def peer_status(self, node: NodeId) -> PeerStatus | None:
        """Where a peer is in its life, None if it is not known: what the snapshot says, without making one."""
        return self._peers.status(node) if self._peers is not None else None

    # -- deciding

    def _decide(self, now: float) -> list[c.Command]:
        todo = [*self._local.decide(now), *self._probes(now)]
        times = [self._local.next_deadline()]
        if self._splitting is not None:
            todo += self._splitting.drain_commands()
            times.append(self._splitting.next_deadline())
        if not self._stopping:
            times += [b.next_probe for b in self._backends.values() if not b.probing]
        self._due = min((time for time in times if time is not None), default=None)
        return todo

    def _probes(self, now: float) -> list[c.Command]:
        todo: list[c.Command] = []
        if self._stopping:
            return todo
        for url, backend in self._backends.items():
            if not backend.probing and backend.next_probe is not None and backend.next_probe <= now:
                self._backends[url] = replace(backend, probing=True)
                todo.append(c.ProbeBackend(url))
        return todo

    def _publish(self) -> None:
        new = Snapshot(
            self._snapshot.version,
            self._local.engine,
            tuple(self._local.models.values()),
            tuple(self._backends.values()),
            self._stopping,
            self._peers.view() if self._peers is not None else None,
            tuple(self._wishes),
            self._splitting.worker_lease if self._splitting is not None else None,
        )
        if new != self._snapshot:
            self._snapshot = replace(new, version=new.version + 1)

    # -- what is carried by several nodes

    def _split(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in what concerns leases: what peers say of them, links that come and go, the worker here, the time."""
        splitting, peers = self._splitting, self._peers
        if splitting is None or not isinstance(peers, Member):
            return []
        match event:
            case e.MessageReceived(peer, LeaseMessage() as message):
                splitting.on_message(peer, message, self._memory, self._busy, now)
            case e.LinkUp(peer):
                splitting.link_up(peer, now)
            case e.LinkDown(peer):
                splitting.link_down(peer, now)
            case e.WorkerProgress() | e.WorkerReady() | e.WorkerGone():
                splitting.on_worker_event(event, now)
            case e.TunnelBroken():
                splitting.tunnel_broken(event, now)
            case _:
                deadline = splitting.next_deadline()
                if deadline is None or now < deadline:
                    return []
                splitting.tick(now)
        self._dirty = True
        todo = [*self._local.members_lost(now), *self._decide(now)]
        return [*todo, *peers.local(now, **self._said())]

    def _busy(self, model: str) -> str:
        """Why this node cannot lend to a host of `model`; empty if it can."""
        if self._stopping:
            return "it is stopping"
        for name, own in self._local.models.items():
            alone = own.measured is not None and own.measured.fits_locally and not own.force_split
            if own.wanted and (name != model or alone or own.server is not ServerPhase.NONE):
                return f"it serves {name} itself"
        return "it has backends" if self._backends else ""

    # -- the mesh

    def _said(self) -> dict[str, object]:
        """What this node says of itself; the signer cuts what is beyond the bounds of a record."""
        served = [
            ServedModel(m.name, m.facts.purpose, run.context_length, run.slots, m.facts.size, m.facts.vision)
            for m in self._local.models.values()
            if m.wanted
            and m.server is ServerPhase.SERVING
            and m.facts is not None
            and (run := m.server_facts) is not None
        ][:MAX_SERVED]
        names = {model.name for model in served}
        pooled = [name for b in self._backends.values() if b.healthy for name in b.models if name not in names]
        served += [ServedModel(name) for name in list(dict.fromkeys(pooled))[:MAX_BACKEND_MODELS]]
        # What is to be split is only wanted together with the word that it is: whoever has it would take it whole.
        wants = [
            name
            for name, model in self._local.models.items()
            if model.wanted and name != self._taken and not (model.force_split and model.measured is None)
        ]
        return {
            "serves": tuple(served),
            "wants": tuple(dict.fromkeys([*wants, *self._wishes]))[:MAX_WANTED],
            "on_disk": self._on_disk[:MAX_ON_DISK],
            "aliases": self._aliases,
            "memory": self._memory,
            "loads": self._loads,
            "splits": self._candidates(),
            "speed": self._local.speed,
            "devices": self._devices[:MAX_DEVICES],
        }

    def _candidates(self) -> tuple[SplitCandidate, ...]:
        if self._splitting is None:
            return ()
        found = [self._splitting.candidate(model) for model in self._local.models.values()]
        return tuple(candidate for candidate in found if candidate is not None)[:MAX_SPLITS]

    def _take(self, now: float) -> list[c.Command]:
        """A node without a model of its own takes one that the mesh wants, and keeps it."""
        peers = self._peers
        if not isinstance(peers, Member) or self._local.models or self._backends or self._wishes or self._stopping:
            self._placement_at = None
            return []
        lent = self._splitting is not None and self._splitting.worker_lease is not None
        if not self._on_disk or not peers.joined or peers.record.idle or lent:
            self._placement_at = None  # a deadline that nobody meets would be due at every moment
            return []
        if self._placement_at is None:
            self._placement_at = now + PLACEMENT_SECONDS
        if now < self._placement_at:
            return []
        self._placement_at = now + PLACEMENT_SECONDS
        self._taken = placement.choose(peers.record, peers.alive())
        if self._taken is None:
            return []
        self._placement_at = None
        self._local.want(self._taken)
        self._dirty = True
        return self._decide(now)

    def _model_wished(self, event: e.MeshModelRequested, now: float) -> None:
        if not self._stopping:
            self._wishes[event.model] = None

    def _disk_scanned(self, event: e.DiskScanned, now: float) -> None:
        self._on_disk, self._memory, self._devices = event.models, event.memory, event.devices
        self._aliases = event.aliases

    def _speed_measured(self, event: e.SpeedMeasured, now: float) -> None:
        self._local.speed = event.bytes_per_second

    def _loads_changed(self, event: e.LoadsChanged, now: float) -> None:
        self._loads = event.loads

    # -- what people want

    def _backend_added(self, event: e.BackendAdded, now: float) -> None:
        if not self._stopping and event.url not in self._backends:
            self._backends[event.url] = BackendState(event.url, next_probe=now)

    def _stop_wanted(self, event: e.StopWanted, now: float) -> None:
        self._stopping = True
        self._local.stop()
        if self._splitting is not None:
            self._splitting.stop()

    # -- backends

    def _backend_answered(self, event: e.BackendAnswered, now: float) -> None:
        if event.url in self._backends:
            self._backends[event.url] = BackendState(
                event.url, healthy=True, models=event.models, reason="", next_probe=now + BACKEND_PROBE_SECONDS
            )

    def _backend_silent(self, event: e.BackendSilent, now: float) -> None:
        backend = self._backends.get(event.url)
        if backend is not None:
            delay = backoff(backend.failures, base=BACKEND_RETRY_BASE_SECONDS, cap=BACKEND_RETRY_CAP_SECONDS)
            # What it had is remembered: its callers are told that it is away, not that the model is unknown.
            self._backends[event.url] = BackendState(
                event.url,
                models=backend.models,
                reason=event.reason,
                failures=backend.failures + 1,
                next_probe=now + delay,
            )
