"""Placement that follows demand, without gossip in detail: the cores' own counters and decisions, one shared view.

Every node sees the records of the others one step late, and a death two steps late. Callers ask for models by Zipf's
law, whose order changes every hour; nodes end and come back. An oracle that knows the popularity of the hour and needs
no time to load says what the same memory could serve.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate

import msgpack

from meshllm.core.demand.counter import DemandCounter
from meshllm.core.demand.mesh_demand import DemandClaim, DemandScore, scores
from meshllm.core.ids import NodeId
from meshllm.core.membership.failure_detector import heartbeat_seconds
from meshllm.core.records import MeshId, ModelLoad, NodeRecord, RecordVersion, ServedModel
from meshllm.core.serving.demand_placement import PLACEMENT_SECONDS, DemandPlacement, LoadingClaims
from meshllm.core.serving.placement import CONTEXT_PART, MIB, PlacementView
from meshllm.core.serving.pressure import PressureWatch
from meshllm.wire.mesh.codec import encode_record

GIB = 1 << 30
STEP = PLACEMENT_SECONDS
DEATH_STEPS = 2
MODELS, ON_DISK, SLOTS = 40, 3, 4
MEMORIES = (6 * GIB, 12 * GIB, 24 * GIB, 48 * GIB)
ANSWER_SECONDS, DRAIN_SECONDS = 10.0, 6.0
READ_BYTES_PER_SECOND = 2e9
SERVED_WITHIN = 60.0
SIGNATURE_BYTES = 64
SCORE_SECONDS = 30.0


@dataclass
class Figures:
    """What a run came to."""

    requests: int = 0
    served: int = 0
    oracle: int = 0
    moves: int = 0
    takes: int = 0
    steps_back: int = 0
    last_hosts_lost: int = 0
    node_hours: float = 0.0
    demand_bytes: int = 0  # of the field, and of records that were written for it, received by one node
    record_bytes: int = 0  # of all records received by one node
    rounds: float = 0.0

    @property
    def share(self) -> float:
        """Served requests, of those that the oracle serves."""
        return self.served / max(1, self.oracle)

    @property
    def moves_per_node_hour(self) -> float:
        """How often a node leaves a model by a decision of its own."""
        return (self.moves + self.steps_back) / max(1.0, self.node_hours)

    def words(self) -> str:
        """For people."""
        return (
            f"{self.requests:,} requests, {self.served:,} served within {SERVED_WITHIN:.0f} s of the first one, "
            f"oracle {self.oracle:,}: {self.share:.4f} of it\n"
            f"{self.takes} taken, {self.moves} moves, {self.steps_back} steps back: {self.moves_per_node_hour:.4f} "
            f"per node and hour; last hosts lost by decision: {self.last_hosts_lost}\n"
            f"demand: {self.demand_bytes / max(1.0, self.rounds):.0f} bytes per node and round of "
            f"{self.record_bytes / max(1.0, self.rounds):.0f} bytes of records "
            f"({100 * self.demand_bytes / max(1, self.record_bytes):.1f} %)"
        )


@dataclass
class LightNode:
    """A node without links."""

    record: NodeRecord
    placement: DemandPlacement = field(default_factory=DemandPlacement)
    counter: DemandCounter = field(default_factory=DemandCounter)
    pressure: PressureWatch = field(default_factory=PressureWatch)
    up: bool = True
    loaded_at: float = math.inf
    drained_at: float = math.inf
    written_at: float = -math.inf
    active: deque[float] = field(default_factory=deque)  # when each request ends


class DemandSimulation:
    """The mesh, its callers and the figures."""

    def __init__(self, nodes: int, seed: int, *, per_node_hour: float = 6.0, churn: float = 0.1) -> None:
        rng = self.rng = random.Random(seed)
        self.now, self.figures = 0.0, Figures()
        self.churn, self.rate = churn, nodes * per_node_hour / 3600.0
        self.models = [f"model-{number:02}" for number in range(MODELS)]
        self.sizes = {model: int(GIB * 0.5 * 80 ** rng.random()) for model in self.models}
        self.nodes = [LightNode(self._record(number)) for number in range(nodes)]
        self.by_id = {node.record.node: node for node in self.nodes}
        # What the others see, and what they will see: (when, node, record or None for a death).
        self.seen = {node.record.node: node.record for node in self.nodes}
        self._coming: deque[tuple[float, NodeId, NodeRecord | None]] = deque()
        self._claims = LoadingClaims()
        self._view: PlacementView | None = None
        self._scores: dict[str, DemandScore] = {}
        self._demand_changed = self._demand_new = True
        self._scored_at = 0.0
        self._needed = False
        self._back: list[tuple[float, LightNode]] = []
        self._pending: dict[str, tuple[float, int]] = {}  # first request for a model without a host, and how many
        self._order: list[str] = []
        self._weights = list(accumulate(1.0 / (place + 1) for place in range(MODELS)))
        self._oracle: set[str] = set()
        self._came_or_went = True
        self._heartbeat = heartbeat_seconds(nodes)
        self._known: set[str] = set()  # models that a record demands, loads or serves
        for node in self.nodes:
            node.written_at = -self.rng.random() * self._heartbeat

    def _record(self, number: int) -> NodeRecord:
        disk = tuple(sorted(self.rng.sample(self.models, ON_DISK)))
        return NodeRecord(
            NodeId(sha256(b"light %d" % number).digest()),
            RecordVersion(1, 1),
            MeshId(bytes(16)),
            name=f"node-{number}",
            software="mesh-llm/1.0",
            on_disk=disk,
            disk_sizes=tuple(self.sizes[model] // MIB for model in disk),
            memory=self.rng.choice(MEMORIES),
            certificate=bytes(158),
        )

    # -- time

    def run(self, hours: float) -> Figures:
        """Let `hours` pass."""
        hour = -1
        for _ in range(int(hours * 3600 / STEP)):
            if int(self.now // 3600) > hour:
                hour = int(self.now // 3600)
                self._order = self.rng.sample(self.models, MODELS)
                self._came_or_went = True
            self._end_and_return()
            if self._came_or_went:
                self._oracle, self._came_or_went = self._matched(), False
            self._deliver()
            self._ask()
            self._advance()
            self._decide()
            self._count()
            self.now += STEP
        for first, count in self._pending.values():
            self.figures.served += count if self.now - first < SERVED_WITHIN else 0
        return self.figures

    def _deliver(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            _, node, record = self._coming.popleft()
            before = self.seen.pop(node, None)
            if record is not None:
                self.seen[node] = record
            new = {entry.model for entry in record.demand} - self._scores.keys() if record is not None else set()
            self._demand_changed |= bool(new) or (before.demand if before else ()) != (record.demand if record else ())
            self._demand_new |= bool(new)
            if before is None or record is None or (before.serves, before.loading) != (record.serves, record.loading):
                self._view = None

    def _publish(self, node: LightNode, record: NodeRecord, *, for_demand: bool = False) -> None:
        node.record = replace(record, version=RecordVersion(1, record.version.version + 1))
        self._coming.append((self.now + STEP, record.node, node.record))
        node.written_at = self.now
        size = len(encode_record(node.record)) + SIGNATURE_BYTES
        self.figures.record_bytes += size
        self.figures.demand_bytes += size if for_demand else demand_bytes(node.record)

    def _count(self) -> None:
        self.figures.rounds += STEP
        self.figures.node_hours += len(self.seen) * STEP / 3600

    # -- churn

    def _end_and_return(self) -> None:
        for node in self.nodes:
            if node.up and self.rng.random() < self.churn * STEP / 3600:
                node.up, self._came_or_went = False, True
                node.loaded_at = node.drained_at = math.inf
                self._coming.append((self.now + DEATH_STEPS * STEP, node.record.node, None))
                self._back.append((self.now + self.rng.uniform(600, 1800), node))
        # Deaths are seen later than records: both queues are in order of time, if they are merged.
        self._coming = deque(sorted(self._coming, key=lambda entry: entry[0]))
        for entry in [entry for entry in self._back if entry[0] <= self.now]:
            self._back.remove(entry)
            node = entry[1]
            node.up, node.active, self._came_or_went = True, deque(), True
            node.placement, node.counter, node.pressure = DemandPlacement(), DemandCounter(), PressureWatch()
            self._publish(node, replace(node.record, serves=(), loading=(), demand=()))

    # -- callers

    def _ask(self) -> None:
        asked: dict[NodeId, dict[str, int]] = defaultdict(dict)
        count = _poisson(self.rng, self.rate * STEP)
        hosts = self._hosts()
        for _ in range(count):
            node = self.rng.choice(self.nodes)
            place = bisect(self._weights, self.rng.random() * self._weights[-1])
            model = self._order[min(place, MODELS - 1)]
            if not node.up:
                continue
            said = asked[node.record.node]
            said[model] = said.get(model, 0) + 1
            self.figures.requests += 1
            self.figures.oracle += model in self._oracle
            if model in hosts:
                self.figures.served += 1
                min(hosts[model], key=lambda host: len(host.active)).active.append(self.now + ANSWER_SECONDS)
            else:
                first, waiting = self._pending.get(model, (self.now, 0))
                self._pending[model] = (first, waiting + 1)
        for identity, said in asked.items():
            self.by_id[identity].counter.add(said, self.now)

    def _hosts(self) -> dict[str, list[LightNode]]:
        hosts: dict[str, list[LightNode]] = {}
        for node in self.nodes:
            if node.up and node.record.serves:
                hosts.setdefault(node.record.serves[0].name, []).append(node)
        return hosts

    # -- nodes

    def _advance(self) -> None:
        """Loads and drains end, loads change, demand decays."""
        for node in self.nodes:
            if not node.up:
                continue
            due = node.counter.next_deadline()
            if due is not None and due <= self.now:
                node.counter.review(self.now)
            self._publish_demand(node)
            if node.drained_at <= self.now:
                node.drained_at = math.inf
            if node.loaded_at <= self.now:
                node.loaded_at = math.inf
                model = _taken(node.placement)
                served = ServedModel(model, slots=SLOTS, size=self.sizes[model], on_demand=True)
                self._publish(node, replace(node.record, serves=(served,), loading=()))
                first, waiting = self._pending.pop(model, (self.now, 0))
                self.figures.served += waiting if self.now - first <= SERVED_WITHIN else 0
            if node.record.serves:
                while node.active and node.active[0] <= self.now:
                    node.active.popleft()
                name = node.record.serves[0].name
                if node.pressure.update([ModelLoad(name, len(node.active), 0)], {name: SLOTS}, self.now):
                    served = replace(node.record.serves[0], pressed=name in node.pressure.pressed)
                    self._publish(node, replace(node.record, serves=(served,)))

    def _publish_demand(self, node: LightNode) -> None:
        """As `NodeDemand`: at once if no record has the model, else with the next heartbeat."""
        if node.counter.levels is not node.record.demand and node.counter.levels != node.record.demand:
            known = {entry.model for entry in node.record.demand}
            new = {entry.model for entry in node.counter.levels} - known
            told = not new or all(model in self._known for model in new)
            if not told or self.now - node.written_at >= self._heartbeat:
                self._publish(node, replace(node.record, demand=node.counter.levels), for_demand=not told)
        if self.now - node.written_at >= self._heartbeat:
            self._publish(node, node.record)

    def _decide(self) -> None:
        # What is asked for elsewhere is added up often enough; what no record had before, at once.
        if self._demand_changed and (self._demand_new or self.now - self._scored_at >= SCORE_SECONDS):
            self._scored_at, self._demand_new = self.now, False
            self._scores = scores([DemandClaim(record, node, True) for node, record in self.seen.items()])
            self._demand_changed, self._view = False, None
        if self._view is None:
            self._known = set(self._scores)
            for record in self.seen.values():
                self._known.update(record.loading, (served.name for served in record.serves))
            records = self._claims.believed(self.seen.values(), self.now)
            self._view = PlacementView(records, self._scores, self.seen.keys())
        view = self._view
        able = {node for need in view.needs for node in view.candidates(need.model)}
        needed = bool(view.needs) or self._needed
        self._needed = bool(view.needs)
        for node in self.nodes:
            if not node.up or node.record.node not in self.seen:
                continue
            if node.placement.busy or (needed and node.record.node in able):
                self._step(node, view)

    def _step(self, node: LightNode, view: PlacementView) -> None:
        placement, record = node.placement, node.record
        serving = bool(record.serves)
        before = _taken(placement)
        free = not before and not serving and node.drained_at == math.inf
        moves = bool(placement.reserved)
        step = placement.decide(view, record, self.now, free=free, serving=[before] if serving else [], failed={})
        if not step.changed:
            return
        if step.release:
            others = [n for n in self._hosts().get(before, ()) if n is not node]
            if serving and not others and view.score(before).score > 0.0:
                self.figures.last_hosts_lost += 1
            self.figures.moves += moves
            self.figures.steps_back += not moves
            node.loaded_at, node.drained_at = math.inf, self.now + DRAIN_SECONDS * serving
            node.active.clear()
        if step.take:
            self.figures.takes += 1
            node.loaded_at = self.now + 4.0 + self.sizes[step.take] / READ_BYTES_PER_SECOND
        loading = list(placement.taken) if node.loaded_at < math.inf else []
        loading += [placement.reserved] if placement.reserved else []
        serves = () if step.release else tuple([replace(m, movable=m.name == placement.movable) for m in record.serves])
        self._publish(node, replace(record, serves=serves, loading=tuple(loading)))

    # -- the oracle

    def _matched(self) -> set[str]:
        """The most popular models that the living nodes can serve together, one each: a greedy matching with
        augmenting paths is the best one, for the models that can be matched are a matroid."""
        able: dict[str, list[int]] = {model: [] for model in self.models}
        for number, node in enumerate(self.nodes):
            if node.up:
                for model in node.record.on_disk:
                    if self.sizes[model] * (1 + CONTEXT_PART) <= node.record.memory:
                        able[model].append(number)
        holder: dict[int, str] = {}

        def place(model: str, tried: set[int]) -> bool:
            for number in able[model]:
                if number not in tried:
                    tried.add(number)
                    if number not in holder or place(holder[number], tried):
                        holder[number] = model
                        return True
            return False

        return {model for model in self._order if place(model, set())}


def _taken(placement: DemandPlacement) -> str:
    """The model that a node took."""
    return next(iter(placement.taken), "")


def demand_bytes(record: NodeRecord) -> int:
    """The length of the field in a record."""
    return len(msgpack.packb([(entry.model, entry.level) for entry in record.demand]))


def _poisson(rng: random.Random, mean: float) -> int:
    count, product, limit = 0, rng.random(), math.exp(-mean)
    while product > limit:
        count, product = count + 1, product * rng.random()
    return count


def main(arguments: list[str]) -> int:
    """`scripts/sim demand`: play it and print the figures; the exit code is 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="scripts/sim demand", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--churn", type=float, default=0.1, help="part of the nodes that end in an hour")
    parser.add_argument("--requests", type=float, default=6.0, help="of one node's callers in an hour")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    simulation = DemandSimulation(options.nodes, options.seed, per_node_hour=options.requests, churn=options.churn)
    figures = simulation.run(options.hours)
    work = time.perf_counter() - begun
    print(figures.words())
    print(f"{options.nodes} nodes, {options.hours:g} h, seed {options.seed}: {work:.0f} s of work")
    missed = figures.share < 0.99 or figures.moves_per_node_hour > 0.5 or figures.last_hosts_lost > 0
    return 1 if missed else 0
