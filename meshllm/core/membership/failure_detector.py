"""Signs of life: a node asks those it watches to answer, and says in its own record who does not.

Law: only an answer to one's own question is a sign of life (a pong with its number, a link that comes up). A watcher
never says that a node is dead; it complains, for itself, and takes it back at the first answer. How long things last is
a pure function of the size of the mesh.
"""

from __future__ import annotations

from collections.abc import Collection
from math import log10
from typing import Protocol

from meshllm.core.membership.timers import Timers
from meshllm.core.records import NodeId

# Whoever is watched is asked this often.
PROBE_SECONDS = 1.0
# An answer is late after this and three round trips, but at most the cap. Retries follow at once.
ANSWER_BASE_SECONDS = 0.3
ANSWER_ROUND_TRIPS = 3.0
ANSWER_CAP_SECONDS = 2.0
# A round trip nobody has measured.
UNKNOWN_RTT = 0.1
# Dialling somebody we had a link to is a question too; this long without a link is a miss, and then this long again.
DIAL_FIRST_SECONDS = 1.0
DIAL_AGAIN_SECONDS = 0.5
# For somebody we never had a link to: a handshake whose first packet is lost takes a second. Not more patience than
# this: when a watcher dies its successor is a stranger, and the next death must be noticed within 5 s all the same.
STRANGER_FIRST_SECONDS = 1.2
STRANGER_AGAIN_SECONDS = 0.5
# Misses in a row before a complaint. With one question or answer in ten lost: 0.19 ** 5, once an hour for each pair.
MISSES = 5
# After so many, who comes next on the ring is watched too: it may be gone as well, and one after the other takes long.
DOUBT_MISSES = 3
# A watcher that cannot reach a node, which refutes it again and again, is itself the problem: its patience doubles.
MAX_PATIENCE = 80
# A deadline noticed so late says that this machine was asleep or overloaded, and nothing about the peer.
LATE_SECONDS = 0.5
# A suspect has this long times log10 of the mesh to hear of it and refute it.
SUSPICION_SECONDS = 5.0
# The mesh renews ten records a second at most, however large it is; a small one each record every 30 s.
HEARTBEAT_SECONDS = 30.0
HEARTBEAT_SECONDS_PER_NODE = 0.1
# A record not renewed for three heartbeats and this is of a node that is gone.
EXPIRY_HEARTBEATS = 3.0
EXPIRY_SECONDS = 60.0


def suspicion_seconds(members: int) -> float:
    """How long a node of a mesh of so many may be suspected before it is dead: 5 s up to ten members, 15 s at 1,000."""
    return SUSPICION_SECONDS * max(1.0, log10(max(1, members)))


def heartbeat_seconds(members: int) -> float:
    """How often a node renews its record though nothing changed."""
    return max(HEARTBEAT_SECONDS, HEARTBEAT_SECONDS_PER_NODE * members)


def expiry_seconds(members: int) -> float:
    """After how long without renewal a record is dropped."""
    return EXPIRY_HEARTBEATS * heartbeat_seconds(members) + EXPIRY_SECONDS


def answer_seconds(rtt: float | None) -> float:
    """How long an answer may take, given the round trip in seconds."""
    return min(ANSWER_CAP_SECONDS, ANSWER_BASE_SECONDS + ANSWER_ROUND_TRIPS * (UNKNOWN_RTT if rtt is None else rtt))


class ProbeIO(Protocol):
    """What a prober needs done."""

    def rtt(self, node: NodeId) -> float | None:
        """The round trip on the link to `node`; None without a link."""

    def ping(self, node: NodeId, number: int) -> None:
        """Ask it on its link."""

    def dial(self, node: NodeId, now: float) -> bool:
        """Connect to it, unless that is under way already. False if there is no address to try."""

    def unanswered(self, node: NodeId) -> None:
        """It has not answered for too long."""

    def answered(self, node: NodeId) -> None:
        """It has answered."""


class WatchedNode:
    """What is known of one node that is watched. `asked` is when the open question was put, None if none is open."""

    __slots__ = ("asked", "first", "met", "misses", "number", "patience")

    def __init__(self) -> None:
        self.number = 0
        self.first = 1  # answers to questions from this number on are welcome
        self.asked: float | None = None
        self.misses = 0
        self.patience = MISSES
        self.met = False  # there has been a link while it was watched


