"""Plays a scenario on a simulation, step by step, and keeps the figures.

The error of a failed step names the line, the seed, the time and the reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from meshllm.core.events import JoinWanted, LoadsChanged, MachineObserved, ModelWanted, SpeedMeasured, StatementsMade
from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeId, Role
from tests.sim import observe
from tests.sim.network import Network
from tests.sim.scenario import Nodes, Scenario, Step
from tests.sim.simulation import ROUND_SECONDS, SimulatedNode, Simulation
from tests.sim.sybils import Sybils, weigh

# A joiner is given so many ways in, as many as an invite holds.
WAYS_IN = 3
# Churn: how long a killed node stays away, in seconds.
AWAY_SECONDS = (1.0, 30.0)
# A busy node: the middle of its speed (bytes/s) and of its free memory (bytes), and how far each measurement strays.
BUSY_SPEED, BUSY_MEMORY, BUSY_SPREAD = 20e9, 16e9, 0.5
# How exactly it is known when an expectation came true.
LOOK_SECONDS = 0.05
MESH = MeshId(bytes([1] * 16))
MESH_APART = MeshId(bytes([2] * 16))


class Failed(AssertionError):
    """An expectation does not hold."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a step came to: `seconds` of virtual time it took, or a value in words."""

    line: int
    text: str
    seconds: float | None = None
    value: str = ""

    def took(self) -> str:
        """For people."""
        return "" if self.seconds is None else f"{self.seconds:.2f} s"

    def words(self) -> str:
        """For people, in a line."""
        return f"{self.text}: {self.took()} {self.value}".rstrip()


