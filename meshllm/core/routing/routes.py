"""The targets that can answer for a model, best first, or the reason why there are none.

On this node: the engine process, then the backends in the order of the command line; then the live peers that serve the
model. `ranking` orders the targets once the gateway knows their load. A model that no node has in memory is loaded by
the first node of `on_demand.ordered`. Only facts of this node refuse a request: what a peer says about its models only
decides whether to ask that peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from meshllm.core.membership.views import AwayMember, JoinAttemptState, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import ModelLoad, NodeId, UnservedModel, short
from meshllm.core.routing import on_demand
from meshllm.core.routing import route_texts as texts
from meshllm.core.routing.model_names import ModelNames
from meshllm.core.routing.on_demand import Loader, Loaders
from meshllm.core.serving import next_step
from meshllm.core.serving.template_traits import ANY_TEMPLATE, TemplateTraits
from meshllm.core.serving.vector_traits import UNKNOWN_VECTORS, VectorTraits
from meshllm.core.snapshot import FilePhase, ModelOrigin, ModelPhase, ModelState, Purpose, ServerPhase, Snapshot

# After this many failed probes in a row, callers of a backend's models get an error instead of waiting.
BACKEND_MAX_FAILURES = 4
# How long a caller waits (seconds): while this node joins its mesh, in which a dial takes 5 s; for a host that may be
# alive (a restart takes as long); and for a requested model that a node may be loading. Programs try again.
SETTLING_SECONDS = 8.0
LOOKING_SECONDS = 15.0
WANTED_SECONDS = 3.0
# What a caller of either waits for: first one, then the other is one wait.
OTHER_MEMBERS = "other members"
# For a node that begins to download the model: longer than the first two candidates take to do so.
DOWNLOAD_SECONDS = 45.0
# For the other nodes of a split: longer than a restart of them takes until the model is served again (10 s).
OTHER_NODES_SECONDS = 30.0
# A model that a member served so lately (seconds) is not unknown: the member restarts, or sleeps. Programs end their
# task on a 404, and try again after a 503.
SERVED_LATELY_SECONDS = 600.0
# Slots of one model that a peer is believed to have: a peer that claims more attracts no more requests.
MAX_CLAIMED_SLOTS = 64


class TargetKind(Enum):
    """What answers at a target."""

    ENGINE = "engine"
    BACKEND = "backend"
    PEER = "peer"


# For code that each request runs: Python 3.11 looks up a member of an enum in some 900 instructions, and a request
# needed thirty of them, a tenth of its work. The hot modules of the gateway have such names for other enums, too.
ENGINE, BACKEND, PEER = TargetKind.ENGINE, TargetKind.BACKEND, TargetKind.PEER


Place = tuple[TargetKind, str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request can be sent.

    `address` is a Unix socket path for an engine, a base URL (without `/v1`) for a backend, a node id in hexadecimal
    for a peer. `generation` distinguishes successive engine processes (of a peer: its incarnation).
    `slots`: requests processed at a time (0: unknown). `model` is set for a peer, whose models have slots each.
    """

    kind: TargetKind
    address: str
    generation: int = 0
    slots: int = 0
    model: str = ""

    @property
    def place(self) -> Place:
        """The target without the process that serves there now."""
        return self.kind, self.address


@dataclass(frozen=True, slots=True)
class TargetOffer:
    """A target and what is known about it.

    `name`: for users. `context_length`: tokens (0: unknown). `rtt`: seconds (None: unknown). `load`: the last load that
    a peer reported. `purpose`: of the model, as the peer says. `split`: the engine has workers on other nodes and fails
    when one is lost. `vision`: the model accepts images (None: unknown). `owned`: a peer that is one of the owner's own
    machines. `template`: what the chat template of an engine here renders. `loaded`: the model is in memory there.
    `vectors`: what the embeddings of an engine here bear. `calls_tools`, `chat_template`, `trained`: see `ServedModel`.
    """

    target: Target
    name: str = ""
    context_length: int = 0
    rtt: float | None = None
    load: ModelLoad | None = None
    purpose: Purpose | None = None
    size: int = 0
    split: bool = False
    vision: bool | None = None
    owned: bool = False
    template: TemplateTraits = ANY_TEMPLATE
    loaded: bool = True
    vectors: VectorTraits = UNKNOWN_VECTORS
    calls_tools: bool | None = None
    chat_template: bool = True
    trained: int = 0

    @property
    def busy(self) -> float:
        """Active and waiting requests per slot, by the last reported load."""
        return 0.0 if self.load is None else (self.load.active + self.load.waiting) / max(1, self.target.slots)


