"""The membership table: all known nodes and the status of each.

Invariants: a record is accepted only if its version is higher than the known one, so that merging is commutative and
idempotent. A node becomes suspect only by the failure reports in the verified records of its watchers, each about its
current incarnation. A node that is gone comes back only with a higher incarnation, which it alone can sign.

    UNVERIFIED  known from records that other nodes passed on; gets no requests; its failure reports do not count
    ALIVE       it has a link to this node, or its version grew since this node knows it
    SUSPECT     enough of its watchers report this incarnation as failed
    DEAD        the suspicion was not refuted in time, or its record was not renewed
    LEFT        its own record says so
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum

from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import is_owner
from meshllm.core.membership.failure_detector import expiry_seconds, suspicion_seconds
from meshllm.core.membership.quotas import Quotas, memory_of
from meshllm.core.membership.rings import Rings
from meshllm.core.membership.summary import Summary
from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.membership.views import PeerStatus, PeerView
from meshllm.core.records import MAX_NUMBER, ModelLoad, NodeId, NodeRecord, RecordVersion, SignedRecord

# In a mesh of up to this many members every node has a link to every other one and watches it.
SMALL_MESH = 16
# Failure reports of this many members (fewer if fewer watch it) make a node suspect.
REPORTS_NEEDED = 3
# The table takes no more nodes than this: a bound of memory, at about 1 KiB each.
MAX_NODES = 20_000
# How long dead nodes are remembered. As long the others try to reconnect (`LinkPolicy`), which heals a partition.
TOMBSTONE_SECONDS = 24 * 3600.0
# How long the record of a node that left is passed on; twelve rounds of anti-entropy reach the whole mesh.
LEFT_PASSED_ON_SECONDS = 60.0

# A linked node that answered this lately is not suspect, whatever others report.
ANSWERED_SECONDS = 3.0
# When to look again at a node that others report and that answers.
JUDGE_AGAIN_SECONDS = 1.0

_S = PeerStatus
GONE = (_S.DEAD, _S.LEFT)
# Every transition and its cause; any other raises ValueError.
TRANSITIONS: dict[tuple[PeerStatus, PeerStatus], str] = {
    (_S.UNVERIFIED, _S.ALIVE): "a link, or its version grew",
    (_S.UNVERIFIED, _S.SUSPECT): "failure reports",
    (_S.UNVERIFIED, _S.DEAD): "record not renewed",
    (_S.UNVERIFIED, _S.LEFT): "its own record",
    (_S.ALIVE, _S.SUSPECT): "failure reports",
    (_S.ALIVE, _S.DEAD): "record not renewed",
    (_S.ALIVE, _S.LEFT): "its own record",
    (_S.SUSPECT, _S.ALIVE): "a higher incarnation, the reports were withdrawn, or it answers",
    (_S.SUSPECT, _S.DEAD): "not refuted in time",
    (_S.SUSPECT, _S.LEFT): "its own record",
    (_S.DEAD, _S.UNVERIFIED): "a higher incarnation",
    (_S.DEAD, _S.ALIVE): "a higher incarnation, and a link",
    (_S.LEFT, _S.UNVERIFIED): "a higher incarnation",
    (_S.LEFT, _S.ALIVE): "a higher incarnation, and a link",
}


class MergeResult(Enum):
    """What the table did with a record."""

    STALE = "stale"  # this version or a higher one is known
    GONE = "gone"  # of the incarnation in which the node died or left
    REFUSED = "refused"  # impossible numbers, or the table is full
    FIRST = "first"  # of a new node
    GROWN = "grown"  # renewed or changed


class MemberEntry:
    """One node in the table. `seen`: when its version last grew; `served`: the models of its last record that was no
    farewell; `view`: kept until something changes."""

    __slots__ = ("answered", "linked", "loads", "reason", "rtt", "seen", "served", "signed", "since", "status", "view")

    def __init__(self, signed: SignedRecord, status: PeerStatus, now: float) -> None:
        self.signed = signed
        self.served = tuple([model.name for model in signed.record.serves])
        self.status = status
        self.since = now
        self.seen = now
        self.reason = ""
        self.linked = False
        self.answered = float("-inf")  # when it last proved to this node over a link that it is alive
        self.rtt: float | None = None
        self.loads: tuple[ModelLoad, ...] | None = None
        self.view: PeerView | None = None

    @property
    def record(self) -> NodeRecord:
        """Its newest record."""
        return self.signed.record

    def replace(self, signed: SignedRecord) -> None:
        """Take over a newer record."""
        self.signed = signed
        if not signed.record.leaving:
            self.served = tuple([model.name for model in signed.record.serves])

    def peer_view(self) -> PeerView:
        """The frozen view for readers; the same object until something changes."""
        if self.view is None:
            loads = self.signed.record.loads if self.loads is None else self.loads
            member = self.signed.member
            owned = member is not None and is_owner(member.rights)
            self.view = PeerView(self.record, self.status, self.linked, self.rtt, loads, self.since, self.reason, owned)
        return self.view


def possible(version: RecordVersion) -> bool:
    """Whether the numbers are within the bounds of a record."""
    return 0 <= version.incarnation <= MAX_NUMBER and 0 <= version.version <= MAX_NUMBER


class MembershipTable:
    """The table of one node. The node itself is in `rings` and `summary`, but not in `entries`."""

    def __init__(
        self,
        own: NodeId,
        timers: Timers,
        changed: Callable[[NodeId], None],
        gone: Callable[[NodeId, PeerStatus], None],
        authority: Authority | None = None,
    ) -> None:
        """`changed` is called for every node whose view changed, `gone` for each that died or left.

        Sets `Timer.DEATH` for suspect nodes. With an `authority`, expelled nodes are refused.
        """
        self.own = own
        self.entries: dict[NodeId, MemberEntry] = {}
        self.rings = Rings()
        self.summary = Summary()
        # Members and when each was last renewed, the oldest first.
        self._renewed: dict[NodeId, float] = {}
        self._gone: dict[NodeId, float] = {}
        self._passed_on: dict[NodeId, float] = {}
        # Failure reports: subject -> reporter -> the reported incarnation.
        self._reports: dict[NodeId, dict[NodeId, int]] = {}
        self._signed: SignedRecord | None = None
        self._timers = timers
        self._changed = changed
        self._on_gone = gone
        self._authority = authority
        self._quotas = Quotas()
        self._watching: dict[NodeId, None] = {}  # other members with a place on the rings
        self.doubtful = False  # a change from which other suspicions may follow; see `judge_all`
        self.rings.add(own)

    # -- what is known

    @property
    def size(self) -> int:
        """The number of members: all nodes that are not gone, with this one."""
        return len(self._renewed) + 1

    @property
    def watchers(self) -> int:
        """The number of members that watch others, with this one: all, as far as the quota of their inviter allows."""
        return len(self._watching) + 1

    def watching(self) -> list[NodeId]:
        """The other members that watch others and are watched."""
        return list(self._watching)

    def is_trusted(self, node: NodeId) -> bool:
        """Whether `node` is this node, or known and does not depend on the quota of an inviter."""
        return node == self.own or (node in self.entries and self._quotas.has_own_voice(node))

    def voice(self, node: NodeId) -> NodeId:
        """The id under which the claims of `node`, which may be this node, count."""
        if node != self.own:
            return self._quotas.voice(node)
        member = self._signed.member if self._signed is not None else None
        return node if member is None or self._quotas.is_trusted(member) else member.inviter

    @property
    def has_untrusted(self) -> bool:
        """Whether nodes are known that depend on the quota of an inviter."""
        return self._quotas.has_untrusted

    def doubted_links(self) -> list[NodeId]:
        """Linked nodes that others report: whether they answer this node decides."""
        found = [node for node in self._reports if (entry := self.entries.get(node)) is not None and entry.linked]
        return [node for node in found if not self.is_gone(node)]

    def status(self, node: NodeId) -> PeerStatus | None:
        """The status of `node`; None if it is not known, and for this node itself."""
        entry = self.entries.get(node)
        return entry.status if entry is not None else None

    def signed(self, node: NodeId) -> SignedRecord | None:
        """The newest record of `node`, which may be this node."""
        if node == self.own:
            return self._signed
        entry = self.entries.get(node)
        return entry.signed if entry is not None else None

    def is_gone(self, node: NodeId) -> bool:
        """Whether `node` is known to be dead or to have left."""
        entry = self.entries.get(node)
        return entry is not None and entry.status in GONE

    def members(self) -> Iterator[NodeId]:
        """All other members."""
        return iter(self._renewed)

    def latest(self) -> Iterator[NodeId]:
        """All other members, the last renewed first."""
        return reversed(self._renewed)

    def dead(self) -> list[NodeId]:
        """Nodes that died, as opposed to left."""
        return [node for node in self._gone if self.entries[node].status is PeerStatus.DEAD]

    def answering(self, node: NodeId) -> bool:
        """Whether a watcher can rely on `node`: it is neither gone nor suspect, and this node does not report it."""
        if node == self.own:
            return True
        entry = self.entries.get(node)
        return entry is not None and entry.status in (_S.UNVERIFIED, _S.ALIVE) and not self.reports(self.own, node)

    def reports(self, by: NodeId, about: NodeId) -> bool:
        """Whether `by` reports the known incarnation of `about` as failed."""
        reports = self._reports.get(about)
        entry = self.entries.get(about)
        return reports is not None and entry is not None and reports.get(by) == entry.record.version.incarnation

    # -- taking in

    def keep_own(self, signed: SignedRecord, now: float) -> None:
        """Take in a new record of this node."""
        before = self._signed
        self._signed = signed
        self._quotas.set_own(signed.member)
        self.summary.put(self.own, signed.record.version)
        self._reports_changed(before.record if before is not None else None, signed.record, now)
        self._changed(self.own)

    def merge(self, signed: SignedRecord, now: float, *, linked: bool) -> MergeResult:
        """Take in a verified record; `linked`: there is a link to the node that it is about."""
        record = signed.record
        node, version = record.node, record.version
        if node == self.own or not possible(version):
            return MergeResult.REFUSED
        if self._authority is not None and self._authority.is_expelled(node):
            return MergeResult.REFUSED
        entry = self.entries.get(node)
        if entry is not None and version <= entry.record.version:
            return MergeResult.STALE
        if entry is not None and entry.status in GONE and version.incarnation <= entry.record.version.incarnation:
            return MergeResult.GONE
        displaced = self._quotas.displaced(signed.member, memory_of(signed))
        if displaced is None:
            return MergeResult.REFUSED
        for other in displaced:
            self.remove(other)
        if entry is None:
            if len(self.entries) >= MAX_NODES and not self._make_room(signed, linked=linked):
                return MergeResult.REFUSED
            self._first(signed, now, linked=linked)
            return MergeResult.FIRST
        self._grown(entry, signed, now, linked=linked)
        return MergeResult.GROWN

    def _first(self, signed: SignedRecord, now: float, *, linked: bool) -> None:
        record = signed.record
        entry = MemberEntry(signed, PeerStatus.ALIVE if linked else PeerStatus.UNVERIFIED, now)
        entry.linked = linked
        self.entries[record.node] = entry
        self._quotas.keep(signed.member, memory_of(signed))
        if record.leaving:
            # A new node that left already is remembered but not passed on: else new nodes would pass it on for ever.
            entry.status = PeerStatus.LEFT
            self._gone[record.node] = now
            self._changed(record.node)
            return
        self._renewed[record.node] = now
        self._place(record.node)
        self.summary.put(record.node, record.version)
        self._reports_changed(None, record, now)
        self._changed(record.node)
        self.judge(record.node, now)

    def _grown(self, entry: MemberEntry, signed: SignedRecord, now: float, *, linked: bool) -> None:
        before, record = entry.record, signed.record
        node = record.node
        restarted = record.version.incarnation > before.version.incarnation
        entry.replace(signed)
        entry.seen, entry.linked = now, linked
        entry.loads = None
        self._quotas.keep(signed.member, memory_of(signed))
        if record.leaving:
            self.summary.put(node, record.version)
            self._passed_on[node] = now
            if entry.status in GONE:
                # The node came back and left again before this node knew.
                self._gone.pop(node, None)
                self._gone[node] = now
                if entry.status is PeerStatus.DEAD:
                    self._change(entry, PeerStatus.UNVERIFIED, now)
            if entry.status is not PeerStatus.LEFT:
                self._change(entry, PeerStatus.LEFT, now, "it left the mesh")
        else:
            if entry.status in GONE:
                self._change(entry, PeerStatus.ALIVE if linked else PeerStatus.UNVERIFIED, now)
            elif entry.status is PeerStatus.UNVERIFIED or (entry.status is PeerStatus.SUSPECT and restarted):
                self._change(entry, PeerStatus.ALIVE, now)
            self._renewed.pop(node, None)
            self._renewed[node] = now
            self._place(node)
            self.summary.put(node, record.version)
        self._reports_changed(before, record, now)
        self._changed(node)
        if restarted:
            self.judge(node, now)

    def linked(self, node: NodeId, now: float) -> None:
        """A link to `node` came up: it is alive, unless this incarnation is known to be gone."""
        entry = self.entries.get(node)
        if entry is not None:
            entry.linked = True
            entry.answered = now
            if entry.status is PeerStatus.UNVERIFIED:
                self._change(entry, PeerStatus.ALIVE, now)
            self._changed(node)

    def unlinked(self, node: NodeId) -> None:
        """The link to `node` ended."""
        entry = self.entries.get(node)
        if entry is not None:
            entry.linked = False
            self._changed(node)

    def answered(self, node: NodeId, now: float) -> None:
        """A linked node answered a ping: whatever others say of it, it is alive."""
        entry = self.entries.get(node)
        if entry is None or not entry.linked:
            return
        entry.answered = now
        if entry.status is PeerStatus.SUSPECT and not self.reports(self.own, node):
            self._change(entry, PeerStatus.ALIVE, now)

    def remove(self, node: NodeId) -> None:
        """`node` was expelled: nothing is left of it, its failure reports included."""
        entry = self.entries.get(node)
        if entry is None:
            return
        self._renewed.pop(node, None)
        self._unplace(node)
        self._timers.cancel(Timer.DEATH, node)
        self._gone[node] = 0.0
        self._forget(node)
        self.doubtful = self.doubtful or bool(self._reports)

    # -- suspicion

    def reports_needed(self, subject: NodeId) -> int:
        """How many failure reports make `subject` suspect: three; two of two or three watchers, or the only one."""

        def able(node: NodeId) -> bool:
            return node != subject and self.answering(node)

        if self.watchers <= SMALL_MESH:
            watchers = self._voices(filter(able, self._watching)) + (subject != self.own)
            if watchers == REPORTS_NEEDED:
                watchers -= 1  # one that answers and never reports must not hide the death of a node from all others
        else:
            watchers = self._voices(self.rings.observers(subject, able, self.is_trusted))
        return max(1, min(REPORTS_NEEDED, watchers))

    def _voices(self, nodes: Iterable[NodeId]) -> int:
        """How many voices these nodes have: those of one inviter without the right to admit share one."""
        return len({self._quotas.voice(node) for node in nodes})

    def reporters(self, incarnation: int) -> int:
        """How many members report this node at `incarnation` as failed; those that are gone do not count."""
        reports = self._reports.get(self.own)
        if not reports:
            return 0
        return self._voices([n for n, number in reports.items() if number == incarnation and not self.is_gone(n)])

    def judge(self, subject: NodeId, now: float, *, withdrawn: bool = False) -> None:
        """Make `subject` suspect if enough nodes report it; with `withdrawn`, clear it if too few still do."""
        entry, reports = self.entries.get(subject), self._reports.get(subject)
        if entry is None or entry.status in GONE or (reports is None and entry.status is not PeerStatus.SUSPECT):
            return
        incarnation = entry.record.version.incarnation
        about = [node for node, number in (reports or {}).items() if number == incarnation]
        if entry.status is PeerStatus.SUSPECT:
            # A reporter that is gone has not withdrawn its report: only a living node can.
            standing = self._voices([node for node in about if node == self.own or not self.is_gone(node)])
            if withdrawn and standing < self.reports_needed(subject):
                self._change(entry, PeerStatus.ALIVE, now)
            return
        live = self._voices([n for n in about if n == self.own or self.status(n) is PeerStatus.ALIVE])
        if live and live >= self.reports_needed(subject):
            if entry.linked and now - entry.answered < ANSWERED_SECONDS and self.own not in about:
                # It answers this node. The next answer decides: it is probed as long as others report it.
                if self._timers.at(Timer.JUDGE) is None:
                    self._timers.set(Timer.JUDGE, now + JUDGE_AGAIN_SECONDS)
                return
            reporters = "1 node gets" if live == 1 else f"{live} nodes get"
            self._change(entry, PeerStatus.SUSPECT, now, f"{reporters} no answer from it")
            self._timers.set(Timer.DEATH, now + suspicion_seconds(self.watchers), subject)

    def judge_all(self, now: float) -> None:
        """Judge all reported nodes again: the number of their watchers may have changed."""
        self.doubtful = False
        for subject in list(self._reports):
            self.judge(subject, now)

    def suspicion_expired(self, node: NodeId, now: float) -> None:
        """`Timer.DEATH` of `node` is due: it is dead unless it was cleared."""
        entry = self.entries.get(node)
        if entry is not None and entry.status is PeerStatus.SUSPECT:
            self._change(entry, PeerStatus.DEAD, now, entry.reason)

    def expire(self, now: float) -> None:
        """Declare nodes dead whose record was not renewed, and forget those that are gone for long."""
        limit = now - expiry_seconds(self.size)
        for node, at in list(_until(self._renewed, limit)):
            entry = self.entries[node]
            if entry.linked:
                del self._renewed[node]
                self._renewed[node] = now
            elif entry.status is not PeerStatus.SUSPECT:
                self._change(entry, PeerStatus.DEAD, now, f"its record was not renewed for {now - at:.0f} s")
        for node, _ in list(_until(self._passed_on, now - LEFT_PASSED_ON_SECONDS)):
            del self._passed_on[node]
            if self.is_gone(node):
                self.summary.discard(node)
        for node, _ in list(_until(self._gone, now - TOMBSTONE_SECONDS)):
            self._forget(node)

    # -- inside

    def _forget_oldest(self) -> bool:
        oldest = next(iter(self._gone), None)
        if oldest is not None:
            self._forget(oldest)
        return oldest is not None

    def _make_room(self, signed: SignedRecord, *, linked: bool) -> bool:
        """Forget a node that is gone, or for a node that is linked or trusted one only heard of, of the inviter that
        has most."""
        if self._forget_oldest():
            return True
        fattest = self._quotas.fattest()
        if fattest is None or not (linked or self._quotas.is_trusted(signed.member)):
            return False
        for node, entry in self.entries.items():
            if entry.status is PeerStatus.UNVERIFIED and self._quotas.inviter(node) == fattest:
                self.remove(node)
                return True
        return False

    def _place(self, node: NodeId) -> None:
        """Give `node` a place on the rings, if it has none and may have one."""
        if node not in self._watching and self._quotas.take_place(node):
            self._watching[node] = None
            self.rings.add(node)

    def _unplace(self, node: NodeId) -> None:
        if node in self._watching:
            del self._watching[node]
            self.rings.discard(node)
            self._quotas.leave_place(node)

    def _forget(self, node: NodeId) -> None:
        self._quotas.drop(node)
        del self._gone[node]
        self._passed_on.pop(node, None)
        self.summary.discard(node)
        entry = self.entries.pop(node)
        for report in entry.record.failure_reports:
            self._remove_report(node, report.node)
        self._reports.pop(node, None)
        self._changed(node)

    def _change(self, entry: MemberEntry, status: PeerStatus, now: float, reason: str = "") -> None:
        if (entry.status, status) not in TRANSITIONS:
            raise ValueError(f"no transition from {entry.status.value} to {status.value}")
        node = entry.record.node
        was, entry.status = entry.status, status
        entry.since, entry.reason = now, reason
        if (was in GONE) != (status in GONE):
            if status in GONE:
                self._renewed.pop(node, None)
                self._gone[node] = now
                self._unplace(node)
                if node not in self._passed_on:
                    self.summary.discard(node)
            else:
                self._gone.pop(node, None)
                self._passed_on.pop(node, None)
                self._renewed[node] = now
                self._place(node)
                self.summary.put(node, entry.record.version)
        if was is PeerStatus.SUSPECT:
            self._timers.cancel(Timer.DEATH, node)
        self.doubtful = self.doubtful or bool(self._reports)
        self._changed(node)
        if status in GONE:
            self._on_gone(node, status)

    def _reports_changed(self, before: NodeRecord | None, after: NodeRecord, now: float) -> None:
        old = {} if before is None else {report.node: report.incarnation for report in before.failure_reports}
        new = {report.node: report.incarnation for report in after.failure_reports}
        if old == new:
            return
        by = after.node
        for subject in old.keys() - new.keys():
            self._remove_report(by, subject)
        for subject, incarnation in new.items():
            if subject != by:
                self._reports.setdefault(subject, {})[by] = incarnation
        for subject in sorted(old.keys() | new.keys()):
            if old.get(subject) != new.get(subject):
                self.judge(subject, now, withdrawn=subject in old)
        if by == self.own:
            self.doubtful = True

    def _remove_report(self, by: NodeId, subject: NodeId) -> None:
        reports = self._reports.get(subject)
        if reports is not None:
            reports.pop(by, None)
            if not reports:
                del self._reports[subject]


def _until(times: dict[NodeId, float], limit: float) -> Iterator[tuple[NodeId, float]]:
    for node, at in times.items():
        if at > limit:
            return
        yield node, at
