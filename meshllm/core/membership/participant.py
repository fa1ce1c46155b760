"""What nodes and clients have in common in the mesh: links, failure detector, join, messages, round-trip times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.failure_detector import PROBE_SECONDS, FailureDetector
from meshllm.core.membership.join import JOIN_TIMERS, Joiner
from meshllm.core.membership.links import LinkState, LinkTable, Rng
from meshllm.core.membership.mesh_merge import MergeDecision, decide
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus
from meshllm.core.records import MeshId, ModelLoad, NodeId, NodeRecord, OwnFacts, Role

# How often the list of peers to remember may be written.
SAVE_SECONDS = 10.0
# Tokens of a link's allowance that a message costs.
PING_PRICE = 1.0
# The weight of a new, longer round trip in the smoothed one (RFC 6298). A shorter one counts at once: the first
# measurement contains a handshake, and no measurement is shorter than the path.
RTT_WEIGHT = 0.125
# A change of the round-trip time below both bounds is not shown to readers.
RTT_CHANGE_SECONDS = 0.001
RTT_CHANGE_FRACTION = 0.1


class MeshParticipant(ABC):
    """A node or a client in the mesh: takes events, returns commands.

    Everything follows from the events, `now` and the given randomness. A message that breaks the protocol changes
    nothing and costs the peer its allowance. A subclass sets `_detector` in its `__init__`.
    """

    _detector: FailureDetector

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        self._id = config.node
        self._rng = rng
        self._out: list[c.Command] = []
        self._timers = Timers()
        self._links = LinkTable(config.node, self._out)
        self._joiner = Joiner(self._links, self._timers, rng)
        self._started = False
        self._left = False
        self._now = 0.0  # of the event at hand
        self._view: MeshView | None = None

    # -- what `NodeCore` calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` at `now` (seconds); return the commands that follow. Every event also checks the timers."""
        self._now = now
        if not self._left:
            if not self._started:
                self._started = True
                self._timers.set(Timer.PROBE, now + PROBE_SECONDS * self._rng.random())
                self._timers.set(Timer.SAVE_PEERS, now + SAVE_SECONDS)
                self._start(now)
            self._dispatch(event, now)
        if not self._left:
            for timer, node, at in self._timers.due(now):
                self._due(timer, NodeId(node), now, now - at)
            self._settle(now)
        return self._drain_commands()

    def update_facts(self, facts: OwnFacts, now: float) -> list[c.Command]:
        """Tell the mesh what this node now serves, wants and offers; return the commands that follow."""
        return []

    def next_deadline(self) -> float | None:
        """When to call `handle` again at the latest, or None."""
        return None if self._left else self._timers.next()

    @property
    def dirty(self) -> bool:
        """Whether `view` would return another object than the last time."""
        return self._view is None

    @property
    def joined(self) -> bool:
        """Whether this participant is in a mesh."""
        return self._joiner.phase is JoinPhase.JOINED and not self._left

    @property
    @abstractmethod
    def record(self) -> NodeRecord | None:
        """This node's own record; None for a client."""

    @abstractmethod
    def entries(self) -> Collection[MemberEntry]:
        """All other nodes that are known."""

    @abstractmethod
    def entry(self, node: NodeId) -> MemberEntry | None:
        """What is known of `node`."""

    def alive(self) -> list[NodeRecord]:
        """The records of the nodes that are alive."""
        return [entry.record for entry in self.entries() if entry.status is PeerStatus.ALIVE]

    def status(self, node: NodeId) -> PeerStatus | None:
        """The status of a peer, None if it is not known."""
        entry = self.entry(node)
        return entry.status if entry is not None else None

    def view(self) -> MeshView:
        """The frozen view for readers; the same object until something changes."""
        if self._view is None:
            self._view = MeshView(
                self._id,
                self._mesh,
                self._role,
                self._joiner.phase,
                self._joiner.attempts,
                self.record,
                tuple([entry.peer_view() for entry in sorted(self.entries(), key=lambda entry: entry.record.node)]),
                self._links.clients if self._role is Role.NODE else 0,
                self._joiner.reason,
            )
        return self._view

    # -- what a subclass adds

    @property
    @abstractmethod
    def _role(self) -> Role: ...

    @property
    @abstractmethod
    def _mesh(self) -> MeshId: ...

    @abstractmethod
    def _start(self, now: float) -> None:
        """The first event is about to be handled."""

    @abstractmethod
    def _leave(self, now: float) -> None:
        """Say goodbye to the peers. Nothing is handled afterwards."""

    @abstractmethod
    def _client_up(self, peer: NodeId) -> None:
        """A link to a client came up."""

    @abstractmethod
    def _node_up(self, event: e.LinkUp, now: float, *, first: bool) -> None:
        """A link to a node came up; `first`: there was none to any node before."""

    @abstractmethod
    def _link_lost(self, peer: NodeId, link: LinkState, now: float) -> None:
        """A link is gone."""

    @abstractmethod
    def _other_message(self, peer: NodeId, link: LinkState, message: m.Message, now: float) -> None:
        """A message that is neither ping, pong nor a change of the mesh id, from a node or a client."""

    @abstractmethod
    def _watched(self) -> Collection[NodeId]:
        """The nodes to probe now."""

    @abstractmethod
    def _save_peers(self) -> None:
        """Write the peers to remember, if they have changed."""

    @abstractmethod
    def _other_timer(self, timer: Timer, node: NodeId, now: float) -> None:
        """A timer that is not of the failure detector, the join or `SAVE_PEERS` is due."""

    @abstractmethod
    def _set_mesh(self, mesh: MeshId) -> None:
        """Take over another mesh id and tell the peers."""

    def _other_event(self, event: e.Event, now: float) -> None:  # noqa: B027
        """An event that does not concern links or the join."""

    def _join_requested(self, event: e.JoinWanted) -> None:  # noqa: B027
        """Bootstrap addresses were given."""

    def _peer_unreachable(self, target: NodeId, now: float) -> None:  # noqa: B027
        """A dial to the node `target` failed because the node did not answer."""

    def _after_probe(self, now: float) -> None:  # noqa: B027
        """The probes of this second are sent."""

    def _settle(self, now: float) -> None:  # noqa: B027
        """Every event and timer is handled: act on what changed."""

    def _loads(self) -> tuple[ModelLoad, ...]:
        return ()

    # -- events

    def _dispatch(self, event: e.Event, now: float) -> None:
        match event:
            case e.MessageReceived():
                self._message(event.peer, event.message, now)
            case e.LinkUp():
                self._link_up(event, now)
            case e.LinkDown():
                self._link_down(event.peer, now)
            case e.DialFailed():
                self._dial_failed(event, now)
            case e.JoinWanted():
                self._joiner.join(event.addresses, event.invited, self._id, now)
                self._join_requested(event)
                self._view = None
            case e.StopWanted():
                self._leave(now)
                self._left = True
                self._timers.clear()
                self._view = None
            case _:
                self._other_event(event, now)

    def _link_up(self, event: e.LinkUp, now: float) -> None:
        peer = event.peer
        if peer == self._id:
            return
        first = not self._links.nodes
        self._links.up(peer, LinkState(event.role, event.mesh, event.address, event.rtt, event.dialled, now))
        self._view = None
        if event.role is Role.CLIENT:
            self._client_up(peer)
            return
        self._detector.link_up(peer)
        self._node_up(event, now, first=first)

    def _link_down(self, peer: NodeId, now: float) -> None:
        link = self._links.down(peer)
        if link is not None:
            self._view = None
            self._link_lost(peer, link, now)

    def _dial_failed(self, event: e.DialFailed, now: float) -> None:
        self._links.failed(event.target, now, final=event.final, local=event.local)
        self._joiner.failed(event.target, f"{event.reason} {event.advice}".rstrip(), event.final, now)
        self._view = None
        node = event.target.node
        # A refusal is an answer: the peer is alive. A limit of this node says nothing about the peer.
        if node is not None and not event.final and not event.local:
            self._peer_unreachable(node, now)

    # -- messages

    def _message(self, peer: NodeId, message: m.Message, now: float) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        match message:
            case m.Ping():
                if link.allowance.take(now, PING_PRICE):
                    self._send(peer, m.Pong(message.number, self._loads()))
            case m.Pong():
                self._pong(peer, link, message, now)
            case m.Adopted():
                if link.role is Role.NODE:
                    self._consider_mesh(message.mesh)
            case _:
                self._other_message(peer, link, message, now)

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        rtt = self._detector.answer(peer, message.number, now)
        if rtt is None:
            return
        link.rtt = min(rtt, (1.0 - RTT_WEIGHT) * link.rtt + RTT_WEIGHT * rtt)
        entry = self.entry(peer)
        if entry is None:
            return
        bound = RTT_CHANGE_SECONDS if entry.rtt is None else max(RTT_CHANGE_SECONDS, RTT_CHANGE_FRACTION * entry.rtt)
        if entry.rtt is None or abs(link.rtt - entry.rtt) > bound:
            entry.rtt = link.rtt
            self._entry_changed(entry)
        if entry.loads != message.loads:
            entry.loads = message.loads
            self._entry_changed(entry)

    def _consider_mesh(self, mesh: MeshId) -> None:
        if decide(self._mesh, mesh) is MergeDecision.ADOPT:
            self._out.append(c.SaveMesh(mesh))
            self._set_mesh(mesh)
            self._view = None

    def _send(self, peer: NodeId, message: m.Message) -> None:
        self._out.append(c.Send(peer, message))

    # -- timers

    def _due(self, timer: Timer, node: NodeId, now: float, late: float) -> None:
        if timer is Timer.ANSWER:
            self._detector.overdue(node, now, late)
        elif timer is Timer.PROBE:
            self._timers.set(Timer.PROBE, now + PROBE_SECONDS * jittered(self._rng))
            self._detector.tick(self._watched(), now)
            self._after_probe(now)
        elif timer is Timer.SAVE_PEERS:
            self._timers.set(Timer.SAVE_PEERS, now + SAVE_SECONDS)
            self._save_peers()
        elif timer in JOIN_TIMERS:
            self._joiner.due(timer, now)
            self._view = None
        else:
            self._other_timer(timer, node, now)

    # -- for subclasses

    def _synced(self) -> None:
        self._joiner.synced()
        self._view = None

    def _entry_changed(self, entry: MemberEntry) -> None:
        entry.view = None
        self._view = None

    def _drain_commands(self) -> list[c.Command]:
        done = self._out[:]
        self._out.clear()
        return done


def jittered(rng: Rng) -> float:
    """A factor between 0.9 and 1.1, so that the nodes of a mesh do not act in step."""
    return 0.9 + 0.2 * rng.random()