class Availability(Enum):
    """The state of a model without a target: not known, to be waited for, or failed."""

    UNKNOWN = "unknown"
    COMING = "coming"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """The targets of a model, best first (`offers`), or the reason why there are none.

    `purpose` and `vision` are known only for a model whose file is on this node. A caller waits at most `max_wait`
    seconds for a model that is COMING (None: the gateway's own limit) and then gets `timeout_message`; the time counts
    as long as `waits_for` stays the same. `dial_hosts`: an unverified node serves the model and should be dialled.
    `loads`: the model is on this node's disk or unloaded here, and this node loads it for a request.
    `lost_reason`: why the engine here was withdrawn. `engine_failure`: why the engine process here ended, if there is
    no other yet.
    """

    offers: tuple[TargetOffer, ...]
    availability: Availability
    message: str = ""
    purpose: Purpose | None = None
    max_wait: float | None = None
    timeout_message: str = ""
    waits_for: str = ""
    dial_hosts: bool = False
    loads: bool = False
    lost_reason: str = ""
    engine_failure: str = ""
    vision: bool | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, best first."""
        return tuple(offer.target for offer in self.offers)


@dataclass(frozen=True, slots=True)
class MeshIndex:
    """The models of the mesh, by name; computed once for each view of the mesh.

    `hosts`: the offers of live peers, best first. `alive`: node ids of live peers (hexadecimal). `unverified`: models
    of peers that are not known to live or do not answer this node; `unmet`: those of peers that were never seen alive.
    `wanted`: models requested from the mesh. `last`: the member that is away and served the model last. `loaders`: the
    live peers that may load models for requests; `peers`: those by id. `same`: names of models by further names of the
    same files. `unserved`: models that live peers do not serve although they were to, with what the peers say.
    """

    hosts: Mapping[str, tuple[TargetOffer, ...]]
    alive: frozenset[str]
    unverified: frozenset[str]
    wanted: frozenset[str]
    last: Mapping[str, AwayMember]
    unmet: frozenset[str] = frozenset()
    loaders: Loaders = field(default_factory=Loaders)
    peers: Mapping[NodeId, PeerView] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    unserved: Mapping[str, tuple[tuple[str, UnservedModel], ...]] = field(default_factory=dict)


NO_MESH = MeshIndex({}, frozenset(), frozenset(), frozenset(), {})


def mesh_index(mesh: MeshView | None, only_from: tuple[str, ...] = ()) -> MeshIndex:
    """The index of `mesh`. `only_from`: beginnings of node ids (hexadecimal); if any, only these nodes are hosts."""
    if mesh is None:
        return NO_MESH
    hosts: dict[str, list[TargetOffer]] = {}
    alive: set[str] = set()
    rumoured: set[str] = set()
    unmet: set[str] = set()
    peers: dict[NodeId, PeerView] = {}
    wanted: set[str] = set(mesh.record.wants) if mesh.record is not None else set()
    same: dict[str, str] = dict(mesh.record.aliases) if mesh.record is not None else {}
    unserved: dict[str, list[tuple[str, UnservedModel]]] = {}
    # A peer that does not answer this node is of no use to its callers, even if other nodes reach it.
    silent = {(c.node, c.incarnation) for c in mesh.record.failure_reports} if mesh.record is not None else set()
    for peer in mesh.peers:
        if peer.status in (PeerStatus.DEAD, PeerStatus.LEFT) or peer.node == mesh.node:
            continue
        wanted.update(peer.record.wants)
        if only_from and not peer.node.hex().startswith(only_from):
            continue
        if peer.status is not PeerStatus.ALIVE or (peer.node, peer.record.version.incarnation) in silent:
            rumoured.update(served.name for served in peer.record.serves)
            if peer.status is PeerStatus.UNVERIFIED:
                unmet.update(served.name for served in peer.record.serves)
            continue
        alive.add(peer.node.hex())
        peers[peer.node] = peer
        same.update(peer.record.aliases)
        for each in peer.record.unserved:
            unserved.setdefault(each.name, []).append((_name_of(peer), each))
        for offer in _offers(peer):
            hosts.setdefault(offer.target.model, []).append(offer)
    ordered = {model: tuple(sorted(_loaded(offers), key=_by_reported_load)) for model, offers in hosts.items()}
    last: dict[str, AwayMember] = {}
    for member in mesh.away:
        if not only_from or member.node.hex().startswith(only_from):
            for model in member.served:
                last.setdefault(model, member)  # the last seen comes first
    loaders = Loaders([Loader(peer.record, peer.owned) for peer in peers.values()])
    known, lost = frozenset(rumoured), frozenset(unmet)
    told = {model: tuple(said) for model, said in unserved.items()}
    return MeshIndex(ordered, frozenset(alive), known, frozenset(wanted), last, lost, loaders, peers, same, told)


def _offers(peer: PeerView) -> Iterable[TargetOffer]:
    address, incarnation = peer.node.hex(), peer.record.version.incarnation
    name = _name_of(peer)
    loads = {load.name: load for load in peer.loads or peer.record.loads}
    for served in peer.record.serves:
        target = Target(TargetKind.PEER, address, incarnation, min(served.slots, MAX_CLAIMED_SLOTS), served.name)
        load = loads.get(served.name)
        yield TargetOffer(
            target,
            name,
            served.context_length,
            peer.rtt,
            load,
            served.purpose,
            served.size,
            vision=served.vision,
            owned=peer.owned,
            loaded=served.loaded,
            calls_tools=served.calls_tools,
            chat_template=served.chat_template,
            trained=served.trained,
        )


def _name_of(peer: PeerView) -> str:
    return f"{peer.record.name or 'a node'} ({short(peer.node)})"


def _loaded(offers: list[TargetOffer]) -> list[TargetOffer]:
    """The hosts that have the model in memory, if there are any: a request must not make another node load it."""
    return [offer for offer in offers if offer.loaded] or offers


def _by_reported_load(offer: TargetOffer) -> tuple[float, float, int, str]:
    rtt = 1.0 if offer.rtt is None else offer.rtt
    return offer.busy, rtt, -offer.context_length, offer.target.address


def route(snapshot: Snapshot, model: str, index: MeshIndex | None = None, now: float = 0.0) -> ModelRoute:
    """The route to `model` (exactly that name). `index`: `mesh_index(snapshot.mesh)`, for callers that ask often; `now`
    on the clock of the snapshot's times."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    here = snapshot.model(model)
    offers = (*offers_here(snapshot, model), *index.hosts.get(model, ()))
    if any(offer.loaded for offer in offers):
        return route_to(offers, here)
    if not snapshot.stopping and (found := _on_demand(snapshot, model, index, offers, now)) is not None:
        return found
    if offers:
        return route_to(offers, here)
    if here is None or snapshot.stopping:
        return _elsewhere(snapshot, model, index, now) if here is None else _here(snapshot, here)
    found = _here(snapshot, here)
    return (
        (_wait_for_mesh(snapshot, model, index, now) or found) if found.availability is Availability.FAILED else found
    )


