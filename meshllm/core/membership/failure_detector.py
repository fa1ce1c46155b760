"""Failure detection: a node pings the nodes it watches and reports those that do not answer in its own record.

Invariants: only an answer to this node's own ping (its number) or a new link proves that a node is alive. A watcher
reports for itself alone and withdraws the report at the first answer. All durations are functions of the mesh size.
"""

from __future__ import annotations

from collections.abc import Collection
from math import log10
from typing import Protocol

from meshllm.core.membership.timers import Timer, Timers
from meshllm.core.records import NodeId

# The interval of pings to a watched node.
PROBE_SECONDS = 1.0
# An answer is late after this plus three round trips, at most the cap. Retries follow at once.
ANSWER_BASE_SECONDS = 0.3
ANSWER_ROUND_TRIPS = 3.0
ANSWER_CAP_SECONDS = 2.0
# The assumed round trip before the first measurement.
UNKNOWN_RTT = 0.1
# A dial to a node that had a link counts as a ping: this long without a link is a miss, then again this long.
DIAL_FIRST_SECONDS = 1.0
DIAL_AGAIN_SECONDS = 0.5
# For a node that never had a link: a handshake whose first packet is lost takes a second. No longer than this: when a
# watcher dies, its successor has no link yet, and the next death must still be noticed within 5 s.
STRANGER_FIRST_SECONDS = 1.2
STRANGER_AGAIN_SECONDS = 0.5
# Misses in a row before a failure report. With 10 % loss each way: 0.19 ** 5, once an hour for each pair.
MISSES = 5
# After this many misses the next node on the ring is watched too: it may be gone as well.
DOUBT_MISSES = 3
# A watcher whose reports are refuted again and again is itself the problem: the misses it needs double, up to this.
MAX_MISSES = 80
# A deadline handled this late means that this machine was asleep or overloaded; it proves nothing about the peer.
LATE_SECONDS = 0.5
# A suspect has this time, times log10 of the mesh size, to learn of the suspicion and refute it.
SUSPICION_SECONDS = 5.0
# A mesh renews at most ten records a second; a small mesh each record every 30 s.
HEARTBEAT_SECONDS = 30.0
HEARTBEAT_SECONDS_PER_NODE = 0.1
# A node is dead whose record was not renewed for three heartbeats and this time.
EXPIRY_HEARTBEATS = 3.0
EXPIRY_SECONDS = 60.0


def suspicion_seconds(members: int) -> float:
    """How long a node is suspect before it is dead: 5 s up to ten members, 15 s at 1,000."""
    return SUSPICION_SECONDS * max(1.0, log10(max(1, members)))


def heartbeat_seconds(members: int) -> float:
    """The interval at which a node renews an unchanged record."""
    return max(HEARTBEAT_SECONDS, HEARTBEAT_SECONDS_PER_NODE * members)


def expiry_seconds(members: int) -> float:
    """The time without renewal after which a node is dead."""
    return EXPIRY_HEARTBEATS * heartbeat_seconds(members) + EXPIRY_SECONDS


def answer_seconds(rtt: float | None) -> float:
    """How long to wait for an answer, given the round trip; both in seconds."""
    return min(ANSWER_CAP_SECONDS, ANSWER_BASE_SECONDS + ANSWER_ROUND_TRIPS * (UNKNOWN_RTT if rtt is None else rtt))


class ProbeIO(Protocol):
    """What a failure detector acts through."""

    def rtt(self, node: NodeId) -> float | None:
        """The round-trip time of the link to `node` in seconds; None without a link."""

    def ping(self, node: NodeId, number: int) -> None:
        """Send a ping over the link to `node`."""

    def dial(self, node: NodeId, now: float) -> bool:
        """Dial `node`, unless a dial is under way. Returns whether one is under way now."""

    def unanswered(self, node: NodeId) -> None:
        """`node` missed too many answers."""

    def answered(self, node: NodeId) -> None:
        """`node` answered."""


class WatchedNode:
    """A watched node. `asked`: when the open ping was sent; None if none is open."""

    __slots__ = ("asked", "first", "had_link", "misses", "misses_needed", "number")

    def __init__(self) -> None:
        self.number = 0
        self.first = 1  # answers to pings from this number on are accepted
        self.asked: float | None = None
        self.misses = 0
        self.misses_needed = MISSES
        self.had_link = False  # while it was watched


