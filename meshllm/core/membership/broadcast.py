"""Publishing this node's own record: when it is written, and to which peers it is sent.

A record with news is pushed at once and forwarded by each node that did not have it. Heartbeats travel by anti-entropy
alone, so that their cost does not depend on the size of the mesh.
"""

from __future__ import annotations

from meshllm.core import commands as c
from meshllm.core.membership import messages as m
from meshllm.core.membership.failure_detector import heartbeat_seconds
from meshllm.core.membership.links import LinkTable, Rng
from meshllm.core.membership.own_record import OwnRecord
from meshllm.core.membership.participant import jittered
from meshllm.core.membership.table import MembershipTable, possible
from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.records import MAX_NUMBER, NodeId, NodeRecord, RecordVersion, SignedRecord
from meshllm.util.rate_limiter import TokenBucket

# A record with news is pushed to this many random links. One with changed failure reports goes over all links.
FANOUT = 4
# A node that has (re)started renews its record after this: a second version proves that the node is alive.
RENEW_SECONDS = 2.0
# The shortest time between two refutations, so that false reports cannot keep a node busy.
REFUTE_SECONDS = 2.0
# So many records of this node that it has not written, each newer than the last one written, come from another machine.
DUPLICATE_RECORDS = 2
# After this long a push has reached the whole mesh: for a new link the record is no news.
NEWS_SECONDS = 5.0
# Records for changed measurements (memory, speed): one a minute, and this many at once after a quiet time. Heartbeats
# carry the rest.
MEASURED_PER_SECOND = 1.0 / 60.0
MEASURED_BURST = 3.0


class RecordBroadcast:
    """Writes the own record and sends it."""

    def __init__(
        self, own: OwnRecord, table: MembershipTable, links: LinkTable, timers: Timers, out: list[c.Command], rng: Rng
    ) -> None:
        self._own = own
        self._table = table
        self._links = links
        self._timers = timers
        self._out = out
        self._rng = rng
        self.duplicate: NodeRecord | None = None  # the last record of another machine with the same key
        self._foreign = RecordVersion(0, 0)
        self._superseded = 0
        self._refute_after = 0.0
        self._news_until = 0.0
        self._measured: TokenBucket | None = None

    def publish(self, now: float, *, push: bool, incarnation: int | None = None) -> None:
        """Write a new record and, with `push`, send it at once."""
        before = self._own.signed.record
        signed = self._own.write(incarnation)
        self._timers.cancel(Timer.PUBLISH_FACTS)
        self._table.keep_own(signed, now)
        self._timers.set(Timer.HEARTBEAT, now + heartbeat_seconds(self._table.size) * jittered(self._rng))
        if push:
            self._news_until = now + NEWS_SECONDS
            self.push((signed,), everywhere=signed.record.failure_reports != before.failure_reports)

    def push(self, records: tuple[SignedRecord, ...], *, everywhere: bool, but: NodeId | None = None) -> None:
        """Send records to linked nodes except `but`: to all of them, or to a random few."""
        peers = [node for node in self._links.nodes if node != but]
        if not everywhere and len(peers) > FANOUT:
            peers = self._rng.sample(peers, FANOUT)
        for peer in peers:
            self._out.append(c.Send(peer, m.Records(records, push=True)))

    def introduce(self, peer: NodeId, now: float, *, first: bool) -> None:
        """Send the record over a new link. The `first` link leads into the mesh: there the record is news."""
        self._out.append(c.Send(peer, m.Records((self._own.signed,), push=first or now < self._news_until)))
        if first:
            self._timers.set(Timer.RENEW, now + RENEW_SECONDS)

    def settle(self, now: float) -> None:
        """After every event: refute failure reports about this node, and publish what changed."""
        reporters = self._table.reporters(self._own.version.incarnation)
        if reporters and reporters >= min(2, self._table.reports_needed(self._table.own)):
            self.refute(self._own.version.incarnation + 1, now)
        if self._own.changed:
            self.publish(now, push=True)
        elif self._own.stale and self._timers.at(Timer.PUBLISH_FACTS) is None:
            self.publish_measured(now)

    def publish_measured(self, now: float) -> None:
        """Publish changed measurements if the limit allows, else later."""
        if self._measured is None:
            self._measured = TokenBucket(MEASURED_PER_SECOND, MEASURED_BURST, now)
        if not self._own.stale:
            return
        if self._measured.take(now):
            self.publish(now, push=True)
        else:
            self._timers.set(Timer.PUBLISH_FACTS, now + 1.0 / MEASURED_PER_SECOND)

    def refute(self, incarnation: int, now: float) -> None:
        """Write a record of a higher incarnation: it refutes all failure reports and supersedes all tombstones."""
        if now < self._refute_after:
            self._timers.set(Timer.REFUTE, self._refute_after)
        elif incarnation <= MAX_NUMBER:
            self._refute_after = now + REFUTE_SECONDS
            self._out.append(c.SaveIncarnation(incarnation))
            self.publish(now, push=True, incarnation=incarnation)
            self._timers.set(Timer.RENEW, now + RENEW_SECONDS)

    def on_version_hint(self, version: RecordVersion, now: float) -> None:
        """A peer holds this version of the own record. A higher one than was ever written means that the peer counts
        this node as gone.

        The hint is not signed: it raises the incarnation by one, not to the number that the peer gave.
        """
        if possible(version) and version > self._own.version:
            self.refute(self._own.version.incarnation + 1, now)

    def on_own_record(self, signed: SignedRecord, now: float) -> None:
        """A peer sent a record of this node. If it is newer than the last one written here, `mesh.json` was lost or
        restored from a backup: continue above it.

        A start writes an incarnation of at least the wall clock, and no other key can sign. So records that go on to
        supersede what is written here come from another machine with this node's key, which is running now.
        """
        version = signed.record.version
        if possible(version) and version >= self._own.version and signed.body != self._own.signed.body:
            if version > self._foreign:
                self._foreign, self._superseded = version, self._superseded + 1
            if self._superseded >= DUPLICATE_RECORDS:
                self.duplicate = signed.record
            self.refute(version.incarnation + 1, now)

    def leave(self, now: float) -> None:
        """Send the last record to every linked node."""
        self._own.set_leaving()
        signed = self._own.write()
        self._table.keep_own(signed, now)
        self.push((signed,), everywhere=True)