def _on_demand(
    snapshot: Snapshot, model: str, index: MeshIndex, unloaded: tuple[TargetOffer, ...], now: float
) -> ModelRoute | None:
    """The route to the node that loads `model`, which no node has in memory; None if there is none. `unloaded`: the
    peers that unloaded it."""
    here, mesh = snapshot.model(model), snapshot.mesh
    if here is not None and not here.reloads and _loads_here(snapshot, here):
        return _here(snapshot, here)
    mine = model in snapshot.available or (here is not None and here.reloads)
    peers = {loader.record.node: loader for loader in index.loaders.of(model)}
    for offer in unloaded:
        node = NodeId(bytes.fromhex(offer.target.address))
        peers.setdefault(node, Loader(index.peers[node].record, offer.owned))
    if not (mine or peers) or model in index.unmet:
        return None
    if mesh is not None and mesh.settling and not unloaded:  # another node may have it in memory
        waiting = _wait_for_mesh(snapshot, model, index, now)
        return replace(waiting, max_wait=None) if waiting is not None and mine else None
    own = [Loader(mesh.record, True)] if mine and mesh is not None and mesh.record is not None else []
    order = on_demand.ordered([*peers.values(), *own], model)
    if mine and (mesh is None or mesh.node not in order or order[0] == mesh.node):
        if here is not None:
            return _here(snapshot, here)
        return replace(route_to((), None, f"loading {model}"), loads=True)
    return route_to(tuple([_offer_to_load(index.peers[node], model) for node in order if node in peers]), here)


