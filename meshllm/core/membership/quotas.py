"""What one inviter may cost the others: how many nodes, how many bytes of records, one voice in failure reports.

Invariants: a node with the right to admit, or invited by one, has a voice of its own: it could make as many as it
likes. All nodes that another member invited share one voice, however many they are, and few of them watch others.
"""

from __future__ import annotations

from collections import Counter

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import (
    MAX_NODES_PER_INVITE,
    MAX_NODES_PER_INVITER,
    NO_INVITE,
    Certificate,
    Right,
)

# Bytes of records of the nodes that one member invited. An honest record takes about 1 KiB.
MAX_BYTES_PER_INVITER = 1 << 20
# How many of them have a place on the rings: enough for a household, too few to surround the others.
MAX_WATCHERS_PER_INVITER = 8


class Quotas:
    """The counts of one table. Nodes without a certificate (a mesh without a mesh key) are not counted."""

    def __init__(self) -> None:
        self._members: dict[NodeId, tuple[Certificate, int]] = {}
        self._admins: set[NodeId] = set()
        self._nodes: Counter[bytes] = Counter()
        self._bytes: Counter[bytes] = Counter()
        self._by_invite: Counter[bytes] = Counter()
        self._watchers: dict[NodeId, set[NodeId]] = {}

    def is_trusted(self, member: Certificate | None) -> bool:
        """Whether a node has a voice of its own."""
        return member is None or Right.ADMIT in member.rights or member.inviter in self._admins

    def voice(self, node: NodeId) -> NodeId:
        """Under which id the failure reports of `node` count."""
        held = self._members.get(node)
        return node if held is None or self.is_trusted(held[0]) else held[0].inviter

    def has_room(self, member: Certificate | None, size: int) -> bool:
        """Whether the record of a node, of `size` bytes, fits into the quotas, beside what is known of that node."""
        if member is None:
            return True
        held = self._members.get(member.node)
        more_bytes = size - (held[1] if held is not None else 0)
        if held is None and member.invite != NO_INVITE and self._by_invite[member.invite] >= MAX_NODES_PER_INVITE:
            return False
        if self.is_trusted(member):
            return True
        if held is None and self._nodes[member.inviter] >= MAX_NODES_PER_INVITER:
            return False
        return self._bytes[member.inviter] + more_bytes <= MAX_BYTES_PER_INVITER

    def keep(self, member: Certificate | None, size: int) -> None:
        """Count the record of a node, in place of the one before."""
        if member is None:
            return
        self.drop(member.node)
        self._members[member.node] = (member, size)
        self._nodes[member.inviter] += 1
        self._bytes[member.inviter] += size
        if member.invite != NO_INVITE:
            self._by_invite[member.invite] += 1
        if Right.ADMIT in member.rights:
            self._admins.add(member.node)

    def drop(self, node: NodeId) -> None:
        """Count `node` no longer."""
        held = self._members.pop(node, None)
        self._admins.discard(node)
        if held is None:
            return
        member, size = held
        for counter, key, by in (
            (self._nodes, member.inviter, 1),
            (self._bytes, member.inviter, size),
            (self._by_invite, member.invite, member.invite != NO_INVITE),
        ):
            counter[key] -= by
            if counter[key] <= 0:
                del counter[key]

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
            self._watchers[inviter].discard(node)
            if not self._watchers[inviter]:
                del self._watchers[inviter]

    def fattest(self) -> NodeId | None:
        """The inviter without the right to admit that has most nodes; None if there is none."""
        found = [NodeId(inviter) for inviter in self._nodes if inviter not in self._admins]
        return max(found, key=lambda inviter: self._nodes[inviter], default=None)

    def inviter(self, node: NodeId) -> NodeId | None:
        """Who invited `node`, unless it has a voice of its own."""
        held = self._members.get(node)
        return None if held is None or self.is_trusted(held[0]) else held[0].inviter
