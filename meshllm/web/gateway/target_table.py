"""The queues of all targets, their connection pools, and the routes of models.

A route is computed once per snapshot, so that a request costs one look-up. A queue lives as long as the core names its
target or a request is active there. The connections to a peer serve all of its models.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from meshllm.core.records import ModelLoad, short
from meshllm.core.routing import routes
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.agent_choice import AUTO
from meshllm.core.routing.auto_choice import is_auto
from meshllm.core.routing.model_names import ModelNames
from meshllm.core.routing.prefixes import PrefixHosts
from meshllm.core.routing.routes import Availability, MeshIndex, ModelRoute, Place, Target, TargetKind, TargetOffer
from meshllm.core.snapshot import FilePhase, Snapshot
from meshllm.util.isolate import Isolation
from meshllm.web.gateway.model_list import unknown_model_message
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.client import PeerConnector, UpstreamPool

# Hosts of a model that are compared for a request: the least busy ones by their last load report.
MAX_HOSTS = 64
# Hosts of a model that are known only by hearsay are dialled at most this often (seconds).
DIAL_SECONDS = 1.0
MAX_DIALLED = 256
# The load of the engines here is reported at most twice a second.
LOADS_SECONDS = 0.5

RoutedTargets = tuple[ModelRoute, list[TargetQueue]]


class TargetTable:
    """The targets of the gateway."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peers: PeerConnector | None,
        on_dial: Callable[[str], None] | None,
        on_loads: Callable[[tuple[ModelLoad, ...]], None] | None,
        on_work: Callable[[], None] | None = None,
        only_from: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """`only_from`: beginnings of the ids of the only peers that requests go to; none: all. `aliases`: names of
        models by the owner's names for them."""
        self.aliases = aliases or {}
        self._names: ModelNames | None = None
        self._only_from = only_from
        self._loop = loop
        self._peers = peers
        self._on_dial = on_dial
        self._on_loads = on_loads
        self._on_work = on_work
        self._isolation = Isolation()
        # Called with the queue of an engine process that has died.
        self.on_engine_died: Callable[[TargetQueue], None] = lambda queue: None
        self.snapshot = Snapshot()
        self.affinity: SessionAffinity[Place] = SessionAffinity()
        self.prefixes = PrefixHosts()
        self.node = ""
        # Engine processes (model, generation) that are targets no more and have answered guests: one for each start.
        self._had_guests: set[tuple[str, int]] = set()
        self._index: MeshIndex | None = routes.NO_MESH
        self._queues: dict[Target, TargetQueue] = {}
        self._peer_pools: dict[str, UpstreamPool] = {}
        self._routes: dict[str, RoutedTargets] = {}
        self._local_routes: dict[str, RoutedTargets] = {}
        self._dialled: OrderedDict[str, float] = OrderedDict()
        self._reported: tuple[ModelLoad, ...] = ()
        self._reported_at = -LOADS_SECONDS
        self._report_timer: asyncio.TimerHandle | None = None

    # -- the core's state

    @property
    def index(self) -> MeshIndex:
        """The models of the mesh."""
        if self._index is None:
            self._index = routes.mesh_index(self.snapshot.mesh, self._only_from)
        return self._index

    def publish(self, snapshot: Snapshot) -> None:
        """Take over a new state of the core."""
        if snapshot.mesh is not self.snapshot.mesh:
            self._index = None  # computed on demand: a mesh of a thousand nodes changes several times a second
            self.node = "" if snapshot.mesh is None else short(snapshot.mesh.node)
        self.snapshot = snapshot
        self._names = None
        self._routes.clear()
        self._local_routes.clear()
        self._remove_stale()
        if self._has_listeners:
            self._load_changed()

    def _remove_stale(self) -> None:
        # Not by computing each model's route: two backends with 2,000 models each took 0.4 s, at every progress tick.
        snapshot = self.snapshot
        current = {offer.target for model in snapshot.models for offer in routes.offers_here(snapshot, model.name)}
        current |= {Target(TargetKind.BACKEND, backend.url) for backend in snapshot.backends if backend.healthy}
        for target, queue in list(self._queues.items()):
            if target.kind is TargetKind.PEER:
                if target.address not in self.index.alive:
                    for user in list(queue.users):
                        self._isolation.run("moving a request from a lost peer", user.target_down)
                elif any(offer.target == target for offer in self.index.hosts.get(target.model, ())):
                    continue
            elif target in current:
                continue
            elif target.kind is TargetKind.ENGINE and routes.engine_died(snapshot, queue.model):
                self.on_engine_died(queue)
            if not queue.active:
                del self._queues[target]
                if queue.had_guest and target.kind is TargetKind.ENGINE:
                    self._had_guests.add((queue.model, target.generation))
                if target.kind is not TargetKind.PEER:
                    queue.pool.close()
        if self._peer_pools:
            needed = {target.address for target in self._queues if target.kind is TargetKind.PEER}
            for address in self._peer_pools.keys() - needed:
                self._peer_pools.pop(address).close()

    # -- routes

    def find(self, model: str) -> RoutedTargets:
        """The route of `model` now, and the queues of its targets, best first."""
        found = self._routes.get(model)
        if found is not None:
            return found
        now = self._loop.time()
        route = routes.route(self.snapshot, model, self.index, now)
        if route.availability is Availability.UNKNOWN:
            message = unknown_model_message(self.snapshot, model, self.index, now, self.names, self.aliases)
            route = replace(route, message=message)
        elif route.dial_hosts or route.loads:
            self._ask_core(model)
        found = (route, [self._queue(offer, model) for offer in route.offers[:MAX_HOSTS]])
        if route.offers:
            self._routes[model] = found
        return found

    def find_local(self, model: str) -> RoutedTargets:
        """The same with targets of this node only: for requests of peers, which must not make a second hop."""
        found = self._local_routes.get(model)
        if found is None:
            route = routes.route_here(self.snapshot, model)
            if route.loads:
                self._ask_core(model)
            found = (route, [self._queue(offer, model) for offer in route.offers])
            if route.offers:
                self._local_routes[model] = found
        return found

    def name_of(self, asked: str) -> str:
        """The name of the model that a caller means by `asked`; `asked` itself if no model is known by it."""
        if asked not in self.aliases and self.is_exact(asked):
            return asked  # nearly always; all names are collected for the others only
        return self.names.find(asked)

    def is_auto(self, asked: str) -> bool:
        """Whether a caller who asks for `asked` leaves the choice to the mesh."""
        return len(asked) == len(AUTO) and is_auto(asked, self.names, self.snapshot)

    @property
    def names(self) -> ModelNames:
        """All names that can be requested now."""
        if self._names is None:
            self._names = routes.names(self.snapshot, self.index, self.aliases)
        return self._names

    def is_exact(self, name: str) -> bool:
        """Whether a model has exactly that name: a cheap check, which may miss one that the mesh only wants."""
        snapshot = self.snapshot
        if name in self._routes or name in self.index.hosts:
            return True
        if (here := snapshot.model(name)) is not None and here.file is FilePhase.READY:
            return True
        if name in snapshot.available or name in self.index.loaders:
            return True
        return any(backend.healthy and name in backend.models for backend in snapshot.backends)

    def is_known(self, model: str) -> bool:
        """Whether `model` exists: names that callers make up must not become metric labels."""
        return model in self._routes or model in self._local_routes or model in routes.models(self.snapshot, self.index)

    def _queue(self, offer: TargetOffer, model: str) -> TargetQueue:
        target = offer.target
        queue = self._queues.get(target)
        if queue is None:
            on_change = self._load_changed if self._has_listeners and target.kind is TargetKind.ENGINE else None
            queue = self._queues[target] = TargetQueue(target, self._pool(target), on_change, model=model)
        queue.update(offer)
        return queue

    def _pool(self, target: Target) -> UpstreamPool:
        if target.kind is not TargetKind.PEER:
            return UpstreamPool(target, self._loop)
        pool = self._peer_pools.get(target.address)
        if pool is None:
            pool = self._peer_pools[target.address] = UpstreamPool(target, self._loop, self._peers)
        return pool

    def _ask_core(self, model: str) -> None:
        """Have the hosts of `model` dialled, or the model loaded."""
        now = self._loop.time()
        if self._on_dial is None or now - self._dialled.get(model, -DIAL_SECONDS) < DIAL_SECONDS:
            return
        self._dialled[model] = now
        self._dialled.move_to_end(model)
        if len(self._dialled) > MAX_DIALLED:
            self._dialled.popitem(last=False)
        self._on_dial(model)

    def failed(self, queue: TargetQueue, model: str, now: float, *, whole: bool) -> None:
        """A request for `model` failed at a target, which rests for all requests for that model.

        `whole`: the failure is that of the peer or backend itself, so that all of its models rest.
        """
        if queue.target.kind is TargetKind.ENGINE:
            return  # the supervisor restarts it, and the next process has a queue of its own
        if not whole:
            queue.failed(now, model)
            return
        for other in self._queues.values():
            if other.target.place == queue.target.place:
                other.failed(now)

    def all(self) -> Iterable[TargetQueue]:
        """The queues of all targets that have been used."""
        return self._queues.values()

    # -- the load of this node

    def is_busy(self, model: str, generation: int) -> bool:
        """Whether the engine process of `model` with that generation has a request."""
        return any(
            queue.model == model and target.generation == generation and (queue.active or queue.users)
            for target, queue in self._queues.items()
            if target.kind is TargetKind.ENGINE
        )

    def had_guest(self, model: str, generation: int) -> bool:
        """Whether the engine process of `model` with that generation has had a request of a guest."""
        return (model, generation) in self._had_guests or any(
            queue.had_guest and queue.model == model and target.generation == generation
            for target, queue in self._queues.items()
            if target.kind is TargetKind.ENGINE
        )

    def loads(self) -> tuple[ModelLoad, ...]:
        """The active and waiting requests of each engine here."""
        found = []
        for model in self.snapshot.models:
            offers = routes.offers_here(self.snapshot, model.name)
            if offers and offers[0].target.kind is TargetKind.ENGINE:
                queue = self._queues.get(offers[0].target)
                counts = (queue.active, queue.waiting) if queue is not None else (0, 0)
                found.append(ModelLoad(model.name, *counts))
        return tuple(found)

    @property
    def _has_listeners(self) -> bool:
        return self._on_loads is not None or self._on_work is not None

    def _load_changed(self) -> None:
        if self._report_timer is None:
            self._report_timer = self._loop.call_at(
                max(self._loop.time(), self._reported_at + LOADS_SECONDS), self._report
            )

    def _report(self) -> None:
        self._report_timer, self._reported_at = None, self._loop.time()
        loads = self.loads()
        if loads != self._reported and self._on_loads is not None:
            self._reported = loads
            self._on_loads(loads)
        if self._on_work is not None:
            self._on_work()

    def close(self) -> None:
        """Close all idle connections."""
        for queue in self._queues.values():
            queue.pool.close()
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
