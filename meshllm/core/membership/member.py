"""A node in the mesh: its table, its own record, gossip with its peers, and the tables of its clients."""

from __future__ import annotations

from collections.abc import Collection

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.mesh_demand import DemandClaim
from meshllm.core.membership import messages as m
from meshllm.core.membership.anti_entropy import AntiEntropy
from meshllm.core.membership.board_participant import BoardParticipant
from meshllm.core.membership.broadcast import RecordBroadcast
from meshllm.core.membership.certificates import Right, is_owner
from meshllm.core.membership.client_table import Subscribers
from meshllm.core.membership.failure_detector import FailureDetector
from meshllm.core.membership.link_policy import RECONNECT_SECONDS, LinkPolicy
from meshllm.core.membership.links import LinkState, Rng
from meshllm.core.membership.own_record import MeshConfig, OwnRecord
from meshllm.core.membership.participant import jittered
from meshllm.core.membership.table import MemberEntry, MembershipTable, MergeResult
from meshllm.core.membership.timers import Timer
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import MAX_NUMBER, MeshId, ModelLoad, NodeId, NodeRecord, OwnFacts, Role, SignedRecord

__all__ = ["Member", "MeshConfig"]

# A round of anti-entropy with one random peer.
ROUND_SECONDS = 1.0
# Suspicions that may follow from a change of another node are judged together.
JUDGE_SECONDS = 0.1
# Changes are sent to clients together.
TABLES_SECONDS = 0.1
# Requests for a model without a host may be many; the table is searched for it no more often than this.
SEEK_SECONDS = 0.5
# Tokens of a link's allowance that a message costs.
DIGEST_PRICE = 5.0
SUBSCRIBE_PRICE = 20.0
REPORT_PRICE = 20.0
VERSION_HINT_PRICE = 20.0
WANTED_PRICE, WANTED_NODES_PER_TOKEN = 2.0, 50.0


