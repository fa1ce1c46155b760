"""Who answered for a conversation last: that host still has the beginning of the prompt in its cache.

Law: bounded in number and in age, and only ever a hint; the least recently used is forgotten first. A host that fails
is forgotten at once, in every conversation. Time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict

from meshllm.core.routing.routes import Place

MAX_CONVERSATIONS = 4096
# Longer than people pause; by then the host's cache has very likely gone to others (seconds).
MAX_AGE_SECONDS = 3600.0


class SessionAffinity:
    """Conversation (any bytes) to the place that answered last."""

    def __init__(self, limit: int = MAX_CONVERSATIONS, age: float = MAX_AGE_SECONDS) -> None:
        self._limit = limit
        self._age = age
        self._places: OrderedDict[bytes, tuple[Place, float]] = OrderedDict()
        self._keys: dict[Place, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: bytes, now: float) -> Place | None:
        """Who answered last, unless that is too long ago."""
        found = self._places.get(key)
        if found is None:
            return None
        place, at = found
        if now - at > self._age:
            self.forget(key)
            return None
        return place

    def remember(self, key: bytes, place: Place, now: float) -> None:
        """`place` has begun to answer."""
        self.forget(key)
        self._places[key] = (place, now)
        self._keys.setdefault(place, set()).add(key)
        if len(self._places) > self._limit:
            self.forget(next(iter(self._places)))

    def forget(self, key: bytes) -> None:
        """Nobody is preferred for this conversation any more."""
        found = self._places.pop(key, None)
        if found is not None:
            keys = self._keys[found[0]]
            keys.discard(key)
            if not keys:
                del self._keys[found[0]]

    def forget_place(self, place: Place) -> None:
        """`place` has failed: no conversation prefers it any more."""
        for key in self._keys.pop(place, ()):
            del self._places[key]
