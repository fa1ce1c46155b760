"""Remembers which host answered for a conversation last: its prompt cache has the beginning of the prompt.

Bounded in number and age; the least recently used conversation is forgotten first. A hint only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

MAX_CONVERSATIONS = 4096
# Longer than users pause; by then the host has most likely reused its cache (seconds).
MAX_AGE_SECONDS = 3600.0


class SessionAffinity(Generic[T]):
    """The last host (or, for `auto`, the model) of each conversation; a key is of any bytes."""

    def __init__(self, limit: int = MAX_CONVERSATIONS, age: float = MAX_AGE_SECONDS) -> None:
        self._limit = limit
        self._age = age
        self._places: OrderedDict[bytes, tuple[T, float, bool]] = OrderedDict()
        self._keys: dict[T, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: bytes, now: float) -> T | None:
        """The host that answered last, unless that is too long ago."""
        found = self._places.get(key)
        if found is None:
            return None
        place, at, _ = found
        if now - at > self._age:
            self.forget(key)
            return None
        return place

    def remember(self, key: bytes, place: T, now: float, *, firm: bool = True) -> None:
        """`place` began to answer.

        A request that is not `firm` (an agent's request for a title or a summary, which has no tools) does not move a
        conversation whose requests are: the next turn's prompt is in the cache of the host where it was.
        """
        found = self._places.get(key)
        if not firm and found is not None and found[2] and found[0] != place and now - found[1] <= self._age:
            return
        firm = firm or (found is not None and found[2])
        self.forget(key)
        self._places[key] = (place, now, firm)
        self._keys.setdefault(place, set()).add(key)
        if len(self._places) > self._limit:
            self.forget(next(iter(self._places)))

    def forget(self, key: bytes) -> None:
        """Prefer no host for this conversation."""
        found = self._places.pop(key, None)
        if found is not None:
            keys = self._keys[found[0]]
            keys.discard(key)
            if not keys:
                del self._keys[found[0]]

    def forget_place(self, place: T) -> None:
        """Prefer `place` for no conversation: it failed."""
        for key in self._keys.pop(place, ()):
            del self._places[key]
