"""A client's part in the mesh: a few links, and what the nodes there tell it.

Law: a client has no record, is in nobody's table and counts for nothing; it believes its providers about who lives,
and itself about who answers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.client_table import Providers
from meshllm.core.membership.failure_detector import PROBE_SECONDS, FailureDetector
from meshllm.core.membership.join import Joiner
from meshllm.core.membership.links import LinkState, LinkTable, Rng
from meshllm.core.membership.mesh_merge import MergeDecision, decide
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.timers import Timers
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus
from meshllm.core.records import BootstrapAddress, NodeId, NodeRecord, Role

# Enough that one may be gone and another slow.
MAX_LINKS = 3
# Delta upon delta could in the end differ from the truth (a message is lost when a client reads too slowly).
RESUBSCRIBE_SECONDS = 300.0
LINK_IDLE_SECONDS = 60.0
SAVE_SECONDS = 10.0
MAX_SAVED = 64


class ClientMember:
    """The mesh as a client sees it. The same to `Mesh` as `Peers`."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        self._id = config.node
        self._mesh = config.mesh
        self._rng = rng
        self._out: list[c.Command] = []
        self._timers = Timers()
        self._links = LinkTable(config.node, self._out)
        self._joining = Joiner(self._links, self._timers, rng)
        self._providers = Providers()
        self._prober = FailureDetector(self._timers, _ClientProbeIO(self))
        self._entries: dict[NodeId, MemberEntry] = {}
        self._silent: set[NodeId] = set()
        self._since: dict[NodeId, float] = {}
        self._saved: tuple[BootstrapAddress, ...] = ()
        self._started = False
        self._left = False
        self._now = 0.0
        self._view: MeshView | None = None
        self._handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.JoinWanted: self._join_wanted,
            e.LinkUp: self._link_up,
            e.LinkDown: self._link_down,
            e.DialFailed: self._dial_failed,
            e.MessageReceived: self._message,
            e.StopWanted: self._leave,
        }

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event`; what is to be done."""
        self._now = now
        if not self._left:
            if not self._started:
                self._started = True
                self._timers.set("probe", now + PROBE_SECONDS * self._rng.random())
                self._timers.set("save", now + SAVE_SECONDS)
                self._timers.set("resubscribe", now + RESUBSCRIBE_SECONDS * (0.5 + 0.5 * self._rng.random()))
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event, now)
        if not self._left:
            for what, node, at in self._timers.due(now):
                self._due(what, NodeId(node), now, at)
        done = self._out[:]
        self._out.clear()
        return done

    def local(self, now: float, **fields: Any) -> list[c.Command]:
        """A client says nothing of itself."""
        return []

    def next_deadline(self) -> float | None:
        """When to look at the clock again."""
        return None if self._left else self._timers.next()

    @property
    def dirty(self) -> bool:
        """Whether `view` would give another object than the last time."""
        return self._view is None

    @property
    def record(self) -> NodeRecord | None:
        """There is none."""
        return None

    @property
    def joined(self) -> bool:
        """Whether this client knows a mesh."""
        return self._joining.phase is JoinPhase.JOINED and not self._left

    def alive(self) -> list[NodeRecord]:
        """What the nodes say that live."""
        return [entry.record for entry in self._entries.values() if entry.status is PeerStatus.ALIVE]

    def status(self, node: NodeId) -> PeerStatus | None:
        """Where a node is in its life, as far as this client was told."""
        entry = self._entries.get(node)
        return entry.status if entry is not None else None

    def view(self) -> MeshView:
        """For readers; the same object until something changes."""
        if self._view is None:
            peers = tuple([self._entries[node].seen_as() for node in sorted(self._entries)])
            joining = self._joining
            self._view = MeshView(
                self._id, self._mesh, Role.CLIENT, joining.phase, joining.steps, None, peers, 0, joining.reason
            )
        return self._view

    # -- events

    def _join_wanted(self, event: e.JoinWanted, now: float) -> None:
        self._joining.want(event.addresses, event.invited, self._id, now)
        self._view = None

    def _link_up(self, event: e.LinkUp, now: float) -> None:
        peer = event.peer
        if peer == self._id:
            return
        self._links.up(peer, LinkState(event.role, event.mesh, event.address, event.rtt, event.dialled, now))
        self._view = None
        if event.role is Role.CLIENT:
            self._out.append(c.HangUp(peer, "both ends are clients"))
            return
        self._silent.discard(peer)
        self._prober.link_up(peer)
        self._meet(event)
        self._joining.linked(peer, now)
        self._refresh(peer)
        if self._providers.count < MAX_LINKS:
            self._links[peer].wanted = {peer}
            self._out.append(c.Send(peer, m.Subscribe()))

    def _meet(self, event: e.LinkUp) -> None:
        if decide(self._mesh, event.mesh) is MergeDecision.ADOPT:
            self._adopt(event)

    def _adopt(self, said: e.LinkUp | m.Adopted) -> None:
        self._mesh = said.mesh
        self._out.append(c.SaveMesh(said.mesh))
        self._view = None

    def _link_down(self, event: e.LinkDown, now: float) -> None:
        if self._links.down(event.peer) is None:
            return
        self._view = None
        self._silent.add(event.peer)
        for node in sorted(self._providers.lost(event.peer)):
            self._refresh(node)
        self._joining.unlinked(now)
        self._look_around(now)

    def _dial_failed(self, event: e.DialFailed, now: float) -> None:
        self._links.failed(event.target, now, final=event.final)
        self._joining.failed(event.target, f"{event.reason} {event.advice}".rstrip(), event.final, now)
        self._view = None

    def _message(self, event: e.MessageReceived, now: float) -> None:
        peer, message, link = event.peer, event.message, self._links.get(event.peer)
        if link is None or link.role is Role.CLIENT:
            return
        if isinstance(message, m.Ping):
            if link.allowance.take(now):
                self._out.append(c.Send(peer, m.Pong(message.number)))
        elif isinstance(message, m.Pong):
            self._pong(peer, link, message, now)
        elif isinstance(message, m.TableUpdate):
            self._table(peer, link, message)
        elif isinstance(message, m.Adopted) and decide(self._mesh, message.mesh) is MergeDecision.ADOPT:
            self._adopt(message)

    def _table(self, peer: NodeId, link: LinkState, table: m.TableUpdate) -> None:
        if not link.wanted:
            return  # not subscribed there
        for node in sorted(self._providers.told(peer, table)):
            self._refresh(node)
        if not table.more:
            self._joining.synced()
            self._view = None

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        rtt = self._prober.answer(peer, message.number, now)
        entry = self._entries.get(peer)
        if rtt is None:
            return
        link.rtt = 0.875 * link.rtt + 0.125 * rtt
        if entry is not None and (entry.loads != message.loads or abs(link.rtt - (entry.rtt or 0.0)) > 0.001):
            entry.rtt, entry.loads = link.rtt, message.loads
            entry.view = self._view = None

    def _leave(self, event: e.StopWanted, now: float) -> None:
        self._left = True
        self._timers.clear()
        self._view = None

    # -- clocks

    def _due(self, what: str, node: NodeId, now: float, at: float) -> None:
        if what == "probe":
            self._timers.set("probe", now + PROBE_SECONDS)
            self._prober.tick(list(self._links.nodes), now)
            self._look_around(now)
        elif what == "answer":
            self._prober.overdue(node, now, now - at)
        elif what == "save":
            self._timers.set("save", now + SAVE_SECONDS)
            self._save()
        elif what == "resubscribe":
            self._timers.set("resubscribe", now + RESUBSCRIBE_SECONDS)
            for peer, link in self._links.items():
                if link.wanted:
                    self._out.append(c.Send(peer, m.Subscribe()))
        else:
            self._joining.due(what, now)
            self._view = None

    def _look_around(self, now: float) -> None:
        """Keep as many links as are wanted: to nodes of the table, at random, and no more."""
        linked = len(self._links.nodes)
        if linked == 0:
            self._joining.isolated(now)
            self._view = None
        subscribed = [peer for peer, link in self._links.items() if link.wanted]
        for peer, link in self._links.items():
            if link.wanted:
                continue
            if len(subscribed) < MAX_LINKS:
                link.wanted = {peer}
                subscribed.append(peer)
                self._out.append(c.Send(peer, m.Subscribe()))
            elif now - link.needed > LINK_IDLE_SECONDS:
                link.needed = now
                self._out.append(c.HangUp(peer, "this link is not needed any more"))
        if linked >= MAX_LINKS:
            return
        others = [n for n, entry in self._entries.items() if n not in self._links and entry.record.addresses]
        for node in self._rng.sample(others, min(len(others), MAX_LINKS - linked)):
            self._links.dial(BootstrapAddress(node, self._entries[node].record.addresses), now)

    def _save(self) -> None:
        kept = [NodeId(way.pin) for way in self._saved if self.status(NodeId(way.pin)) is PeerStatus.ALIVE]
        nodes = dict.fromkeys([*sorted(self._links.nodes), *kept, *self._entries])
        alive = [n for n in nodes if n in self._entries and self._entries[n].status is PeerStatus.ALIVE]
        ways = [BootstrapAddress(node, self._entries[node].record.addresses) for node in alive[:MAX_SAVED]]
        found = tuple([way for way in ways if way.addresses])
        if found and set(found) != set(self._saved):
            self._saved = found
            self._out.append(c.SavePeers(found))

    # -- the table

    def _refresh(self, node: NodeId) -> None:
        """See anew what is known of `node`."""
        self._view = None
        signed = self._providers.best(node)
        if signed is None or node == self._id or signed.record.leaving:
            self._entries.pop(node, None)
            return
        entry = self._entries.get(node)
        if entry is None:
            entry = self._entries[node] = MemberEntry(signed, PeerStatus.ALIVE, self._now)
        if signed.record.version != entry.record.version:
            entry.signed, entry.loads, entry.seen = signed, None, self._now
            self._silent.discard(node)
        link = self._links.get(node)
        entry.linked, entry.rtt = link is not None, link.rtt if link is not None else entry.rtt
        status = PeerStatus.SUSPECT if node in self._silent else PeerStatus.ALIVE
        if status is not entry.status:
            entry.status, entry.since = status, self._now
            entry.reason = "its link ended" if status is PeerStatus.SUSPECT else ""
        entry.view = None


class _ClientProbeIO:
    """What the prober needs of the rest."""

    def __init__(self, guest: ClientMember) -> None:
        self._guest = guest

    def rtt(self, node: NodeId) -> float | None:
        link = self._guest._links.get(node)
        return link.rtt if link is not None else None

    def ping(self, node: NodeId, number: int) -> None:
        self._guest._out.append(c.Send(node, m.Ping(number)))

    def dial(self, node: NodeId, now: float) -> bool:
        return False  # only those with a link are watched

    def unanswered(self, node: NodeId) -> None:
        guest = self._guest
        if node not in guest._silent:
            guest._silent.add(node)
            guest._refresh(node)
            guest._out.append(c.HangUp(node, "it does not answer"))

    def answered(self, node: NodeId) -> None:
        if node in self._guest._silent:
            self._guest._silent.discard(node)
            self._guest._refresh(node)
