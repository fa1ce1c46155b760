"""What a node says of itself, when, and to whom first.

Law: only this writes the node's record. News is pushed at once and handed on by whoever had not heard it; heartbeats
are left to anti-entropy, so that they cost the same however large the mesh is.
"""

from __future__ import annotations

from meshllm.core import commands as c
from meshllm.core.membership import messages as m
from meshllm.core.membership.failure_detector import heartbeat_seconds
from meshllm.core.membership.links import LinkTable, Rng
from meshllm.core.membership.own_record import OwnRecord
from meshllm.core.membership.table import MembershipTable, possible
from meshllm.core.membership.timers import Timers
from meshllm.core.records import MAX_NUMBER, NodeId, RecordVersion, SignedRecord

# A tenth more or less, so that a mesh does not beat as one.
JITTER = 0.1
# Good news goes to so many random links, and on from whoever had not heard it. Bad news goes over all links.
FANOUT = 4
# A node that has just come (back) renews its record soon: that second stamp is what shows all others that it lives.
RENEW_SECONDS = 2.0
# Refuting more often would be a means to keep a node busy.
RISE_SECONDS = 2.0
# After so long a push has been everywhere: to a new link the record is no news then.
NEWS_SECONDS = 5.0


def jittered(rng: Rng) -> float:
    """A factor around one."""
    return 1.0 - JITTER + 2.0 * JITTER * rng.random()


class RecordBroadcast:
    """The own record of one node on its way to the others."""

    def __init__(
        self, own: OwnRecord, members: MembershipTable, links: LinkTable, timers: Timers, out: list[c.Command], rng: Rng
    ) -> None:
        self._own = own
        self._members = members
        self._links = links
        self._timers = timers
        self._out = out
        self._rng = rng
        self._rise_after = 0.0
        self._news_until = 0.0

    def publish(self, now: float, *, push: bool, incarnation: int | None = None) -> None:
        """Write the record anew and, if it says something new, tell it."""
        before = self._own.signed.record
        signed = self._own.write(incarnation)
        self._members.keep_own(signed, now)
        self._timers.set("heartbeat", now + heartbeat_seconds(self._members.size) * jittered(self._rng))
        if push:
            self._news_until = now + NEWS_SECONDS
            self.push((signed,), everywhere=signed.record.failure_reports != before.failure_reports)

    def push(self, records: tuple[SignedRecord, ...], *, everywhere: bool, but: NodeId | None = None) -> None:
        """Tell linked nodes at once: a few of them, or (bad news: somebody is to be asked no more) all."""
        peers = [node for node in self._links.nodes if node != but]
        if not everywhere and len(peers) > FANOUT:
            peers = self._rng.sample(peers, FANOUT)
        for peer in peers:
            self._out.append(c.Send(peer, m.Records(records, push=True)))

    def introduce(self, peer: NodeId, now: float, *, first: bool) -> None:
        """A link is there: `peer` gets the record. The `first` link is the way into the mesh, and the record news."""
        self._out.append(c.Send(peer, m.Records((self._own.signed,), push=first or now < self._news_until)))
        if first:
            self._timers.set("renew", now + RENEW_SECONDS)

    def settle(self, now: float) -> None:
        """After every event: refute what is said of this node, and tell what is new."""
        accusers = self._members.accusers(self._own.stamp.incarnation)
        if accusers and accusers >= min(2, self._members.needed(self._members.own)):
            self.rise(self._own.stamp.incarnation + 1, now)
        if self._own.changed:
            self.publish(now, push=True)

    def rise(self, incarnation: int, now: float) -> None:
        """A new incarnation: it clears this node of every complaint and gets past every tombstone."""
        if now < self._rise_after:
            self._timers.set("rise", self._rise_after)
        elif incarnation <= MAX_NUMBER:
            self._rise_after = now + RISE_SECONDS
            self._out.append(c.SaveIncarnation(incarnation))
            self.publish(now, push=True, incarnation=incarnation)
            self._timers.set("renew", now + RENEW_SECONDS)

    def reminded(self, stamp: RecordVersion, now: float) -> None:
        """Somebody holds this number of ours. If we never gave it, that life is over for them.

        It is a hint that nobody signed: worth one step, not a leap to whatever number a peer makes up.
        """
        if possible(stamp) and stamp > self._own.stamp:
            self.rise(self._own.stamp.incarnation + 1, now)

    def overtaken(self, signed: SignedRecord, now: float) -> None:
        """A record of ours from somebody else. If it is not the newest we wrote, our home was lost or put back."""
        stamp = signed.record.version
        if possible(stamp) and stamp >= self._own.stamp and signed.body != self._own.signed.body:
            self.rise(stamp.incarnation + 1, now)

    def leave(self, now: float) -> None:
        """The last word, to every linked node."""
        self._own.say(leaving=True, serves=(), wants=())
        signed = self._own.write()
        self._members.keep_own(signed, now)
        self.push((signed,), everywhere=True)