def _offer_to_load(peer: PeerView, model: str) -> TargetOffer:
    known = next((offer for offer in _offers(peer) if offer.target.model == model), None)
    if known is not None:
        return known
    target = Target(TargetKind.PEER, peer.node.hex(), peer.record.version.incarnation, 0, model)
    return TargetOffer(target, _name_of(peer), rtt=peer.rtt, owned=peer.owned, loaded=False)


def _loads_here(snapshot: Snapshot, here: ModelState) -> bool:
    """Whether the model is being loaded here, or loaded again: a request for it has only to wait."""
    if here.reloads:
        return True
    if not here.wanted or here.file is not FilePhase.READY:
        return False
    if here.server is ServerPhase.NONE and here.split is not None and here.split.lease is None:
        return False
    loading = (ModelPhase.WAITING, ModelPhase.LOADING, ModelPhase.RESTARTING)
    return next_step.phase(snapshot.engine, here) in loading


def route_to(offers: tuple[TargetOffer, ...], here: ModelState | None, message: str = "") -> ModelRoute:
    """The route to `offers`, with the facts of the model on this node (`here`)."""
    facts = here.facts if here is not None else None
    return ModelRoute(
        offers,
        Availability.COMING,
        message,
        purpose=facts.purpose if facts is not None else None,
        vision=facts.vision if facts is not None else None,
        lost_reason=_lost_reason(here),
        engine_failure=_engine_failure(here),
    )


def offers_here(snapshot: Snapshot, model: str) -> tuple[TargetOffer, ...]:
    """The targets on this node: its engine, then its backends."""
    calls = snapshot.declared_tools.get(model)
    offers = [
        TargetOffer(Target(TargetKind.BACKEND, backend.url), backend.url, calls_tools=calls)
        for backend in snapshot.backends
        if backend.healthy and model in backend.models
    ]
    here = snapshot.model(model)
    if here is not None and (facts := here.server_facts) is not None and here.wanted:
        target = Target(TargetKind.ENGINE, facts.endpoint, here.generation, facts.slots)
        shared = here.split is not None and here.split.lease is not None
        offer = TargetOffer(target, "this node", facts.context_length, split=shared, calls_tools=facts.calls_tools)
        offer = replace(offer, template=facts.template)
        if (file := here.facts) is not None:
            offer = replace(offer, vision=file.vision, vectors=file.vectors, chat_template=not file.warning)
            offer = replace(offer, trained=file.context_length)
        offers.insert(0, offer)
    return tuple(offers)


def route_here(snapshot: Snapshot, model: str) -> ModelRoute:
    """The route to `model` on this node alone, for a request of a peer: UNKNOWN without a target, so that the peer asks
    another host, unless this node loads the model for the request, or has failed to."""
    here, offers = snapshot.model(model), offers_here(snapshot, model)
    if not offers and not snapshot.stopping:
        if here is not None and here.wanted and (here.reloads or here.origin is ModelOrigin.MESH):
            return _here(snapshot, here)
        if here is not None and here.generation <= 1 and _loads_here(snapshot, here):  # its record says so
            return _here(snapshot, here)
        if here is None and model in snapshot.available:
            return replace(route_to((), None, f"loading {model}"), loads=True)
    return replace(route_to(offers, here), availability=Availability.UNKNOWN)


def _here(snapshot: Snapshot, here: ModelState) -> ModelRoute:
    if here.wanted and here.unloaded:
        return replace(route_to((), here, next_step.progress_message(snapshot.engine, here)), loads=True)
    if next_step.phase(snapshot.engine, here) in (ModelPhase.FAILED, ModelPhase.STOPPING, ModelPhase.STOPPED):
        return replace(route_to((), here, texts.failure_message(snapshot, here)), availability=Availability.FAILED)
    if next_step.download_failed(here):
        return replace(route_to((), here, texts.failure_message(snapshot, here)), availability=Availability.FAILED)
    found = route_to((), here, next_step.progress_message(snapshot.engine, here))
    if here.server is not ServerPhase.NONE or here.split is None or here.split.lease is not None:
        return found
    message = f"{here.name} needs other nodes of the mesh, which are not ready: {here.split.reason}. Retry later."
    return replace(found, max_wait=OTHER_NODES_SECONDS, timeout_message=message, waits_for="other nodes")


