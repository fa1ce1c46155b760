"""The peer table: who is in the mesh, and where each of them is in its life.

Law: a record is taken in only if its stamp is higher than the one held, so merging is commutative and idempotent.
Nobody is believed about another: that a node is suspect follows from the complaints in the verified records of those
who watch it, each about its current incarnation. A node that is gone is remembered with its stamp for a time, and only
a higher incarnation, which it alone can sign, gets past that.

    HEARD    others handed on its record; not routable, no capacity; its complaints count nothing
    ALIVE    it has a link to us, or its stamp grew while we knew it
    SUSPECT  enough of its watchers complain about this incarnation
    DEAD     suspicion ran out, or its record was not renewed
    LEFT     it said so itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

from meshllm.core.membership.failure_detector import expiry_seconds, suspicion_seconds
from meshllm.core.membership.rings import Rings
from meshllm.core.membership.summary import Summary
from meshllm.core.membership.timers import Timers
from meshllm.core.membership.views import PeerStatus, PeerView
from meshllm.core.records import MAX_NUMBER, ModelLoad, NodeId, NodeRecord, RecordVersion, SignedRecord

# In a mesh of up to so many members everybody has a link to everybody and watches everybody.
SMALL_MESH = 16
# Complaints of so many different members (fewer where fewer watch it) make a node suspect.
COMPLAINTS_NEEDED = 3
# More nodes than that are not taken in: a bound of memory (about 1 KiB each) that no mesh of people's machines reaches.
MAX_NODES = 20_000
# How long the dead are remembered. The living look for them that long too (`Peers`), which heals a mesh cut in two.
TOMBSTONE_SECONDS = 24 * 3600.0
# How long the word of a leaving is handed on; twelve rounds of anti-entropy reach everybody.
LEFT_TOLD_SECONDS = 60.0

_S = PeerStatus
GONE = (_S.DEAD, _S.LEFT)
# Every change of status there is, and why; any other is a defect of this program.
TRANSITIONS: dict[tuple[PeerStatus, PeerStatus], str] = {
    (_S.UNVERIFIED, _S.ALIVE): "a link, or its stamp grew",
    (_S.UNVERIFIED, _S.SUSPECT): "complaints",
    (_S.UNVERIFIED, _S.DEAD): "not renewed",
    (_S.UNVERIFIED, _S.LEFT): "it said so",
    (_S.ALIVE, _S.SUSPECT): "complaints",
    (_S.ALIVE, _S.DEAD): "not renewed",
    (_S.ALIVE, _S.LEFT): "it said so",
    (_S.SUSPECT, _S.ALIVE): "a higher incarnation, or the complaints were taken back",
    (_S.SUSPECT, _S.DEAD): "suspicion ran out",
    (_S.SUSPECT, _S.LEFT): "it said so",
    (_S.DEAD, _S.UNVERIFIED): "a higher incarnation",
    (_S.DEAD, _S.ALIVE): "a higher incarnation, and a link",
    (_S.LEFT, _S.UNVERIFIED): "a higher incarnation",
    (_S.LEFT, _S.ALIVE): "a higher incarnation, and a link",
}


class MergeResult(Enum):
    """What a record was to the table."""

    STALE = "stale"  # this one or a higher one is known
    BURIED = "buried"  # of a life that is over
    REFUSED = "refused"  # not a possible record, or no room
    FIRST = "first"  # of a node not known until now
    GROWN = "grown"  # renewed or changed


class MemberEntry:
    """One node in the table. `seen` is when its stamp last grew for us; `view` is kept until something changes."""

    __slots__ = ("linked", "loads", "reason", "rtt", "seen", "signed", "since", "status", "view")

    def __init__(self, signed: SignedRecord, status: PeerStatus, now: float) -> None:
        self.signed = signed
        self.status = status
        self.since = now
        self.seen = now
        self.reason = ""
        self.linked = False
        self.rtt: float | None = None
        self.loads: tuple[ModelLoad, ...] | None = None
        self.view: PeerView | None = None

    @property
    def record(self) -> NodeRecord:
        """What it says of itself."""
        return self.signed.record

    def seen_as(self) -> PeerView:
        """For readers; the same object until something changes."""
        if self.view is None:
            loads = self.signed.record.loads if self.loads is None else self.loads
            self.view = PeerView(self.signed.record, self.status, self.linked, self.rtt, loads, self.since, self.reason)
        return self.view


def possible(stamp: RecordVersion) -> bool:
    """Whether the numbers are such as may be in a record."""
    return 0 <= stamp.incarnation <= MAX_NUMBER and 0 <= stamp.version <= MAX_NUMBER


class MembershipTable:
    """The table of one node. The node itself is in `rings` and `summary`, and not among the entries."""

    def __init__(
        self,
        own: NodeId,
        timers: Timers,
        changed: Callable[[NodeId], None],
        gone: Callable[[NodeId, PeerStatus], None],
    ) -> None:
        """`changed` hears of every node whose view is no longer what it was, `gone` of each that has come to its end.

        Deaths are due in `timers`, as "dead".
        """
        self.own = own
        self.entries: dict[NodeId, MemberEntry] = {}
        self.rings = Rings()
        self.summary = Summary()
        # In the order of their last renewal: whose has been longest ago is looked at first.
        self._renewed: dict[NodeId, float] = {}
        self._gone: dict[NodeId, float] = {}
        self._told: dict[NodeId, float] = {}
        # Who complains about whom: subject -> complainer -> the incarnation complained about.
        self._complaints: dict[NodeId, dict[NodeId, int]] = {}
        self._signed: SignedRecord | None = None
        self._timers = timers
        self._changed = changed
        self._ended = gone
        self.doubtful = False  # something changed that other suspicions follow from
        self.rings.add(own)

    # -- what is known

    @property
    def size(self) -> int:
        """Members, this node among them: all that are not gone."""
        return len(self._renewed) + 1

    def status(self, node: NodeId) -> PeerStatus | None:
        """Where `node` is in its life; None for one that is not known, and for this node itself."""
        entry = self.entries.get(node)
        return entry.status if entry is not None else None

    def signed(self, node: NodeId) -> SignedRecord | None:
        """The newest record of `node`, this node's own included."""
        if node == self.own:
            return self._signed
        entry = self.entries.get(node)
        return entry.signed if entry is not None else None

    def buried(self, node: NodeId) -> bool:
        """Whether `node` is known to be gone."""
        entry = self.entries.get(node)
        return entry is not None and entry.status in GONE

    def members(self) -> Iterator[NodeId]:
        """Everybody else that is not gone."""
        return iter(self._renewed)

    def latest(self) -> Iterator[NodeId]:
        """The same, who was renewed last first."""
        return reversed(self._renewed)

    def dead(self) -> list[NodeId]:
        """Those that are gone without having said so."""
        return [node for node in self._gone if self.entries[node].status is PeerStatus.DEAD]

    def answering(self, node: NodeId) -> bool:
        """Whether a watcher need not look past `node`: it is not gone or doubted, and this node does not complain."""
        if node == self.own:
            return True
        entry = self.entries.get(node)
        return entry is not None and entry.status in (_S.UNVERIFIED, _S.ALIVE) and not self.complained(self.own, node)

    def complained(self, by: NodeId, about: NodeId) -> bool:
        """Whether `by` complains about the incarnation of `about` that is known here."""
        said = self._complaints.get(about)
        entry = self.entries.get(about)
        return said is not None and entry is not None and said.get(by) == entry.record.version.incarnation

    # -- taking in

    def keep_own(self, signed: SignedRecord, now: float) -> None:
        """This node has written a new record of itself."""
        before = self._signed
        self._signed = signed
        self.summary.put(self.own, signed.record.version)
        self._complaints_changed(before.record if before is not None else None, signed.record, now)
        self._changed(self.own)

    def merge(self, signed: SignedRecord, now: float, *, linked: bool) -> MergeResult:
        """Take in a verified record of another node; `linked`: there is a link to that node."""
        record = signed.record
        node, stamp = record.node, record.version
        if node == self.own or not possible(stamp):
            return MergeResult.REFUSED
        entry = self.entries.get(node)
        if entry is None:
            if len(self.entries) >= MAX_NODES and not self._make_room():
                return MergeResult.REFUSED
            self._first(signed, now, linked=linked)
            return MergeResult.FIRST
        held = entry.record.version
        if stamp <= held:
            return MergeResult.STALE
        if entry.status in GONE and stamp.incarnation <= held.incarnation:
            return MergeResult.BURIED
        self._grown(entry, signed, now, linked=linked)
        return MergeResult.GROWN

    def _first(self, signed: SignedRecord, now: float, *, linked: bool) -> None:
        record = signed.record
        entry = MemberEntry(signed, PeerStatus.ALIVE if linked else PeerStatus.UNVERIFIED, now)
        entry.linked = linked
        self.entries[record.node] = entry
        if record.leaving:
            # A stranger that is gone already: remembered, but not offered to others, or newcomers would for ever.
            entry.status = PeerStatus.LEFT
            self._gone[record.node] = now
            self._changed(record.node)
            return
        self._renewed[record.node] = now
        self.rings.add(record.node)
        self.summary.put(record.node, record.version)
        self._complaints_changed(None, record, now)
        self._changed(record.node)
        self.judge(record.node, now)

    def _grown(self, entry: MemberEntry, signed: SignedRecord, now: float, *, linked: bool) -> None:
        before, record = entry.record, signed.record
        node = record.node
        risen = record.version.incarnation > before.version.incarnation
        entry.signed, entry.seen, entry.linked = signed, now, linked
        entry.loads = None
        if record.leaving:
            self.summary.put(node, record.version)
            self._told[node] = now
            if entry.status in GONE:
                # It came back and left again before anybody here knew.
                self._gone.pop(node, None)
                self._gone[node] = now
                if entry.status is PeerStatus.DEAD:
                    self._change(entry, PeerStatus.UNVERIFIED, now)
            if entry.status is not PeerStatus.LEFT:
                self._change(entry, PeerStatus.LEFT, now, "it left")
        else:
            if entry.status in GONE:
                self._change(entry, PeerStatus.ALIVE if linked else PeerStatus.UNVERIFIED, now)
            elif entry.status is PeerStatus.UNVERIFIED or (entry.status is PeerStatus.SUSPECT and risen):
                self._change(entry, PeerStatus.ALIVE, now)
            self._renewed.pop(node, None)
            self._renewed[node] = now
            self.summary.put(node, record.version)
        self._complaints_changed(before, record, now)
        self._changed(node)
        if risen:
            self.judge(node, now)

    def linked(self, node: NodeId, now: float) -> None:
        """There is a link to `node`: it lives, unless its life is over by all we know."""
        entry = self.entries.get(node)
        if entry is not None:
            entry.linked = True
            if entry.status is PeerStatus.UNVERIFIED:
                self._change(entry, PeerStatus.ALIVE, now)
            self._changed(node)

    def unlinked(self, node: NodeId) -> None:
        """The link to `node` is gone."""
        entry = self.entries.get(node)
        if entry is not None:
            entry.linked = False
            self._changed(node)

    # -- suspicion

    def needed(self, subject: NodeId) -> int:
        """How many must complain about `subject`: up to three, but no more than there are to watch it."""

        def able(node: NodeId) -> bool:
            return node != subject and self.answering(node)

        if self.size <= SMALL_MESH:
            watchers = 1 + sum(map(able, self._renewed)) - (subject == self.own)
        else:
            watchers = len(self.rings.observers(subject, able))
        return max(1, min(COMPLAINTS_NEEDED, watchers))

    def accusers(self, incarnation: int) -> int:
        """How many members complain about this node at `incarnation`; whoever is gone does not count."""
        said = self._complaints.get(self.own)
        if not said:
            return 0
        return sum(number == incarnation and not self.buried(node) for node, number in said.items())

    def judge(self, subject: NodeId, now: float, *, taken_back: bool = False) -> None:
        """See whether `subject` is to be suspected, or (when a complaint was `taken_back`) no more."""
        entry, said = self.entries.get(subject), self._complaints.get(subject)
        if entry is None or entry.status in GONE or (said is None and entry.status is not PeerStatus.SUSPECT):
            return
        incarnation = entry.record.version.incarnation
        about = [node for node, number in (said or {}).items() if number == incarnation]
        if entry.status is PeerStatus.SUSPECT:
            # A complainer that is gone has not taken anything back: only the living can.
            standing = sum(node == self.own or not self.buried(node) for node in about)
            if taken_back and standing < self.needed(subject):
                self._change(entry, PeerStatus.ALIVE, now)
            return
        live = sum(node == self.own or self.status(node) is PeerStatus.ALIVE for node in about)
        if live and live >= self.needed(subject):
            words = "one member gets" if live == 1 else f"{live} members get"
            self._change(entry, PeerStatus.SUSPECT, now, f"{words} no answer from it")
            self._timers.set("dead", now + suspicion_seconds(self.size), subject)

    def judge_all(self, now: float) -> None:
        """Look again at everybody there are complaints about: who may complain, or how many must, has changed."""
        self.doubtful = False
        for subject in list(self._complaints):
            self.judge(subject, now)

    def run_out(self, node: NodeId, now: float) -> None:
        """Suspicion of `node` has run out (as this class set in the timers): it is dead unless it was cleared."""
        entry = self.entries.get(node)
        if entry is not None and entry.status is PeerStatus.SUSPECT:
            self._change(entry, PeerStatus.DEAD, now, entry.reason)

    def expire(self, now: float) -> None:
        """Drop those whose record was not renewed, and forget those that have been gone for long."""
        limit = now - expiry_seconds(self.size)
        for node, at in list(_until(self._renewed, limit)):
            entry = self.entries[node]
            if entry.linked:
                del self._renewed[node]
                self._renewed[node] = now
            elif entry.status is not PeerStatus.SUSPECT:
                self._change(entry, PeerStatus.DEAD, now, f"nothing new from it for {now - at:.0f} s")
        for node, _ in list(_until(self._told, now - LEFT_TOLD_SECONDS)):
            del self._told[node]
            if self.buried(node):
                self.summary.discard(node)
        for node, _ in list(_until(self._gone, now - TOMBSTONE_SECONDS)):
            self._forget(node)

    # -- inside

    def _make_room(self) -> bool:
        oldest = next(iter(self._gone), None)
        if oldest is not None:
            self._forget(oldest)
        return oldest is not None

    def _forget(self, node: NodeId) -> None:
        del self._gone[node]
        self._told.pop(node, None)
        self.summary.discard(node)
        entry = self.entries.pop(node)
        for complaint in entry.record.failure_reports:
            self._take_out(node, complaint.node)
        self._complaints.pop(node, None)
        self._changed(node)

    def _change(self, entry: MemberEntry, status: PeerStatus, now: float, reason: str = "") -> None:
        if (entry.status, status) not in TRANSITIONS:
            raise ValueError(f"a peer that is {entry.status.value} cannot become {status.value}")
        node = entry.record.node
        was, entry.status = entry.status, status
        entry.since, entry.reason = now, reason
        if (was in GONE) != (status in GONE):
            if status in GONE:
                self._renewed.pop(node, None)
                self._gone[node] = now
                self.rings.discard(node)
                if node not in self._told:
                    self.summary.discard(node)
            else:
                self._gone.pop(node, None)
                self._told.pop(node, None)
                self._renewed[node] = now
                self.rings.add(node)
                self.summary.put(node, entry.record.version)
        if was is PeerStatus.SUSPECT:
            self._timers.cancel("dead", node)
        self.doubtful = self.doubtful or bool(self._complaints)
        self._changed(node)
        if status in GONE:
            self._ended(node, status)

    def _complaints_changed(self, before: NodeRecord | None, after: NodeRecord, now: float) -> None:
        old = {} if before is None else {c.node: c.incarnation for c in before.failure_reports}
        new = {c.node: c.incarnation for c in after.failure_reports}
        if old == new:
            return
        by = after.node
        for subject in old.keys() - new.keys():
            self._take_out(by, subject)
        for subject, incarnation in new.items():
            if subject != by:
                self._complaints.setdefault(subject, {})[by] = incarnation
        for subject in sorted(old.keys() | new.keys()):
            if old.get(subject) != new.get(subject):
                self.judge(subject, now, taken_back=subject in old)
        if by == self.own:
            self.doubtful = True

    def _take_out(self, by: NodeId, subject: NodeId) -> None:
        said = self._complaints.get(subject)
        if said is not None:
            said.pop(by, None)
            if not said:
                del self._complaints[subject]


def _until(times: dict[NodeId, float], limit: float) -> Iterator[tuple[NodeId, float]]:
    for node, at in times.items():
        if at > limit:
            return
        yield node, at
