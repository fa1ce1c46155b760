"""Requests that were being processed when an engine died, by digest: each is tried again once, and then refused.

A request whose caller went away a moment before the death counts, too: the engine may still have been at work on it.
Pure: time comes in as `now`, seconds. A restart of the node forgets them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

# The error code, in answers to callers and between gateways: no other host is asked.
REQUEST_CRASHED = "request_crashed_engine"
REFUSED_MESSAGE = (
    "This request was being processed each time when an engine crashed, and is not tried again for an hour. "
    "Change the request; a grammar or schema is the usual cause."
)
REMEMBER_SECONDS = 3600.0
MAX_REMEMBERED = 1024
# A request that was alone with the engine each time is the cause after two deaths; one in company after three.
DEATHS_ALONE = 2
DEATHS_IN_COMPANY = 3
# An engine notices between two steps that a caller is gone. A step, such as a large grammar, may take this long.
ABANDONED_SECONDS = 60.0
MAX_ABANDONED = 64


def digest_of(body: bytes) -> bytes:
    """What a request is remembered by."""
    return hashlib.blake2b(body, digest_size=16).digest()


@dataclass(slots=True)
class _Crashed:
    until: float
    alone: int = 0
    deaths: int = 0


class CrashedRequests:
    """The digests of requests that were there when engines died: `found`, empty nearly always."""

    def __init__(self) -> None:
        self.found: OrderedDict[bytes, _Crashed] = OrderedDict()

    def died(self, digest: bytes, now: float, *, alone: bool) -> bool:
        """An engine died while it processed this request, `alone` or with others; whether it is refused from now on."""
        found = self._entry(digest, now)
        found.deaths += 1
        found.alone += alone
        return _refused(found)

    def reported(self, digest: bytes, now: float) -> None:
        """A host says that this request crashed its engine: no other host is asked for an hour."""
        self._entry(digest, now).deaths = DEATHS_IN_COMPANY

    def refuses(self, digest: bytes, now: float) -> bool:
        """Whether this request is not to be tried."""
        found = self.found.get(digest)
        return found is not None and now < found.until and _refused(found)

    def _entry(self, digest: bytes, now: float) -> _Crashed:
        found = self.found.get(digest)
        if found is None or now >= found.until:
            found = self.found[digest] = _Crashed(now + REMEMBER_SECONDS)
            if len(self.found) > MAX_REMEMBERED:
                self.found.popitem(last=False)
        found.until = now + REMEMBER_SECONDS
        self.found.move_to_end(digest)
        return found


def _refused(found: _Crashed) -> bool:
    return found.alone >= DEATHS_ALONE or found.deaths >= DEATHS_IN_COMPANY


class CrashSuspects:
    """The requests, by digest, that one engine process worked on when it seemed to die: `there`. Each counts once."""

    __slots__ = ("_abandoned", "_counted", "there")

    def __init__(self) -> None:
        self.there: frozenset[bytes] = frozenset()
        self._abandoned: dict[bytes, float] = {}
        self._counted: set[bytes] = set()

    def abandon(self, digest: bytes, now: float) -> None:
        """The caller of a request in progress went away."""
        self._abandoned.pop(digest, None)
        self._abandoned[digest] = now
        if len(self._abandoned) > MAX_ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]

    def lost(self, active: Iterable[bytes], now: float) -> None:
        """The engine closed the connection of an active request: its process may have died with all of them."""
        if not self.there:
            self.there = frozenset((*active, *self._abandoned_lately(now)))

    def answered(self) -> None:
        """The engine answers: it has not died."""
        self.there = frozenset()

    def died(self, digest: bytes) -> bool | None:
        """The process has died with this request: whether that was alone; None if this has been counted."""
        if digest in self._counted:
            return None
        self._counted.add(digest)
        return self.there == {digest}

    def died_abandoned(self, active: Iterable[bytes], now: float) -> list[tuple[bytes, bool]]:
        """The process has died: the requests without a caller to count, and whether each was alone."""
        lately = self._abandoned_lately(now)
        if not lately:
            return []
        self.lost(active, now)
        return [(digest, alone) for digest in lately if (alone := self.died(digest)) is not None]

    def _abandoned_lately(self, now: float) -> list[bytes]:
        return [digest for digest, at in self._abandoned.items() if now - at <= ABANDONED_SECONDS]
