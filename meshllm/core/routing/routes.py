"""Which targets can answer for a model, best first, or why there are none.

On this node: the engine process, then the backends in the order they were named; then the peers that are alive and say
they serve it. A target is named by what the gateway needs to reach it; whether it has room is the gateway's business,
and `ranking` puts the targets in order once that is known.

Law: only what this node knows for itself can refuse a request. What a peer says of its models (what they are for, how
much they take) says only whether that peer is worth asking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from meshllm.core.membership.views import JoinAttemptState, JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import ModelLoad, short
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelPhase, ModelState, Purpose, ServerPhase, Snapshot

# So many unanswered probes in a row, and callers of a backend's models get an error instead of waiting for it.
BACKEND_PATIENCE_FAILURES = 4
# How long a caller waits (seconds) for what may turn up. The join has a deadline of 20 s of its own; a host that others
# spoke of is dialled within 5; and a model that is wanted may be loaded at this very moment, or never.
SETTLING_SECONDS = 30.0
LOOKING_SECONDS = 15.0
WANTED_SECONDS = 3.0


class TargetKind(Enum):
    """What stands behind a target."""

    ENGINE = "engine"
    BACKEND = "backend"
    PEER = "peer"


Place = tuple[TargetKind, str]


@dataclass(frozen=True, slots=True)
class Target:
    """Somewhere a request can be answered.

    `address` is a Unix socket path for an engine, a base URL (without `/v1`) for a backend, a node id in hexadecimal
    for a peer. `generation` (of a peer: its incarnation) tells two engine processes apart that follow one another;
    `slots` is how many requests are worked on at a time (0: unknown). `model` is set for a peer, whose models each
    have slots of their own.
    """

    kind: TargetKind
    address: str
    generation: int = 0
    slots: int = 0
    model: str = ""

    @property
    def place(self) -> Place:
        """Where it is, whatever process serves there now."""
        return self.kind, self.address


@dataclass(frozen=True, slots=True)
class TargetOffer:
    """A target, and what is known of it beside.

    `context_length` in tokens (0: unknown), `rtt` in seconds (None: unknown), `load` the newest that a peer told,
    `name` for people. `purpose` is what a peer says the model is for; `split` that an engine here has workers on other
    nodes, and fails when one of them is lost; `vision` that the model takes pictures (None: unknown).
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

    @property
    def busy(self) -> float:
        """Requests at work and waiting there, per slot, as far as it told."""
        return 0.0 if self.load is None else (self.load.active + self.load.waiting) / max(1, self.target.slots)


