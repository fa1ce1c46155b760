"""Members that are away: switched off, restarting, out of reach. Their names, when each was seen last, what it served.

A machine at home is off for hours, and that is no failure: callers and the owner hear who is away, and a model that a
member served a moment ago is "not at the moment", not "unknown". Bounded; the oldest are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshllm.core.membership.views import AwayMember
from meshllm.core.records import MAX_SERVED, NodeId, NodeRecord

# More than a mesh at home has; of a large mesh the last ones that went.
MAX_AWAY = 64


class AwayMembers:
    """The members that this participant knew and does not know to be alive now."""

    def __init__(self) -> None:
        self._members: dict[NodeId, AwayMember] = {}

    def remember(self, members: Iterable[AwayMember], known: Callable[[NodeId], bool]) -> None:
        """Members of an earlier run. Those that are `known` by now stay as they are."""
        for member in members:
            if member.node not in self._members and not known(member.node):
                self._put(member)

    def gone(self, record: NodeRecord, served: tuple[str, ...], seen: float) -> None:
        """A member went away. `served`: the models of its last record as a host; `seen`: when it was alive last."""
        self._put(AwayMember(record.node, record.name, served[:MAX_SERVED], seen))

    def back(self, node: NodeId) -> bool:
        """`node` is here again, or no member any more. Returns whether it was away."""
        return self._members.pop(node, None) is not None

    def clear(self) -> None:
        """This participant is no member any more: members that are away are not shown to it."""
        self._members.clear()

    def view(self) -> tuple[AwayMember, ...]:
        """All of them, the last seen first."""
        return tuple(sorted(self._members.values(), key=lambda member: (-member.seen, member.node)))

    def names(self) -> tuple[str, ...]:
        """Their names, the last seen first."""
        return tuple([member.label for member in self.view()])

    def name_of(self, pin: bytes) -> str:
        """The name of the member whose id begins with `pin`; "" if none is away."""
        return next((member.name for node, member in self._members.items() if node.startswith(pin)), "")

    def _put(self, member: AwayMember) -> None:
        self._members[member.node] = member
        if len(self._members) > MAX_AWAY:
            del self._members[min(self._members, key=lambda node: self._members[node].seen)]
