"""Placement that follows demand, without gossip in detail: the cores' own counters and decisions, one shared view.

Every node sees the records of the others one step late, and a death two steps late. A part of the nodes are standbys
with memory and some of the models on their disks; the callers of all nodes ask. In each hour the callers of a node use
a few models, drawn anew by Zipf's law over an order of the models that is new, too: what was hot is cold at once.
Memory is scarce: the requests need most of the standbys, hot models several of them. Requests wait for a slot, and give
up after `SERVED_WITHIN`. Nodes end and come back. `demand_oracle.py` says what the same memory could reach.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import math
import pickle
import random
import sys
import time
from bisect import bisect
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from meshllm.core.demand.counter import DemandCounter
from meshllm.core.demand.levels import DemandLevel, keyed, model_key
from meshllm.core.demand.mesh_demand import DemandClaim, DemandScore, scores
from meshllm.core.ids import NodeId
from meshllm.core.membership.broadcast import MEASURED_BURST, MEASURED_PER_SECOND
from meshllm.core.membership.failure_detector import heartbeat_seconds
from meshllm.core.records import MeshId, ModelLoad, NodeRecord, RecordVersion, ServedModel
from meshllm.core.serving.demand_placement import PLACEMENT_SECONDS, DemandPlacement, LoadingClaims
from meshllm.core.serving.placement import MIB, PlacementView, holds
from meshllm.core.serving.pressure import PressureWatch
from meshllm.util.rate_limiter import TokenBucket
from meshllm.wire.mesh.records import ENTRY_BYTES, encode_record
from tests.sim.demand_oracle import answerable, coverable

GIB = 1 << 30
STEP = PLACEMENT_SECONDS
DEATH_STEPS = 2
MODELS, ON_DISK, SLOTS = 40, 8, 4
SMALLEST, LARGEST = 0.5, 40.0  # GiB of a model's file; sizes are log-uniform
MEMORIES = (6 * GIB, 12 * GIB, 24 * GIB, 48 * GIB)
ANSWER_SECONDS = 30.0  # on average; exponentially distributed
LOAD_SECONDS, READ_BYTES_PER_SECOND = 4.0, 2e9  # of a model: at least, and besides for each byte
AWAY_SECONDS = (600.0, 1800.0)
SERVED_WITHIN = 60.0
SIGNATURE_BYTES = 64
SCORE_SECONDS = 30.0
# The bars.
SHARE, MOVES_PER_NODE_HOUR = 0.99, 0.5


@dataclass(frozen=True)
class Setting:
    """The mesh and its callers. `standbys`: part of the nodes that may take a model; `load`: part of the slots of all
    standbys that the requests take on average; `churn`: part of the nodes that end in an hour; `choices`: models that
    the callers of one node use in an hour."""

    nodes: int = 1000
    seed: int = 1
    standbys: float = 0.1
    load: float = 0.5
    churn: float = 0.1
    choices: int = 3


@dataclass
class Figures:
    """What a run came to."""

    requests: int = 0
    served: int = 0  # the model had a host within 60 s of the first request for it
    coverable: int = 0  # as far as any living node could serve the model
    answered: int = 0  # the request itself got a slot within 60 s
    answerable: float = 0.0
    moves: int = 0
    takes: int = 0
    steps_back: int = 0
    last_hosts_lost: int = 0  # of a wanted model, or of one with a request
    node_hours: float = 0.0  # of living standbys
    demand_bytes: int = 0  # of the field, and of records that were written for it, received by one node
    record_bytes: int = 0  # of all records received by one node
    rounds: float = 0.0

    @property
    def share(self) -> float:
        """Requests whose model was served, of those that the oracle serves."""
        return self.served / max(1, self.coverable)

    @property
    def answered_share(self) -> float:
        """Requests that got a slot in time, of those that the oracle answers."""
        return self.answered / max(1.0, self.answerable)

    @property
    def moves_per_node_hour(self) -> float:
        """How often a standby leaves a model by a decision of its own."""
        return (self.moves + self.steps_back) / max(1.0, self.node_hours)

    @property
    def missed(self) -> bool:
        """Whether a bar is missed."""
        return self.share < SHARE or self.moves_per_node_hour > MOVES_PER_NODE_HOUR or self.last_hosts_lost > 0

    def words(self) -> str:
        """For people."""
        return (
            f"{self.requests:,} requests; model served within {SERVED_WITHIN:.0f} s of the first one: {self.served:,} "
            f"of the oracle's {self.coverable:,}: {self.share:.4f}\n"
            f"got a slot within {SERVED_WITHIN:.0f} s: {self.answered:,} of the oracle's {self.answerable:,.0f}: "
            f"{self.answered_share:.4f}\n"
            f"{self.takes} taken, {self.moves} moves, {self.steps_back} steps back: {self.moves_per_node_hour:.4f} "
            f"per standby and hour; last hosts lost by decision: {self.last_hosts_lost}\n"
            f"demand: {self.demand_bytes / max(1.0, self.rounds):.0f} bytes per node and round of "
            f"{self.record_bytes / max(1.0, self.rounds):.0f} bytes of records "
            f"({100 * self.demand_bytes / max(1, self.record_bytes):.1f} %)"
        )

    def line(self) -> str:
        """For people, short."""
        return (
            f"served {self.share:.4f}, slots {self.answered_share:.4f} of the oracle, "
            f"{self.moves_per_node_hour:.3f} moves per standby and hour, {self.last_hosts_lost} last hosts lost"
        )


@dataclass
class LightNode:
    """A node without links."""

    record: NodeRecord
    rng: random.Random
    standby: bool
    choices: tuple[str, ...] = ()
    placement: DemandPlacement = field(default_factory=DemandPlacement)
    counter: DemandCounter = field(default_factory=DemandCounter)
    pressure: PressureWatch = field(default_factory=PressureWatch)
    bucket: TokenBucket = field(default_factory=lambda: TokenBucket(MEASURED_PER_SECOND, MEASURED_BURST, 0.0))
    shown: tuple[DemandLevel, ...] | None = None  # the levels as of the record
    stale: bool = False  # flags of the served model have changed since the record was written
    up: bool = True
    loaded_at: float = math.inf
    drained_at: float = -math.inf
    written_at: float = -math.inf
    active: list[float] = field(default_factory=list)  # a heap of when each request ends


class DemandSimulation:
    """The mesh, its callers and the figures."""

    def __init__(self, setting: Setting) -> None:
        rng = self.rng = random.Random(setting.seed)
        self.setting, self.now, self.figures = setting, 0.0, Figures()
        self.models = [f"Model-{number:02}-Instruct-Q4_K_M" for number in range(MODELS)]
        self.sizes = {model: int(GIB * SMALLEST * (LARGEST / SMALLEST) ** rng.random()) for model in self.models}
        standbys = max(1, round(setting.nodes * setting.standbys))
        self.nodes = [self._node(number, standby=number < standbys) for number in range(setting.nodes)]
        self.standbys = self.nodes[:standbys]
        self.by_id = {node.record.node: node for node in self.nodes}
        # Requests per second; those of nodes that are away are not made.
        self.rate = setting.load * standbys * SLOTS / ANSWER_SECONDS
        # What the others see, and what they will see: (when, node, record or None for a death).
        self.seen = {node.record.node: node.record for node in self.nodes}
        self._coming: list[tuple[float, int, NodeId, NodeRecord | None]] = []
        self._count = 0
        self._claims = LoadingClaims()
        self._view: PlacementView | None = None
        self._scores: dict[str, DemandScore] = {}
        self._demand_changed = self._demand_new = True
        self._scored_at = 0.0
        self._needed = False
        self._back: list[tuple[float, LightNode]] = []
        self._pending: dict[str, tuple[float, int]] = {}  # first request for a model without a host, and how many
        self._queues: dict[str, deque[float]] = {model: deque() for model in self.models}  # when each was asked
        self._hour = -1
        self._oracle: tuple[set[str], dict[str, float]] = (set(), {})
        self._changed = True  # the oracle has to look again
        self._heartbeat = heartbeat_seconds(setting.nodes)
        self._known: set[str] = set()  # models that a record demands, loads or serves
        self._known_keys: set[int] = set()  # of the models in `_scores`
        for node in self.nodes:
            node.written_at = -self.rng.random() * self._heartbeat

    def _node(self, number: int, *, standby: bool) -> LightNode:
        disk = tuple(sorted(self.rng.sample(self.models, ON_DISK))) if standby else ()
        record = NodeRecord(
            NodeId(sha256(b"light %d" % number).digest()),
            RecordVersion(1, 1),
            MeshId(bytes(16)),
            name=f"node-{number}",
            software="mesh-llm/1.0",
            on_disk=disk,
            disk_sizes=tuple(self.sizes[model] // MIB for model in disk),
            memory=self.rng.choice(MEMORIES) if standby else 0,
            idle=not standby,
            certificate=bytes(158),
        )
        return LightNode(record, random.Random(self.rng.random()), standby)

    # -- time

    def run(self, hours: float, each: Callable[[], None] = lambda: None) -> Figures:
        """Let time pass until `hours` are over; `each` is called after every step."""
        while self.now < hours * 3600 - STEP / 2:
            if int(self.now // 3600) > self._hour:
                self._hour = int(self.now // 3600)
                self._shift()
            self._end_and_return()
            if self._changed:
                self._oracle, self._changed = self._bounds(), False
            self._deliver()
            self._ask()
            self._advance()
            self._answer()
            self._decide()
            self.figures.rounds += STEP
            self.figures.node_hours += sum(node.up for node in self.standbys) * STEP / 3600
            self.now += STEP
            each()
        return self.figures

    def _shift(self) -> None:
        """Another hour: the callers use other models."""
        order = self.rng.sample(self.models, MODELS)
        weights = list(accumulate(1.0 / (place + 1) for place in range(MODELS)))
        for node in self.nodes:
            node.choices = tuple(
                order[min(bisect(weights, self.rng.random() * weights[-1]), MODELS - 1)]
                for _ in range(self.setting.choices)
            )
        self._changed = True

    def _bounds(self) -> tuple[set[str], dict[str, float]]:
        """What the oracle serves and answers with the nodes that live now."""
        able: dict[str, list[int]] = {model: [] for model in self.models}
        for number, node in enumerate(self.standbys):
            if node.up:
                for model in node.record.on_disk:
                    if holds(node.record, model):
                        able[model].append(number)
        wanted = dict.fromkeys(self.models, 0.0)
        each = self.rate * ANSWER_SECONDS / (len(self.nodes) * self.setting.choices)
        for node in self.nodes:
            for model in node.choices if node.up else ():
                wanted[model] += each
        return coverable(able), answerable(able, wanted, SLOTS)

    def _deliver(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            _, _, node, record = heapq.heappop(self._coming)
            before = self.seen.pop(node, None)
            if record is not None:
                self.seen[node] = record
            new = {entry.key for entry in record.demand} - self._known_keys if record is not None else set()
            self._demand_changed |= bool(new) or (before.demand if before else ()) != (record.demand if record else ())
            self._demand_new |= bool(new)
            self._known_keys |= new
            if before is None or record is None or (before.serves, before.loading) != (record.serves, record.loading):
                self._view = None

    def _send(self, late: float, node: NodeId, record: NodeRecord | None) -> None:
        self._count += 1
        heapq.heappush(self._coming, (self.now + late, self._count, node, record))

    def _publish(self, node: LightNode, record: NodeRecord, *, for_demand: bool = False) -> None:
        movable, pressed = node.placement.movable, node.pressure.pressed
        if movable or pressed or any(m.movable or m.pressed for m in record.serves):
            serves = [replace(m, movable=m.name == movable, pressed=m.name in pressed) for m in record.serves]
            record = replace(record, serves=tuple(serves))
        node.record = replace(record, version=RecordVersion(1, record.version.version + 1))
        self._send(STEP, record.node, node.record)
        node.written_at, node.stale = self.now, False
        size = len(encode_record(node.record)) + SIGNATURE_BYTES
        self.figures.record_bytes += size
        self.figures.demand_bytes += size if for_demand else demand_bytes(node.record)

    # -- churn

    def _end_and_return(self) -> None:
        for node in self.nodes:
            if node.up and self.rng.random() < self.setting.churn * STEP / 3600:
                node.up, self._changed = False, True
                node.loaded_at = math.inf
                self._send(DEATH_STEPS * STEP, node.record.node, None)
                self._back.append((self.now + self.rng.uniform(*AWAY_SECONDS), node))
        for entry in [entry for entry in self._back if entry[0] <= self.now]:
            self._back.remove(entry)
            node = entry[1]
            node.up, node.active, self._changed = True, [], True
            node.placement, node.counter, node.pressure = DemandPlacement(), DemandCounter(), PressureWatch()
            self._publish(node, replace(node.record, serves=(), loading=(), demand=()))

    # -- callers

    def _ask(self) -> None:
        asked: dict[NodeId, dict[str, int]] = defaultdict(dict)
        served, (possible, parts), figures = self._hosts().keys(), self._oracle, self.figures
        for _ in range(_poisson(self.rng, self.rate * STEP)):
            node = self.nodes[int(self.rng.random() * len(self.nodes))]
            if not node.up:
                continue
            model = node.choices[int(self.rng.random() * len(node.choices))]
            said = asked[node.record.node]
            said[model] = said.get(model, 0) + 1
            figures.requests += 1
            figures.coverable += model in possible
            figures.answerable += parts[model]
            self._queues[model].append(self.now)
            if model in served:
                figures.served += 1
            else:
                first, waiting = self._pending.get(model, (self.now, 0))
                self._pending[model] = (first, waiting + 1)
        for identity, said in asked.items():
            self.by_id[identity].counter.add(said, self.now)

    def _hosts(self) -> dict[str, list[LightNode]]:
        hosts: dict[str, list[LightNode]] = {}
        for node in self.standbys:
            if node.up and node.record.serves:
                hosts.setdefault(node.record.serves[0].name, []).append(node)
        return hosts

    def _answer(self) -> None:
        """Requests get free slots, the oldest first; the others give up in time. Hosts see who waits."""
        hosts = self._hosts()
        for model, queue in self._queues.items():
            while queue and queue[0] < self.now - SERVED_WITHIN:
                queue.popleft()
            nodes = hosts.get(model, ())
            for node in nodes:
                while node.active and node.active[0] <= self.now:
                    heapq.heappop(node.active)
            for busy in range(SLOTS) if queue else ():
                for node in nodes:
                    if queue and len(node.active) <= busy:
                        queue.popleft()
                        self.figures.answered += 1
                        heapq.heappush(node.active, self.now + self.rng.expovariate(1.0 / ANSWER_SECONDS))
            waiting = -(-len(queue) // len(nodes)) if nodes else 0
            for node in nodes:
                if node.pressure.update([ModelLoad(model, len(node.active), waiting)], {model: SLOTS}, self.now):
                    node.stale = True

    # -- nodes

    def _advance(self) -> None:
        """Loads end, demand decays, records are renewed."""
        for node in self.nodes:
            if not node.up:
                continue
            due = node.counter.next_deadline()
            if due is not None and due <= self.now:
                node.counter.review(self.now)
            if node.counter.levels is not node.shown:
                self._publish_demand(node)
            if node.loaded_at <= self.now:
                node.loaded_at = math.inf
                self._loaded(node, _taken(node.placement))
            if (node.stale and node.bucket.take(self.now)) or self.now - node.written_at >= self._heartbeat:
                self._publish(node, node.record)

    def _loaded(self, node: LightNode, model: str) -> None:
        served = ServedModel(model, slots=SLOTS, size=self.sizes[model], on_demand=True)
        self._publish(node, replace(node.record, serves=(served,), loading=()))
        first, waiting = self._pending.pop(model, (self.now, 0))
        self.figures.served += waiting if self.now - first <= SERVED_WITHIN else 0

    def _publish_demand(self, node: LightNode) -> None:
        """As `NodeDemand`: at once if no record has the model, else with the next heartbeat."""
        node.shown = node.counter.levels
        demand = keyed(node.counter.levels)
        if demand == node.record.demand:
            return
        known = {entry.key for entry in node.record.demand}
        told = all(model_key(entry.model) in known or entry.model in self._known for entry in node.counter.levels)
        if not told or self.now - node.written_at >= self._heartbeat:
            self._publish(node, replace(node.record, demand=demand), for_demand=not told)
        else:
            node.shown = None

    def _decide(self) -> None:
        # What is asked for elsewhere is added up often enough; what no record had before, at once.
        if self._demand_changed and (self._demand_new or self.now - self._scored_at >= SCORE_SECONDS):
            self._scored_at, self._demand_new = self.now, False
            self._scores = scores([DemandClaim(record, node, True) for node, record in self.seen.items()])
            self._known_keys = {model_key(model) for model in self._scores}
            self._demand_changed, self._view = False, None
        if self._view is None:
            self._known = set(self._scores)
            for record in self.seen.values():
                self._known.update(record.loading, (served.name for served in record.serves))
            records = self._claims.believed(self.seen.values(), self.now)
            self._view = PlacementView(records, self._scores, set(self.seen))
        view = self._view
        able = {node for need in view.needs for node in view.candidates(need.model)}
        needed = bool(view.needs) or self._needed
        self._needed = bool(view.needs)
        for node in self.standbys:
            decides = node.placement.busy or (needed and node.record.node in able)
            if decides and node.up and node.record.node in self.seen:
                self._step(node, view)

    def _step(self, node: LightNode, view: PlacementView) -> None:
        placement, record = node.placement, node.record
        serving = bool(record.serves)
        before, moved = _taken(placement), bool(placement.reserved)
        free = not before and not serving and node.drained_at <= self.now
        movable = placement.movable
        step = placement.decide(view, record, self.now, free=free, serving=[before] if serving else [], failed={})
        node.stale |= placement.movable != movable
        if not step.take and not step.release and (placement.reserved,) == (record.loading or ("",)):
            return
        if step.release:
            self._leave(node, view, before, moved=moved)
        if step.take:
            self.figures.takes += 1
            node.loaded_at = self.now + LOAD_SECONDS + self.sizes[step.take] / READ_BYTES_PER_SECOND
        loading = list(placement.taken) if node.loaded_at < math.inf else []
        loading += [placement.reserved] if placement.reserved else []
        if step.take or step.release or tuple(loading) != record.loading:
            serves = () if step.release else record.serves
            self._publish(node, replace(record, serves=serves, loading=tuple(loading)))

    def _leave(self, node: LightNode, view: PlacementView, model: str, *, moved: bool) -> None:
        """`node` leaves its model: its answers end first."""
        serving = bool(node.record.serves)
        others = any(other is not node for other in self._hosts().get(model, ()))
        wanted = view.score(model).score > 0.0 or bool(self._queues[model]) or bool(node.active)
        self.figures.last_hosts_lost += serving and not others and wanted
        self.figures.moves += moved
        self.figures.steps_back += not moved
        node.loaded_at, node.drained_at = math.inf, max(node.active, default=self.now)
        node.active = []


def _taken(placement: DemandPlacement) -> str:
    """The model that a node took."""
    return next(iter(placement.taken), "")


def demand_bytes(record: NodeRecord) -> int:
    """The length of the field in a record."""
    return len(record.demand) * ENTRY_BYTES + 2


def _poisson(rng: random.Random, mean: float) -> int:
    count = 0
    while mean > 50.0:  # the product below would be too small a number
        count, mean = count + _poisson(rng, 50.0), mean - 50.0
    product, limit = rng.random(), math.exp(-mean)
    while product > limit:
        count, product = count + 1, product * rng.random()
    return count


def play(setting: Setting, hours: float, console: Console, kept: Path | None = None) -> int:
    """Play it with a moving display and a line for each hour; 1 if a bar is missed. `kept`: a file to which the state
    is written each hour, and from which an interrupted run goes on."""
    simulation = DemandSimulation(setting)
    if kept is not None and kept.exists():
        found: DemandSimulation = pickle.loads(kept.read_bytes())
        if found.setting != setting:
            console.print(f"{kept} is of another setting: {found.setting}")
            return 2
        simulation = found
    begun = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("demand", total=hours * 3600, completed=simulation.now)

        def each() -> None:
            progress.update(task, completed=simulation.now, description=f"hour {simulation.now / 3600:.1f}")
            if simulation.now % 3600 < STEP:
                work = time.perf_counter() - begun
                console.print(f"hour {simulation.now / 3600:2.0f}: {simulation.figures.line()} ({work:.0f} s of work)")
                if kept is not None:
                    beside = kept.with_name(kept.name + ".new")
                    beside.write_bytes(pickle.dumps(simulation))
                    beside.replace(kept)

        try:
            simulation.run(hours, each)
        except KeyboardInterrupt:
            console.print(f"interrupted in hour {simulation.now / 3600:.2f}")
    figures = simulation.figures
    console.print(figures.words(), highlight=False)
    work = time.perf_counter() - begun
    console.print(f"{setting}, {simulation.now / 3600:.2f} h: {work:.0f} s of work", highlight=False)
    return 1 if figures.missed else 0


def main(arguments: list[str]) -> int:
    """`scripts/sim demand`: play it and print the figures; the exit code is 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="scripts/sim demand", description=__doc__)
    parser.add_argument("--nodes", type=int, default=Setting.nodes)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=Setting.seed)
    parser.add_argument("--standbys", type=float, default=Setting.standbys, help="part that may take a model")
    parser.add_argument("--load", type=float, default=Setting.load, help="part of all slots that the requests take")
    parser.add_argument("--churn", type=float, default=Setting.churn, help="part of the nodes that end in an hour")
    parser.add_argument("--choices", type=int, default=Setting.choices, help="models of one node's callers in an hour")
    parser.add_argument("--keep", type=Path, help="write the state to this file each hour, and go on from it")
    options = parser.parse_args(arguments)
    gc.disable()  # long-lived objects: looking for cycles would be a part of the work
    setting = Setting(options.nodes, options.seed, options.standbys, options.load, options.churn, options.choices)
    console = Console(width=160) if not sys.stdout.isatty() else Console()
    return play(setting, options.hours, console, options.keep)
