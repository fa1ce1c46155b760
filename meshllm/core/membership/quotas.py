"""What one inviter may cost the others: how many nodes, how much memory, one voice in failure reports.

Invariants: a node with the right to admit, or invited by one, has a voice of its own: it could make as many as it
likes. All nodes that another member invited share one voice, however many they are, and few of them watch others.
Where a quota is full the nodes with the earliest certificates are kept, in whatever order they come: else each node of
the mesh would keep others, and they would exchange the rest for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import (
    MAX_NODES_PER_INVITE,
    MAX_NODES_PER_INVITER,
    NO_INVITE,
    Certificate,
    Right,
)
from meshllm.core.records import SignedRecord

# Memory for the nodes that one member invited (`memory_of`): an ordinary node takes about 4 KiB, one with all models
# of a large backend 100 KiB.
MAX_MEMORY_PER_INVITER = 4 << 20
# What a node takes in the table beside the bytes of its record, a failure report, and any other element of its record.
NODE_MEMORY, REPORT_MEMORY, ELEMENT_MEMORY = 2048, 512, 192
# How many of them have a place on the rings: enough for a household, too few to surround the others.
MAX_WATCHERS_PER_INVITER = 8


def memory_of(signed: SignedRecord) -> int:
    """About how many bytes of memory the table needs for a record: up to 20 times its length, if it is made to."""
    record = signed.record
    elements = sum(
        map(
            len,
            (
                record.addresses,
                record.serves,
                record.loads,
                record.wants,
                record.on_disk,
                record.splits,
                record.devices,
                record.aliases,
                record.aliases,
                record.demand,
                record.disk_sizes,
                record.loading,
                record.unserved,
            ),
        )
    )
    reports = len(record.failure_reports)
    return NODE_MEMORY + len(signed.body) + ELEMENT_MEMORY * elements + REPORT_MEMORY * reports


class Quotas:
    """The counts of one table. Nodes without a certificate (a mesh without a mesh key) are not counted."""

    def __init__(self) -> None:
        self._members: dict[NodeId, tuple[Certificate, int]] = {}
        self._admins: set[NodeId] = set()
        self._own: NodeId | None = None  # this node, if it has the right to admit
        self._by_inviter: dict[NodeId, set[NodeId]] = {}
        self._by_invite: dict[bytes, set[NodeId]] = {}
        self._watchers: dict[NodeId, set[NodeId]] = {}

    def set_own(self, member: Certificate | None) -> None:
        """This node's own certificate: it counts for nothing, but the nodes that it invited may be trusted for it."""
        self._own = member.node if member is not None and Right.ADMIT in member.rights else None

    def is_trusted(self, member: Certificate | None) -> bool:
        """Whether a node has a voice of its own."""
        if member is None or Right.ADMIT in member.rights:
            return True
        return member.inviter in self._admins or member.inviter == self._own

    def has_own_voice(self, node: NodeId) -> bool:
        """The same for a node that is counted."""
        held = self._members.get(node)
        return held is None or self.is_trusted(held[0])

    @property
    def has_untrusted(self) -> bool:
        """Whether a node is counted that has no voice of its own."""
        return any(
            inviter not in self._admins and inviter != self._own and not self._admins.issuperset(nodes)
            for inviter, nodes in self._by_inviter.items()
        )

    def voice(self, node: NodeId) -> NodeId:
        """Under which id the failure reports of `node` count."""
        held = self._members.get(node)
        return node if held is None or self.is_trusted(held[0]) else held[0].inviter

    def displaced(self, member: Certificate | None, size: int) -> set[NodeId] | None:
        """The nodes that must go for the record of a node that takes `size` bytes of memory; None if it has no room."""
        if member is None:
            return set()
        found: set[NodeId] = set()
        if member.invite != NO_INVITE:
            same = self._by_invite.get(member.invite, set()) - {member.node}
            gone = self._latest(member, same, 0, len(same) + 1 - MAX_NODES_PER_INVITE)
            if gone is None:
                return None
            found |= gone
        if not self.is_trusted(member):
            same = self._by_inviter.get(member.inviter, set()) - {member.node} - found
            memory = sum([self._members[node][1] for node in same]) + size - MAX_MEMORY_PER_INVITER
            gone = self._latest(member, same, memory, len(same) + 1 - MAX_NODES_PER_INVITER)
            if gone is None:
                return None
            found |= gone
        return found

    def _latest(self, member: Certificate, nodes: Iterable[NodeId], memory: int, count: int) -> set[NodeId] | None:
        """Those of `nodes` that yield to `member` so that `memory` bytes and `count` nodes are free: the last ones
        certified, all after it. None if it must yield itself."""
        found: set[NodeId] = set()
        if memory <= 0 and count <= 0:
            return found
        later = [held for node in nodes if _rank(held := self._members[node][0]) > _rank(member)]
        for held in sorted(later, key=_rank, reverse=True):
            if memory <= 0 and count <= 0:
                break
            found.add(held.node)
            memory -= self._members[held.node][1]
            count -= 1
        return found if memory <= 0 and count <= 0 else None

    def keep(self, member: Certificate | None, size: int) -> None:
        """Count the record of a node, which takes `size` bytes of memory, in place of the one before."""
        if member is None:
            return
        self.drop(member.node)
        self._members[member.node] = (member, size)
        self._by_inviter.setdefault(member.inviter, set()).add(member.node)
        if member.invite != NO_INVITE:
            self._by_invite.setdefault(member.invite, set()).add(member.node)
        if Right.ADMIT in member.rights:
            self._admins.add(member.node)

    def drop(self, node: NodeId) -> None:
        """Count `node` no longer."""
        held = self._members.pop(node, None)
        self._admins.discard(node)
        if held is None:
            return
        member = held[0]
        _discard(self._by_inviter, member.inviter, node)
        _discard(self._by_invite, member.invite, node)

    def take_place(self, node: NodeId) -> bool:
        """Whether `node` may have a place on the rings; it has one then until `leave_place`."""
        held = self._members.get(node)
        if held is None or self.is_trusted(held[0]):
            return True
        watchers = self._watchers.setdefault(held[0].inviter, set())
        if node not in watchers and len(watchers) >= MAX_WATCHERS_PER_INVITER:
            return False
        watchers.add(node)
        return True

    def leave_place(self, node: NodeId) -> None:
        """`node` has no place on the rings any more."""
        for inviter in [inviter for inviter, nodes in self._watchers.items() if node in nodes]:
            _discard(self._watchers, inviter, node)

    def fattest(self) -> NodeId | None:
        """The inviter without the right to admit that has most nodes; None if there is none."""
        found = [inviter for inviter in self._by_inviter if inviter not in self._admins and inviter != self._own]
        return max(found, key=lambda inviter: len(self._by_inviter[inviter]), default=None)

    def inviter(self, node: NodeId) -> NodeId | None:
        """Who invited `node`, unless it has a voice of its own."""
        held = self._members.get(node)
        return None if held is None or self.is_trusted(held[0]) else held[0].inviter


K = TypeVar("K")


def _rank(member: Certificate) -> tuple[int, NodeId]:
    """The earlier certified, the lower: a flood that comes later displaces no earlier node."""
    return member.issued, member.node


def _discard(sets: dict[K, set[NodeId]], key: K, node: NodeId) -> None:
    nodes = sets.get(key)
    if nodes is not None:
        nodes.discard(node)
        if not nodes:
            del sets[key]