class Member(BoardParticipant):
    """The mesh from a node's side."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        super().__init__(config, rng)
        self._table = MembershipTable(config.node, self._timers, self._changed, self._gone, self._authority)
        self._own = OwnRecord(config)
        self._moved = config.moved
        self._broadcast = RecordBroadcast(self._own, self._table, self._links, self._timers, self._out, rng)
        self.link_policy = LinkPolicy(self._table, self._links, self._own, self._out, rng)
        self._anti_entropy = AntiEntropy(
            self._table, self._links, self._send, self._statements_hash, lambda: self._board.hash
        )
        self._detector = FailureDetector(self._timers, self.link_policy)
        self._subscribers = Subscribers(self._send, self._routable)

    def update_facts(self, facts: OwnFacts, now: float) -> list[c.Command]:
        """Publish what changed of what this node serves, wants and offers."""
        self._now = now
        if not self._left:
            self._own.update_facts(facts)
            if self._started:
                self._settle(now)
        return self._drain_commands()

    def takes_report(self, peer: NodeId, now: float) -> bool:
        """Whether a demand report of `peer` counts: of a linked client that may send requests, and not too many."""
        link = self._links.get(peer)
        if link is None or link.role is not Role.CLIENT:
            return False
        may_use = self._authority is None or Right.USE in self.rights_of(peer)
        return may_use and link.allowance.take(now, REPORT_PRICE)

    def is_guest(self, peer: NodeId) -> bool:
        """Whether `peer` is none of the owner's machines. Without a mesh key all are."""
        return self._authority is not None and not is_owner(self.rights_of(peer))

    def claims(self) -> list[DemandClaim]:
        """What the living nodes ask for, this one included."""
        alive = [entry.signed for entry in self.entries() if entry.status is PeerStatus.ALIVE]
        return [
            DemandClaim(
                signed.record,
                self._table.voice(signed.record.node),
                self._authority is None or (signed.member is not None and is_owner(signed.member.rights)),
            )
            for signed in (self._own.signed, *alive)
        ]

    @property
    def record(self) -> NodeRecord:
        """This node's own record."""
        return self._own.signed.record

    def entries(self) -> Collection[MemberEntry]:
        """All other nodes that are known."""
        return self._table.entries.values()

    def entry(self, node: NodeId) -> MemberEntry | None:
        """What is known of `node`."""
        return self._table.entries.get(node)

    @property
    def _role(self) -> Role:
        return Role.NODE

    @property
    def _mesh(self) -> MeshId:
        return self._own.mesh

    @property
    def _alone(self) -> bool:
        return self._table.size == 1 and not self._links.nodes

    def _loads(self) -> tuple[ModelLoad, ...]:
        return self._own.loads

    # -- beginning and end

    def _start(self, now: float) -> None:
        # Spread over the interval, so that nodes that start together do not act in step.
        self._timers.set(Timer.ANTI_ENTROPY, now + ROUND_SECONDS * self._rng.random())
        self._timers.set(Timer.RECONNECT, now + RECONNECT_SECONDS * self._rng.random())
        self._broadcast.publish(now, push=False)

    def _leave(self, now: float) -> None:
        self._broadcast.leave(now)
        self._subscribers.farewell(self._id)

    def _settle(self, now: float) -> None:
        self._broadcast.settle(now)
        if self._table.doubtful and self._timers.at(Timer.JUDGE) is None:
            self._timers.set(Timer.JUDGE, now + JUDGE_SECONDS)

    # -- events

    def _other_event(self, event: e.Event, now: float) -> None:
        match event:
            case e.AddressesFound():
                self._own.set_addresses(event.addresses)
            case e.ModelRequested():
                if self._timers.at(Timer.SEEK_MODEL) is None:
                    self._timers.set(Timer.SEEK_MODEL, now + SEEK_SECONDS)
                    self.link_policy.seek_model(event.model, now)

    def _join_requested(self, event: e.JoinWanted) -> None:
        if not event.invited:
            self.link_policy.remember(event.addresses)

    def _client_up(self, peer: NodeId) -> None:
        """Clients are served once they subscribe."""
        self.away.back(peer)  # it may have been a node before

    def _node_up(self, event: e.LinkUp, now: float, *, first: bool) -> None:
        peer = event.peer
        self._table.linked(peer, now)
        entry = self.entry(peer)
        if entry is not None:
            entry.rtt = event.rtt
        self.link_policy.answered(peer)
        self._consider_mesh(peer, event.mesh)
        if self._own.changed:
            self._broadcast.publish(now, push=True)
        self._broadcast.introduce(peer, now, first=first)
        if self._joiner.linked(peer, now) or event.dialled:
            self._anti_entropy.begin(peer)

    def _link_lost(self, peer: NodeId, link: LinkState, now: float) -> None:
        self._subscribers.drop(peer)
        if link.role is Role.NODE:
            self._table.unlinked(peer)
            self._joiner.unlinked(now)
            if not self._table.is_gone(peer):
                self._detector.link_down(peer, now)

    def _peer_unreachable(self, target: NodeId, now: float) -> None:
        self._detector.dial_failed(target)

    def _forget(self, node: NodeId) -> None:
        self._table.remove(node)
        self.away.back(node)
        self._own.withdraw_report(node)
        self.link_policy.forget(node)

    def _publish_certificate(self, certificate: bytes) -> None:
        self._own.set_certificate(certificate)

    def _answered(self, peer: NodeId, now: float) -> None:
        self._table.answered(peer, now)

    def _set_mesh(self, mesh: MeshId) -> None:
        self._own.set_mesh(mesh)
        for peer, _ in self._links.items():
            self._send(peer, m.Adopted(mesh))

    # -- messages

    def _other_message(self, peer: NodeId, link: LinkState, message: m.Message, now: float) -> None:
        if link.role is Role.CLIENT:
            if isinstance(message, m.Subscribe) and link.allowance.take(now, SUBSCRIBE_PRICE):
                self._compare_statements(peer, link, message.statements, now)
                link.name, self._view = message.name, None
                self._subscribers.add(peer, [self._id, *sorted(self._table.members())])
            return
        match message:
            case m.Records():
                self._records(peer, link, message, now)
            case m.Digest():
                if link.allowance.take(now, DIGEST_PRICE):
                    self._compare_statements(peer, link, message.statements, now)
                    self._anti_entropy.answer(peer, message)
                    self._board.hash_seen(peer, message.board, now)
            case m.Difference():
                self._difference(peer, link, message, now)
            case m.Wanted():
                if link.allowance.take(now, WANTED_PRICE + len(message.nodes) / WANTED_NODES_PER_TOKEN):
                    self._anti_entropy.give(peer, message.nodes)

    def _difference(self, peer: NodeId, link: LinkState, message: m.Difference, now: float) -> None:
        own = next((version for node, version in message.held if node == self._id), None)
        if own is not None and own > self._own.version and link.allowance.take(now, VERSION_HINT_PRICE):
            if own.version < MAX_NUMBER:
                # The hint is not signed. The record is, and shows who wrote it.
                self._send(peer, m.Wanted((self._id,)))
            else:
                self._broadcast.on_version_hint(own, now)
        if self._anti_entropy.compare(peer, link, message) and not link.wanted:
            self._synced()

    def _records(self, peer: NodeId, link: LinkState, message: m.Records, now: float) -> None:
        news: list[SignedRecord] = []
        reports_changed = False
        waiting = bool(link.wanted)
        link.wanted.difference_update(message.stale)
        for signed in message.records:
            record = signed.record
            if record.node == self._id:
                self._own_record_came(signed, now)
                if self._left:
                    return
                continue
            requested = record.node in link.wanted
            link.wanted.discard(record.node)
            if self._authority is not None and signed.member is None:
                continue  # the daemon leaves out what no certificate covers
            before = self._table.signed(record.node)
            if before is None and not requested and not link.strangers.take(now):
                continue
            result = self._table.merge(signed, now, linked=record.node in self._links)
            if result in (MergeResult.FIRST, MergeResult.GROWN):
                news.append(signed)
                changed = before is not None and record.failure_reports != before.record.failure_reports
                reports_changed = reports_changed or record.leaving or changed
                self._merged(signed, before)
            elif result is MergeResult.GONE and record.node == peer:
                self._anti_entropy.remind(peer, signed)
        if news and message.push:
            self._broadcast.push(tuple(news), everywhere=reports_changed, but=peer)
        if waiting and not link.wanted:
            self._synced()

    def _own_record_came(self, signed: SignedRecord, now: float) -> None:
        self._broadcast.on_own_record(signed, now)
        if self._broadcast.duplicate is not None:
            self._links.duplicate, self._view = self._broadcast.duplicate, None
            if self._moved and not self._left:
                self._step_back()

    def _step_back(self) -> None:
        """Another machine has this node's identity, and it belongs there: this node goes on alone."""
        for peer, _ in self._links.items():
            self._out.append(c.HangUp(peer, "another machine has the same identity", at_once=True))
            self._links.down(peer)
        self._joiner.stepped_back()
        self._left = True
        self._timers.clear()
        self._view = None

    def _merged(self, signed: SignedRecord, before: SignedRecord | None) -> None:
        record = signed.record
        if not record.leaving:
            self._consider_mesh(record.node, record.mesh)
        reported = self._own.reported_incarnation(record.node)
        if reported is not None and reported != record.version.incarnation:
            self._own.withdraw_report(record.node)
        if before is not None and before.record.version.incarnation != record.version.incarnation:
            self._detector.refuted(record.node)
        link = self._links.get(record.node)
        if link is not None and before is None:
            self._table.entries[record.node].rtt = link.rtt

    # -- timers

    def _other_timer(self, timer: Timer, node: NodeId, now: float) -> None:
        match timer:
            case Timer.ANTI_ENTROPY:
                self._timers.set(Timer.ANTI_ENTROPY, now + ROUND_SECONDS * jittered(self._rng))
                self._anti_entropy_round(now)
            case Timer.DEATH:
                self._table.suspicion_expired(node, now)
            case Timer.JUDGE:
                self._table.judge_all(now)
            case Timer.HEARTBEAT:
                self._broadcast.publish(now, push=False)
            case Timer.RENEW:
                self._broadcast.publish(now, push=True)
            case Timer.PUBLISH_FACTS:
                self._broadcast.publish_measured(now)
            case Timer.RECONNECT:
                self._timers.set(Timer.RECONNECT, now + RECONNECT_SECONDS * (0.5 + self._rng.random()))
                self.link_policy.reconnect(now)
            case Timer.CLIENT_TABLES:
                self._subscribers.flush()
            case _:
                pass  # REFUTE and SEEK_MODEL only mark a time; `settle` and the next request look at it

    def _anti_entropy_round(self, now: float) -> None:
        self._table.expire(now)
        self._own.expire(now)
        nodes = self._links.nodes
        if nodes:
            self._anti_entropy.begin(nodes[self._rng.randrange(len(nodes))])
        self.link_policy.maintain_links(now)

    def _watched(self) -> Collection[NodeId]:
        return self.link_policy.watched(self._detector.doubted)

    def _save_peers(self) -> None:
        self.link_policy.save()

    # -- changes in the table

    def _changed(self, node: NodeId) -> None:
        """The view of `node` changed."""
        self._view = None
        entry = self.entry(node)
        if entry is not None:
            entry.view = None
            if entry.status is PeerStatus.ALIVE:
                self.away.back(node)
        if self._subscribers.changed(node) and self._timers.at(Timer.CLIENT_TABLES) is None:
            self._timers.set(Timer.CLIENT_TABLES, self._now + TABLES_SECONDS)

    def _gone(self, node: NodeId, status: PeerStatus) -> None:
        """A node died or left: the report about a dead node stays for a while, one about a node that left is void."""
        entry = self._table.entries[node]
        # A record of a node that left is its last word.
        seen = max(entry.seen, entry.answered)
        self.away.gone(entry.record, entry.served, seen)
        if status is PeerStatus.DEAD:
            if node in self._links and self._own.reported_incarnation(node) is not None:
                self._out.append(c.HangUp(node, "it does not answer"))
            self._own.keep_report_of_dead(node, self._now)
        else:
            self._own.withdraw_report(node)

    def _routable(self, node: NodeId) -> SignedRecord | None:
        """The record that clients get of `node`: only that of a node that is alive."""
        alive = node == self._id or self.status(node) is PeerStatus.ALIVE
        return self._table.signed(node) if alive else None
