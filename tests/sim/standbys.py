"""Two standbys and one model that the mesh wants, with delays and losses: how many load it, and for how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.snapshot import ServerFacts, ServerPhase
from tests.sim.network import Network
from tests.sim.simulation import SimulatedNode, Simulation

MODEL = "m"
SIZE = 4 << 30
# Nodes: one whose API is asked, two standbys with the model on their disks, two without it.
STANDBYS = (1, 2)
NODES = 5
LOAD_SECONDS = (2.0, 25.0)
RUN_SECONDS = 150.0
SURPLUS_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """`loaded`: standbys that ever started the model; `most`: at a time; `surplus_for`: the longest time (seconds) with
    more than one; `served`: seconds until it was served; `left`: hosts at the end."""

    seed: int
    loaded: int
    most: int
    surplus_for: float
    served: float | None
    left: int


def play(seed: int, *, delay: float = 0.0, spread: float = 0.0) -> Outcome:
    """Let the nodes start, and the model be asked for, at random times. `delay`: the longest one of a message;
    `spread`: how long before or after the model is asked for its files are found (seconds; 0: drawn)."""
    rng = random.Random(seed)
    delay, loss = delay or rng.choice([0.04, 0.3, 1.0]), rng.choice([0.0, 0.1, 0.3])
    network = Network(random.Random(seed + 1), delay=(0.005, delay), loss=loss)
    simulation = Simulation(seed, network, skew=0.01)
    begun: set[int] = set()

    def start(node: SimulatedNode, command: c.StartServer) -> None:
        begun.add(node.index)
        core = node.core

        def ready() -> None:
            if node.core is core:
                facts = ServerFacts("/run/server", 1, 4, 32768)
                simulation.tell(node.index, e.ServerReady(command.model, command.generation, facts))

        simulation.at(simulation.now + rng.uniform(*LOAD_SECONDS), ready)

    simulation._hands[c.StartServer] = start
    simulation.add(NODES)
    simulation.start(0)
    asked = rng.uniform(9.0, 15.0)
    # Two standbys that find their files at nearly the same moment decide at nearly the same moments: the record of the
    # first one has not arrived yet. Else views differ until the records have arrived.
    spread = spread or rng.choice([0.05, 0.5, 4.0])
    for index in range(1, NODES):
        simulation.at(rng.uniform(0.0, 8.0), simulation.start, index, [simulation.nodes[0].way()])
        models = (MODEL,) if index in STANDBYS else ("other",)
        observed = e.MachineObserved(8 << 30, models=models, model_sizes=(SIZE,))
        simulation.at(asked + rng.uniform(-spread, spread), simulation.tell, index, observed)
    simulation.at(asked, simulation.tell, 0, e.ModelsAsked(((MODEL, 1),)))
    for _ in range(20):  # a name counts once its node is known; callers ask again
        simulation.at(asked + rng.uniform(0.0, 30.0), simulation.tell, 0, e.ModelsAsked(((MODEL, 1),)))
    most, surplus, longest, served = 0, 0.0, 0.0, None
    while simulation.now < RUN_SECONDS:
        simulation.run(0.5)
        having = [index for index in STANDBYS if _has(simulation.nodes[index])]
        most = max(most, len(having))
        surplus = surplus + 0.5 if len(having) > 1 else 0.0
        longest = max(longest, surplus)
        if served is None and any(_has(simulation.nodes[index], serving=True) for index in STANDBYS):
            served = simulation.now - asked
    left = sum(_has(simulation.nodes[index], serving=True) for index in STANDBYS)
    return Outcome(seed, len(begun), most, longest, served, left)


def _has(node: SimulatedNode, *, serving: bool = False) -> bool:
    """Whether a process for the model runs or starts there."""
    if node.core is None:
        return False
    model = node.core.snapshot().model(MODEL)
    if model is None:
        return False
    return model.server is ServerPhase.SERVING if serving else model.server is not ServerPhase.NONE


if __name__ == "__main__":
    import sys
    import time

    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    clock = time.perf_counter()
    found = [play(seed) for seed in range(seeds)]
    single = sum(outcome.loaded == 1 for outcome in found)
    late = [o for o in found if o.surplus_for > SURPLUS_SECONDS or o.left != 1 or o.served is None]
    print(f"{seeds} seeds: exactly one loaded in {single} ({100 * single / seeds:.1f} %)")
    print(f"at most {max(o.most for o in found)} at a time; surplus for {max(o.surplus_for for o in found):.1f} s")
    print(
        f"served after {max(o.served or 999 for o in found):.1f} s at most; {time.perf_counter() - clock:.0f} s of work"
    )
    for outcome in [*late, *(o for o in found if o.loaded != 1)][:20]:
        print(outcome)