class FailureDetector:
    """Asks, counts the misses, and tells the hands of silence and of answers."""

    def __init__(self, timers: Timers, hands: ProbeIO) -> None:
        self._timers = timers
        self._hands = hands
        self._watched: dict[NodeId, WatchedNode] = {}
        self._number = 0

    def doubted(self, node: NodeId) -> bool:
        """Whether `node` has been asked in vain a few times."""
        watch = self._watched.get(node)
        return watch is not None and watch.misses >= DOUBT_MISSES

    def tick(self, wanted: Collection[NodeId], now: float) -> None:
        """Once a second: watch exactly these, and ask each that is not being asked already."""
        for node in [node for node in self._watched if node not in wanted]:
            del self._watched[node]
            self._timers.cancel("answer", node)
        for node in wanted:
            watch = self._watched.get(node)
            if watch is None:
                watch = self._watched[node] = WatchedNode()
                watch.met = self._hands.rtt(node) is not None
            if watch.asked is None:
                self._ask(node, watch, now)

    def _ask(self, node: NodeId, watch: WatchedNode, now: float) -> None:
        rtt = self._hands.rtt(node)
        if rtt is not None:
            watch.asked = now
            self._number += 1
            watch.number = self._number
            self._timers.set("answer", now + answer_seconds(rtt), node)
            self._hands.ping(node, watch.number)
        elif self._hands.dial(node, now) or watch.met:
            # Somebody who had a link to us and has no address to be dialled at has the same time to come back.
            first = DIAL_FIRST_SECONDS if watch.met else STRANGER_FIRST_SECONDS
            again = DIAL_AGAIN_SECONDS if watch.met else STRANGER_AGAIN_SECONDS
            watch.asked = now
            self._timers.set("answer", now + (again if watch.misses else first), node)

    def overdue(self, node: NodeId, now: float, late: float) -> None:
        """The answer of `node` was due `late` seconds ago (as set in the timers under "answer")."""
        watch = self._watched.get(node)
        if watch is None or watch.asked is None:
            return
        watch.asked = None
        if late > LATE_SECONDS:
            self._ask(node, watch, now)
            return
        self._missed(node, watch)
        if watch.misses < watch.patience:
            self._ask(node, watch, now)

    def _missed(self, node: NodeId, watch: WatchedNode) -> None:
        watch.misses += 1
        if watch.misses >= watch.patience:
            self._hands.unanswered(node)

    def answer(self, node: NodeId, number: int, now: float) -> float | None:
        """`node` answered question `number`: the round trip in seconds if that was the last question, else None."""
        watch = self._watched.get(node)
        if watch is None or not watch.first <= number <= watch.number:
            return None
        rtt = now - watch.asked if watch.asked is not None and number == watch.number else None
        self._lives(node, watch)
        return rtt

    def link_up(self, node: NodeId) -> None:
        """A link to `node` came up: it proved its key just now."""
        watch = self._watched.get(node)
        if watch is not None:
            watch.met = True
            watch.patience = MISSES
            self._lives(node, watch)

    def link_down(self, node: NodeId, now: float) -> None:
        """The link is gone: a miss, and a question at once."""
        watch = self._watched.get(node)
        if watch is not None:
            watch.asked = None
            self._missed(node, watch)
            self._ask(node, watch, now)

    def dial_failed(self, node: NodeId) -> None:
        """Nobody answers at its addresses: a miss. The next try is at the next tick."""
        watch = self._watched.get(node)
        if watch is not None and self._hands.rtt(node) is None:
            watch.asked = None
            self._timers.cancel("answer", node)
            self._missed(node, watch)

    def refuted(self, node: NodeId) -> None:
        """`node` has a new incarnation: it lives, whether or not we can reach it."""
        watch = self._watched.get(node)
        if watch is not None:
            if watch.misses >= watch.patience and self._hands.rtt(node) is None:
                watch.patience = min(MAX_PATIENCE, 2 * watch.patience)
            watch.misses = 0

    def _lives(self, node: NodeId, watch: WatchedNode) -> None:
        watch.first = watch.number + 1
        watch.asked = None
        watch.misses = 0
        self._timers.cancel("answer", node)
        self._hands.answered(node)
