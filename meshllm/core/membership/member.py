"""A node's part in the mesh: its links, its table, its own record, and what it says to whom.

Law: everything here follows from events, `now` and the given randomness; nothing of another's clock is ever read. No
event makes it fail. What a peer says wrongly, or at the wrong time, changes nothing and costs that peer its allowance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.anti_entropy import AntiEntropy
from meshllm.core.membership.broadcast import RecordBroadcast, jittered
from meshllm.core.membership.client_table import Subscribers
from meshllm.core.membership.failure_detector import PROBE_SECONDS, FailureDetector
from meshllm.core.membership.join import Joiner
from meshllm.core.membership.link_policy import HEAL_SECONDS, LinkPolicy
from meshllm.core.membership.links import LinkState, LinkTable, Rng
from meshllm.core.membership.mesh_merge import MergeDecision, decide
from meshllm.core.membership.own_record import MeshConfig, OwnRecord
from meshllm.core.membership.table import MembershipTable, MergeResult
from meshllm.core.membership.timers import Timers
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus
from meshllm.core.records import MeshId, NodeId, NodeRecord, Role, SignedRecord

__all__ = ["Member", "MeshConfig"]

# A round of anti-entropy with one random peer.
ROUND_SECONDS = 1.0
# Suspicions that may follow from a change elsewhere are looked at together.
DOUBT_SECONDS = 0.1
# Clients are told of changes together.
TABLES_SECONDS = 0.1
# Callers of a model that nobody has may be many; the table is looked through for it no more often than this.
SOUGHT_SECONDS = 0.5
# How often the list of peers to remember may be written.
SAVE_SECONDS = 10.0


class Member:
    """The mesh as one node lives in it. `Mesh` hands it events and collects its commands."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        self._id = config.node
        self._rng = rng
        self._out: list[c.Command] = []
        self._timers = Timers()
        self._links = LinkTable(config.node, self._out)
        self._members = MembershipTable(config.node, self._timers, self._changed, self._over)
        self._own = OwnRecord(config)
        self._voice = RecordBroadcast(self._own, self._members, self._links, self._timers, self._out, rng)
        self._tending = LinkPolicy(self._members, self._links, self._own, self._out, rng)
        self._joining = Joiner(self._links, self._timers, rng)
        self._exchange = AntiEntropy(self._members, self._links, self._send)
        self._prober = FailureDetector(self._timers, self._tending)
        self._subscribers = Subscribers(self._send, self._routable)
        self._started = False
        self._left = False
        self._now = 0.0  # of the event at hand
        self._view: MeshView | None = None
        self._handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.JoinWanted: self._join_wanted,
            e.AddressesFound: lambda event, now: self._own.say(addresses=event.addresses),
            e.ModelRequested: self._model_sought,
            e.LinkUp: self._link_up,
            e.LinkDown: self._link_down,
            e.DialFailed: self._dial_failed,
            e.MessageReceived: self._message,
            e.StopWanted: self._leave,
        }
        self._readers: dict[type[m.Message], Callable[[NodeId, LinkState, Any, float], None]] = {
            m.Ping: self._ping,
            m.Pong: self._pong,
            m.Digest: self._digest,
            m.Difference: self._difference,
            m.Wanted: self._wanted,
            m.Records: self._records,
            m.Subscribe: self._subscribe,
            m.Adopted: lambda peer, link, message, now: self._meet(message.mesh, now),
        }
        self._clocks: dict[str, Callable[[float], None]] = {
            "round": self._round,
            "probe": self._probe,
            "heal": self._heal,
            "save": self._save,
            "doubt": self._members.judge_all,
            "heartbeat": lambda now: self._voice.publish(now, push=False),
            "renew": lambda now: self._voice.publish(now, push=True),
            "rise": lambda now: None,  # what calls for it is looked at after every event
            "sought": lambda now: None,
            "tables": lambda now: self._subscribers.flush(),
        }

    # -- what `Mesh` calls

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Take in `event` (one that is not of the mesh is a reason to look at the clock); what is to be done."""
        self._now = now
        if not self._left:
            if not self._started:
                self._start(now)
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event, now)
        if not self._left:
            for what, node, at in self._timers.due(now):
                self._due(what, NodeId(node), now, now - at)
            self._settle(now)
        done = self._out[:]
        self._out.clear()
        return done

    def _due(self, what: str, node: NodeId, now: float, late: float) -> None:
        clock = self._clocks.get(what)
        if clock is not None:
            clock(now)
        elif what == "answer":
            self._prober.overdue(node, now, late)
        elif what == "dead":
            self._members.run_out(node, now)
        else:
            self._joining.due(what, now)
            self._view = None

    def local(self, now: float, **fields: Any) -> list[c.Command]:
        """What this node says of itself has changed: `serves`, `wants`, `on_disk`, `memory`, `loads`."""
        self._now = now
        loads = fields.pop("loads", None)
        if loads is not None:
            self._own.busy(loads)
        if not self._left:
            self._own.say(**fields)
            if self._started:
                self._settle(now)
        done = self._out[:]
        self._out.clear()
        return done

    def next_deadline(self) -> float | None:
        """When to look at the clock again."""
        return None if self._left else self._timers.next()

    @property
    def dirty(self) -> bool:
        """Whether `view` would give another object than the last time."""
        return self._view is None

    @property
    def record(self) -> NodeRecord:
        """What this node says of itself."""
        return self._own.signed.record

    @property
    def joined(self) -> bool:
        """Whether this node is in a mesh."""
        return self._joining.phase is JoinPhase.JOINED and not self._left

    def alive(self) -> list[NodeRecord]:
        """What the nodes say that live."""
        return self._tending.alive()

    @property
    def tending(self) -> LinkPolicy:
        """What splits need to know of the others: who lives, how near they are, whether there are links."""
        return self._tending

    def status(self, node: NodeId) -> PeerStatus | None:
        """Where a peer is in its life, None if it is not known."""
        return self._members.status(node)

    def view(self) -> MeshView:
        """For readers; the same object until something changes."""
        if self._view is None:
            entries = self._members.entries
            self._view = MeshView(
                self._id,
                self._own.mesh,
                Role.NODE,
                self._joining.phase,
                self._joining.steps,
                self.record,
                tuple([entries[node].seen_as() for node in sorted(entries)]),
                self._links.clients,
                self._joining.reason,
            )
        return self._view

    # -- beginning and end

    def _start(self, now: float) -> None:
        self._started = True
        # Spread over the interval, so that nodes that were started together do not act together.
        for what, seconds in (("round", ROUND_SECONDS), ("probe", PROBE_SECONDS), ("heal", HEAL_SECONDS)):
            self._timers.set(what, now + seconds * self._rng.random())
        self._timers.set("save", now + SAVE_SECONDS)
        self._voice.publish(now, push=False)

    def _leave(self, event: e.StopWanted, now: float) -> None:
        self._voice.leave(now)
        self._subscribers.farewell(self._id)
        self._left = True
        self._timers.clear()
        self._view = None

    def _settle(self, now: float) -> None:
        """After every event: say what is new of ourselves, and see to what follows from it."""
        self._voice.settle(now)
        if self._members.doubtful and self._timers.at("doubt") is None:
            self._timers.set("doubt", now + DOUBT_SECONDS)

    # -- joining and links

    def _join_wanted(self, event: e.JoinWanted, now: float) -> None:
        self._joining.want(event.addresses, event.invited, self._id, now)
        if not event.invited:
            self._tending.remember(event.addresses)
        self._view = None

    def _link_up(self, event: e.LinkUp, now: float) -> None:
        peer = event.peer
        if peer == self._id:
            return
        first = not self._links.nodes
        link = LinkState(event.role, event.mesh, event.address, event.rtt, event.dialled, now)
        self._links.up(peer, link)
        self._view = None
        if event.role is Role.CLIENT:
            return
        self._members.linked(peer, now)
        entry = self._members.entries.get(peer)
        if entry is not None:
            entry.rtt = event.rtt
        self._prober.link_up(peer)
        self._tending.answered(peer)
        self._meet(event.mesh, now)
        if self._own.changed:
            self._voice.publish(now, push=True)
        self._voice.introduce(peer, now, first=first)
        if self._joining.linked(peer, now) or event.dialled:
            self._exchange.begin(peer)

    def _link_down(self, event: e.LinkDown, now: float) -> None:
        link = self._links.down(event.peer)
        if link is None:
            return
        self._view = None
        self._subscribers.drop(event.peer)
        if link.role is Role.NODE:
            self._members.unlinked(event.peer)
            self._joining.unlinked(now)
            if not self._members.buried(event.peer):
                self._prober.link_down(event.peer, now)

    def _dial_failed(self, event: e.DialFailed, now: float) -> None:
        self._links.failed(event.target, now, final=event.final)
        words = f"{event.reason} {event.advice}".rstrip()
        self._joining.failed(event.target, words, event.final, now)
        self._view = None
        if not event.final:
            # A refusal is an answer: that peer lives.
            self._prober.dial_failed(NodeId(event.target.pin))

    def _meet(self, mesh: MeshId, now: float) -> None:
        if decide(self._own.mesh, mesh) is MergeDecision.ADOPT:
            self._own.say(mesh=mesh)
            self._out.append(c.SaveMesh(mesh))
            self._view = None
            for peer, _ in self._links.items():
                self._send(peer, m.Adopted(mesh))

    def _model_sought(self, event: e.ModelRequested, now: float) -> None:
        if self._timers.at("sought") is None:
            self._timers.set("sought", now + SOUGHT_SECONDS)
            self._tending.seek(event.model, now)

    def _send(self, peer: NodeId, message: m.Message) -> None:
        self._out.append(c.Send(peer, message))

    # -- messages

    def _message(self, event: e.MessageReceived, now: float) -> None:
        link = self._links.get(event.peer)
        if link is None:
            return
        kind = type(event.message)
        if link.role is Role.CLIENT and kind not in (m.Ping, m.Pong, m.Subscribe):
            return
        reader = self._readers.get(kind)
        if reader is not None:
            reader(event.peer, link, event.message, now)

    def _ping(self, peer: NodeId, link: LinkState, message: m.Ping, now: float) -> None:
        if link.allowance.take(now):
            self._send(peer, m.Pong(message.number, self._own.loads))

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        rtt = self._prober.answer(peer, message.number, now)
        entry = self._members.entries.get(peer)
        if rtt is None or entry is None:
            return
        # Smoothed upwards as TCP does it (RFC 6298). A shorter one counts at once: none is shorter than the way, and
        # the first had a handshake in it. Told to readers only when it makes a difference to them.
        link.rtt = min(rtt, 0.875 * link.rtt + 0.125 * rtt)
        if entry.rtt is None or abs(link.rtt - entry.rtt) > max(0.001, 0.1 * entry.rtt):
            entry.rtt = link.rtt
            self._seen(peer)
        if entry.loads != message.loads:
            entry.loads = message.loads
            self._seen(peer)

    def _digest(self, peer: NodeId, link: LinkState, message: m.Digest, now: float) -> None:
        if link.allowance.take(now, 5.0):
            self._exchange.answer(peer, message)

    def _difference(self, peer: NodeId, link: LinkState, message: m.Difference, now: float) -> None:
        own = next((stamp for node, stamp in message.held if node == self._id), None)
        if own is not None and own > self._own.stamp and link.allowance.take(now, 20.0):
            self._voice.reminded(own, now)
        if self._exchange.compare(peer, link, message) and not link.wanted:
            self._synced()

    def _wanted(self, peer: NodeId, link: LinkState, message: m.Wanted, now: float) -> None:
        if link.allowance.take(now, 2.0 + len(message.nodes) / 50.0):
            self._exchange.give(peer, message.nodes)

    def _records(self, peer: NodeId, link: LinkState, message: m.Records, now: float) -> None:
        news: list[SignedRecord] = []
        bad = False
        waiting = bool(link.wanted)
        for signed in message.records:
            record = signed.record
            if record.node == self._id:
                self._voice.overtaken(signed, now)
                continue
            asked = record.node in link.wanted
            link.wanted.discard(record.node)
            before = self._members.signed(record.node)
            if before is None and not asked and not link.strangers.take(now):
                continue
            found = self._members.merge(signed, now, linked=record.node in self._links)
            if found in (MergeResult.FIRST, MergeResult.GROWN):
                news.append(signed)
                bad = (
                    bad
                    or record.leaving
                    or (before is not None and record.failure_reports != before.record.failure_reports)
                )
                self._heard(signed, before, now)
            elif found is MergeResult.BURIED and record.node == peer:
                self._exchange.remind(peer, signed)
        if news and message.push:
            self._voice.push(tuple(news), everywhere=bad, but=peer)
        if waiting and not link.wanted:
            self._synced()

    def _heard(self, signed: SignedRecord, before: SignedRecord | None, now: float) -> None:
        record = signed.record
        if not record.leaving:
            self._meet(record.mesh, now)
        said = self._own.complaints.get(record.node)
        if said is not None and said[0] != record.version.incarnation:
            self._own.absolve(record.node)
        if before is not None and before.record.version.incarnation != record.version.incarnation:
            self._prober.refuted(record.node)
        link = self._links.get(record.node)
        if link is not None and before is None:
            self._members.entries[record.node].rtt = link.rtt

    def _subscribe(self, peer: NodeId, link: LinkState, message: m.Subscribe, now: float) -> None:
        if link.role is Role.CLIENT and link.allowance.take(now, 20.0):
            self._subscribers.add(peer, [self._id, *sorted(self._members.members())])

    def _synced(self) -> None:
        self._joining.synced()
        self._view = None

    # -- clocks

    def _round(self, now: float) -> None:
        self._timers.set("round", now + ROUND_SECONDS * jittered(self._rng))
        self._members.expire(now)
        self._own.expire(now)
        nodes = self._links.nodes
        if nodes:
            self._exchange.begin(nodes[self._rng.randrange(len(nodes))])
        self._tending.mend(now)

    def _probe(self, now: float) -> None:
        self._timers.set("probe", now + PROBE_SECONDS * jittered(self._rng))
        self._prober.tick(self._tending.watched(self._prober.doubted), now)

    def _heal(self, now: float) -> None:
        self._timers.set("heal", now + HEAL_SECONDS * (0.5 + self._rng.random()))
        self._tending.heal(now)

    def _save(self, now: float) -> None:
        self._timers.set("save", now + SAVE_SECONDS)
        self._tending.save()

    # -- changes

    def _changed(self, node: NodeId) -> None:
        """`Membership` says: this node is not what it was."""
        self._seen(node)
        if self._subscribers.changed(node) and self._timers.at("tables") is None:
            self._timers.set("tables", self._now + TABLES_SECONDS)

    def _over(self, node: NodeId, status: PeerStatus) -> None:
        """It is gone: a complaint about the dead stays for a while, one about who left has no object."""
        if status is PeerStatus.DEAD:
            if node in self._links and node in self._own.complaints:
                self._out.append(c.HangUp(node, "it does not answer"))
            self._own.died(node, self._now)
        else:
            self._own.absolve(node)

    def _routable(self, node: NodeId) -> SignedRecord | None:
        """What to tell clients of it: the record of a node that lives."""
        alive = node == self._id or self.status(node) is PeerStatus.ALIVE
        return self._members.signed(node) if alive else None

    def _seen(self, node: NodeId) -> None:
        entry = self._members.entries.get(node)
        if entry is not None:
            entry.view = None
        self._view = None
