"""Corrections of forecasts: what the splits of this node took per token, and what the next forecast makes of it. Pure.

A correction belongs to a set of nodes and a class of models, because what a forecast does not know (a shared processor,
a busy link, another program) slows small models most. It is bounded, fades with time and moves with hysteresis. It
changes the next plan; a split that runs is never ended for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from meshllm.core.records import NodeId

# A corrected forecast is at least this part, and at most this multiple, of the plain one.
LEAST_FACTOR = 1 / 4
MOST_FACTOR = 16.0
# Half of a correction is forgotten after this long without a new measurement: machines and networks change.
HALF_LIFE_SECONDS = 14 * 86400.0
# A measurement of fewer steps says nothing: the first ones load weights and fill caches.
LEAST_STEPS = 16
# Older measurements count as this many steps at most, so that a change shows within a few answers.
MOST_STEPS = 512.0
# What forecasts use moves only if the measurements differ by this factor: the same splits give the same plans.
TOLERANCE = 1.2
# Sets of nodes that are remembered; the ones measured longest ago go first.
MAX_CORRECTIONS = 256
# A model's class is the power of this that its weights come to: each quantization needs no measurement of its own.
CLASS_BASE = 4.0


def model_class(token_bytes: int) -> int:
    """The class of a model that reads so many bytes of weights for a token."""
    return int(math.log(max(1, token_bytes), CLASS_BASE))


@dataclass(frozen=True, slots=True)
class Correction:
    """What the nodes in `nodes` (sorted) took for models of the class `size`.

    `speed`: bytes of weights per second of the whole team, as measured; `used_speed`: as forecasts use it. `factor`:
    measured time by forecast time, for teams that contain this one. `steps`: how many count. `at`: when, in seconds.
    """

    nodes: tuple[NodeId, ...]
    size: int
    speed: float
    used_speed: float
    factor: float
    steps: float
    at: float


class Corrections:
    """The corrections that this node learned. Times are seconds of the caller's clock."""

    def __init__(self, known: Iterable[Correction] = ()) -> None:
        self._known: dict[tuple[tuple[NodeId, ...], int], Correction] = {}
        for each in known:
            self._keep(each)

    @property
    def all(self) -> tuple[Correction, ...]:
        """All corrections, the one measured longest ago first."""
        return tuple(self._known.values())

    def forecast(self, nodes: Iterable[NodeId], token_bytes: int, plain: float, now: float) -> float:
        """The seconds for a token by `nodes`, given the `plain` forecast for a model that reads `token_bytes`."""
        team = tuple(sorted(nodes))
        exact = self._known.get((team, model_class(token_bytes)))
        if exact is not None:
            found = token_bytes / exact.used_speed
            return _between(plain, plain * (found / plain) ** _trust(exact, now)) if plain > 0 else plain
        # A team is hardly faster with one more node: what slows a part of it slows all of it.
        size, members = model_class(token_bytes), set(team)
        parts = [each for each in self._known.values() if each.size == size and members > set(each.nodes)]
        return _between(plain, plain * max([1.0, *(each.factor ** _trust(each, now) for each in parts)]))

    def observe(
        self, nodes: Iterable[NodeId], token_bytes: int, plain: float, measured: float, steps: int, now: float
    ) -> bool:
        """`nodes` took `measured` seconds for each of `steps` steps; `plain` was the forecast without a correction.

        Returns whether a forecast changes by that.
        """
        if steps < LEAST_STEPS or not (token_bytes > 0 and 0 < plain < math.inf and 0 < measured < math.inf):
            return False
        team, size = tuple(sorted(nodes)), model_class(token_bytes)
        measured = _between(plain, measured)
        speed, factor = token_bytes / measured, measured / plain
        old = self._known.pop((team, size), None)
        used, weight = speed, float(steps)
        if old is not None:
            kept = old.steps * _trust(old, now)
            weight = kept + steps
            speed, factor = _mean(old.speed, kept, speed, steps), _mean(old.factor, kept, factor, steps)
            used = old.used_speed if 1 / TOLERANCE <= speed / old.used_speed <= TOLERANCE else speed
        self._keep(Correction(team, size, speed, used, factor, min(weight, MOST_STEPS), now))
        return old is None or used != old.used_speed

    def _keep(self, each: Correction) -> None:
        self._known[each.nodes, each.size] = each
        while len(self._known) > MAX_CORRECTIONS:
            del self._known[next(iter(self._known))]


def aged(known: Iterable[Correction], seconds: float) -> tuple[Correction, ...]:
    """`known` with their times moved by `seconds`: from one clock to another."""
    return tuple(replace(each, at=each.at + seconds) for each in known)


def _trust(each: Correction, now: float) -> float:
    """How much of a correction counts: 1 when it was measured, half of it after each half-life."""
    return math.exp2(-max(0.0, now - each.at) / HALF_LIFE_SECONDS)


def _between(plain: float, seconds: float) -> float:
    return min(max(seconds, plain * LEAST_FACTOR), plain * MOST_FACTOR)


def _mean(old: float, kept: float, new: float, steps: float) -> float:
    """The geometric mean, weighted by steps."""
    return math.exp((math.log(old) * kept + math.log(new) * steps) / (kept + steps))
