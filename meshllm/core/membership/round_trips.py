"""Round-trip times of links: smoothed, and shown to readers only where they change."""

from __future__ import annotations

# The weight of a new, longer round trip in the smoothed one (RFC 6298). A shorter one counts at once: the first
# measurement contains a handshake, and no measurement is shorter than the path.
RTT_WEIGHT = 0.125
# A change of the round-trip time below both bounds is not shown to readers.
RTT_CHANGE_SECONDS = 0.001
RTT_CHANGE_FRACTION = 0.1


def smoothed(known: float, measured: float) -> float:
    """The round-trip time (seconds) after another measurement."""
    return min(measured, (1.0 - RTT_WEIGHT) * known + RTT_WEIGHT * measured)


def is_change(shown: float, now: float) -> bool:
    """Whether readers are to see another round-trip time than the one shown."""
    return abs(now - shown) > max(RTT_CHANGE_SECONDS, RTT_CHANGE_FRACTION * shown)