def engine_died(snapshot: Snapshot, model: str) -> bool:
    """Whether an engine process of `model` that is no target any more ended by itself, rather than on purpose."""
    here = snapshot.model(model)
    if here is None or not here.wanted or here.unloaded or snapshot.stopping:
        return False
    return here.server is not ServerPhase.STOPPING


def _lost_reason(here: ModelState | None) -> str:
    """Why the engine process of a wanted model is being stopped (a worker of its split was lost); "" if it is not."""
    ending = here is not None and here.wanted and here.server is ServerPhase.STOPPING
    return here.reason if here is not None and ending else ""


def _engine_failure(here: ModelState | None) -> str:
    """Why the engine process of a wanted model has ended; "" if there is one."""
    ended = here is not None and here.wanted and here.server is ServerPhase.NONE
    return here.last_failure if here is not None and ended else ""


def _elsewhere(snapshot: Snapshot, model: str, index: MeshIndex, now: float) -> ModelRoute:
    """The route to a model that is neither on this node nor served by a live peer."""
    silent = [b for b in snapshot.backends if not b.healthy]
    had = [b for b in silent if model in b.models]
    # A backend that was never asked may have the model; one that had it may recover soon.
    if any(b.failures == 0 for b in silent) or any(b.failures <= BACKEND_MAX_FAILURES for b in had):
        return ModelRoute((), Availability.COMING, "asking the backends")
    if (waiting := _wait_for_mesh(snapshot, model, index, now)) is not None:
        return waiting
    if (waiting := _wait_for_download(snapshot, model, index)) is not None:
        return waiting
    if had:
        message = f"The backend that serves {model} does not answer: {had[0].reason} Check that the backend runs."
        return ModelRoute((), Availability.FAILED, message)
    last = _served_lately(model, index, now)
    if model in snapshot.wants or model in index.wanted:
        message = f"No node serves {model} yet. Start one: mesh-llm --model {model} --join INVITE"
        message = texts.unserved_text(model, index.unserved.get(model, ())) or message
        message = texts.dropped_text(snapshot, model, now) or message
        if last is not None:
            message = (
                f"{texts.went_away(last, now)} It served {model}. Retry in a moment, or start another node with it."
            )
        progress = f"waiting for a node that serves {model}"
        return ModelRoute((), Availability.COMING, progress, max_wait=WANTED_SECONDS, timeout_message=message)
    if snapshot.mesh is not None and snapshot.mesh.phase in (JoinPhase.EXPELLED, JoinPhase.DUPLICATE):
        return ModelRoute((), Availability.FAILED, f"{model} is not on this node: {snapshot.mesh.reason}")
    if last is not None:
        return ModelRoute((), Availability.FAILED, _not_served_now(model, last, now))
    if snapshot.mesh is not None and snapshot.mesh.phase is JoinPhase.FAILED:
        reason = snapshot.mesh.reason or "no bootstrap address answers"
        message = f"{model} is not on this node, and joining the mesh failed: {reason}"
        return ModelRoute((), Availability.FAILED, message)
    if (text := texts.damaged_text(snapshot, model)) or texts.may_come_back(index.unserved.get(model, ())):
        text = text or texts.unserved_text(model, index.unserved[model])
        return ModelRoute((), Availability.FAILED, text)
    return ModelRoute((), Availability.UNKNOWN)


def _wait_for_download(snapshot: Snapshot, model: str, index: MeshIndex) -> ModelRoute | None:
    """A route to wait on until a node begins to download `model`; None if no node does."""
    mesh = snapshot.mesh
    if mesh is None or snapshot.stopping:
        return None
    loaders = [Loader(peer.record, peer.owned) for peer in index.peers.values()]
    if mesh.record is not None and model not in dict(snapshot.dropped):
        loaders.append(Loader(mesh.record, owned=True))
    if not on_demand.may_download(loaders, model, snapshot.catalog):
        return None
    return ModelRoute(
        (),
        Availability.COMING,
        f"waiting for a node that downloads {model}",
        max_wait=DOWNLOAD_SECONDS,
        timeout_message=f"No node has begun to download {model} yet. Retry in a minute.",
        waits_for="a download",
    )


