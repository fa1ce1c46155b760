"""The network between simulated nodes: delay, loss and cuts.

All randomness comes from the given random generator, so a seed repeats a run exactly. Times are
seconds of virtual time; nodes are numbered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

# A lost packet is sent anew by QUIC after about this long at first, then after twice that, and so on.
RETRANSMIT_SECONDS = 0.2
# Jitter: the mean of what queues add to a way, as a part of the way's own delay.
JITTER = 0.1


@dataclass(frozen=True)
class Cut:
    """Nothing gets from `sources` to `targets`, and back neither unless `one_way`."""

    sources: frozenset[int]
    targets: frozenset[int]
    one_way: bool = False

    def blocks(self, source: int, target: int) -> bool:
        """Whether it stops what `source` sends to `target`."""
        if source in self.sources and target in self.targets:
            return True
        return not self.one_way and source in self.targets and target in self.sources


class Network:
    """The ways between nodes. A node's distance from the middle is fixed; a way is as long as both distances.

    `loss` is the part of messages that are lost. With `retransmit` they are late instead, as on a link of QUIC, and
    the ones behind them wait. Without it they never come, which is worse than anything a real link does.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        delay: tuple[float, float] = (0.005, 0.040),
        loss: float = 0.0,
        retransmit: bool = False,
    ) -> None:
        self._rng = rng
        self._delay = delay
        self._distances: list[float] = []
        self._cuts: list[Cut] = []
        self.loss = loss
        self.retransmit = retransmit

    def distance(self, node: int) -> float:
        """How far from the middle a node lies, in seconds one way."""
        while len(self._distances) <= node:
            self._distances.append(self._rng.uniform(self._delay[0] / 2, self._delay[1] / 2))
        return self._distances[node]

    def round_trip(self, one: int, other: int) -> float:
        """There and back when nothing is in the way."""
        return 2 * (self.distance(one) + self.distance(other))

    def blocked(self, source: int, target: int) -> bool:
        """Whether a cut stops what `source` sends to `target`."""
        return any(cut.blocks(source, target) for cut in self._cuts)

    def severed(self, one: int, other: int) -> bool:
        """Whether no connection can be kept or made: packets must get both ways."""
        return bool(self._cuts) and (self.blocked(one, other) or self.blocked(other, one))

    def cut(self, sources: Iterable[int], targets: Iterable[int], *, one_way: bool = False) -> None:
        """Cut the ways between two sets of nodes."""
        self._cuts.append(Cut(frozenset(sources), frozenset(targets), one_way))

    def heal(self) -> None:
        """All ways are open again."""
        self._cuts.clear()

    def travel(self, source: int, target: int) -> float | None:
        """How long a message is under way, or None if it never arrives."""
        if self._cuts and self.blocked(source, target):
            return None
        way = self.distance(source) + self.distance(target)
        # Written out: `expovariate` is the better part of the cost of a message.
        late = way * (1.0 - JITTER * math.log(1.0 - self._rng.random()))
        if self.loss:
            if self.retransmit:
                late += self._retransmissions()
            elif self._rng.random() < self.loss:
                return None
        return late

    def handshake(self, source: int, target: int) -> float:
        """How long it takes to connect and to know one another: three ways, each packet sent until it arrives."""
        return 1.5 * self.round_trip(source, target) + sum(self._retransmissions() for _ in range(3))

    def _retransmissions(self) -> float:
        late, pause = 0.0, RETRANSMIT_SECONDS
        while self.loss and self._rng.random() < self.loss:
            late += pause
            pause *= 2
        return late
