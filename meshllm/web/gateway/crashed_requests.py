"""Requests that were being processed when an engine died, by digest: each is tried again once, and then refused.

Pure: time comes in as `now`, seconds. A restart of the node forgets them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
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


@dataclass(slots=True)
class _Crashed:
    until: float
    alone: int = 0
    deaths: int = 0


class CrashedRequests:
    """The digests of requests that were there when engines died; false while there are none."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, _Crashed] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._found)

    def died(self, body: bytes, now: float, *, alone: bool) -> bool:
        """An engine died while it processed `body`, `alone` or with others. Returns whether it is refused from now."""
        found = self._entry(body, now)
        found.deaths += 1
        found.alone += alone
        return _refused(found)

    def reported(self, body: bytes, now: float) -> None:
        """A host says that `body` crashed its engine: no other host is asked for an hour."""
        self._entry(body, now).deaths = DEATHS_IN_COMPANY

    def refuses(self, body: bytes, now: float) -> bool:
        """Whether `body` is not to be tried."""
        found = self._found.get(_digest(body))
        return found is not None and now < found.until and _refused(found)

    def _entry(self, body: bytes, now: float) -> _Crashed:
        digest = _digest(body)
        found = self._found.get(digest)
        if found is None or now >= found.until:
            found = self._found[digest] = _Crashed(now + REMEMBER_SECONDS)
            if len(self._found) > MAX_REMEMBERED:
                self._found.popitem(last=False)
        found.until = now + REMEMBER_SECONDS
        self._found.move_to_end(digest)
        return found


def _refused(found: _Crashed) -> bool:
    return found.alone >= DEATHS_ALONE or found.deaths >= DEATHS_IN_COMPANY


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