class FailureDetector:
    """Pings the watched nodes and counts the misses in a row."""

    def __init__(self, timers: Timers, io: ProbeIO) -> None:
        self._timers = timers
        self._io = io
        self._watched: dict[NodeId, WatchedNode] = {}
        self._number = 0

    def doubted(self, node: NodeId) -> bool:
        """Whether `node` has missed several answers in a row."""
        watch = self._watched.get(node)
        return watch is not None and watch.misses >= DOUBT_MISSES

    def tick(self, wanted: Collection[NodeId], now: float) -> None:
        """Once a second: watch exactly `wanted`, and ping each that has no open ping."""
        for node in [node for node in self._watched if node not in wanted]:
            del self._watched[node]
            self._timers.cancel(Timer.ANSWER, node)
        for node in wanted:
            watch = self._watched.get(node)
            if watch is None:
                watch = self._watched[node] = WatchedNode()
                watch.had_link = self._io.rtt(node) is not None
            if watch.asked is None:
                self._ask(node, watch, now)

    def _ask(self, node: NodeId, watch: WatchedNode, now: float) -> None:
        rtt = self._io.rtt(node)
        if rtt is not None:
            watch.asked = now
            self._number += 1
            watch.number = self._number
            self._timers.set(Timer.ANSWER, now + answer_seconds(rtt), node)
            self._io.ping(node, watch.number)
        elif self._io.dial(node, now) or watch.had_link:
            # A node that had a link and has no address to dial gets the same time to come back.
            first = DIAL_FIRST_SECONDS if watch.had_link else STRANGER_FIRST_SECONDS
            again = DIAL_AGAIN_SECONDS if watch.had_link else STRANGER_AGAIN_SECONDS
            watch.asked = now
            self._timers.set(Timer.ANSWER, now + (again if watch.misses else first), node)

    def overdue(self, node: NodeId, now: float, late: float) -> None:
        """`Timer.ANSWER` of `node` was due `late` seconds ago."""
        watch = self._watched.get(node)
        if watch is None or watch.asked is None:
            return
        watch.asked = None
        if late > LATE_SECONDS:
            self._ask(node, watch, now)
            return
        self._missed(node, watch)
        if watch.misses < watch.misses_needed:
            self._ask(node, watch, now)

    def _missed(self, node: NodeId, watch: WatchedNode) -> None:
        watch.misses += 1
        if watch.misses >= watch.misses_needed:
            self._io.unanswered(node)

    def answer(self, node: NodeId, number: int, now: float) -> float | None:
        """`node` answered ping `number`. Returns the round trip in seconds if that was the last ping, else None."""
        watch = self._watched.get(node)
        if watch is None or not watch.first <= number <= watch.number:
            return None
        rtt = now - watch.asked if watch.asked is not None and number == watch.number else None
        self._alive(node, watch)
        return rtt

    def link_up(self, node: NodeId) -> None:
        """A link to `node` came up: it is alive."""
        watch = self._watched.get(node)
        if watch is not None:
            watch.had_link = True
            watch.misses_needed = MISSES
            self._alive(node, watch)

    def link_down(self, node: NodeId, now: float) -> None:
        """The link to `node` is gone: a miss, and a dial at once."""
        watch = self._watched.get(node)
        if watch is not None:
            watch.asked = None
            self._missed(node, watch)
            self._ask(node, watch, now)

    def dial_failed(self, node: NodeId) -> None:
        """No address of `node` answers: a miss. The next try is at the next tick."""
        watch = self._watched.get(node)
        if watch is not None and self._io.rtt(node) is None:
            watch.asked = None
            self._timers.cancel(Timer.ANSWER, node)
            self._missed(node, watch)

    def refuted(self, node: NodeId) -> None:
        """`node` has a new incarnation: it is alive, even if this node cannot reach it."""
        watch = self._watched.get(node)
        if watch is not None:
            if watch.misses >= watch.misses_needed and self._io.rtt(node) is None:
                watch.misses_needed = min(MAX_MISSES, 2 * watch.misses_needed)
            watch.misses = 0

    def _alive(self, node: NodeId, watch: WatchedNode) -> None:
        watch.first = watch.number + 1
        watch.asked = None
        watch.misses = 0
        self._timers.cancel(Timer.ANSWER, node)
        self._io.answered(node)