class Player:
    """One scenario under way."""

    def __init__(self, scenario: Scenario, *, seed: int | None = None) -> None:
        seed = scenario.seed if seed is None else seed
        network = Network(random.Random(seed + 1), delay=scenario.delay, loss=scenario.loss, retransmit=scenario.late)
        self.simulation = Simulation(seed, network, skew=scenario.skew, certified=scenario.certified)
        self.scenario = scenario
        self.figures: list[Figure] = []
        self.watch = observe.Watch(self.simulation)
        self._them: list[int] = []
        apart = set(scenario.apart.numbers)
        for index in range(scenario.nodes):
            self.simulation.add(1, mesh=MESH_APART if index in apart else MESH)
        self.simulation.add(scenario.clients, role=Role.CLIENT, mesh=MESH)
        for index, rights in scenario.rights.items():
            self.simulation.nodes[index].rights = rights
        self._attacked = 0.0  # when the last `sybils` came, and who were neighbours then
        self._neighbours: set[tuple[NodeId, NodeId]] = set()
        self.kilobytes = 0.0  # of the last `weigh`
        self._served: dict[str, list[int]] = {}
        self.bytes_per_round = 0.0  # of the last `measure`: sent per node and round, on average
        self.records_per_hour = 0.0  # of the last `measure`: written by the node that wrote most

    def play(self, each: Callable[[Step], None] = lambda step: None) -> list[Figure]:
        """All steps in order. `each` hears of every step before it is done. Raises Failed."""
        for step in self.scenario.steps:
            each(step)
            self.step(step)
        return self.figures

    def step(self, step: Step) -> None:
        """One step."""
        getattr(self, f"_{step.verb}")(step)

    # -- which nodes

    def _resolve(self, nodes: Nodes) -> list[int]:
        if nodes.word == "all":
            found = list(range(self.scenario.nodes))
        elif nodes.word == "clients":
            found = list(range(self.scenario.nodes, len(self.simulation.nodes)))
        elif nodes.word == "random":
            found = sorted(self.simulation.rng.sample([node.index for node in self.simulation.live()], nodes.count))
        elif nodes.word == "them":
            found = self._them
        else:
            found = list(nodes.numbers)
        self._them = found
        return found

    def _spread(self, step: Step) -> Iterator[int]:
        indices = self._resolve(step.nodes)
        for index in indices:
            yield index
            self.simulation.run(step.seconds / len(indices))

    # -- verbs

    def _at(self, step: Step) -> None:
        if step.seconds < self.simulation.now:
            raise Failed(f"line {step.line}: it is {self.simulation.now:.1f}s already: {step.text!r}")
        self.simulation.run(step.seconds - self.simulation.now)

    def _wait(self, step: Step) -> None:
        self.simulation.run(step.seconds)

    def _start(self, step: Step) -> None:
        ways = tuple(self._ghost_way(number) for number in step.others.numbers)
        for index in self._spread(step):
            if step.flag:
                self.simulation.nodes[index].peers = ways
                self.simulation.start(index)
            else:
                self.simulation.start(index, ways or self._ways_for(index))

    def _ghost_way(self, index: int) -> BootstrapAddress:
        if index < len(self.simulation.nodes):
            return self.simulation.nodes[index].way()
        return SimulatedNode(index, Role.NODE, MESH, 0.0, 1.0).way()

    def _ways_for(self, index: int) -> list[BootstrapAddress]:
        mesh = self.simulation.nodes[index].mesh
        inside = [node for node in self.simulation.live() if node.mesh == mesh]
        chosen = self.simulation.rng.sample(inside, min(WAYS_IN, len(inside)))
        return [node.way() for node in chosen]

    def _join(self, step: Step) -> None:
        ways = tuple(self._ghost_way(number) for number in step.others.numbers)
        for index in self._resolve(step.nodes):
            self.simulation.tell(index, JoinWanted(ways))

    def _kill(self, step: Step) -> None:
        for index in self._spread(step):
            self.simulation.kill(index)

    def _stop(self, step: Step) -> None:
        for index in self._spread(step):
            self.simulation.stop(index)

    def _expel(self, step: Step) -> None:
        """As the owner does at node 0."""
        simulation = self.simulation
        if simulation.mesh_key is None:
            raise Failed(f"line {step.line}: there is no mesh key: {step.text!r}")
        subjects = [simulation.nodes[index].id for index in self._resolve(step.nodes)]
        statements = tuple([simulation.mesh_key.expel(node) for node in subjects])
        simulation.tell(0, StatementsMade(statements))

    def _restart(self, step: Step) -> None:
        for index in self._spread(step):
            self.simulation.start(index)

    def _serve(self, step: Step) -> None:
        for index in self._resolve(step.nodes):
            self._served.setdefault(step.name, []).append(index)
            self.simulation.tell(index, ModelWanted(step.name))

    def _busy(self, step: Step) -> None:
        for index in self._resolve(step.nodes):
            self._report_load(index)

    def _report_load(self, index: int) -> None:
        """What the daemon of a node under load posts every second."""
        simulation, rng = self.simulation, self.simulation.rng

        def around(middle: float) -> int:
            return int(middle * rng.uniform(1.0 - BUSY_SPREAD, 1.0 + BUSY_SPREAD))

        if simulation.nodes[index].core is not None:
            served = [name for name, hosts in self._served.items() if index in hosts]
            loads = [ModelLoad(name, rng.randrange(1, 5), rng.randrange(20)) for name in served]
            simulation.tell(index, LoadsChanged(tuple(loads)))
            simulation.tell(index, SpeedMeasured(around(BUSY_SPEED)))
            simulation.tell(index, MachineObserved(around(BUSY_MEMORY), models=tuple(served)))
        simulation.at(simulation.now + 1.0, self._report_load, index)

    def _cut(self, step: Step) -> None:
        self.simulation.cut(self._resolve(step.nodes), self._resolve(step.others), one_way=step.flag)

    def _heal(self, step: Step) -> None:
        self.simulation.network.heal()

    def _loss(self, step: Step) -> None:
        self.simulation.network.loss, self.simulation.network.retransmit = step.number, step.flag

    def _churn(self, step: Step) -> None:
        simulation = self.simulation
        for _ in range(int(step.number)):
            while len(simulation.live()) < 2:
                simulation.run(ROUND_SECONDS)
            victim = simulation.rng.choice(simulation.live())
            simulation.kill(victim.index)
            simulation.at(simulation.now + simulation.rng.uniform(*AWAY_SECONDS), simulation.start, victim.index)
            simulation.run(step.seconds / step.number)
        simulation.run(AWAY_SECONDS[1])

    def _replay(self, step: Step) -> None:
        """Old records of random nodes, all of each, handed to random members as news."""
        simulation = self.simulation
        for _ in range(int(step.number)):
            subject = simulation.rng.randrange(self.scenario.nodes)
            linked = [node for node in simulation.live() if node.links]
            if linked:  # else there is nobody to hear it
                simulation.inject(simulation.rng.choice(linked).index, simulation.old_records(subject))

    def _forge(self, step: Step) -> None:
        """Records as of tomorrow, with the signature of yesterday: none may get past the shell."""
        simulation = self.simulation
        before = simulation.refused
        for _ in range(int(step.number)):
            subject = simulation.rng.randrange(self.scenario.nodes)
            target = simulation.rng.choice([node for node in simulation.live() if node.links])
            last = simulation.old_records(subject)[-1]
            stamp = replace(last.record.version, incarnation=last.record.version.incarnation + 1)
            simulation.inject(target.index, [replace(last, record=replace(last.record, version=stamp))])
        if simulation.refused - before != step.number:
            raise Failed(f"line {step.line}: a forged record got through ({simulation.trouble()})")

    def _sybils(self, step: Step) -> None:
        (owner,), against = self._resolve(step.nodes), step.others.numbers
        self._attacked, self._neighbours = self.simulation.now, observe.neighbours(self.simulation)
        around = int(step.name)
        Sybils(self.simulation, owner, int(step.number), around=around, against=against, certified=step.flag)

    def _weigh(self, step: Step) -> None:
        (index,) = self._resolve(step.nodes)
        known, made_up, size = weigh(self.simulation, self.simulation.nodes[index])
        self.kilobytes = size / 1000
        value = f"{made_up} made-up nodes of {known} take {self.kilobytes:.0f} kB"
        self.figures.append(Figure(step.line, step.text, value=value))

    def _measure(self, step: Step) -> None:
        simulation = self.simulation
        simulation.messages.clear()
        simulation.bytes.clear()
        nodes = simulation.live()
        before = {node.index: node.bytes_sent for node in nodes}
        written = {node.index: node.records for node in nodes}
        simulation.counting = True
        simulation.run(step.seconds)
        simulation.counting = False
        rounds = step.seconds / ROUND_SECONDS
        sent = sorted((node.bytes_sent - before[node.index]) / rounds for node in nodes)
        parts = ", ".join(
            f"{kind} {count / rounds / len(nodes):.0f}" for kind, count in simulation.bytes.most_common(6)
        )
        mean = sum(sent) / len(sent)
        records = max(node.records - written[node.index] for node in nodes) * 3600.0 / step.seconds
        self.bytes_per_round, self.records_per_hour = mean, records
        value = (
            f"{mean:.0f} bytes per node per round sent (most: {sent[-1]:.0f}): {parts}; "
            f"at most {records:.0f} records per node and hour"
        )
        self.figures.append(Figure(step.line, step.text, value=value))

    def _expect(self, step: Step) -> None:
        name, _, rest = step.name.partition(" ")
        indices = self._resolve(step.nodes)
        conditions: dict[str, Callable[[], str]] = {
            "joined": lambda: observe.not_joined(self.simulation, indices),
            "expelled": lambda: observe.not_expelled(self.simulation, indices),
            "gone": lambda: observe.not_gone(self.simulation, indices),
            "known": lambda: observe.not_known(self.simulation, rest, self._served.get(rest, [])),
            "whole": lambda: observe.not_whole(self.simulation),
            "one": lambda: observe.not_one_mesh(self.simulation),
            "deaths": lambda: self.watch.too_many_deaths(int(step.number)),
            "records": lambda: _above(self.records_per_hour, step.number, "records per node and hour"),
            "bytes": lambda: _above(self.bytes_per_round, step.number, "bytes per node and round"),
            "linked": lambda: observe.not_linked(self.simulation),
            "parted": lambda: observe.too_often_parted(
                self.simulation, self._neighbours, self._attacked, int(step.number)
            ),
            "suspicions": lambda: _above(self.watch.suspicions, step.number, "looks at a suspect"),
            "kilobytes": lambda: _above(self.kilobytes, step.number, "kilobytes"),
            "adoptions": lambda: observe.too_many_adoptions(self.simulation, int(step.number)),
        }
        wrong = conditions[name]
        # To look at every pair of nodes is a second of work in a large mesh.
        every = ROUND_SECONDS if name == "whole" else LOOK_SECONDS
        took = self.simulation.run_until(lambda: not wrong(), step.seconds, every)
        if took is None:
            raise Failed(f"line {step.line}: {step.text!r}: {wrong()} ({self.simulation.trouble()})")
        value = self.watch.summary() if name == "deaths" else ""
        self.figures.append(Figure(step.line, step.text, took, value))


def _above(value: float, most: float, unit: str) -> str:
    """What is wrong if a figure is above its bound."""
    return "" if value <= most else f"{value:.0f} {unit}"
