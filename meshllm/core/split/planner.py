"""Plans a pipeline split: which nodes serve a model together, and which layers each of them gets. Pure.

The host is the node with most memory; a hash breaks ties, so that all nodes with the same records choose the same host.
The host chooses the workers by the round trips it measured: as few as needed, nearest first. Layers are contiguous; the
host has the first ones, the embedding and the output. Nodes of one machine have its memory and its processor together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from meshllm.core.memory.context_size import ContextSize
from meshllm.core.memory.estimate import MICRO_BATCH, forecast
from meshllm.core.memory.model_shape import ModelShape
from meshllm.core.records import NodeId, short
from meshllm.core.serving.placement import rendezvous_weight
from meshllm.util.format import gigabytes

# Each token passes all workers: a worker with a longer round trip (seconds) costs more than its memory is worth.
MAX_RTT_SECONDS = 0.080
# An unmeasured round trip counts as the longest allowed: the worker is used if no other suffices.
UNKNOWN_RTT_SECONDS = MAX_RTT_SECONDS
# More workers than this are not needed by models for machines at home, and each of them can fail.
MAX_MEMBERS = 16
# The speed of a node that was never measured: bytes of weights per second that the engine reads on a small desktop.
USUAL_BYTES_PER_SECOND = 20e9
# A plan with more nodes must be faster by this factor: forecasts are no better than that.
MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class SplitNeed:
    """The memory that a model needs, in bytes.

    `layers`: weights and context cache of each layer, in order. `weights`: bytes of each layer read for one token.
    `ends`: embedding, output and the host's own buffers. `buffers`: compute buffers on each node. `end_weights`: bytes
    of `ends` read for one token.
    """

    layers: tuple[int, ...]
    weights: tuple[int, ...]
    ends: int
    buffers: int
    end_weights: int = 0

    @property
    def total(self) -> int:
        """The memory needed on one node alone."""
        return sum(self.layers) + self.ends + self.buffers

    @property
    def token_bytes(self) -> int:
        """Bytes of weights read for one token."""
        return sum(self.weights) + self.end_weights


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """A node that could serve layers. `memory`: bytes offered. `rtt`: seconds from the host (None: unknown). `speed`:
    bytes of weights read per second (0: unknown). `devices`: bytes on each accelerator, if there are several. `name`:
    for users. `machine` and `machine_memory` are those of `NodeRecord`."""

    node: NodeId
    memory: int
    rtt: float | None = None
    speed: float = 0.0
    devices: tuple[int, ...] = ()
    name: str = ""
    machine: bytes = b""
    machine_memory: int = 0

    @property
    def called(self) -> str:
        """The name for users."""
        return self.name or short(self.node)

    @property
    def pieces(self) -> tuple[int, ...]:
        """The bytes of each accelerator, or of the whole memory."""
        return self.devices or (self.memory,)


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """The layers of one node: `layers` of them from `first` on. `memory`: bytes they need there. `devices`: the number
    of layers on each accelerator, in their order (empty: the memory is in one piece)."""

    node: NodeId
    first: int
    layers: int
    memory: int
    devices: tuple[int, ...] = ()

    @property
    def runs(self) -> tuple[int, ...]:
        """The number of layers on each device that has any."""
        return tuple(count for count in self.devices if count) or (self.layers,)


@dataclass(frozen=True, slots=True)
class SplitForecast:
    """The forecast for one team: the nodes, the host first, and the (corrected) seconds for one token."""

    nodes: tuple[NodeId, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The shares: the host's first, then the workers' in the order of the layers.

    `seconds`: forecast for one token, corrected by what was measured; `plain_seconds`: without that. `reason`: why this
    plan was chosen, for users. `considered`: all forecasts. `team`: what the forecast knew of the nodes.
    """

    shares: tuple[WorkerShare, ...]
    seconds: float
    reason: str
    considered: tuple[SplitForecast, ...] = ()
    plain_seconds: float = 0.0
    team: tuple[WorkerOffer, ...] = ()

    @property
    def corrected(self) -> bool:
        """Whether measurements changed the forecast by more than a tenth."""
        return self.plain_seconds > 0 and abs(self.seconds - self.plain_seconds) > 0.1 * self.plain_seconds

    @property
    def host(self) -> NodeId:
        """The node that runs llama-server."""
        return self.shares[0].node

    @property
    def members(self) -> tuple[WorkerShare, ...]:
        """The workers' shares."""
        return self.shares[1:]


@dataclass(frozen=True, slots=True)
class NoPlan:
    """The model cannot be served: `missing` more bytes are needed; `reason` is for users."""

    missing: int
    reason: str


Correct = Callable[[tuple[NodeId, ...], int, float], float]
"""(nodes, bytes of weights read for a token, forecast in seconds) -> the forecast corrected by what was measured."""


