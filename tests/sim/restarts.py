"""A pipeline split whose nodes are restarted at some distance from one another, on virtual time.

The engine, the files and the memory of the nodes are simulated: every command is answered, late by a random time. The
machine is observed only once, after a start: no later event of the machine may be what gets a waiting node going.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.context_size import ContextSize
from meshllm.core.snapshot import ModelFacts, ServerFacts, ServerPhase
from meshllm.core.split.host import MeasuredModel, SizeNeed
from meshllm.core.split.lease import LeasedFile
from meshllm.core.split.planner import SplitNeed
from tests.core.waits import check_waits
from tests.sim.network import Network
from tests.sim.simulation import SimulatedNode, Simulation

MODEL = "m"
NEED = SplitNeed((100,) * 12, (100,) * 12, 50, 10)  # 1,260 bytes on one node alone
FILES = (LeasedFile("m.gguf", 1000, "ab" * 32),)
# What the daemon takes to answer a command, in seconds: at least, and at most. As measured for a small model.
MACHINE_SECONDS = (0.05, 0.5)
FILE_SECONDS = (0.02, 0.3)
ENGINE_SECONDS = (0.05, 0.4)
MEASURE_SECONDS = (0.2, 1.0)
WORKER_SECONDS = (0.1, 0.8)
SERVER_SECONDS = (0.3, 1.5)
STOP_SECONDS = (0.05, 0.5)

# The bar: after the last start the model is served again within this time.
SERVED_AGAIN_SECONDS = 10.0
# The whole grid of `scripts/sim restarts`: distances from 0 to 10 s.
STEP_SECONDS, STEPS = 0.1, 100
# Until the split is served for the first time.
FIRST_SECONDS = 30.0
# How long it is served before the nodes end: longer than it takes to remember the peers.
SERVING_SECONDS = 12.0


class Ending(Enum):
    """How the nodes end before they are started again."""

    STOPPED = "stopped"  # in order
    KILLED = "killed"  # a power cut: nobody says goodbye
    ROLLING = "rolling"  # one after the other, while the others run; each is started again at once


class SplitSimulation(Simulation):
    """Nodes with memory and simulated engines. `rooms`: bytes of each node; node 0 is asked to serve the model."""

    def __init__(self, seed: int, rooms: tuple[int, ...]) -> None:
        super().__init__(seed, Network(random.Random(seed + 1), delay=(0.0005, 0.005)))
        self._chance = random.Random(seed + 2)
        self.rooms = rooms
        self.add(len(rooms))
        for command, answer in {
            c.PrepareEngine: self._prepare_engine,
            c.FetchModel: self._fetch_slowly,
            c.MeasureModel: self._measure_slowly,
            c.StartServer: self._start_server_slowly,
            c.StopServer: self._stop_server,
            c.StartWorker: self._start_worker,
            c.StopWorker: self._stop_worker,
            c.OpenAhead: lambda node, command: None,
        }.items():
            self._hands[command] = answer

    def boot(self, index: int, *, join: bool = False) -> None:
        """Start a daemon; `join`: with an invite to node 0."""
        node = self.nodes[index]
        self.start(index, (self.nodes[0].way(),) if join else ())
        self._soon(node, MACHINE_SECONDS, e.MachineObserved(self.rooms[index]))
        if index == 0:
            self.tell(index, e.ModelWanted(MODEL))

    def served(self) -> bool:
        """Whether node 0 serves the model with workers that hold its lease."""
        host = self.nodes[0].core
        state = host.snapshot().model(MODEL) if host is not None else None
        if state is None or state.server is not ServerPhase.SERVING or state.split is None:
            return False
        lease = state.split.lease
        workers = [self.by_id[node].core for node in lease.members] if lease is not None else []
        held = [core.snapshot().worker_lease if core is not None else None for core in workers]
        return bool(held) and all(one is not None and one.lease == lease for one in held)

    def _handle(self, node: SimulatedNode, event: e.Event) -> None:
        super()._handle(node, event)
        if node.core is not None:
            check_waits(node.core, node.clock(self.now))

    def _soon(self, node: SimulatedNode, span: tuple[float, float], event: e.Event) -> None:
        self._later(self._chance.uniform(*span), node, event)

    # -- the daemon's answers

    def _prepare_engine(self, node: SimulatedNode, command: c.PrepareEngine) -> None:
        self._soon(node, ENGINE_SECONDS, e.EngineReady("simulated"))

    def _fetch_slowly(self, node: SimulatedNode, command: c.FetchModel) -> None:
        self._soon(node, FILE_SECONDS, e.FileReady(command.model, ModelFacts("/m.gguf", 1000, "llama", 8192)))

    def _measure_slowly(self, node: SimulatedNode, command: c.MeasureModel) -> None:
        room = self.rooms[node.index]
        sizes = (SizeNeed(ContextSize(4096, 1), NEED),)
        self._soon(
            node,
            MEASURE_SECONDS,
            e.ModelMeasured(command.model, MeasuredModel(NEED.total <= room, room, sizes, FILES)),
        )

    def _start_server_slowly(self, node: SimulatedNode, command: c.StartServer) -> None:
        """The engine needs its workers while it loads: without one it dies."""
        lease = command.lease
        for member in lease.members if lease is not None else ():
            core = self.by_id[member].core
            if core is None or member not in node.links:
                gone = e.ServerGone(command.model, command.generation, "a worker cannot be reached")
                self._soon(node, SERVER_SECONDS, gone)
                return
        facts = ServerFacts("/run/server", 1, 1, 4096)
        self._soon(node, SERVER_SECONDS, e.ServerReady(command.model, command.generation, facts))

    def _stop_server(self, node: SimulatedNode, command: c.StopServer) -> None:
        self._soon(node, STOP_SECONDS, e.ServerGone(command.model, command.generation, "it was stopped"))

    def _start_worker(self, node: SimulatedNode, command: c.StartWorker) -> None:
        self._soon(node, WORKER_SECONDS, e.WorkerReady(command.lease.session, command.lease.generation))

    def _stop_worker(self, node: SimulatedNode, command: c.StopWorker) -> None:
        self._soon(node, STOP_SECONDS, e.WorkerGone(command.session, command.generation, "it was stopped"))


@dataclass(frozen=True, slots=True)
class Restart:
    """One case: `nodes` of a split end, and start again in `order`, each `distance` seconds after the one before."""

    nodes: int
    distance: float
    seed: int
    ending: Ending
    order: tuple[int, ...]

    def __str__(self) -> str:
        order = ",".join(map(str, self.order))
        return f"{self.nodes} nodes, {self.distance:.1f} s apart, {self.ending.value}, order {order}, seed {self.seed}"


def case(nodes: int, distance: float, seed: int) -> Restart:
    """The case of a seed, which chooses how the nodes end and in which order they start."""
    rng = random.Random(seed * 1000 + nodes)
    order = list(range(nodes))
    rng.shuffle(order)
    return Restart(nodes, distance, seed, tuple(Ending)[seed % len(Ending)], tuple(order))


def grid(nodes: tuple[int, ...], distances: tuple[float, ...], seeds: range) -> Iterator[Restart]:
    """All cases."""
    for count in nodes:
        for distance in distances:
            for seed in seeds:
                yield case(count, distance, seed)


ROOMS = {2: (900, 800), 3: (600, 550, 500)}  # no fewer nodes hold the model


def play(restart: Restart) -> float | None:
    """Restart the nodes; the seconds from the last start until the model is served again, None if it is not."""
    simulation = SplitSimulation(restart.seed, ROOMS[restart.nodes])
    for index in range(restart.nodes):
        simulation.boot(index, join=index > 0)
        simulation.run(0.5)
    assert simulation.run_until(simulation.served, FIRST_SECONDS) is not None, f"never served: {restart}"
    simulation.run(SERVING_SECONDS)
    if restart.ending is not Ending.ROLLING:
        for index in range(restart.nodes):
            _end(simulation, index, restart.ending)
        simulation.run(3.0)
    for number, index in enumerate(restart.order):
        if number:
            simulation.run(restart.distance)
        if restart.ending is Ending.ROLLING:
            _end(simulation, index, Ending.STOPPED if restart.seed % 2 else Ending.KILLED)
            simulation.run(1.0)
        simulation.boot(index)
    return simulation.run_until(simulation.served, SERVED_AGAIN_SECONDS, step=0.05)


def _end(simulation: SplitSimulation, index: int, ending: Ending) -> None:
    if ending is Ending.KILLED:
        simulation.kill(index)
        return
    simulation.stop(index)
    simulation.run_until(lambda: simulation.nodes[index].core is None, 10.0)
