"""The core of a node: events in, commands out.

Invariants: `handle` is the only way in; it neither waits nor raises, and the caller passes the time. Events of an older
generation of an engine process change nothing. Readers get `snapshot()`, a frozen value. No model waits for an event
that may never come: one that is requested and not served is decided on again after each change of the mesh, and every
`RECHECK_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.mesh_demand import scores
from meshllm.core.demand.node_demand import DemandChange, NodeDemand
from meshllm.core.membership.certificates import NO_RIGHTS, Right
from meshllm.core.membership.client import ClientMember
from meshllm.core.membership.links import Rng
from meshllm.core.membership.member import Member, MeshConfig
from meshllm.core.membership.participant import MeshParticipant
from meshllm.core.membership.views import PeerStatus
from meshllm.core.memory.observation import MachineFacts
from meshllm.core.quantise import quantise
from meshllm.core.records import (
    MAX_DEVICES,
    MAX_LOADING,
    MAX_ON_DISK,
    MAX_SPLITS,
    MAX_WANTED,
    ModelLoad,
    NodeId,
    OwnFacts,
    Role,
    SplitCandidate,
)
from meshllm.core.serving import backend_states, next_step
from meshllm.core.serving.demand_placement import PLACEMENT_SECONDS, DemandPlacement, LoadingClaims
from meshllm.core.serving.disk_models import DiskModels
from meshllm.core.serving.fetching import DOWNLOAD_CLAIM_SECONDS, FetchFacts
from meshllm.core.serving.local_models import LocalModels, is_unloaded
from meshllm.core.serving.placement import CONTEXT_PART, MIB, PlacementView
from meshllm.core.serving.pressure import PressureWatch
from meshllm.core.serving.published_models import published_backends, published_models
from meshllm.core.serving.unserved import unserved_models
from meshllm.core.serving.wishes import Wishes
from meshllm.core.snapshot import BackendState, FilePhase, ModelOrigin, ModelPhase, ModelState, ServerPhase, Snapshot
from meshllm.core.split.coordinator import SplitCoordinator
from meshllm.core.split.corrections import Correction
from meshllm.core.split.lease import LeaseMessage

if TYPE_CHECKING:
    from meshllm.core.serving.demand_outlook import DemandOutlook

# A model that the owner dropped is not served for the mesh's request for this time.
DROPPED_SECONDS = 86_400.0
# Why a model is stopped that was served for the mesh's demand.
RELEASED = "other nodes serve it"
# Why a node whose own certificate does not let it work takes no lease.
NO_WORK = "its membership does not let it work for splits"


class NodeCore:
    """The state of one node and its decisions."""

    def __init__(
        self,
        config: MeshConfig | None = None,
        rng: Rng | None = None,
        *,
        idle_unload: float | None = None,
        dropped: Mapping[str, float] | None = None,
        corrections: tuple[Correction, ...] = (),
        on_demand: bool | None = None,
        catalog: Mapping[str, int] | None = None,
        declared_tools: Mapping[str, bool] | None = None,
    ) -> None:
        """Without `config` this node is in no mesh. With `config`, `rng` is required. `idle_unload`: models are
        unloaded when they have been idle for so many seconds (None: never). `dropped`: models that the owner dropped in
        an earlier run, and until when that counts. `corrections`: what forecasts of splits learned in earlier runs.
        `on_demand`: a request for a model of the disk loads it (None: if this is a node of a mesh that is not idle).
        `catalog`: the models of the catalogue, with their bytes. `declared_tools`: see `Snapshot`."""
        self._catalog = {} if catalog is None else catalog
        self._declared_tools = {} if declared_tools is None else declared_tools
        self._backends: dict[str, BackendState] = {}
        self._machine = MachineFacts()
        self._free_memory = 0  # as last observed, not quantised
        self._used_memory = 0  # of all engine processes
        self._loads: tuple[ModelLoad, ...] = ()
        self._placement = DemandPlacement()
        self._claims = LoadingClaims()
        if on_demand is None:
            on_demand = config is not None and config.role is Role.NODE and not config.idle
        self._disk = DiskModels(allowed=on_demand)
        self._pressure = PressureWatch()
        self._pressure_new = False
        self._pressure_due: float | None = None
        # Models that the mesh's request does not bring back, until then; and those of them that are saved.
        self._dropped = dict(dropped or {})
        self._saved_dropped = tuple(self._dropped.items())
        self._placement_at: float | None = None
        self._due: float | None = None  # the next deadline of a model or a backend
        self._mesh: MeshParticipant | None = None
        self._owner_refusal = config.lease_refusal if config is not None else ""
        if config is not None:
            if rng is None:
                raise ValueError("a node of a mesh needs `rng`")
            self._mesh = Member(config, rng) if config.role is Role.NODE else ClientMember(config, rng)
        self._splitting: SplitCoordinator | None = None
        if config is not None and rng is not None and isinstance(self._mesh, Member):
            member = self._mesh
            self._splitting = SplitCoordinator(
                config.node,
                member.link_policy,
                rng,
                lambda: member.phase,
                member.away.names,
                lambda: (member.record.machine, self._machine.machine_memory),
                corrections,
            )
        self._local = LocalModels(self._splitting, idle_unload)
        self._wishes = Wishes(self._mesh, self._names_here)
        self._demand = NodeDemand(self._mesh, self._own_names, self._catalog)
        self._stopping = self._leaving = False
        self._finished = False
        self._snapshot = Snapshot(catalog=self._catalog, declared_tools=self._declared_tools)
        self._dirty = self._mesh is not None

    # -- what the daemon calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` at `now` (seconds, monotonic); return the commands that follow, in order."""
        todo: list[c.Command] = []
        local = self._local_event(event, now)
        due = self._due is not None and self._due <= now
        local = self._pressure_changed(now) or local
        due = self._look_for_wishes(now, todo) or due
        if local or due:
            todo += self._decide(now)
            self._dirty = True
        if self._mesh is not None:
            # Leaving writes a record of its own.
            if (local or due) and not isinstance(event, e.StopWanted):
                todo += self._mesh.update_facts(self._own_facts(), now)
            todo += self._mesh.handle(event, now)
            if isinstance(event, e.CertificateRenewed):  # what a node offers depends on its rights
                todo += self._mesh.update_facts(self._own_facts(), now)
            todo += self._demand_event(event, now)
            todo += self._split_event(event, now)
            todo += self._reconsider(now)
            todo += self._follow_demand(now)
        if self._stopping and not self._finished and self._local.at_rest:
            self._finished = True
            todo.append(c.Finish())
        return todo

    def next_deadline(self) -> float | None:
        """When to send `TimePassed` if no event comes before (seconds, same clock), or None."""
        times = [self._due]
        if self._mesh is not None:
            times.append(self._mesh.next_deadline())
            times.append(self._demand.next_deadline())
            times.append(self._pressure_due)
            if not self._stopping:
                times.append(self._placement_at)
        if not self._stopping:
            times.append(self._wishes.due)
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> Snapshot:
        """The state for readers; the same object until something changes."""
        if self._dirty or (self._mesh is not None and self._mesh.dirty):
            self._dirty = False
            self._publish()
        return self._snapshot

    def peer_status(self, node: NodeId) -> PeerStatus | None:
        """The status of a peer as in the snapshot, None if it is not known."""
        return self._mesh.status(node) if self._mesh is not None else None

    def rights_of(self, node: NodeId) -> Right:
        """What a peer may do in this mesh; none without a mesh."""
        return self._mesh.rights_of(node) if self._mesh is not None else NO_RIGHTS

    def demand_outlook(self, now: float) -> DemandOutlook | None:
        """What is to come for the mesh's demand, by what this node knows at `now`; None for a client, or without a
        mesh. Changes nothing."""
        if not isinstance(member := self._mesh, Member):
            return None
        from meshllm.core.serving.demand_outlook import OwnSituation, outlook_of  # for readers of the status alone

        lease = self._splitting.worker_lease if self._splitting is not None else None
        situation = OwnSituation(
            free=self._is_free(member),
            works_on=lease.lease.model if lease is not None else "",
            dropped={name: until - now for name, until in self._dropped.items()},
            facts=self._placement.facts(now),
            asked=[entry.model for entry in self._demand.levels],
            catalog=self._catalog,
        )
        return outlook_of(member.claims(), self._claims, situation, now)

    # -- deciding

    def _decide(self, now: float) -> list[c.Command]:
        self._placement.expire(now)
        expected = [name for name in self._wishes.requested if not self._wishes.served_elsewhere(name)]
        self._local.expected = tuple(expected)
        todo = [*self._local.decide(now), *self._probes(now)]
        times = [self._local.next_deadline(now)]
        if self._splitting is not None:
            todo += self._splitting.drain_commands()
            times.append(self._splitting.next_deadline())
        if not self._stopping:
            self._dropped = {name: until for name, until in self._dropped.items() if until > now}
            times += [*self._dropped.values(), self._placement.next_expiry()]
            if (dropped := tuple(self._dropped.items())) != self._saved_dropped:
                self._saved_dropped = dropped
                todo.append(c.SaveDropped(dropped))
            times += [b.next_probe for b in self._backends.values() if not b.probing]
        self._due = min((time for time in times if time is not None), default=None)
        return todo

    def _reconsider(self, now: float) -> list[c.Command]:
        """Decide again on the models that wait, if the mesh changed: what they wait for may be there."""
        if self._mesh is None or not self._mesh.dirty or not self._local.waiting:
            return []
        self._dirty = True
        return [*self._decide(now), *self._mesh.update_facts(self._own_facts(), now)]

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
            self._mesh.view() if self._mesh is not None else None,
            self._wishes.requested,
            self._splitting.worker_lease if self._splitting is not None else None,
            tuple(self._dropped.items()),
            self._local.idle_unload,
            tuple(self._available()),
            self._catalog,
            self._declared_tools,
            tuple([(name, reason) for name, reason, _ in self._machine.damaged]),
        )
        if new != self._snapshot:
            self._snapshot = replace(new, version=new.version + 1)

    # -- demand

    def _own_names(self) -> list[str]:
        """The models that this node knows itself."""
        return [*self._local.models, *self._wishes.requested, *self._names_here()]

    def _names_here(self) -> list[str]:
        """The models of the disk and of the backends."""
        pooled = [name for backend in self._backends.values() for name in backend.models]
        return [*self._machine.models, *pooled]

    def _demand_event(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in what callers and clients ask for, and let it decay."""
        changed, todo = self._demand.handle(event, now)
        if changed is not DemandChange.NONE and self._mesh is not None and not self._stopping:
            facts = replace(self._own_facts(), demand_is_news=changed is DemandChange.NEWS)
            todo += self._mesh.update_facts(facts, now)
        return todo

    # -- pipeline splits

    def _split_event(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in what concerns leases: messages, links, the worker process of this node, the time."""
        splitting, member = self._splitting, self._mesh
        if splitting is None or not isinstance(member, Member):
            return []
        match event:
            case e.MessageReceived(peer, LeaseMessage() as message):
                splitting.on_message(peer, message, self._free_memory, self._busy, now)
            case e.LinkUp(peer, role):
                may_host = role is Role.NODE and Right.HOST in member.rights_of(peer)
                splitting.link_up(peer, now, may_host=may_host)
            case e.LinkDown(peer):
                splitting.link_down(peer, now)
            case e.WorkerProgress() | e.WorkerReady() | e.WorkerGone():
                splitting.on_worker_event(event, now)
            case e.TunnelBroken():
                splitting.tunnel_broken(event, now)
            case e.StopAnnounced():
                self._leaving = True
                splitting.leave()
            case _:
                deadline = splitting.next_deadline()
                if deadline is None or now < deadline:
                    return []
                splitting.tick(now)
        self._dirty = True
        todo = [*self._local.members_lost(now), *self._local.members_leaving(), *self._decide(now)]
        return [*todo, *member.update_facts(self._own_facts(), now)]

    @property
    def _lease_refusal(self) -> str:
        """Why this node takes no lease at all; "": it does. Its rights may come after the start, with its admission."""
        if self._owner_refusal or self._mesh is None or Right.WORK in self._mesh.own_rights:
            return self._owner_refusal
        return NO_WORK

    def _busy(self, model: str) -> str:
        """Why this node cannot be a worker for a host of `model`; empty if it can."""
        if self._stopping or self._leaving:
            return "it is stopping"
        if self._lease_refusal:
            return self._lease_refusal
        for name, own in self._local.models.items():
            alone = own.measured is not None and own.measured.fits_locally and not own.force_split
            if own.wanted and (name != model or alone or own.server is not ServerPhase.NONE):
                return f"it serves {name} itself"
        return "it has backends" if self._backends else ""

    # -- the mesh

    def _own_facts(self) -> OwnFacts:
        """What this node publishes. The signer cuts what exceeds the size of a record."""
        served = published_models(self._local.models.values(), self._placement.movable, self._pressure.pressed)
        served += published_backends(self._backends.values(), served, self._declared_tools)
        # A model that must be split is requested only together with its split candidate: else a node serves it whole.
        wants = [
            name
            for name, model in self._local.models.items()
            if model.wanted
            and model.origin is not ModelOrigin.MESH
            and not (model.force_split and model.measured is None)
        ]
        sizes = (*self._machine.model_sizes, *[0] * len(self._machine.models))
        named = zip(self._machine.models, sizes, strict=False)
        disk = [(name, size) for name, size in named if self._may_take(name)][:MAX_ON_DISK]
        return OwnFacts(
            serves=tuple(served),
            wants=tuple(dict.fromkeys(map(self._wishes.name_of, [*wants, *self._wishes.requested])))[:MAX_WANTED],
            # The other nodes must not count on this one for a model that its owner dropped, or that failed here.
            on_disk=tuple([name for name, _ in disk]),
            aliases=self._machine.aliases,
            loads=self._loads,
            splits=self._candidates(),
            # Hosts plan with nodes that offer memory: a node that refuses leases offers none.
            memory=0 if self._lease_refusal else self._machine.memory,
            devices=() if self._lease_refusal else self._machine.devices[:MAX_DEVICES],
            speed=self._local.speed,
            machine_memory=self._machine.machine_memory,
            planned=self._planned_memory(),
            used=self._used_memory,
            demand=self._demand.levels,
            disk_sizes=tuple([size // MIB for _, size in disk]) if self._machine.model_sizes else (),
            loading=self._loading(),
            room=0 if self._leased else self._disk.room,
            download_room=self._machine.download_room,
            unserved=unserved_models(
                self._local.engine,
                self._local.models.values(),
                self._placement.avoided,
                [name for name in self._dropped if name in self._machine.models],
                {name: reason for name, reason, shared in self._machine.damaged if shared},
            ),
        )

    def _planned_memory(self) -> int:
        """Bytes that the engine processes of this node may come to."""
        planned = sum(model.server_facts.memory for model in self._local.models.values() if model.server_facts)
        return planned + (self._splitting.leased_memory if self._splitting is not None else 0)

    def _memory_used(self, used: dict[str, int]) -> None:
        """What the engine processes take now; the one of a worker has no name."""
        self._local.memory_used(used)
        if self._splitting is not None:
            self._splitting.memory_used(used.get("", 0))
        self._used_memory = quantise(sum(used.values()), self._used_memory)

    def _candidates(self) -> tuple[SplitCandidate, ...]:
        if self._splitting is None:
            return ()
        # A model that does not fit beside others is not split by this node: no other one must wait for that.
        models = [model for model in self._local.models.values() if model.origin is not ModelOrigin.BESIDE]
        found = [self._splitting.candidate(model) for model in models]
        return tuple(candidate for candidate in found if candidate is not None)[:MAX_SPLITS]

    def _look_for_wishes(self, now: float, todo: list[c.Command]) -> bool:
        """Find out what wished names mean, and serve the further `--model`s that no other node takes. Whether that was
        due."""
        unknown = [model.name for model in self._local.models.values() if model.unknown]
        found = self._wishes.check(unknown, now, stopping=self._stopping)
        if found is None:
            return False
        for name in found:
            self._local.want(name, ModelOrigin.BESIDE, unknown=self._wishes.is_unknown(name))
        renamed = False
        for name in [model.name for model in self._local.models.values() if model.unknown]:
            if (meant := self._wishes.name_of(name)) != name:
                todo += self._local.rename(name, meant)
                renamed = True
        return bool(found) or renamed

    def _drop(self, name: str, now: float) -> None:
        self._local.drop(name)
        self._wishes.remove(name)
        self._dropped[name] = now + DROPPED_SECONDS

    def _loading(self) -> tuple[str, ...]:
        """The models that this node loads: other nodes need not."""
        found = [name for name, model in self._local.models.items() if self._is_loading(model)]
        if self._placement.reserved:
            found.insert(0, self._placement.reserved)
        return tuple(found)[:MAX_LOADING]

    def _is_loading(self, model: ModelState) -> bool:
        if not model.wanted or model.unloaded or model.server is ServerPhase.SERVING:
            return False
        if next_step.phase(self._local.engine, model) is ModelPhase.FAILED:
            return False
        if model.name in self._placement.taken:
            return True
        # A download takes long, and a split waits for other nodes: meanwhile another node may serve it.
        alone = model.split is None or model.server is ServerPhase.STARTING
        return model.file is FilePhase.READY and alone and not model.force_split

    def _pressure_changed(self, now: float) -> bool:
        """Look whether the slots of models here are taken for long; whether that changed."""
        if self._mesh is None or (not self._pressure_new and (self._pressure_due is None or now < self._pressure_due)):
            return False
        slots = {m.name: m.server_facts.slots for m in self._local.models.values() if m.server_facts is not None}
        changed = self._pressure.update(self._loads, slots, now)
        self._pressure_new, self._pressure_due = False, self._pressure.next_deadline(now)
        return changed

    def _follow_demand(self, now: float) -> list[c.Command]:
        """Take a model that the mesh wants, or leave one that was taken."""
        member, placement = self._mesh, self._placement
        if not isinstance(member, Member) or self._stopping or not (placement.busy or self._is_free(member)):
            self._placement_at = None
            return []
        if self._placement_at is None:
            self._placement_at = now + PLACEMENT_SECONDS
        if now < self._placement_at:
            return []
        self._placement_at = now + PLACEMENT_SECONDS
        models = {m.name: m for m in self._local.models.values() if m.wanted and m.origin is ModelOrigin.MESH}
        taken = {name: model for name, model in models.items() if name in placement.taken}
        placement.keep(taken)  # the owner's word outranks the demand
        claims = member.claims()
        records = self._claims.believed([claim.record for claim in claims[1:]], now)
        owned = {claim.record.node for claim in claims if claim.owned}
        failed = {name: model.reason for name, model in taken.items() if self._has_failed(model)}
        fetch, named = None, self._catalog if self._machine.download_room else {}
        if self._machine.download_room:
            known = self._claims.without_old([claim.record for claim in claims], now, DOWNLOAD_CLAIM_SECONDS)
            fetch = FetchFacts(known, named, self._dropped.keys())
        step = placement.decide(
            PlacementView([member.record, *records], scores(claims, named), owned),
            member.record,
            now,
            free=self._is_free(member),
            serving=[name for name, m in taken.items() if m.server is ServerPhase.SERVING or m.reloads],
            failed=failed,
            fetch=fetch,
        )
        todo: list[c.Command] = []
        if step.take:
            self._local.want(step.take, ModelOrigin.MESH)
        if step.download:
            todo.append(c.AllowDownload(step.take, int(member.record.memory / (1 + CONTEXT_PART))))
        if step.release:
            self._local.drop(step.release, RELEASED, "Retry.")
        if not step.changed:
            return []
        self._dirty = True
        return [*todo, *self._decide(now), *member.update_facts(self._own_facts(), now)]

    def _has_failed(self, model: ModelState) -> bool:
        """Whether a model that was taken cannot be served, or downloaded."""
        downloads = self._placement.taken[model.name].download
        failed = next_step.phase(self._local.engine, model) is ModelPhase.FAILED
        return failed or (downloads and next_step.download_failed(model))

    def _is_free(self, member: Member) -> bool:
        """Whether this node could take a model: a standby, no worker, with models on its disk or room for them."""
        if self._backends or self._wishes.requested or not all(map(is_unloaded, self._local.models.values())):
            return False
        has_models = bool(self._machine.models or self._machine.download_room)
        return has_models and member.joined and not member.record.idle and not self._leased

    # -- models of the disk that requests load

    @property
    def _leased(self) -> bool:
        return self._splitting is not None and self._splitting.worker_lease is not None

    def _may_take(self, model: str) -> bool:
        """Whether the mesh may have this node serve `model` of its disk, as far as the owner and failures say."""
        return model not in self._dropped and model not in self._placement.avoided

    def _available(self) -> list[str]:
        """The models of the disk, none of them served here, that a request makes this node load."""
        idle = not (self._stopping or self._leased)
        return self._disk.available(self._machine, self._local.models.keys(), self._may_take) if idle else []

    def _take_requested(self, model: str, now: float) -> bool:
        """A caller requests `model`: load it, if it is on the disk and this node may. Whether it does."""
        if takes := model in self._available():
            self._local.want(model, ModelOrigin.MESH)
            self._placement.take(model, now)
        return takes

    # -- events of this node

    def _local_event(self, event: e.Event, now: float) -> bool:
        """Take in an event about this node's models, files or backends. Returns False for any other event."""
        if isinstance(event, e.MessageReceived | e.TimePassed):  # nearly all events
            return False
        if isinstance(event, e.LoadWanted | e.ModelWanted | e.MeshModelRequested):  # the owner's word
            self._dropped.pop(event.model, None)
            self._wishes.remove(event.model)
        if self._local.handle(event, now):
            return True
        match event:
            case e.MeshModelRequested():
                if not self._stopping:
                    self._wishes.add(event.model, unknown=event.unknown)
            case e.MachineObserved():
                self._machine_observed(event, now)
            case e.SpeedMeasured():
                self._local.speed = quantise(event.bytes_per_second, self._local.speed)
            case e.DropWanted():
                self._drop(event.model, now)
            case e.ModelRequested():
                return self._take_requested(event.model, now)
            case e.LoadsChanged():
                self._loads = event.loads
                self._pressure_new = True
                self._local.loads_changed(event.loads, now)
                if self._splitting is not None:
                    self._splitting.loads_changed(event.loads)
            case e.BackendAdded():
                if not self._stopping and event.url not in self._backends:
                    self._backends[event.url] = BackendState(event.url, next_probe=now)
            case e.BackendAnswered() if event.url in self._backends:
                self._backends[event.url] = backend_states.answered(event, now)
            case e.BackendSilent() if event.url in self._backends:
                self._backends[event.url] = backend_states.silent(self._backends[event.url], event, now)
            case e.StopWanted():
                self._stop()
            case _:
                return False
        return True

    def _machine_observed(self, event: e.MachineObserved, now: float) -> None:
        machine = self._machine
        if event.memory is not None:
            self._free_memory = event.memory
            machine = machine.with_memory(event.memory, event.devices)
            self._local.memory_observed(event.memory, now)
            self._disk.observe(event.memory, self._local.models.values())
        if event.machine_memory is not None:
            machine = machine.with_machine_memory(event.machine_memory)
        if event.used is not None:
            self._memory_used(dict(event.used))
        if event.disk_free is not None:
            machine = machine.with_disk_free(event.disk_free)
        if event.download_room is not None:
            machine = machine.with_download_room(event.download_room)
        if event.models is not None:
            machine = replace(machine, models=event.models, aliases=event.aliases, model_sizes=event.model_sizes)
            machine = replace(machine, damaged=event.damaged)
        self._machine = machine

    def _stop(self) -> None:
        self._stopping = True
        self._local.stop()
        if self._splitting is not None:
            self._splitting.stop()