def uncorrected(nodes: tuple[NodeId, ...], token_bytes: int, seconds: float) -> float:
    """The `Correct` of a node that has measured nothing."""
    return seconds


def choose_host(offers: Iterable[WorkerOffer], model: str) -> NodeId | None:
    """The node that hosts a split of `model`: most memory, then the hash. None if there are no nodes."""
    best = max(offers, key=lambda offer: (offer.memory, rendezvous_weight(offer.node, model)), default=None)
    return best.node if best is not None else None


def plan(
    need: SplitNeed,
    host: WorkerOffer,
    others: Iterable[WorkerOffer],
    model: str,
    *,
    force: bool = False,
    correct: Correct = uncorrected,
) -> SplitPlan | NoPlan:
    """How `host` serves `model`: alone, or with workers out of `others`.

    With `force` (`--split`) never alone. Deterministic, whatever the order of `others`. The forecasts are corrected by
    `correct`, and so is the choice between the plans.
    """
    near = sorted(
        (offer for offer in others if offer.node != host.node and _rtt(offer) <= MAX_RTT_SECONDS),
        key=lambda offer: (offer.rtt is None, offer.rtt or 0.0, rendezvous_weight(offer.node, model)),
    )
    found: list[SplitPlan] = []
    on_host = _shared(need, (host,))
    if on_host is not None and not force:
        found.append(_plan(need, (host,), on_host, "the model fits on this node", correct))
    for members in _teams(near):
        shares = _shared(need, (host, *members))
        if shares is not None:
            found.append(_plan(need, (host, *members), shares, _reason(need, host, members, force), correct))
    if not found:
        return _no_plan(need, host, near, force=force)
    # Fewer workers first: one more must be faster by the margin.
    best = found[0]
    for other in found[1:]:
        if other.seconds * MARGIN < best.seconds:
            best = other
    return replace(best, considered=tuple(SplitForecast(tuple(s.node for s in p.shares), p.seconds) for p in found))


def _teams(near: Sequence[WorkerOffer]) -> list[tuple[WorkerOffer, ...]]:
    """The teams to try, smallest first: the nearest workers, one more each time, and each worker alone, because one may
    be much faster than the nearer ones."""
    teams = [tuple(near[:count]) for count in range(1, min(len(near), MAX_MEMBERS) + 1)]
    teams += [(offer,) for offer in near[1:MAX_MEMBERS]]
    return sorted(teams, key=len)


def _shared(need: SplitNeed, team: Sequence[WorkerOffer]) -> tuple[WorkerShare, ...] | None:
    """The shares of `team` in proportion to the nodes' free memory; None if the layers do not fit.

    Uses the smallest fraction of each node's memory that holds all layers, found by bisection. Each node gets at least
    one layer. The devices of a node are filled in order, each with its own buffers; a device that is too small for a
    layer gets none.
    """
    rooms = [[piece - need.buffers for piece in offer.pieces] for offer in counted_once(team)]
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
    for index, (offer, runs) in enumerate(zip(team, counts, strict=True)):
        count, used = sum(runs), len([run for run in runs if run])
        taken = sum(need.layers[first : first + count]) + need.buffers * used + (need.ends if index == 0 else 0)
        shares.append(WorkerShare(offer.node, first, count, taken, tuple(runs) if offer.devices else ()))
        first += count
    return tuple(shares)


def _counts(layers: Sequence[int], rooms: Sequence[Sequence[int]]) -> list[list[int]] | None:
    """The number of layers on each piece of memory, filled in order with one layer left for each following node; None
    if layers are left over or a node gets none."""
    counts: list[list[int]] = []
    at = 0
    for index, pieces in enumerate(rooms):
        last = len(layers) - (len(rooms) - index - 1)
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


def sharers(team: Sequence[WorkerOffer]) -> list[tuple[WorkerOffer, ...]]:
    """The nodes of `team` that run on one machine and take its memory and processor, machine by machine; a node that is
    alone on its machine, or has accelerators of its own, is left out."""
    found: dict[bytes, list[WorkerOffer]] = {}
    for offer in team:
        if offer.machine and offer.machine_memory > 0:
            found.setdefault(offer.machine, []).append(offer)
    return [tuple(group) for group in found.values() if len(group) > 1]


def counted_once(team: Sequence[WorkerOffer]) -> tuple[WorkerOffer, ...]:
    """`team` with the memory and the speed of each machine counted once: its nodes take equal parts of the speed, and
    parts of the memory as they offer it."""
    parts = {}
    for group in sharers(team):
        offered, there = sum(offer.memory for offer in group), min(offer.machine_memory for offer in group)
        for offer in group:
            memory = offer.memory if offered <= there else offer.memory * there // offered
            parts[offer.node] = replace(offer, memory=memory, speed=_speed(offer) / len(group))
    return tuple([parts.get(offer.node, offer) for offer in team])


