"""Requests make a node load models of its disk, several beside each other, and unload the least recently used one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.observation import MachineFacts
from meshllm.core.node import NodeCore
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability
from meshllm.core.serving.disk_models import DiskModels
from meshllm.core.serving.local_models import MAX_UNLOADED
from meshllm.core.snapshot import ModelOrigin, ModelState, ServerFacts, ServerPhase
from tests.core.serving.test_follow_demand import ServingMesh
from tests.core.serving.test_several_models import Machine

SIZE = 4 << 30
ROOM = 6_400
NAMES = tuple(f"m{number}" for number in range(12))


class OnDemand(Machine):
    """A node whose disk has these models; it has room for two of them."""

    def __init__(self, names: tuple[str, ...] = NAMES, *, allowed: bool = True) -> None:
        super().__init__(ROOM, dict.fromkeys(names, 3_000))
        self.core = NodeCore(on_demand=allowed)
        self.observe()

    def observe(self) -> None:
        """Look at the machine."""
        names = tuple(self.sizes)
        free = self.room - sum(self.held.values())
        self.tell(e.MachineObserved(free, models=names, model_sizes=(*self.sizes.values(),)))

    def ask(self, model: str) -> None:
        """A caller asks for it, again and again until it is served."""
        for _ in range(20):
            if model in self.serving:
                return
            self.tell(e.ModelRequested(model))
            self.wait(1)
            self.observe()
        raise AssertionError(f"{model} is not served: {self.core.snapshot().model(model)}")


def test_request_loads_a_model_and_the_least_recently_used_one_makes_room() -> None:
    node = OnDemand()
    assert node.core.snapshot().available == NAMES
    node.ask("m0")
    assert "m0" not in node.core.snapshot().available
    node.ask("m1")
    assert node.serving == {"m0", "m1"}, "memory holds both"
    node.work("m0", 1)
    node.wait(2)
    node.work("m0", 0)
    node.ask("m2")
    assert node.serving == {"m0", "m2"}
    assert [model.origin for model in node.core.snapshot().models] == [ModelOrigin.MESH] * 3


def test_model_with_requests_is_not_unloaded_and_the_other_one_waits() -> None:
    node = OnDemand()
    for model in ("m0", "m1"):
        node.ask(model)
        node.work(model, 2)
    node.tell(e.ModelRequested("m2"))
    node.wait(100)
    assert node.serving == {"m0", "m1"}
    assert routes.route(node.core.snapshot(), "m2").availability is Availability.COMING
    node.work("m1", 0)
    node.wait(3)
    assert node.serving == {"m0", "m2"}
    assert node.stopped_busy == []


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_are_all_served_within_the_memory(seed: int) -> None:
    node, rng = OnDemand(), random.Random(seed)
    for _ in range(60):
        node.ask(rng.choice(NAMES))
        if rng.random() < 0.5 and node.serving:
            busy = rng.choice(sorted(node.serving))
            node.work(busy, 1)
            node.wait(rng.random())
            node.work(busy, 0)
        known = {model.name for model in node.core.snapshot().models}
        assert known | set(node.core.snapshot().available) == set(NAMES), "each can be requested"
        assert len(known) <= MAX_UNLOADED + 2
    assert node.stopped_busy == []


def test_owner_decides_what_requests_may_load() -> None:
    node = OnDemand(allowed=False)
    node.tell(e.ModelRequested("m0"))
    assert (node.serving, node.core.snapshot().available) == (set(), ())
    node = OnDemand()
    node.ask("m0")
    node.tell(e.DropWanted("m0"))
    assert "m0" not in node.core.snapshot().available
    node.tell(e.ModelRequested("m0"))
    assert node.serving == set()


def test_what_the_owner_loaded_stays_if_a_request_needs_its_memory() -> None:
    node = OnDemand()
    for model in ("m0", "m1"):
        node.tell(e.LoadWanted(model))
    node.observe()
    assert node.serving == {"m0", "m1"}
    node.wait(30)
    assert node.core.snapshot().available == (), "nothing fits beside them"
    node.tell(e.DropWanted("m1"))
    node.observe()
    node.ask("m2")
    assert node.serving == {"m0", "m2"}
    node.tell(e.LoadWanted("m3"))
    node.wait(3)
    assert node.serving == {"m0", "m3"}, "the owner's word counts more"


def test_room_is_what_is_free_and_what_would_be_unloaded() -> None:
    disk = DiskModels(allowed=True)
    facts = ServerFacts("/s", 1, 4, 8192, memory=3 << 30)
    taken = ModelState("m", server=ServerPhase.SERVING, server_facts=facts, origin=ModelOrigin.MESH)
    disk.observe(6 << 30, [])
    whole = disk.room
    disk.observe(3 << 30, [taken])
    assert disk.room == whole
    disk.observe(1 << 30, [replace(taken, server=ServerPhase.STARTING, server_facts=None)])
    assert disk.room == whole, "not known while it is loaded"
    disk.observe(3 << 30, [replace(taken, origin=ModelOrigin.LOADED)])
    assert disk.room <= 3 << 30
    machine = MachineFacts(
        models=("small", "large", "other"), model_sizes=(1 << 30, 3 << 30, 1), aliases=(("other", "small"),)
    )
    assert disk.available(machine, (), lambda name: True) == ["small"]
    assert disk.available(machine, ("small",), lambda name: True) == []


def test_records_say_what_a_request_would_load_and_a_failure_withdraws_it() -> None:
    mesh = ServingMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.until(mesh.whole, within=30)
    mesh.tell(1, e.MachineObserved(8 << 30, models=("m", "n"), model_sizes=(SIZE, SIZE)))
    mesh.run(5)
    route = routes.route(mesh.cores[0].snapshot(), "m")
    assert [target.address for target in route.targets] == [mesh.record(1).node.hex()]
    mesh.slow = {1}
    mesh.tell(1, e.ModelRequested("m"))
    assert mesh.record(1).loading == ("m",), "the others know at once"
    mesh.tell(1, e.ModelRequested("n"))
    assert mesh.record(1).loading == ("m", "n")
    mesh.run(0.5)
    mesh.tell(1, e.ServerGone("m", 1, "the file is damaged", hopeless=True))
    assert "damaged" in routes.route_here(mesh.cores[1].snapshot(), "m").message
    mesh.run(10)
    assert mesh.record(1).on_disk == ("n",)
    assert routes.models(mesh.cores[0].snapshot()) == ("n",)
    mesh.tell(1, e.ModelRequested("m"))
    assert not any(isinstance(command, c.StartServer) and command.model == "m" for _, command in mesh.commands)