def _served_lately(model: str, index: MeshIndex, now: float) -> AwayMember | None:
    """The member that is away and served `model` a moment ago."""
    last = index.last.get(model)
    return last if last is not None and now - last.seen <= SERVED_LATELY_SECONDS else None


def _not_served_now(model: str, last: AwayMember, now: float) -> str:
    return f"{model} is not served at the moment. {texts.went_away(last, now)} It served {model}. Retry in a moment."


def _wait_for_mesh(snapshot: Snapshot, model: str, index: MeshIndex, now: float) -> ModelRoute | None:
    """A route to wait on while other nodes that may serve `model` are found; None if there are none to wait for."""
    mesh = snapshot.mesh
    if mesh is None or snapshot.stopping:
        return None
    if mesh.settling:
        progress = f"joining the mesh: {_join_progress(mesh)}"
        message = f"{model} is not on this node, which has not joined its mesh yet ({_join_progress(mesh)}). Retry."
        if (last := _served_lately(model, index, now)) is not None:
            message = _not_served_now(model, last, now)
        return ModelRoute(
            (),
            Availability.COMING,
            progress,
            max_wait=SETTLING_SECONDS,
            timeout_message=message,
            waits_for=OTHER_MEMBERS,
        )
    if model in index.unverified:
        message = f"The node that serves {model} does not answer. Retry in a few seconds."
        progress = f"connecting to a host of {model}"
        return ModelRoute(
            (),
            Availability.COMING,
            progress,
            max_wait=LOOKING_SECONDS,
            timeout_message=message,
            waits_for=OTHER_MEMBERS,
            dial_hosts=True,
        )
    return None


def _join_progress(mesh: MeshView) -> str:
    failed = sum(step.state in (JoinAttemptState.FAILED, JoinAttemptState.REFUSED) for step in mesh.join_attempts)
    tried = f", {failed} of {len(mesh.join_attempts)} bootstrap addresses failed" if failed else ""
    return f"{mesh.phase.value}{tried}"


def all_offers(snapshot: Snapshot, index: MeshIndex | None = None) -> dict[str, list[TargetOffer]]:
    """The offers of every model, best first: as `route` gives them, in one pass."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    found = {model.name: list(offers_here(snapshot, model.name)) for model in snapshot.models}
    local = frozenset(found)
    for backend in snapshot.backends:
        if backend.healthy:
            offer = TargetOffer(Target(TargetKind.BACKEND, backend.url), backend.url)
            for name in backend.models:
                if name not in local:
                    found.setdefault(name, []).append(offer)
    for name, offers in index.hosts.items():
        found.setdefault(name, []).extend(offers)
    for name in (*snapshot.available, *index.loaders):
        found.setdefault(name, [])
    return found


def models(snapshot: Snapshot, index: MeshIndex | None = None) -> tuple[str, ...]:
    """The names of all models that can be requested, those of this node first, without repeats."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    names = [m.name for m in snapshot.models]
    names += [name for b in snapshot.backends if b.healthy for name in b.models]
    names += index.hosts
    names += snapshot.available
    names += index.loaders
    return tuple(dict.fromkeys(names))


def names(snapshot: Snapshot, index: MeshIndex, aliases: Mapping[str, str]) -> ModelNames:
    """All names that can be requested now: of what the mesh has, then of what nodes only ask for. A model whose file
    is not on this node yet is one of these. `aliases`: of the owner."""
    has = {model.name for model in snapshot.models if model.file is FilePhase.READY}
    has.update(name for backend in snapshot.backends if backend.healthy for name in backend.models)
    has.update(index.hosts, snapshot.available, index.loaders, index.unverified)
    wished = {model.name for model in snapshot.models} | index.wanted | set(snapshot.wants)
    wished.update(index.unserved, dict(snapshot.damaged))
    return ModelNames(has, aliases, wished, index.same)


def wanted(snapshot: Snapshot, index: MeshIndex | None = None) -> tuple[str, ...]:
    """The models that are requested from the mesh, which has none under their names, sorted."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    asked = index.wanted | set(snapshot.wants)
    return tuple(name for name in names(snapshot, index, {}).wished if name in asked and snapshot.model(name) is None)
