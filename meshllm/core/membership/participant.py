"""What nodes and clients have in common in the mesh: links, failure detector, join, messages, round-trip times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership import reader_views
from meshllm.core.membership.authority import KEY_GRACE_SECONDS, rights_of
from meshllm.core.membership.away import AwayMembers
from meshllm.core.membership.certificates import Right, SignedStatement, StatementKind
from meshllm.core.membership.failure_detector import PROBE_SECONDS, FailureDetector
from meshllm.core.membership.join import JOIN_TIMERS, Joiner
from meshllm.core.membership.links import LinkState, LinkTable, Rng
from meshllm.core.membership.mesh_merge import MergeDecision, decide
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.membership.round_trips import is_change, smoothed
from meshllm.core.membership.statements import StatementExchange
from meshllm.core.membership.table import MemberEntry
from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus
from meshllm.core.records import MeshId, ModelLoad, NodeId, NodeRecord, OwnFacts, Role

# How often the list of peers to remember is written, and how soon after a new link: a restart needs one that is there.
SAVE_SECONDS, SAVE_SOON_SECONDS = 10.0, 1.0
# Tokens of a link's allowance that a message costs.
PING_PRICE = 1.0
# Beside the statements: a renewal or an invite costs the receiver a signature.
MEMBERSHIP_PRICE = 20.0
# How often a member that needs a new certificate asks for it.
RENEWAL_SECONDS = 5.0
# Why a request for an invite or a new id is refused.
NO_ADMITTER = "no member that may admit others is linked with this node now"
CANNOT_ADMIT = "the asked member may not admit others"


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
        self._authority = config.authority
        self._rights = config.rights
        self._certificate = config.certificate
        self._renewal_from: NodeId | None = None  # the peer that was asked for a new certificate
        self._replacement_from: NodeId | None = None  # the peer that was asked for a new id
        self._invite_from: NodeId | None = None  # the peer that was asked for an invite
        self._rotated_at = 0.0
        self._key_grace = config.key_grace
        # Without a mesh key no node is expelled, and none has a right.
        may_dial = self._authority.may_dial if self._authority is not None else lambda pin: True
        self._links = LinkTable(config.node, self._out, may_dial)
        self._statements = (
            None if self._authority is None else StatementExchange(self._authority, self._links, self._send, self._out)
        )
        self._joiner = Joiner(self._links, self._timers, rng, self._out, rejoins=config.rejoins)
        self.away = AwayMembers()
        self._started = False
        self._left = False
        self._now = 0.0  # of the event at hand
        self._view: MeshView | None = None

    # -- what `NodeCore` calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` at `now` (seconds); return the commands that follow. Every event also checks the timers."""
        self._now = now
        if not self._started:
            self._started = True
            self._begin(now)
        if not self._left:
            self._dispatch(event, now)
        if not self._left:
            for timer, node, at in self._timers.due(now):
                self._due(timer, NodeId(node), now, now - at)
            self._settle(now)
        return self._drain_commands()

    def _begin(self, now: float) -> None:
        """The first event is about to be handled."""
        if self._authority is not None and self._authority.is_expelled(self._id):
            self._expelled()
            return
        self._timers.set(Timer.PROBE, now + PROBE_SECONDS * self._rng.random())
        self._timers.set(Timer.SAVE_PEERS, now + SAVE_SECONDS)
        if self._key_grace > 0:  # the mesh key changed before this start
            self._timers.set(Timer.KEY_GRACE, now + self._key_grace)
        self._start(now)

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
    def phase(self) -> JoinPhase:
        """How far this participant is with joining its mesh."""
        alone = self._alone and not self._left and self._joiner.only_away
        return JoinPhase.ALONE_FOR_NOW if alone else self._joiner.phase

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

    @property
    def own_rights(self) -> Right:
        """What this node may do."""
        return self._rights

    def rights_of(self, node: NodeId) -> Right:
        """What `node` may do: by the certificate of its link, else of its record; none if it is not known."""
        link, entry = self._links.get(node), self.entry(node)
        member = link.member if link is not None else None
        if member is None and entry is not None:
            member = entry.signed.member
        return rights_of(member, self._authority)

    def view(self) -> MeshView:
        """The frozen view for readers; the same object until something changes."""
        if self._view is None:
            self._view = MeshView(
                self._id,
                self._mesh,
                self._role,
                self.phase,
                self._joiner.attempts,
                self.record,
                reader_views.peers(self.entries(), self._links),
                reader_views.clients(self._links) if self._role is Role.NODE else (),
                self._joiner.reason,
                self.away.view(),
                self._links.duplicate,
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
    def _forget(self, node: NodeId) -> None:
        """`node` was expelled: it is in no table from now on."""

    @abstractmethod
    def _publish_certificate(self, certificate: bytes) -> None:
        """This participant has a new certificate."""

    @abstractmethod
    def _set_mesh(self, mesh: MeshId) -> None:
        """Take over another mesh id and tell the peers."""

    @property
    @abstractmethod
    def _alone(self) -> bool:
        """Whether no other node is known that may be alive."""

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

    def _answered(self, peer: NodeId, now: float) -> None:  # noqa: B027
        """A linked peer answered a ping."""

    def _loads(self) -> tuple[ModelLoad, ...]:
        return ()

    def _board_hash(self, link: LinkState) -> bytes:
        return b""

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
            case e.MembersRemembered(members):
                self.away.remember(members, lambda node: self.entry(node) is not None or node == self._id)
                self._view = None
            case e.StopWanted():
                self._save_peers()
                self._leave(now)
                self._left = True
                self._timers.clear()
                self._view = None
            case (
                e.StatementsMade() | e.CertificateRenewed() | e.RenewalDue() | e.InviteWanted() | e.ReplacementWanted()
            ):
                self._membership_event(event, now)
            case _:
                self._other_event(event, now)

    def _link_up(self, event: e.LinkUp, now: float) -> None:
        peer = event.peer
        if peer == self._id:
            return
        if self._authority is not None and self._authority.is_expelled(peer):
            self._out.append(c.HangUp(peer, "it was expelled", at_once=True))
            return
        first = not self._links.nodes
        self._links.up(
            peer, LinkState(event.role, event.mesh, event.address, event.rtt, event.dialled, now, event.member)
        )
        self._view = None
        self._timers.set(Timer.SAVE_PEERS, now + SAVE_SOON_SECONDS)
        if self._statements is not None:
            self._statements.greet(peer)
        if event.role is Role.CLIENT:
            self._client_up(peer)
            return
        self._detector.link_up(peer)
        self._node_up(event, now, first=first)

    def _link_down(self, peer: NodeId, now: float) -> None:
        link = self._links.down(peer, broke_at=now)
        if link is not None:
            self._view = None
            self._link_lost(peer, link, now)

    def _dial_failed(self, event: e.DialFailed, now: float) -> None:
        self._links.failed(event.target, now, final=event.final, local=event.local)
        entry = self.entry(event.target.node) if event.target.node is not None else None
        reason = reader_views.named_reason(event, entry, self.away)
        self._joiner.failed(event.target, f"{reason} {event.advice}".rstrip(), event.final, now, event.invite_void)
        self._view = None
        node = event.target.node
        # A refusal is an answer: the peer is alive. A limit of this node says nothing about the peer.
        if node is not None and not event.final and not event.local:
            self._peer_unreachable(node, now)

    # -- messages

    def _message(self, peer: NodeId, message: m.Message, now: float) -> None:
        link = self._links.get(peer)
        if link is None or (self._authority is not None and self._authority.is_expelled(peer)):
            return
        match message:
            case m.Ping():
                if link.allowance.take(now, PING_PRICE):
                    self._send(peer, m.Pong(message.number, self._loads(), self._board_hash(link)))
            case m.Pong():
                self._pong(peer, link, message, now)
            case m.Adopted():
                if link.role is Role.NODE:
                    self._consider_mesh(peer, message.mesh)
            case m.Statements():
                if self._statements is not None:
                    self._apply(self._statements.received(peer, link, message, now), now)
            case _ if isinstance(message, m.MembershipMessage):
                self._membership_message(peer, link, message, now)
            case _:
                self._other_message(peer, link, message, now)

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        rtt = self._detector.answer(peer, message.number, now)
        if rtt is None:
            return
        self._answered(peer, now)
        link.rtt = smoothed(link.rtt, rtt)
        entry = self.entry(peer)
        if entry is None:
            return
        if entry.rtt is None or is_change(entry.rtt, link.rtt):
            entry.rtt = link.rtt
            self._entry_changed(entry)
        if entry.loads != message.loads:
            entry.loads = message.loads
            self._entry_changed(entry)

    def _consider_mesh(self, peer: NodeId, mesh: MeshId) -> None:
        """`peer` holds that mesh id. Only members that may admit others decide on it: any other could set the smallest
        one, which nothing changes any more."""
        if self._authority is not None and Right.ADMIT not in self.rights_of(peer):
            return
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
        elif timer is Timer.KEY_GRACE:
            self._end_grace()
        elif timer is Timer.CERTIFICATE:
            self._ask_renewal(now)
        elif timer in JOIN_TIMERS:
            self._joiner.due(timer, now)
            self._view = None
        else:
            self._other_timer(timer, node, now)

    # -- membership

    def _membership_event(
        self,
        event: e.StatementsMade | e.CertificateRenewed | e.RenewalDue | e.InviteWanted | e.ReplacementWanted,
        now: float,
    ) -> None:
        match event:
            case e.StatementsMade(statements):
                if self._statements is not None:
                    self._apply(self._statements.learn(statements), now)
            case e.CertificateRenewed(signed):
                self._certificate, self._rights = signed.data, signed.certificate.rights
                self._renewal_from = None
                self._timers.cancel(Timer.CERTIFICATE)
                self._publish_certificate(signed.data)
            case e.RenewalDue():
                self._ask_renewal(now)
            case e.InviteWanted(ask):
                peer = self._invite_from = self._admitter()
                if peer is not None:
                    self._send(peer, ask)
                else:
                    refusal = m.GrantedInvite(b"", ask.rights, 0, 0, refused=NO_ADMITTER)
                    self._out.append(c.TakeInvite(self._id, refusal))
            case e.ReplacementWanted(request):
                peer = self._replacement_from = self._admitter()
                if peer is not None:
                    self._send(peer, request)
                else:
                    self._out.append(c.ReplacementRefused(NO_ADMITTER))

    def _membership_message(self, peer: NodeId, link: LinkState, message: m.Message, now: float) -> None:
        if self._authority is None or not link.allowance.take(now, MEMBERSHIP_PRICE):
            return
        rights = self.rights_of(peer)
        match message:
            case m.RenewCertificate():
                if Right.ADMIT in self._rights and link.member is not None and rights:
                    self._out.append(c.IssueCertificate(peer, link.member))
            case m.RenewedCertificate():
                if peer == self._renewal_from:
                    self._renewal_from = None
                    self._out.append(c.TakeCertificate(peer, message))
            case m.AskInvite():
                self._asked_for_invite(peer, link, rights, message)
            case m.GrantedInvite():
                if peer == self._invite_from:
                    self._invite_from = None
                    self._out.append(c.TakeInvite(peer, message))
            case m.ReplaceKey():
                if Right.ADMIT in self._rights and rights:
                    self._out.append(c.CertifyReplacement(peer, message))
                else:
                    self._send(peer, m.ReplaceRefused(CANNOT_ADMIT))
            case m.ReplaceRefused():
                if peer == self._replacement_from:
                    self._replacement_from = None
                    self._out.append(c.ReplacementRefused(message.reason))

    def _asked_for_invite(self, peer: NodeId, link: LinkState, rights: Right, ask: m.AskInvite) -> None:
        """An invite never gives more than its maker has, nor is it good for longer, and only a holder of the mesh key
        makes inviters: else one bad member could have any number of inviters, each with quotas of its own."""
        if link.member is not None:
            ask = replace(ask, expires=min(ask.expires, link.member.expires))
        allowed = ask.rights & rights
        if Right.ADMIT not in rights:
            allowed &= ~(Right.INVITE | Right.ADMIT)
        if Right.ADMIT in self._rights and Right.INVITE in rights and allowed:
            self._out.append(c.MakeInvite(peer, replace(ask, rights=allowed)))
        else:
            reason = "it has no right to invite" if Right.ADMIT in self._rights else CANNOT_ADMIT
            self._send(peer, m.GrantedInvite(b"", ask.rights, 0, 0, refused=reason))

    def _statements_hash(self) -> bytes:
        return b"" if self._authority is None else self._authority.hash

    def _compare_statements(self, peer: NodeId, link: LinkState, known: bytes, now: float) -> None:
        if self._statements is not None:
            self._statements.compare(peer, link, known, now)

    def _apply(self, new: list[SignedStatement], now: float) -> None:
        """Act on statements that are new here; they are forwarded and saved already."""
        for signed in new:
            said = signed.statement
            if said.kind is StatementKind.NEW_KEY:
                self._key_changed(now)
            elif said.kind is StatementKind.EXPEL:
                self._out.append(c.MemberExpelled(NodeId(said.subject)))
                self._remove_expelled(NodeId(said.subject))
            elif said.kind is StatementKind.REPLACE:
                self._out.append(c.NodeReplaced(NodeId(said.subject), said.by))
                self._remove_expelled(NodeId(said.subject), said.by)
                if self._authority is not None and self._authority.grace:
                    self._out.append(c.SaveGrace(self._authority.grace))
        if self._authority is not None and self._authority.is_expelled(self._id):
            self._expelled()

    def _remove_expelled(self, *nodes: NodeId) -> None:
        """These nodes, and the ids that they got later, may not be members any more."""
        assert self._authority is not None
        for node in dict.fromkeys([*nodes, *[self._authority.successor(node) for node in nodes]]):
            if node != self._id and self._authority.is_expelled(node):
                self._expel(node)

    def _expel(self, node: NodeId) -> None:
        self._view = None
        self._forget(node)
        if node in self._links:
            self._out.append(c.HangUp(node, "it was expelled", at_once=True))

    def _expelled(self) -> None:
        """This node itself is out: it goes on alone, and dials no peer."""
        if self._left:
            return
        for node in [entry.record.node for entry in self.entries()]:
            self._forget(node)
        self.away.clear()
        for peer, _ in self._links.items():
            self._out.append(c.HangUp(peer, "this node was expelled", at_once=True))
            self._links.down(peer)
        successor = self._authority.successor(self._id) if self._authority is not None else self._id
        self._out.append(c.Expelled(successor if successor != self._id else None))
        self._joiner.expelled(replaced=successor != self._id)
        self._left = True
        self._timers.clear()
        self._view = None

    def _key_changed(self, now: float) -> None:
        """The mesh has a new key: nodes that are known now have time to get a new certificate, this one too."""
        assert self._authority is not None
        known = [e.signed.member for e in self.entries() if e.status not in (PeerStatus.DEAD, PeerStatus.LEFT)]
        known += [link.member for _, link in self._links.items()]
        self._authority.begin_grace([member for member in known if member is not None])
        self._out.append(c.SaveGrace(self._authority.grace))
        self._rotated_at = now
        self._timers.set(Timer.KEY_GRACE, now + KEY_GRACE_SECONDS)
        self._timers.set(Timer.CERTIFICATE, now + RENEWAL_SECONDS * self._rng.random())

    def _end_grace(self) -> None:
        assert self._authority is not None
        self._authority.end_grace()
        self._out.append(c.SaveGrace(self._authority.grace))
        for peer, link in self._links.items():
            entry = self.entry(peer)
            renewed = link.member is not None and self._authority.is_current_member(link.member)
            if link.role is Role.NODE and entry is not None:
                renewed = self._authority.is_current(entry.record.certificate)
            if not renewed:
                self._out.append(c.HangUp(peer, "its certificate is of the previous mesh key", at_once=True))

    def _ask_renewal(self, now: float) -> None:
        """Ask a linked member with the mesh key for a new certificate, until there is one."""
        self._timers.set(Timer.CERTIFICATE, now + RENEWAL_SECONDS)
        peer = self._admitter()
        if peer is not None and self._certificate:
            self._renewal_from = peer
            self._send(peer, m.RenewCertificate(self._certificate))

    def _admitter(self) -> NodeId | None:
        """A linked member that holds the current mesh key, chosen at random."""
        assert self._authority is not None
        found = []
        for peer in self._links.nodes:
            entry = self.entry(peer)
            rotated = self._authority.rotation is not None and self._rotated_at > 0.0
            current = not rotated or (entry is not None and self._authority.is_current(entry.record.certificate))
            if Right.ADMIT in self.rights_of(peer) and current:
                found.append(peer)
        return found[self._rng.randrange(len(found))] if found else None

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