class Availability(Enum):
    """How a model stands with this node, when no target can answer for it at the moment."""

    UNKNOWN = "unknown"
    COMING = "coming"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """The targets of a model, best first (`offers`), or the reason why there are none.

    `purpose` and `vision` are known only for a model whose file is on this node. A caller waits at most `max_wait`
    seconds for a model that is COMING (None: the gateway's own limit) and then gets `timeout_message`. `dial_hosts`: an
    unverified node serves the model and should be dialled. `lost_reason`: why the engine here was withdrawn.
    """

    offers: tuple[TargetOffer, ...]
    availability: Availability
    message: str = ""
    purpose: Purpose | None = None
    max_wait: float | None = None
    timeout_message: str = ""
    dial_hosts: bool = False
    lost_reason: str = ""
    vision: bool | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, best first."""
        return tuple(offer.target for offer in self.offers)


@dataclass(frozen=True, slots=True)
class MeshIndex:
    """The models of the mesh, by name; computed once for each view of the mesh.

    `hosts`: the offers of live peers, best first. `alive`: node ids of live peers (hexadecimal). `unverified`: models
    of peers that are not known to live or do not answer this node. `wanted`: models requested from the mesh.
    """

    hosts: Mapping[str, tuple[TargetOffer, ...]]
    alive: frozenset[str]
    unverified: frozenset[str]
    wanted: frozenset[str]


NO_MESH = MeshIndex({}, frozenset(), frozenset(), frozenset())


def mesh_index(mesh: MeshView | None) -> MeshIndex:
    """What `mesh` serves, by model."""
    if mesh is None:
        return NO_MESH
    hosts: dict[str, list[TargetOffer]] = {}
    alive: set[str] = set()
    rumoured: set[str] = set()
    wanted: set[str] = set(mesh.record.wants) if mesh.record is not None else set()
    # Whoever does not answer this node is of no use to its callers, though others may still reach it.
    silent = {(c.node, c.incarnation) for c in mesh.record.failure_reports} if mesh.record is not None else set()
    for peer in mesh.peers:
        if peer.status in (PeerStatus.DEAD, PeerStatus.LEFT) or peer.node == mesh.node:
            continue
        wanted.update(peer.record.wants)
        if peer.status is not PeerStatus.ALIVE or (peer.node, peer.record.version.incarnation) in silent:
            rumoured.update(served.name for served in peer.record.serves)
            continue
        alive.add(peer.node.hex())
        for offer in _offers(peer):
            hosts.setdefault(offer.target.model, []).append(offer)
    ordered = {model: tuple(sorted(offers, key=_by_what_is_told)) for model, offers in hosts.items()}
    return MeshIndex(ordered, frozenset(alive), frozenset(rumoured), frozenset(wanted))


def _offers(peer: PeerView) -> Iterable[TargetOffer]:
    address, incarnation = peer.node.hex(), peer.record.version.incarnation
    name = f"{peer.record.name or 'a node'} ({short(peer.node)})"
    loads = {load.name: load for load in peer.loads or peer.record.loads}
    for served in peer.record.serves:
        target = Target(TargetKind.PEER, address, incarnation, served.slots, served.name)
        load = loads.get(served.name)
        yield TargetOffer(
            target, name, served.context_length, peer.rtt, load, served.purpose, served.size, vision=served.vision
        )


def _by_what_is_told(offer: TargetOffer) -> tuple[float, float, int, str]:
    rtt = 1.0 if offer.rtt is None else offer.rtt
    return offer.busy, rtt, -offer.context_length, offer.target.address


def route(snapshot: Snapshot, model: str, index: MeshIndex | None = None) -> ModelRoute:
    """Who can answer for `model` now. Exactly that name: an unknown model is never another model's answer.

    `index` is `mesh_index(snapshot.mesh)`, from callers that ask often.
    """
    if index is None:
        index = mesh_index(snapshot.mesh)
    here = snapshot.model(model)
    offers = (*offers_here(snapshot, model), *index.hosts.get(model, ()))
    if offers:
        return route_to(offers, here)
    if here is None or snapshot.stopping:
        return _away(snapshot, model, index) if here is None else _here(snapshot, here)
    found = _here(snapshot, here)
    return (_turning_up(snapshot, model, index) or found) if found.availability is Availability.FAILED else found


def route_to(offers: tuple[TargetOffer, ...], here: ModelState | None, words: str = "") -> ModelRoute:
    """The route to `offers` for a model, with what is known of it `here`."""
    facts = here.facts if here is not None else None
    return ModelRoute(
        offers,
        Availability.COMING,
        words,
        purpose=facts.purpose if facts is not None else None,
        vision=facts.vision if facts is not None else None,
        lost_reason=_member_lost(here),
    )


def offers_here(snapshot: Snapshot, model: str) -> tuple[TargetOffer, ...]:
    """What this node itself can answer with, without any peer: its engine, then its backends."""
    offers = [
        TargetOffer(Target(TargetKind.BACKEND, backend.url), backend.url)
        for backend in snapshot.backends
        if backend.healthy and model in backend.models
    ]
    here = snapshot.model(model)
    if here is not None and (facts := here.server_facts) is not None and here.wanted:
        target = Target(TargetKind.ENGINE, facts.endpoint, here.generation, facts.slots)
        shared = here.split is not None and here.split.lease is not None
        sees = here.facts.vision if here.facts is not None else None
        offers.insert(0, TargetOffer(target, "this node", facts.context_length, split=shared, vision=sees))
    return tuple(offers)


def _here(snapshot: Snapshot, here: ModelState) -> ModelRoute:
    if next_step.phase(snapshot.engine, here) in (ModelPhase.FAILED, ModelPhase.STOPPING, ModelPhase.STOPPED):
        return replace(route_to((), here, failure_message(snapshot, here)), availability=Availability.FAILED)
    return route_to((), here, next_step.progress_message(snapshot.engine, here))


def _member_lost(here: ModelState | None) -> str:
    """Why the engine process of a model is being ended although it is wanted: who was lost that carried layers of it.
    Empty if it is not."""
    ending = here is not None and here.wanted and here.server is ServerPhase.STOPPING
    return here.reason if here is not None and ending else ""


def _away(snapshot: Snapshot, model: str, index: MeshIndex) -> ModelRoute:
    silent = [b for b in snapshot.backends if not b.healthy]
    had = [b for b in silent if model in b.models]
    # One that was never asked may have it; one that had it may be back in a moment.
    if any(b.failures == 0 for b in silent) or any(b.failures <= BACKEND_PATIENCE_FAILURES for b in had):
        return ModelRoute((), Availability.COMING, "asking the backends")
    if (turning_up := _turning_up(snapshot, model, index)) is not None:
        return turning_up
    if had:
        return ModelRoute((), Availability.FAILED, f"the backend that serves {model} does not answer: {had[0].reason}")
    if model in snapshot.wants or model in index.wanted:
        words = f"{model} is wanted by the mesh but no node serves it yet"
        verdict = f"{words}: start a node that has it, with --join."
        return ModelRoute((), Availability.COMING, words, max_wait=WANTED_SECONDS, timeout_message=verdict)
    if snapshot.mesh is not None and snapshot.mesh.phase is JoinPhase.FAILED:
        reason = snapshot.mesh.reason or "no node that was named answers"
        return ModelRoute(
            (), Availability.FAILED, f"{model} is not known here, and the mesh could not be joined: {reason}"
        )
    return ModelRoute((), Availability.UNKNOWN)


def _turning_up(snapshot: Snapshot, model: str, index: MeshIndex) -> ModelRoute | None:
    """What other nodes may yet show to serve."""
    mesh = snapshot.mesh
    if mesh is None or snapshot.stopping:
        return None
    if mesh.settling:
        words = f"joining the mesh: {_joining_words(mesh)}"
        verdict = f"{model} is not known here yet, and this node has not reached its mesh ({_joining_words(mesh)})."
        return ModelRoute((), Availability.COMING, words, max_wait=SETTLING_SECONDS, timeout_message=verdict)
    if model in index.unverified:
        verdict = f"{model} is served by a node that does not answer at the moment. Try again soon."
        words = f"looking for a host of {model}"
        return ModelRoute(
            (), Availability.COMING, words, max_wait=LOOKING_SECONDS, timeout_message=verdict, dial_hosts=True
        )
    return None


def _joining_words(mesh: MeshView) -> str:
    failed = sum(step.state in (JoinAttemptState.FAILED, JoinAttemptState.REFUSED) for step in mesh.join_attempts)
    tried = f", {failed} of {len(mesh.join_attempts)} ways in have failed" if failed else ""
    return f"{mesh.phase.value}{tried}"


def failure_message(snapshot: Snapshot, model: ModelState) -> str:
    """Why `model` cannot be served, in words for its caller."""
    if snapshot.stopping:
        return f"this node is stopping; {model.name} is no longer served here"
    reason = model.reason or snapshot.engine.reason or "no reason is known"
    advice = model.advice or snapshot.engine.advice
    return f"{model.name} cannot be served: {reason} {advice}".rstrip()


def purpose_message(model: str, purpose: Purpose) -> str:
    """What to tell a caller who asked `model` for something that it is not for."""
    match purpose:
        case Purpose.GENERATE:
            return f"{model} writes text and gives neither embeddings nor rankings: choose a model made for that."
        case Purpose.EMBED:
            return f"{model} only turns texts into vectors: ask it at /v1/embeddings, and another model for the rest."
        case Purpose.RERANK:
            return f"{model} only ranks documents: ask it at /v1/rerank, and another model for the rest."


def no_vision_message(model: str) -> str:
    """What to tell a caller who showed a picture to `model`, which cannot see."""
    return (
        f"{model} cannot see: it takes text alone. Leave the pictures out, or ask a model that sees; "
        "`mesh.input_modalities` in /v1/models says which do."
    )


def all_offers(snapshot: Snapshot, index: MeshIndex | None = None) -> dict[str, list[TargetOffer]]:
    """Every model's offers, best first: what `route` says of each, in one pass over what backends and peers list."""
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
    return found


def models(snapshot: Snapshot, index: MeshIndex | None = None) -> tuple[str, ...]:
    """Every model that can be asked for, in the order it became known, without repeats: first what is here."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    names = [m.name for m in snapshot.models]
    names += [name for b in snapshot.backends if b.healthy for name in b.models]
    names += index.hosts
    return tuple(dict.fromkeys(names))


def wanted(snapshot: Snapshot, index: MeshIndex | None = None) -> tuple[str, ...]:
    """The models that somebody asked the mesh for and nobody serves, in the order of their names."""
    if index is None:
        index = mesh_index(snapshot.mesh)
    served = {model.name for model in snapshot.models} | index.hosts.keys()
    served.update(name for backend in snapshot.backends if backend.healthy for name in backend.models)
    return tuple(sorted((index.wanted | set(snapshot.wants)) - served))
