"""Limits guesses of the API key for each address, and reports who uses it."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshllm.util.rate_limiter import TokenBucket

# Wrong keys of one address: 10 at once, then one in 20 s: 4,320 a day.
GUESSES_AT_ONCE: Final = 10.0
GUESSES_PER_SECOND: Final = 0.05
# An address that has sent the right key within this time may send it again while its guesses are refused: behind a
# proxy or a router, one program with a wrong key must not lock out the others.
TRUSTED_SECONDS: Final = 3600.0
# The right key is reported once for each address in this time.
REPORT_SECONDS: Final = 3600.0
MAX_ADDRESSES: Final = 1024


@dataclass(slots=True)
class _Address:
    """What one address may still guess, and when it last sent the right key."""

    guesses: TokenBucket
    right_at: float = float("-inf")
    reported_at: float = float("-inf")


class KeyGuard:
    """Shared by the API and the console. Used on the event loop."""

    def __init__(
        self,
        report: Callable[[str, str], None] = lambda event, address: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`report` gets an event ("api_key_used", "api_key_wrong") and an address; `clock` returns seconds."""
        self._report = report
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def allows(self, peer: str, right: bool) -> bool:
        """Whether the key that `peer` has sent, right or wrong, may be answered as such; False: too many guesses."""
        now, place = self._clock(), _network(peer)
        known = self._addresses.get(place)
        if known is None:
            known = self._addresses[place] = _Address(TokenBucket(GUESSES_PER_SECOND, GUESSES_AT_ONCE, now))
            while len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        self._addresses.move_to_end(place)
        if not right:
            self._report("api_key_wrong", place)
            return known.guesses.take(now)
        # An untrusted address whose guesses are used up does not learn that this one was right.
        if now - known.right_at >= TRUSTED_SECONDS and not known.guesses.take(now):
            return False
        known.right_at = now
        if now - known.reported_at >= REPORT_SECONDS:
            known.reported_at = now
            self._report("api_key_used", place)
        return True


def _network(peer: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 network of 64 bits, which one subscriber has."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer[:64]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((int(address), 64), strict=False))
    return str(address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else address)
