"""Which nodes carry a model together, and which layers each of them gets.

Law: a pure function. Host is whoever offers most memory, ties broken by hashing, so that all who know the same choose
the same. The host alone chooses the members, by the round trips that it has measured itself: just enough of them,
nearest first. Layers are contiguous, the host has the first ones, and what comes before and after them (embedding and
output) stays with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH, forecast
from meshllm.core.memory.model_shape import ModelShape
from meshllm.core.records import NodeId, short
from meshllm.core.serving.placement import weight
from meshllm.util.format import gigabytes

# Each token makes the whole round: beyond this a member costs more than it brings, and stays a client of the API.
MAX_RTT_SECONDS = 0.080
# A round trip that nobody has measured counts as one at the cap: the member is taken if no other will do.
UNKNOWN_RTT_SECONDS = MAX_RTT_SECONDS
# More members than this are never needed by a model that people run at home, and each one can die.
MAX_MEMBERS = 16
# What holds the layers of one node for one token, where its speed was never measured: bytes/s that a small desktop's
# memory gives the engine. Only ever compared with itself, or with what was measured.
USUAL_BYTES_PER_SECOND = 20e9
# Another plan must promise this much more before it is worth anything: forecasts are not that good.
MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class SplitNeed:
    """What a model takes, in bytes.

    `layers`: of each layer its weights and its share of the context, in order. `weights`: of each layer what is read
    for one token. `ends`: embedding, output and the host's own buffers. `buffers`: what computing takes on each member.
    `end_weights`: what is read of `ends` for one token.
    """

    layers: tuple[int, ...]
    weights: tuple[int, ...]
    ends: int
    buffers: int
    end_weights: int = 0

    @property
    def total(self) -> int:
        """On one node alone."""
        return sum(self.layers) + self.ends + self.buffers


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """A node that could carry layers: `memory` it offers in bytes, `rtt` from the host in seconds (None: unknown),
    `speed` in bytes of weights read per second (0: never measured). `devices`: the bytes on each of its accelerators,
    where the memory is not in one piece. `name` is for people."""

    node: NodeId
    memory: int
    rtt: float | None = None
    speed: float = 0.0
    devices: tuple[int, ...] = ()
    name: str = ""

    @property
    def called(self) -> str:
        """What people know it by."""
        return self.name or short(self.node)

    @property
    def pieces(self) -> tuple[int, ...]:
        """The bytes of each piece of its memory."""
        return self.devices or (self.memory,)


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """`layers` from `first` on are `node`'s; `memory` is what that takes there, in bytes. `devices`: how many of them,
    in their order, are on each of its accelerators (none: its memory is in one piece)."""

    node: NodeId
    first: int
    layers: int
    memory: int
    devices: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[int, ...]:
        """The layers on each device that has some."""
        return tuple(count for count in self.devices if count) or (self.layers,)


@dataclass(frozen=True, slots=True)
class SplitForecast:
    """What one way to serve the model promises: the nodes, the host first, and the seconds for one token."""

    nodes: tuple[NodeId, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Who carries what: the host's share first, then its members' in the order of the layers.

    `seconds` is the forecast for one token; `reason` says in words why it is so, `considered` what else there was.
    """

    shares: tuple[WorkerShare, ...]
    seconds: float
    reason: str
    considered: tuple[SplitForecast, ...] = ()

    @property
    def host(self) -> NodeId:
        """Where llama-server runs."""
        return self.shares[0].node

    @property
    def members(self) -> tuple[WorkerShare, ...]:
        """The workers' shares."""
        return self.shares[1:]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """It cannot be served: `missing` bytes are lacking, `reason` says so in words."""

    missing: int
    reason: str


def choose_host(lenders: Iterable[WorkerOffer], model: str) -> NodeId | None:
    """Where the llama-server of a split of `model` runs: most memory, then the hash. None if there is nobody."""
    best = max(lenders, key=lambda lender: (lender.memory, weight(lender.node, model)), default=None)
    return best.node if best is not None else None


