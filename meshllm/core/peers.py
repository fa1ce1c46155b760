"""A node's part in the mesh: its links, its table, its own record, and what it says to whom.

Law: everything here follows from events, `now` and the given randomness; nothing of another node's clock is ever read.
No event makes it fail. What a peer says wrongly, or at the wrong time, changes nothing and costs that peer its allowance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core import messages as m
from meshllm.core.convergence import Decision, decide
from meshllm.core.exchange import Exchange
from meshllm.core.joining import Joining
from meshllm.core.links import Links, LinkState, Rng
from meshllm.core.liveness import PROBE_SECONDS, Prober, heartbeat_seconds
from meshllm.core.membership import MAX_NUMBER, SMALL_MESH, Membership, News, possible
from meshllm.core.own import MeshConfig, OwnRecord
from meshllm.core.records import MeshId, NodeId, NodeRecord, Role, SignedRecord, WayIn
from meshllm.core.subscribing import Subscribers, told_alike
from meshllm.core.timers import Timers
from meshllm.core.views import JoinPhase, MeshView, PeerStatus

__all__ = ["MeshConfig", "Peers"]

# A round of anti-entropy with one random peer; each takes a tenth more or less, so that a mesh does not beat as one.
ROUND_SECONDS = 1.0
JITTER = 0.1
# Good news goes to so many random links, and on from whoever had not heard it. Bad news goes over all links.
FANOUT = 4
# A node that has just come (back) renews its record soon: that second stamp is what shows all others that it lives.
RENEW_SECONDS = 2.0
# A link that nothing wants is closed after this long; the next need of it may be near.
LINK_IDLE_SECONDS = 60.0
# The dead are looked for, one each time, so that a mesh that was cut in two finds together again; and every sixth time
# a member without a link is, so that no two parts of a mesh can live side by side without ever exchanging a word.
HEAL_SECONDS = 5.0
HEAL_ROUNDS_PER_VISIT = 6
# Suspicions that may follow from a change elsewhere are looked at together.
DOUBT_SECONDS = 0.1
# Clients are told of changes together.
TABLES_SECONDS = 0.1
# Refuting more often would be a means to keep a node busy.
RISE_SECONDS = 2.0
# Dials for a model that only unverified peers are said to have.
MAX_SOUGHT = 4
SOUGHT_SECONDS = 0.5
# Watched beside the watched: hosts that are linked, whose load and round trip routing wants to know.
MAX_HOSTS_WATCHED = 16
# Peers worth remembering over a restart, and how often the list may be written.
MAX_SAVED = 64
SAVE_SECONDS = 10.0


class Peers:
    """The mesh as one node lives in it. `Mesh` hands it events and collects its commands."""

    def __init__(self, config: MeshConfig, rng: Rng) -> None:
        self._id = config.node
        self._rng = rng
        self._out: list[c.Command] = []
        self._timers = Timers()
        self._links = Links(config.node, self._out)
        self._members = Membership(config.node, self._timers, self._changed, self._over)
        self._own = OwnRecord(config)
        self._joining = Joining(self._links, self._timers, rng)
        self._exchange = Exchange(self._members, self._links, self._send)
        self._prober = Prober(self._timers, _Hands(self))
        self._subscribers = Subscribers(self._send)
        self._told: dict[NodeId, NodeRecord] = {}  # what clients were last told of a node
        self._saved: tuple[WayIn, ...] = ()
        self._started = False
        self._left = False
        self._now = 0.0  # of the event at hand
        self._heals = 0
        self._rise_after = 0.0
        self._view: MeshView | None = None
        self._handlers: dict[type[e.Event], Callable[[Any, float], None]] = {
            e.JoinWanted: self._join_wanted,
            e.AddressesFound: lambda event, now: self._own.say(addresses=event.addresses),
            e.ModelSought: self._model_sought,
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
        self._clocks: dict[str, Callable[[NodeId, float, float], None]] = {
            "round": self._round,
            "probe": self._probe,
            "answer": lambda node, now, at: self._prober.overdue(node, now, now - at),
            "dead": self._run_out,
            "doubt": lambda node, now, at: self._members.judge_all(now),
            "heartbeat": lambda node, now, at: self._publish(now, push=False),
            "renew": lambda node, now, at: self._publish(now, push=True),
            "heal": self._heal,
            "rise": lambda node, now, at: None,
            "tables": lambda node, now, at: self._subscribers.flush(self._routable),
            "save": self._save,
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
                clock = self._clocks.get(what)
                if clock is not None:
                    clock(NodeId(node), now, at)
                else:
                    self._joining.due(what, now)
                    self._view = None
            self._settle(now)
        done = self._out[:]
        self._out.clear()
        return done

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
        entries = self._members.entries.values()
        return [entry.record for entry in entries if entry.status is PeerStatus.ALIVE]

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
        self._publish(now, push=False)

    def _leave(self, event: e.StopWanted, now: float) -> None:
        self._own.say(leaving=True, serves=(), wants=())
        signed = self._own.write()
        self._members.keep_own(signed, now)
        self._push((signed,), everywhere=True)
        self._subscribers.farewell(self._id)
        self._left = True
        self._timers.clear()
        self._view = None

    def _settle(self, now: float) -> None:
        """After every event: say what is new of ourselves, and see to what follows from it."""
        self._refute(now)
        if self._own.changed:
            self._publish(now, push=True)
        if self._members.doubtful and self._timers.at("doubt") is None:
            self._timers.set("doubt", now + DOUBT_SECONDS)

    def _publish(self, now: float, *, push: bool, incarnation: int | None = None) -> None:
        before = self._own.signed.record
        signed = self._own.write(incarnation)
        self._members.keep_own(signed, now)
        self._changed(self._id)
        interval = heartbeat_seconds(self._members.size) * self._jittered()
        self._timers.set("heartbeat", now + interval)
        if push:
            self._push((signed,), everywhere=signed.record.complaints != before.complaints)

    def _refute(self, now: float) -> None:
        """Somebody complains about us, and enough of them: only a higher incarnation clears us."""
        accusers = self._members.accusers(self._own.stamp.incarnation)
        if accusers and accusers >= min(2, self._members.needed(self._id)):
            self._rise(self._own.stamp.incarnation + 1, now)

    def _rise(self, incarnation: int, now: float) -> None:
        if now < self._rise_after:
            self._timers.set("rise", self._rise_after)
        elif incarnation <= MAX_NUMBER:
            self._rise_after = now + RISE_SECONDS
            self._out.append(c.SaveIncarnation(incarnation))
            self._publish(now, push=True, incarnation=incarnation)
            self._timers.set("renew", now + RENEW_SECONDS)

    # -- joining and links

    def _join_wanted(self, event: e.JoinWanted, now: float) -> None:
        self._joining.want(event.ways, event.invited, self._id, now)
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
        self._absolve(peer)
        self._meet(event.mesh, now)
        if self._own.changed:
            self._publish(now, push=True)
        self._send(peer, m.Records((self._own.signed,), push=True))
        if first:
            self._timers.set("renew", now + RENEW_SECONDS)
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
        self._links.failed(event.way, now, final=event.final)
        words = f"{event.reason} {event.advice}".rstrip()
        self._joining.failed(event.way, words, event.final, now)
        self._view = None
        if not event.final:
            # A refusal is an answer: that peer lives.
            self._prober.dial_failed(NodeId(event.way.pin))

    def _meet(self, mesh: MeshId, now: float) -> None:
        if decide(self._own.mesh, mesh) is Decision.ADOPT:
            self._own.say(mesh=mesh)
            self._out.append(c.SaveMesh(mesh))
            self._view = None
            for peer, _ in self._links.items():
                self._send(peer, m.Adopted(mesh))

    def _model_sought(self, event: e.ModelSought, now: float) -> None:
        if self._timers.at("sought") is not None:
            return
        self._timers.set("sought", now + SOUGHT_SECONDS)
        asked = 0
        for node, entry in self._members.entries.items():
            if entry.status is PeerStatus.HEARD and any(s.name == event.model for s in entry.record.serves):
                way = self._way(node)
                if way is not None and (self._links.dialling(node, now) or self._links.dial(way, now)):
                    asked += 1
                    if asked == MAX_SOUGHT:
                        return

    def _way(self, node: NodeId) -> WayIn | None:
        signed = self._members.signed(node)
        return WayIn(node, signed.record.addresses) if signed is not None and signed.record.addresses else None

    def _send(self, peer: NodeId, message: m.Message) -> None:
        self._out.append(c.Send(peer, message))

    def _push(self, records: tuple[SignedRecord, ...], *, everywhere: bool, but: NodeId | None = None) -> None:
        peers = [node for node in self._links.nodes if node != but]
        if not everywhere and len(peers) > FANOUT:
            peers = self._rng.sample(peers, FANOUT)
        for peer in peers:
            self._send(peer, m.Records(records, push=True))

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
        if link.allowance.take(1.0, now):
            self._send(peer, m.Pong(message.number, self._own.loads))

    def _pong(self, peer: NodeId, link: LinkState, message: m.Pong, now: float) -> None:
        rtt = self._prober.answer(peer, message.number, now)
        entry = self._members.entries.get(peer)
        if rtt is None or entry is None:
            return
        # Smoothed as TCP does it (RFC 6298), and told to readers only when it makes a difference to them.
        link.rtt = 0.875 * link.rtt + 0.125 * rtt
        if entry.rtt is None or abs(link.rtt - entry.rtt) > max(0.001, 0.1 * entry.rtt):
            entry.rtt = link.rtt
            self._seen(peer)
        if entry.loads != message.loads:
            entry.loads = message.loads
            self._seen(peer)

    def _digest(self, peer: NodeId, link: LinkState, message: m.Digest, now: float) -> None:
        if link.allowance.take(5.0, now):
            self._exchange.answer(peer, message)

    def _difference(self, peer: NodeId, link: LinkState, message: m.Difference, now: float) -> None:
        own = next((stamp for node, stamp in message.held if node == self._id), None)
        if (
            own is not None
            and possible(own)
            and own > self._own.stamp
            and own.incarnation >= self._own.stamp.incarnation
        ):
            # Somebody remembers a life of ours that is over, or a number we never gave. It is a hint, and not signed:
            # worth one step, not a leap.
            if link.allowance.take(20.0, now):
                self._rise(self._own.stamp.incarnation + 1, now)
        if self._exchange.compare(peer, link, message) and not link.wanted:
            self._synced()

    def _wanted(self, peer: NodeId, link: LinkState, message: m.Wanted, now: float) -> None:
        if link.allowance.take(2.0 + len(message.nodes) / 50.0, now):
            self._exchange.give(peer, message.nodes)

    def _records(self, peer: NodeId, link: LinkState, message: m.Records, now: float) -> None:
        news: list[SignedRecord] = []
        bad = False
        waiting = bool(link.wanted)
        for signed in message.records:
            record = signed.record
            if record.node == self._id:
                self._our_own(signed, now)
                continue
            asked = record.node in link.wanted
            link.wanted.discard(record.node)
            before = self._members.signed(record.node)
            if before is None and not asked and not link.strangers.take(1.0, now):
                continue
            found = self._members.merge(signed, now, linked=record.node in self._links)
            if found in (News.FIRST, News.GROWN):
                news.append(signed)
                bad = bad or record.leaving or (before is not None and record.complaints != before.record.complaints)
                self._heard(signed, before, now)
            elif found is News.BURIED and record.node == peer:
                self._exchange.remind(peer, signed)
        if news and message.push:
            self._push(tuple(news), everywhere=bad, but=peer)
        if waiting and not link.wanted:
            self._synced()

    def _heard(self, signed: SignedRecord, before: SignedRecord | None, now: float) -> None:
        record = signed.record
        if not record.leaving:
            self._meet(record.mesh, now)
        said = self._own.complaints.get(record.node)
        if said is not None and said[0] != record.stamp.incarnation:
            self._own.absolve(record.node)
        if before is not None and before.record.stamp.incarnation != record.stamp.incarnation:
            self._prober.refuted(record.node)
        link = self._links.get(record.node)
        if link is not None and before is None:
            self._members.entries[record.node].rtt = link.rtt

    def _our_own(self, signed: SignedRecord, now: float) -> None:
        """A record of ours from somebody else: one that we have not written now is of an earlier run with a lost home."""
        stamp = signed.record.stamp
        if possible(stamp) and stamp >= self._own.stamp and signed.body != self._own.signed.body:
            self._rise(stamp.incarnation + 1, now)

    def _subscribe(self, peer: NodeId, link: LinkState, message: m.Subscribe, now: float) -> None:
        if link.role is Role.CLIENT and link.allowance.take(20.0, now):
            self._subscribers.flush(self._routable)
            nodes = [self._id, *sorted(self._members.members())]
            table = [signed for node in nodes if (signed := self._routable(node)) is not None]
            self._told = {signed.record.node: signed.record for signed in table}
            self._subscribers.add(peer, table)

    def _synced(self) -> None:
        self._joining.synced()
        self._view = None

    # -- clocks

    def _round(self, node: NodeId, now: float, at: float) -> None:
        self._timers.set("round", now + ROUND_SECONDS * self._jittered())
        self._members.expire(now)
        self._own.expire(now)
        nodes = self._links.nodes
        if nodes:
            self._exchange.begin(nodes[self._rng.randrange(len(nodes))])
        self._mend(now)

    def _mend(self, now: float) -> None:
        """Have the links that are wanted, and close those that nothing has wanted for a while."""
        small = self._members.size <= SMALL_MESH
        wanted = self._members.members() if small else self._members.rings.neighbours(self._id)
        for node in list(wanted):
            link = self._links.get(node)
            if link is not None:
                link.needed = now
            elif (way := self._way(node)) is not None:
                self._links.dial(way, now)
        for peer, link in self._links.items():
            if link.role is Role.NODE and now - link.needed > LINK_IDLE_SECONDS:
                link.needed = now
                self._out.append(c.HangUp(peer, "this link is not needed any more"))

    def _probe(self, node: NodeId, now: float, at: float) -> None:
        self._timers.set("probe", now + PROBE_SECONDS * self._jittered())
        if self._members.size <= SMALL_MESH:
            watched = dict.fromkeys(self._members.members())
        else:
            watched = dict.fromkeys(self._members.rings.subjects(self._id, self._members.answering))
            hosts = [n for n in self._links.nodes if (s := self._members.signed(n)) is not None and s.record.serves]
            watched.update(dict.fromkeys(hosts[:MAX_HOSTS_WATCHED]))
            watched.update(dict.fromkeys(self._own.complaints))
        self._prober.tick([n for n in watched if n in self._members.entries and not self._members.buried(n)], now)

    def _run_out(self, node: NodeId, now: float, at: float) -> None:
        self._members.run_out(node, now)

    def _heal(self, node: NodeId, now: float, at: float) -> None:
        self._timers.set("heal", now + HEAL_SECONDS * (0.5 + self._rng.random()))
        dead = self._members.dead()
        if dead and (way := self._way(dead[self._rng.randrange(len(dead))])) is not None:
            self._links.dial(way, now)
        self._heals += 1
        if self._heals % HEAL_ROUNDS_PER_VISIT == 0 and len(self._members.summary):
            other = self._members.summary[self._rng.randrange(len(self._members.summary))]
            if (way := self._way(other)) is not None:
                self._links.dial(way, now)

    def _save(self, node: NodeId, now: float, at: float) -> None:
        """Remember who to look for after a restart: the linked first, then who was seen last; as before where it can."""
        self._timers.set("save", now + SAVE_SECONDS)
        found = dict.fromkeys(sorted(self._links.nodes))
        kept = [NodeId(way.pin) for way in self._saved if self.status(NodeId(way.pin)) is PeerStatus.ALIVE]
        found.update(dict.fromkeys(kept))
        for other in self._members.latest():
            if len(found) >= MAX_SAVED:
                break
            if self.status(other) is PeerStatus.ALIVE:
                found[other] = None
        ways = tuple([way for other in list(found)[:MAX_SAVED] if (way := self._way(other)) is not None])
        # Being alone is no reason to forget everybody: they are who to look for.
        if ways and set(ways) != set(self._saved):
            self._saved = ways
            self._out.append(c.SavePeers(ways))

    def _jittered(self) -> float:
        return 1.0 - JITTER + 2.0 * JITTER * self._rng.random()

    # -- changes

    def _changed(self, node: NodeId) -> None:
        """`Membership` says: this node is not what it was."""
        self._seen(node)
        if not len(self._subscribers):
            return
        signed, told = self._routable(node), self._told.get(node)
        if signed is None if told is None else signed is not None and told_alike(told, signed.record):
            return
        if signed is None:
            self._told.pop(node, None)
        else:
            self._told[node] = signed.record
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

    def _absolve(self, node: NodeId) -> None:
        """It answered. About the dead we stand by what we said: a new incarnation is due."""
        if not self._members.buried(node):
            self._own.absolve(node)

    def _seen(self, node: NodeId) -> None:
        entry = self._members.entries.get(node)
        if entry is not None:
            entry.view = None
        self._view = None


class _Hands:
    """What the prober needs of the rest."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def rtt(self, node: NodeId) -> float | None:
        link = self._peers._links.get(node)
        return link.rtt if link is not None else None

    def ping(self, node: NodeId, number: int) -> None:
        self._peers._send(node, m.Ping(number))

    def dial(self, node: NodeId, now: float) -> bool:
        peers = self._peers
        way = peers._way(node)
        return way is not None and (peers._links.dialling(node, now) or peers._links.dial(way, now))

    def unanswered(self, node: NodeId) -> None:
        signed = self._peers._members.signed(node)
        if signed is not None and not self._peers._members.buried(node):
            self._peers._own.complain(node, signed.record.stamp.incarnation)

    def answered(self, node: NodeId) -> None:
        self._peers._absolve(node)
