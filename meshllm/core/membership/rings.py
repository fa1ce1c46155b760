"""Who watches whom: every member has a place on each of a few rings, and watches those that follow it.

The overlay of the Rapid membership service (Suresh et al., USENIX ATC 2018): ring r orders the members by a hash of
(r, id), so that the watchers of a node are few, spread over the mesh and the same in everybody's eyes.

Law: pure arithmetic on ids. A change costs a bisection and a move of memory, a question a few bisections.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b

from meshllm.core.records import NodeId

# Four watchers for each node: three of them must agree that it is gone, one may be wrong or gone itself.
RINGS = 4
# How far a watcher looks past members that do not answer for one that does. Four rings of so many leave room in a
# record for as many complaints (MAX_COMPLAINTS); in a mesh cut in half such a run is longer once in thousands.
WALK = 12
_PLACE_BYTES = 8


@lru_cache(maxsize=1 << 17)
def place(ring: int, node: NodeId) -> bytes:
    """Where `node` stands on `ring`: bytes that sort, and end in the id."""
    return blake2b(node, digest_size=_PLACE_BYTES, person=bytes((ring,))).digest() + node


class Rings:
    """The members, in the order of each ring."""

    def __init__(self) -> None:
        self._rings: tuple[list[bytes], ...] = tuple([] for _ in range(RINGS))

    def __len__(self) -> int:
        return len(self._rings[0])

    def add(self, node: NodeId) -> None:
        """`node` is a member. It must not be one already."""
        for ring, places in enumerate(self._rings):
            insort(places, place(ring, node))

    def discard(self, node: NodeId) -> None:
        """`node` is a member no more, if it was one."""
        for ring, places in enumerate(self._rings):
            key = place(ring, node)
            at = bisect_left(places, key)
            if at < len(places) and places[at] == key:
                del places[at]

    def subjects(self, node: NodeId, good: Callable[[NodeId], bool]) -> list[NodeId]:
        """Whom `node` watches: on each ring those that follow, up to and including the first that is `good`."""
        return self._walk(node, 1, good, passed=True)

    def observers(self, node: NodeId, good: Callable[[NodeId], bool]) -> list[NodeId]:
        """Who watches `node`: on each ring the nearest before it that is `good`."""
        return self._walk(node, -1, good, passed=False)

    def neighbours(self, node: NodeId) -> list[NodeId]:
        """Those right before and after it on the rings, each once: whom it wants links to."""
        return list(dict.fromkeys(self._walk(node, 1, _any, passed=True) + self._walk(node, -1, _any, passed=True)))

    def _walk(self, node: NodeId, step: int, good: Callable[[NodeId], bool], *, passed: bool) -> list[NodeId]:
        found: dict[NodeId, None] = {}
        for ring, places in enumerate(self._rings):
            size, key = len(places), place(ring, node)
            at = bisect_left(places, key)
            here = at < size and places[at] == key
            first = at - 1 if step < 0 else at + 1 if here else at
            for number in range(min(WALK, size - here)):
                other = NodeId(places[(first + step * number) % size][_PLACE_BYTES:])
                fine = good(other)
                if passed or fine:
                    found[other] = None
                if fine:
                    break
        return list(found)


def _any(node: NodeId) -> bool:
    return True
