"""The desks of all targets, the connections behind them, and who can answer for a model now.

Law: found once per snapshot for models that are served, so that a request costs a look-up; a desk lives as long as the
core names its target or a request is at work there. The connections to a peer serve all of its models.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from meshllm.core.records import ModelLoad
from meshllm.core.routing import routes
from meshllm.core.routing.affinity import SessionAffinity
from meshllm.core.routing.routes import Availability, MeshIndex, ModelRoute, Target, TargetKind, TargetOffer
from meshllm.core.snapshot import Snapshot
from meshllm.web.gateway.model_list import unknown_words
from meshllm.web.gateway.target import TargetQueue
from meshllm.web.http.client import PeerConnector, UpstreamPool

# So many hosts of a model are compared for a request: the least busy ones by what they told last.
MAX_HOSTS = 64
# A host is looked for at most this often, for each model (seconds).
SEEK_SECONDS = 1.0
MAX_SOUGHT = 256
# Whoever wants to know how busy the engine here is hears of it at most twice a second.
LOADS_SECONDS = 0.5

Found = tuple[ModelRoute, list[TargetQueue]]


class TargetTable:
    """What the gateway knows of those it asks."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peers: PeerConnector | None,
        seek: Callable[[str], None] | None,
        on_loads: Callable[[tuple[ModelLoad, ...]], None] | None,
        on_work: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._peers = peers
        self._seek = seek
        self._on_loads = on_loads
        self._on_work = on_work
        self.snapshot = Snapshot()
        self.stickiness = SessionAffinity()
        self._index: MeshIndex | None = routes.NO_MESH
        self._desks: dict[Target, TargetQueue] = {}
        self._peer_pools: dict[str, UpstreamPool] = {}
        self._routes: dict[str, Found] = {}
        self._here: dict[str, Found] = {}
        self._sought: OrderedDict[str, float] = OrderedDict()
        self._told: tuple[ModelLoad, ...] = ()
        self._told_at = -LOADS_SECONDS
        self._telling: asyncio.TimerHandle | None = None

    # -- what the core knows

    @property
    def index(self) -> MeshIndex:
        """What the mesh serves, by model."""
        if self._index is None:
            self._index = routes.mesh_index(self.snapshot.mesh)
        return self._index

    def publish(self, snapshot: Snapshot) -> None:
        """What the core knows now."""
        if snapshot.mesh is not self.snapshot.mesh:
            self._index = None  # made when somebody asks: a mesh of a thousand nodes changes several times a second
        self.snapshot = snapshot
        self._routes.clear()
        self._here.clear()
        self._forget_the_gone()
        if self._listened:
            self._changed()

    def _forget_the_gone(self) -> None:
        # Not by asking for each model's route: two backends with 2,000 models each took 0.4 s, at every progress tick.
        snapshot = self.snapshot
        current = {offer.target for model in snapshot.models for offer in routes.offers_here(snapshot, model.name)}
        current |= {Target(TargetKind.BACKEND, backend.url) for backend in snapshot.backends if backend.healthy}
        for target, desk in list(self._desks.items()):
            if target.kind is TargetKind.PEER:
                if target.address not in self.index.alive:
                    for asker in list(desk.askers):
                        asker.deserted()
                elif any(offer.target == target for offer in self.index.hosts.get(target.model, ())):
                    continue
            elif target in current:
                continue
            if not desk.active:
                del self._desks[target]
                if target.kind is not TargetKind.PEER:
                    desk.pool.close()
        if self._peer_pools:
            needed = {target.address for target in self._desks if target.kind is TargetKind.PEER}
            for address in self._peer_pools.keys() - needed:
                self._peer_pools.pop(address).close()

    # -- who answers

    def find(self, model: str) -> Found:
        """Who can answer for `model` now, and their desks."""
        found = self._routes.get(model)
        if found is not None:
            return found
        route = routes.route(self.snapshot, model, self.index)
        if route.availability is Availability.UNKNOWN:
            route = replace(route, message=unknown_words(self.snapshot, model, self.index))
        elif route.dial_hosts:
            self._look_for(model)
        found = (route, [self._desk(offer) for offer in route.offers[:MAX_HOSTS]])
        if route.offers:
            self._routes[model] = found
        return found

    def find_here(self, model: str) -> Found:
        """The same for peers who ask: only what this node itself answers with, so that no request goes in circles."""
        found = self._here.get(model)
        if found is None:
            offers = routes.offers_here(self.snapshot, model)
            route = replace(routes.route_to(offers, self.snapshot.model(model)), availability=Availability.UNKNOWN)
            found = (route, [self._desk(offer) for offer in offers])
            if offers:
                self._here[model] = found
        return found

    def is_known(self, model: str) -> bool:
        """Whether there is such a model: names that callers make up must not fill the metrics."""
        return model in self._routes or model in self._here or model in routes.models(self.snapshot, self.index)

    def _desk(self, offer: TargetOffer) -> TargetQueue:
        target = offer.target
        desk = self._desks.get(target)
        if desk is None:
            changed = self._changed if self._listened and target.kind is TargetKind.ENGINE else None
            desk = self._desks[target] = TargetQueue(target, self._pool(target), changed)
        desk.update(offer)
        return desk

    def _pool(self, target: Target) -> UpstreamPool:
        if target.kind is not TargetKind.PEER:
            return UpstreamPool(target, self._loop)
        pool = self._peer_pools.get(target.address)
        if pool is None:
            pool = self._peer_pools[target.address] = UpstreamPool(target, self._loop, self._peers)
        return pool

    def _look_for(self, model: str) -> None:
        now = self._loop.time()
        if self._seek is None or now - self._sought.get(model, -SEEK_SECONDS) < SEEK_SECONDS:
            return
        self._sought[model] = now
        self._sought.move_to_end(model)
        if len(self._sought) > MAX_SOUGHT:
            self._sought.popitem(last=False)
        self._seek(model)

    def failed(self, desk: TargetQueue, now: float) -> None:
        """A request failed there: it rests for everybody, with all that is at the same place."""
        if desk.target.kind is TargetKind.ENGINE:
            return  # its supervisor sees to it, and the next process has a desk of its own
        for other in self._desks.values():
            if other.target.place == desk.target.place:
                other.failed(now)

    def all(self) -> Iterable[TargetQueue]:
        """The desks of all targets that have been asked."""
        return self._desks.values()

    # -- how busy this node is

    def loads(self) -> tuple[ModelLoad, ...]:
        """What the engine processes here work on, and who waits for them."""
        found = []
        for model in self.snapshot.models:
            offers = routes.offers_here(self.snapshot, model.name)
            if offers and offers[0].target.kind is TargetKind.ENGINE:
                desk = self._desks.get(offers[0].target)
                counts = (desk.active, desk.waiting) if desk is not None else (0, 0)
                found.append(ModelLoad(model.name, *counts))
        return tuple(found)

    @property
    def _listened(self) -> bool:
        return self._on_loads is not None or self._on_work is not None

    def _changed(self) -> None:
        if self._telling is None:
            self._telling = self._loop.call_at(max(self._loop.time(), self._told_at + LOADS_SECONDS), self._tell)

    def _tell(self) -> None:
        self._telling, self._told_at = None, self._loop.time()
        loads = self.loads()
        if loads != self._told and self._on_loads is not None:
            self._told = loads
            self._on_loads(loads)
        if self._on_work is not None:
            self._on_work()

    def close(self) -> None:
        """Hang up on everybody."""
        for desk in self._desks.values():
            desk.pool.close()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
