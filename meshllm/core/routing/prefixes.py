"""Remembers which hosts have computed the beginning of a prompt: the tools and the system prompt of an agent. Pure.

A new conversation with the same beginning finds it in the prompt cache of such a host. Bounded in number and age; the
least recently computed prefix is forgotten first. A hint only: a host may have dropped it since.
"""

from __future__ import annotations

from collections import OrderedDict

from meshllm.core.routing.routes import Place

MAX_PREFIXES = 1024
# Hosts of one prefix: with these, load decides.
MAX_HOSTS = 4
# A host keeps prompts until others need their room; an hour later that is likely (seconds).
MAX_AGE_SECONDS = 3600.0


class PrefixHosts:
    """The hosts of each prefix (a key of any bytes)."""

    def __init__(self, limit: int = MAX_PREFIXES, age: float = MAX_AGE_SECONDS) -> None:
        self._limit = limit
        self._age = age
        self._places: OrderedDict[bytes, dict[Place, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: bytes, now: float) -> frozenset[Place]:
        """The hosts that computed the prefix last, unless that is too long ago."""
        found = self._places.get(key)
        if found is None:
            return frozenset()
        fresh = {place: at for place, at in found.items() if now - at <= self._age}
        if not fresh:
            del self._places[key]
        elif len(fresh) < len(found):
            self._places[key] = fresh
        return frozenset(fresh)

    def remember(self, key: bytes, place: Place, now: float) -> None:
        """`place` began to answer a prompt with that prefix."""
        places = self._places.setdefault(key, {})
        places.pop(place, None)
        places[place] = now
        if len(places) > MAX_HOSTS:
            del places[next(iter(places))]
        self._places.move_to_end(key)
        if len(self._places) > self._limit:
            self._places.popitem(last=False)

    def forget(self, key: bytes, place: Place) -> None:
        """`place` failed a request with that prefix."""
        places = self._places.get(key)
        if places is not None and places.pop(place, None) is not None and not places:
            del self._places[key]

    def forget_place(self, place: Place) -> None:
        """`place` is down: what it had computed is lost."""
        for key, places in list(self._places.items()):
            if places.pop(place, None) is not None and not places:
                del self._places[key]
