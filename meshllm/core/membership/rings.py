"""Which node watches which: every member has a position on each of four rings and watches its successors.

The overlay of the Rapid membership service (Suresh et al., USENIX ATC 2018): ring r orders the members by a hash of
(r, id), so that the watchers of a node are few, spread over the mesh, and known to every node.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

from meshllm.core.records import NodeId

# Four watchers for each node: three of them must agree that it is gone, one may be wrong or gone itself.
RINGS = 4
# How many members that do not answer a watcher skips on a ring. Four rings of 12 need fewer failure reports than a
# record holds (MAX_FAILURE_REPORTS); in a mesh cut in half a longer run occurs once in thousands.
WALK = 12
# Nodes that a watcher passes on a ring at most, those that are not trusted included.
MAX_PASSED = 32
_POSITION_BYTES = 8


# Whether a node has a voice of its own (`Quotas.is_trusted`).
Trusted = Callable[[NodeId], bool]


def _any(node: NodeId) -> bool:
    return True


@lru_cache(maxsize=1 << 17)
def position(ring: int, node: NodeId) -> bytes:
    """The sort key of `node` on `ring`; it ends in the id."""
    return blake2b(node, digest_size=_POSITION_BYTES, person=bytes((ring,))).digest() + node


class Rings:
    """The members in the order of each ring."""

    def __init__(self) -> None:
        self._rings: tuple[list[bytes], ...] = tuple([] for _ in range(RINGS))

    def __len__(self) -> int:
        return len(self._rings[0])

    def add(self, node: NodeId) -> None:
        """Add a node that is not a member."""
        for ring, positions in enumerate(self._rings):
            insort(positions, position(ring, node))

    def discard(self, node: NodeId) -> None:
        """Remove `node` if it is a member."""
        for ring, positions in enumerate(self._rings):
            key = position(ring, node)
            at = bisect_left(positions, key)
            if at < len(positions) and positions[at] == key:
                del positions[at]

    def subjects(self, node: NodeId, good: Callable[[NodeId], bool], trusted: Trusted = _any) -> list[NodeId]:
        """The nodes that `node` watches: on each ring its successors up to the first that is `good` and `trusted`.

        An inviter can choose ids that stand next to any node: those must not be its only watchers.
        """
        return self._walk(node, 1, good, trusted)

    def observers(self, node: NodeId, good: Callable[[NodeId], bool], trusted: Trusted = _any) -> list[NodeId]:
        """The watchers of `node`: on each ring the nearest predecessor that is `good` and `trusted`; those that are
        only `good` if there is no other."""
        found = self._walk(node, -1, good, trusted, last_only=True)
        return found or self._walk(node, -1, good, _any, last_only=True)

    def neighbours(self, node: NodeId, trusted: Trusted = _any) -> list[NodeId]:
        """The nodes that `node` keeps links to: on each ring those up to its first `trusted` predecessor and successor,
        without duplicates."""
        return list(dict.fromkeys(self._walk(node, 1, _any, trusted) + self._walk(node, -1, _any, trusted)))

    def _walk(
        self, node: NodeId, step: int, good: Callable[[NodeId], bool], trusted: Trusted, *, last_only: bool = False
    ) -> list[NodeId]:
        """Per ring, the nodes up to the first good and trusted one, or with `last_only` that one."""
        found: dict[NodeId, None] = {}
        for ring, positions in enumerate(self._rings):
            size, key = len(positions), position(ring, node)
            at = bisect_left(positions, key)
            here = at < size and positions[at] == key
            first = at - 1 if step < 0 else at + 1 if here else at
            left = WALK
            for number in range(min(MAX_PASSED, size - here)):
                other = NodeId(positions[(first + step * number) % size][_POSITION_BYTES:])
                known = trusted(other)
                left -= known
                fine = known and good(other)
                if fine or not last_only:
                    found[other] = None
                if fine or not left:
                    break
        return list(found)