def plan(
    need: SplitNeed, host: WorkerOffer, others: Iterable[WorkerOffer], model: str, *, force: bool = False
) -> SplitPlan | NoPlan:
    """How `host` serves `model`: alone, or with members out of `others`.

    With `force` (`--split`) never alone. Deterministic; the order of `others` is of no consequence.
    """
    near = sorted(
        (lender for lender in others if lender.node != host.node and _rtt(lender) <= MAX_RTT_SECONDS),
        key=lambda lender: (lender.rtt is None, lender.rtt or 0.0, weight(lender.node, model)),
    )
    found: list[SplitPlan] = []
    alone = _shared(need, (host,))
    if alone is not None and not force:
        found.append(_plan(need, (host,), alone, "it fits on this node"))
    for members in _teams(near):
        shares = _shared(need, (host, *members))
        if shares is not None:
            found.append(_plan(need, (host, *members), shares, _words(need, host, members, force)))
    if not found:
        return _no_plan(need, host, near, force=force)
    # Fewer members first: one more is worth it only if it is faster by the margin.
    best = found[0]
    for other in found[1:]:
        if other.seconds * MARGIN < best.seconds:
            best = other
    return replace(best, considered=tuple(SplitForecast(tuple(s.node for s in p.shares), p.seconds) for p in found))


def _teams(near: Sequence[WorkerOffer]) -> list[tuple[WorkerOffer, ...]]:
    """Whom to try together, fewest first: the nearest, one more each time; and each alone, for there may be one that is
    far faster than those that are nearer."""
    teams = [tuple(near[:count]) for count in range(1, min(len(near), MAX_MEMBERS) + 1)]
    teams += [(lender,) for lender in near[1:MAX_MEMBERS]]
    return sorted(teams, key=len)


def _shared(need: SplitNeed, team: Sequence[WorkerOffer]) -> tuple[WorkerShare, ...] | None:
    """The layers in contiguous runs, in proportion to what each of the team has to spare; None if they do not fit.

    The proportion is the smallest fraction of everybody's memory that holds them all, found by bisection. Everybody
    has a layer at least: a team in which somebody has none is another, smaller team. A node's devices are filled one
    after the other, each with what it takes for itself; one that is too small for a layer has none.
    """
    rooms = [[piece - need.buffers for piece in lender.pieces] for lender in team]
    rooms[0][0] -= need.ends
    if len(team) > len(need.layers) or any(max(pieces) < 0 for pieces in rooms):
        return None
    counts = _counts(need.layers, rooms)
    if counts is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):  # to a millionth: far finer than a layer
        middle = (low + high) / 2
        tried = _counts(need.layers, [[int(room * middle) for room in pieces] for pieces in rooms])
        if tried is None:
            low = middle
        else:
            high, counts = middle, tried
    shares, first = [], 0
    for place, (lender, runs) in enumerate(zip(team, counts, strict=True)):
        count, used = sum(runs), len([run for run in runs if run])
        taken = sum(need.layers[first : first + count]) + need.buffers * used + (need.ends if place == 0 else 0)
        shares.append(WorkerShare(lender.node, first, count, taken, tuple(runs) if lender.devices else ()))
        first += count
    return tuple(shares)


def _counts(layers: Sequence[int], rooms: Sequence[Sequence[int]]) -> list[list[int]] | None:
    """How many layers each takes, by the pieces of its memory, if it takes all it has room for, leaving one for each
    that follows; None if some are left over, or somebody cannot take one."""
    counts: list[list[int]] = []
    at = 0
    for place, pieces in enumerate(rooms):
        last = len(layers) - (len(rooms) - place - 1)
        runs = []
        for room in pieces:
            begin, left = at, room
            while at < last and layers[at] <= left:
                left -= layers[at]
                at += 1
            runs.append(at - begin)
        if not any(runs):
            return None
        counts.append(runs)
    return counts if at == len(layers) else None


