"""A client in the mesh: a few links, and the tables that the nodes at their ends send.

A client has no record and is in no table. It believes its providers about which nodes are alive, and itself about
which of the linked ones answer.
"""

from __future__ import annotations

from collections.abc import Collection

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.board_participant import BoardParticipant
from meshllm.core.membership.client_table import Providers
from meshllm.core.membership.failure_detector import FailureDetector
from meshllm.core.membership.links import LinkProbes, LinkState, Rng
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.membership.participant import jittered
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.timers import Timer
from meshllm.core.membership.views import JoinPhase, PeerStatus
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, Role

# Enough that one provider may be gone and another slow.
MAX_LINKS = 3
# Each provider sends its whole table again this often: an update is lost if the client reads too slowly. The providers
# take turns, so that there is always a complete table.
RESUBSCRIBE_SECONDS = 300.0
LINK_IDLE_SECONDS = 60.0
MAX_SAVED = 64


class ClientMember(BoardParticipant):
    """The mesh from a client's side."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        super().__init__(config, rng)
        self._mesh_id = config.mesh
        self._name = config.name
        self._providers = Providers()
        self._detector = FailureDetector(self._timers, _ClientProbeIO(self))
        self._entries: dict[NodeId, MemberEntry] = {}
        self._silent: set[NodeId] = set()
        self._saved: tuple[BootstrapAddress, ...] = ()
        # When each provider was asked for its whole table.
        self._subscribed: dict[NodeId, float] = {}

    @property
    def record(self) -> None:
        """A client has none."""
        return None

    def entries(self) -> Collection[MemberEntry]:
        """All nodes that the providers sent."""
        return self._entries.values()

    def entry(self, node: NodeId) -> MemberEntry | None:
        """What is known of `node`."""
        return self._entries.get(node)

    @property
    def provider(self) -> NodeId | None:
        """The node that was subscribed to first, of those that are linked now."""
        return next(iter(self._subscribed), None)

    def is_linked(self, node: NodeId) -> bool:
        """Whether there is a link to `node`."""
        return node in self._links

    @property
    def _role(self) -> Role:
        return Role.CLIENT

    @property
    def _mesh(self) -> MeshId:
        return self._mesh_id

    @property
    def _alone(self) -> bool:
        return not (self._entries or self._links.nodes)

    # -- events

    def _start(self, now: float) -> None:
        self._schedule_resubscription(now)

    def _leave(self, now: float) -> None:
        """A client is in no table: its links just end."""

    def _client_up(self, peer: NodeId) -> None:
        self._out.append(c.HangUp(peer, "both ends are clients"))

    def _node_up(self, event: e.LinkUp, now: float, *, first: bool) -> None:
        peer = event.peer
        self._silent.discard(peer)
        self._consider_mesh(event.peer, event.mesh)
        self._joiner.linked(peer, now)
        self._refresh(peer)
        if len(self._subscribed) < MAX_LINKS:
            self._subscribe(peer, now)

    def _link_lost(self, peer: NodeId, link: LinkState, now: float) -> None:
        self._silent.add(peer)
        self._subscribed.pop(peer, None)
        for node in sorted(self._providers.lost(peer)):
            self._refresh(node)
        self._joiner.unlinked(now)
        self._maintain_links(now)

    def _peer_unreachable(self, target: NodeId, now: float) -> None:
        """Only a provider knows more of a node that cannot be dialled; without one, it is away like the providers."""
        if not self._links.nodes and self._providers.forget(target):
            self._refresh(target)

    def _forget(self, node: NodeId) -> None:
        # Without a look at the providers: they may know a node that this one, expelled itself, does not any more.
        self._entries.pop(node, None)
        self._view = None
        self.away.back(node)

    def _publish_certificate(self, certificate: bytes) -> None:
        """A client shows its certificate at its next handshake."""

    def _set_mesh(self, mesh: MeshId) -> None:
        self._mesh_id = mesh

    def _answered(self, peer: NodeId, now: float) -> None:
        entry = self.entry(peer)
        if entry is not None:
            entry.answered = now

    # -- messages

    def _other_message(self, peer: NodeId, link: LinkState, message: m.Message, now: float) -> None:
        if not isinstance(message, m.TableUpdate) or peer not in self._subscribed:
            return
        for node in sorted(self._providers.update(peer, message)):
            self._refresh(node)
        if not message.more:
            self._synced()

    def _subscribe(self, peer: NodeId, now: float) -> None:
        self._subscribed[peer] = now
        self._send(peer, m.Subscribe(self._statements_hash(), self._name))

    # -- timers

    def _watched(self) -> Collection[NodeId]:
        return list(self._links.nodes)

    def _after_probe(self, now: float) -> None:
        self._maintain_links(now)

    def _other_timer(self, timer: Timer, node: NodeId, now: float) -> None:
        if timer is Timer.RESUBSCRIBE:
            self._schedule_resubscription(now)
            oldest = min(self._subscribed, key=lambda peer: self._subscribed[peer], default=None)
            # With fewer providers than there may be, a turn is skipped where it would come too early.
            if oldest is not None and now - self._subscribed[oldest] >= 0.5 * RESUBSCRIBE_SECONDS:
                self._subscribe(oldest, now)

    def _schedule_resubscription(self, now: float) -> None:
        self._timers.set(Timer.RESUBSCRIBE, now + RESUBSCRIBE_SECONDS / MAX_LINKS * jittered(self._rng))

    def _maintain_links(self, now: float) -> None:
        """Keep `MAX_LINKS` subscribed links to random nodes of the table; close the others when they are idle."""
        linked = len(self._links.nodes)
        if linked == 0:
            if self._joiner.phase is JoinPhase.JOINED:
                self._joiner.isolated(now)
                self._joiner.join(self._saved, invited=False, own=self._id, now=now)
            self._view = None
        for peer, link in self._links.items():
            if peer in self._subscribed or link.role is Role.CLIENT:
                continue
            if len(self._subscribed) < MAX_LINKS:
                self._subscribe(peer, now)
            elif now - link.needed > LINK_IDLE_SECONDS:
                link.needed = now
                self._out.append(c.HangUp(peer, "this link is not needed any more"))
        if linked >= MAX_LINKS:
            return
        others = [n for n, entry in self._entries.items() if n not in self._links and entry.record.addresses]
        for node in self._rng.sample(others, min(len(others), MAX_LINKS - linked)):
            self._links.dial(BootstrapAddress(node, self._entries[node].record.addresses), now)

    def _save_peers(self) -> None:
        kept = [address.node for address in self._saved if address.node is not None]
        nodes = dict.fromkeys([*sorted(self._links.nodes), *kept, *self._entries])
        alive = [node for node in nodes if self.status(node) is PeerStatus.ALIVE]
        addresses = [BootstrapAddress(node, self._entries[node].record.addresses) for node in alive[:MAX_SAVED]]
        found = tuple([address for address in addresses if address.addresses])
        if found and set(found) != set(self._saved):
            self._saved = found
            self._out.append(c.SavePeers(found))

    # -- the table

    def set_silent(self, node: NodeId, *, silent: bool) -> None:
        """A linked node stopped answering, or answers again."""
        if silent is not (node in self._silent):
            (self._silent.add if silent else self._silent.discard)(node)
            self._refresh(node)
            if silent:
                self._out.append(c.HangUp(node, "it does not answer"))

    def _refresh(self, node: NodeId) -> None:
        """Derive the entry of `node` from what the providers said."""
        self._view = None
        signed = self._providers.best(node)
        if signed is not None and self._authority is not None:
            signed = None if signed.member is None or self._authority.is_expelled(node) else signed
        if signed is None or node == self._id or signed.record.leaving:
            lost = self._entries.pop(node, None)
            if lost is not None:
                self.away.gone(lost.record, lost.served, max(lost.seen, lost.answered))
            return
        self.away.back(node)
        entry = self._entries.get(node)
        if entry is None:
            entry = self._entries[node] = MemberEntry(signed, PeerStatus.ALIVE, self._now)
        if signed.record.version != entry.record.version:
            entry.replace(signed)
            entry.loads, entry.seen = None, self._now
            self._silent.discard(node)
        link = self._links.get(node)
        entry.linked = link is not None
        if link is not None:
            entry.rtt = link.rtt
        status = PeerStatus.SUSPECT if node in self._silent else PeerStatus.ALIVE
        if status is not entry.status:
            entry.status, entry.since = status, self._now
            entry.reason = "its link ended" if status is PeerStatus.SUSPECT and link is None else ""
        entry.view = None


class _ClientProbeIO(LinkProbes):
    """What a client's failure detector acts through."""

    def __init__(self, client: ClientMember) -> None:
        super().__init__(client._links, client._out)
        self._client = client

    def dial(self, node: NodeId, now: float) -> bool:
        return False  # a client watches only linked nodes

    def unanswered(self, node: NodeId) -> None:
        self._client.set_silent(node, silent=True)

    def answered(self, node: NodeId) -> None:
        self._client.set_silent(node, silent=False)
