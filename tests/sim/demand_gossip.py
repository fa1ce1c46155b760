"""What demand costs of all gossip: the bytes of its field in every record that is sent, in a mesh of whole cores.

No node takes a model, so that all other bytes are what the mesh sends anyway. Run as
`python -m tests.sim.demand_gossip NODES`.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, replace

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import Records, TableUpdate
from meshllm.core.node import NodeCore
from tests.sim.demand import MODELS, ON_DISK, Setting, demand_bytes
from tests.sim.simulation import ROUND_SECONDS, SimulatedNode, Simulation

JOIN_SECONDS, SETTLE_SECONDS, MEASURE_SECONDS = 30.0, 20.0, 30.0
# Until every node has renewed its record, with its demand.
RENEW_SECONDS = 40.0
# Callers of each node ask for each of their models: so often at first, then at the rate of `Setting`.
FIRST_REQUESTS = 4
BAR = 0.05


@dataclass
class Traffic:
    """Bytes that a node sends in a round, on average. `demand`: of the field, as many times as it was sent."""

    demand: float = 0.0
    gossip: float = 0.0

    @property
    def part(self) -> float:
        """Of demand, in the gossip."""
        return self.demand / max(1.0, self.gossip)


def _make(config: MeshConfig, rng: random.Random) -> NodeCore:
    return NodeCore(replace(config, idle=True), rng)


def measure(nodes: int, seed: int = 1) -> Traffic:
    """What is sent while callers ask."""
    simulation, rng = Simulation(seed, make=_make), random.Random(seed)
    models = [f"Model-{number:02}-Instruct-Q4_K_M" for number in range(MODELS)]
    simulation.add(nodes)
    simulation.start(0)
    for index in range(1, nodes):
        ways = [simulation.nodes[rng.randrange(index)].way()]
        simulation.at(JOIN_SECONDS * index / nodes, simulation.start, index, ways)
    for index in range(0, nodes, 10):
        disk = tuple(sorted(rng.sample(models, ON_DISK)))
        observed = e.MachineObserved(8 << 30, models=disk, model_sizes=(4 << 30,) * ON_DISK)
        simulation.at(JOIN_SECONDS + 1.0, simulation.tell, index, observed)
    begun = JOIN_SECONDS + SETTLE_SECONDS
    for index in range(nodes):
        for model in rng.choices(models, weights=[1.0 / place for place in range(1, MODELS + 1)], k=Setting.choices):
            for _ in range(FIRST_REQUESTS):
                asked = e.ModelsAsked(((model, 1),))
                simulation.at(begun - SETTLE_SECONDS * rng.random() / 2, simulation.tell, index, asked)
    simulation.run(begun + RENEW_SECONDS)
    found, each = Traffic(), 1.0 / nodes / (MEASURE_SECONDS / ROUND_SECONDS)

    def send(node: SimulatedNode, command: c.Send) -> None:
        if isinstance(command.message, Records | TableUpdate) and command.peer in node.links:
            found.demand += each * sum(demand_bytes(signed.record) for signed in command.message.records)
        simulation.send(node, command)

    simulation.counting, simulation._hands[c.Send] = True, send
    before = sum(node.bytes_sent for node in simulation.nodes)
    simulation.run(MEASURE_SECONDS)
    found.gossip = each * (sum(node.bytes_sent for node in simulation.nodes) - before)
    return found


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    clock = time.perf_counter()
    traffic = measure(size)
    print(f"{size} nodes: {traffic.gossip:.0f} bytes per node and round, {traffic.demand:.0f} of them demand")
    print(f"demand: {100 * traffic.part:.1f} % of the gossip; {time.perf_counter() - clock:.0f} s of work")
    sys.exit(traffic.part > BAR)