def _plan(need: SplitNeed, team: Sequence[WorkerOffer], shares: tuple[WorkerShare, ...], reason: str) -> SplitPlan:
    return SplitPlan(shares, seconds_per_token(need, team, shares), reason)


def seconds_per_token(need: SplitNeed, team: Sequence[WorkerOffer], shares: Sequence[WorkerShare]) -> float:
    """Seconds for one token: reading each share's weights where they lie, and the way round.

    A token goes from the host through the members, in their order, and back. The way between two members was measured
    by nobody here: it is taken for the longer of the two ways that were.
    """
    seconds = need.end_weights / _speed(team[0])
    for lender, share in zip(team, shares, strict=True):
        seconds += sum(need.weights[share.first : share.first + share.layers]) / _speed(lender)
    ways = [_rtt(lender) / 2 for lender in team[1:]]
    if ways:
        seconds += ways[0] + sum(max(one, two) for one, two in pairwise(ways)) + ways[-1]
    return seconds


def _speed(lender: WorkerOffer) -> float:
    return lender.speed or USUAL_BYTES_PER_SECOND


def _rtt(lender: WorkerOffer) -> float:
    return UNKNOWN_RTT_SECONDS if lender.rtt is None else lender.rtt


def _words(need: SplitNeed, host: WorkerOffer, members: Sequence[WorkerOffer], force: bool) -> str:
    names = ", ".join(lender.called for lender in members)
    if need.total <= host.memory:
        return f"a split with {names} was asked for" if force else f"a split with {names} promises to be faster"
    carry = "carries" if len(members) == 1 else "carry"
    return f"it takes {gigabytes(need.total)} and this node has {gigabytes(host.memory)}: {names} {carry} the rest"


def _no_plan(need: SplitNeed, host: WorkerOffer, near: Sequence[WorkerOffer], *, force: bool) -> NoPlan:
    if not near and force and need.total <= host.memory:
        return NoPlan(0, "a split was asked for, and no other node that is near enough has memory to lend")
    have = host.memory + sum(lender.memory for lender in near)
    missing = need.total + need.buffers * len(near) - have
    if not near:
        words = f"it takes {gigabytes(need.total)} and this node has {gigabytes(host.memory)}"
        lacks = f"{gigabytes(missing)} are missing, and no other node that is near enough has memory to lend"
        return NoPlan(missing, f"{words}: {lacks}")
    # Where the sum would do, it is the grain: a layer that goes into nobody's rest.
    missing = max(missing, max(need.layers, default=0))
    words = f"it takes {gigabytes(need.total)} and {1 + len(near)} nodes have {gigabytes(have)} together"
    return NoPlan(missing, f"{words}: {gigabytes(missing)} more are needed")


def need_of(shape: ModelShape, size: ContextSize, micro_batch: int = MICRO_BATCH, *, beside: int = 0) -> SplitNeed:
    """What a model of that shape takes by layer for `size`, by the arithmetic of `forecast` (off by some per cent).
    `beside`: bytes that the host needs for more than the model, such as what lets it see."""
    found = forecast(shape, size, micro_batch=micro_batch)
    return SplitNeed(
        layers=tuple(weights + cache for weights, cache in zip(found.weights, found.cache, strict=True)),
        weights=_read_by_layer(shape),
        ends=found.rest + found.scores + found.process + beside,
        buffers=found.compute,
        end_weights=_read_at_the_ends(shape),
    )


def token_bytes(shape: ModelShape) -> int:
    """Bytes of weights that are read for one token: what bounds how fast it comes, on nearly every machine."""
    return sum(_read_by_layer(shape)) + _read_at_the_ends(shape)


def _read_by_layer(shape: ModelShape) -> tuple[int, ...]:
    used = shape.experts_used / shape.experts if shape.experts else 1.0
    return tuple(0 if layer.idle else layer.weights - int(layer.experts * (1.0 - used)) for layer in shape.layers)


def _read_at_the_ends(shape: ModelShape) -> int:
    return shape.output + (shape.input if shape.tied else 0)