def _plan(
    need: SplitNeed, team: Sequence[WorkerOffer], shares: tuple[WorkerShare, ...], reason: str, correct: Correct
) -> SplitPlan:
    return forecast_for(need, team, SplitPlan(shares, 0.0, reason), correct)


def forecast_for(need: SplitNeed, team: Sequence[WorkerOffer], found: SplitPlan, correct: Correct) -> SplitPlan:
    """`found` with the forecast for what is known of its nodes (`team`, in the order of the shares) now."""
    plain = seconds_per_token(need, team, found.shares)
    seconds = correct(tuple([offer.node for offer in team]), need.token_bytes, plain)
    return replace(found, seconds=seconds, plain_seconds=plain, team=tuple(team))


def seconds_per_token(need: SplitNeed, team: Sequence[WorkerOffer], shares: Sequence[WorkerShare]) -> float:
    """Seconds for one token: each node reads its weights, and the data goes from the host through the workers and back.

    The host cannot measure the path between two workers: it counts as the longer of their two paths to the host.
    """
    team = counted_once(team)
    seconds = need.end_weights / _speed(team[0])
    for offer, share in zip(team, shares, strict=True):
        seconds += sum(need.weights[share.first : share.first + share.layers]) / _speed(offer)
    return seconds + path_seconds(team)


def path_seconds(team: Sequence[WorkerOffer]) -> float:
    """Seconds that the data of a token travels: from the host, the first, through the workers and back."""
    ways = [_rtt(offer) / 2 for offer in team[1:]]
    return ways[0] + sum(max(one, two) for one, two in pairwise(ways)) + ways[-1] if ways else 0.0


def _speed(offer: WorkerOffer) -> float:
    return offer.speed or USUAL_BYTES_PER_SECOND


def _rtt(offer: WorkerOffer) -> float:
    return UNKNOWN_RTT_SECONDS if offer.rtt is None else offer.rtt


def _reason(need: SplitNeed, host: WorkerOffer, members: Sequence[WorkerOffer], force: bool) -> str:
    names = ", ".join(offer.called for offer in members)
    if need.total <= host.memory:
        return f"split with {names}, as requested" if force else f"split with {names}: the forecast is faster"
    serve = "serves" if len(members) == 1 else "serve"
    return f"needs {gigabytes(need.total)}, this node has {gigabytes(host.memory)}: {names} {serve} the rest"


def _no_plan(need: SplitNeed, host: WorkerOffer, near: Sequence[WorkerOffer], *, force: bool) -> NoPlan:
    limit = f"{MAX_RTT_SECONDS * 1000:.0f} ms"
    if not near and force and need.total <= host.memory:
        return NoPlan(0, f"a split was requested, and no idle node within {limit} has free memory")
    have = sum(offer.memory for offer in counted_once((host, *near)))
    missing = need.total + need.buffers * len(near) - have
    if not near:
        needs = f"needs {gigabytes(need.total)}, this node has {gigabytes(host.memory)}"
        return NoPlan(missing, f"{needs}: {gigabytes(missing)} more. No idle node within {limit} has free memory")
    # The sum may suffice while a layer does not fit into the rest of any node.
    missing = max(missing, max(need.layers, default=0))
    others = "1 idle node" if len(near) == 1 else f"{len(near)} idle nodes"
    needs = f"needs {gigabytes(need.total)}, this node and {others} have {gigabytes(have)} together"
    return NoPlan(missing, f"{needs}: {gigabytes(missing)} more")


def need_of(shape: ModelShape, size: ContextSize, micro_batch: int = MICRO_BATCH, *, beside: int = 0) -> SplitNeed:
    """The need of a model of that shape for `size`, by `forecast` (within some per cent). `beside`: further bytes that
    the host needs, such as an image encoder."""
    found = forecast(shape, size, micro_batch=micro_batch)
    return SplitNeed(
        layers=tuple(weights + cache for weights, cache in zip(found.weights, found.cache, strict=True)),
        weights=_read_by_layer(shape),
        ends=found.rest + found.scores + found.process + beside,
        buffers=found.compute,
        end_weights=_read_at_the_ends(shape),
    )


def token_bytes(shape: ModelShape) -> int:
    """Bytes of weights read for one token: the bound of the speed on nearly every machine."""
    return sum(_read_by_layer(shape)) + _read_at_the_ends(shape)


def _read_by_layer(shape: ModelShape) -> tuple[int, ...]:
    used = shape.experts_used / shape.experts if shape.experts else 1.0
    return tuple(0 if layer.idle else layer.weights - int(layer.experts * (1.0 - used)) for layer in shape.layers)


def _read_at_the_ends(shape: ModelShape) -> int:
    return shape.output + (shape.input if shape.tied else 0)
