"""Nodes of a small mesh follow its demand: they take a model, step back, scale out and move, and say so in records."""

from __future__ import annotations

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.levels import HALF_LIFE_SECONDS
from meshllm.core.records import ModelLoad, NodeRecord
from meshllm.core.serving.demand_placement import RESIDENCE_SECONDS
from meshllm.core.serving.pressure import PRESSED_SECONDS
from meshllm.core.snapshot import ModelFacts, ServerFacts, ServerPhase
from meshllm.core.split.host import MeasuredModel
from tests.core.small_mesh import SmallMesh

SIZE = 4 << 30


class ServingMesh(SmallMesh):
    """Its nodes load every model at once; `slow`: nodes that never finish."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: set[int] = set()
        self.stopped: list[tuple[int, str]] = []

    def _carry_out(self, number: int, command: c.Command) -> None:
        match command:
            case c.PrepareEngine():
                self._at(0.0, lambda: self.tell(number, e.EngineReady("1")))
            case c.FetchModel(model):
                self._at(0.0, lambda: self.tell(number, e.FileReady(model, ModelFacts("/m", SIZE, "llama", 8192))))
            case c.MeasureModel(model):
                measured = MeasuredModel(fits_locally=True, free_bytes=1000)
                self._at(0.0, lambda: self.tell(number, e.ModelMeasured(model, measured)))
            case c.StartServer(model, generation) if number not in self.slow:
                facts = ServerFacts(f"/s{generation}", generation, 4, 8192)
                self._at(1.0, lambda: self.tell(number, e.ServerReady(model, generation, facts)))
            case c.StopServer(model, generation):
                self.stopped.append((number, model))
                self._at(2.0, lambda: self.tell(number, e.ServerGone(model, generation, "stopped")))
            case _:
                super()._carry_out(number, command)

    def serving(self, model: str) -> list[int]:
        """Which nodes serve it."""
        return [
            number
            for number, core in self.cores.items()
            if (found := core.snapshot().model(model)) is not None and found.server is ServerPhase.SERVING
        ]

    def record(self, number: int) -> NodeRecord:
        found = self.view(number).record
        assert found is not None
        return found


def mesh_of(count: int, *models: str) -> ServingMesh:
    """Node 0 is asked, the others have the models on their disks."""
    mesh = ServingMesh()
    mesh.start(0)
    for number in range(1, count):
        mesh.start(number, [mesh.way(0)])
    mesh.until(mesh.whole, within=30)
    for number in range(1, count):
        mesh.tell(number, e.MachineObserved(8 << 30, models=models, model_sizes=(SIZE,) * len(models)))
    mesh.run(5)
    return mesh


def ask(mesh: ServingMesh, model: str, count: int = 1) -> None:
    mesh.tell(0, e.ModelsAsked(((model, count),)))


def test_first_request_makes_a_standby_serve_the_model() -> None:
    mesh = mesh_of(3, "m")
    mesh.run(30)
    assert mesh.serving("m") == [], "nobody asked"
    ask(mesh, "m")
    took = mesh.until(lambda: bool(mesh.serving("m")), within=20)
    assert took < 8
    (host,) = mesh.serving("m")
    mesh.run(120)
    assert mesh.serving("m") == [host]
    record = mesh.record(host)
    assert [(served.on_demand, served.movable) for served in record.serves] == [(True, False)]
    assert (record.wants, record.loading, record.disk_sizes) == ((), (), (SIZE >> 20,))


def test_node_that_loads_says_so_and_others_leave_it_the_model() -> None:
    mesh = mesh_of(4, "m")
    mesh.slow = {1, 2, 3}
    ask(mesh, "m")
    mesh.run(60)
    loading = [number for number in (1, 2, 3) if mesh.record(number).loading == ("m",)]
    assert len(loading) == 1


def test_another_node_serves_it_if_the_first_one_never_does() -> None:
    mesh = mesh_of(3, "m")
    mesh.slow = {1, 2}
    ask(mesh, "m", 100)
    mesh.run(10)
    first = next(number for number in (1, 2) if mesh.record(number).loading)
    mesh.slow = {first}
    mesh.run(400)
    assert mesh.serving("m") == [3 - first]
    assert mesh.record(first).loading == (), "it steps back: the other one serves it"


def test_death_of_the_only_host_makes_a_standby_serve_the_model() -> None:
    mesh = mesh_of(4, "m")
    ask(mesh, "m")
    mesh.until(lambda: bool(mesh.serving("m")), within=20)
    (host,) = mesh.serving("m")
    mesh.kill(host)
    mesh.until(lambda: bool(mesh.serving("m")), within=30)


def test_busy_host_gets_another_one_beside_it() -> None:
    mesh = mesh_of(4, "m")
    ask(mesh, "m", 20)
    mesh.until(lambda: bool(mesh.serving("m")), within=20)
    (host,) = mesh.serving("m")
    mesh.tell(host, e.LoadsChanged((ModelLoad("m", 4, 3),)))
    mesh.run(PRESSED_SECONDS - 1)
    assert mesh.serving("m") == [host]
    mesh.until(lambda: len(mesh.serving("m")) == 2, within=20)
    mesh.run(300)
    assert len(mesh.serving("m")) == 2, "one has free slots"


def test_unwanted_model_makes_room_for_a_wanted_one_after_a_while() -> None:
    mesh = mesh_of(2, "cold", "hot")
    ask(mesh, "cold")
    mesh.until(lambda: mesh.serving("cold") == [1], within=20)
    mesh.run(60)
    ask(mesh, "hot")
    mesh.run(RESIDENCE_SECONDS - 90)
    assert mesh.serving("cold") == [1]
    for _ in range(30):
        ask(mesh, "hot")
        mesh.run(60)
    assert mesh.serving("hot") == [1]
    assert (1, "cold") in mesh.stopped


def test_last_host_of_a_wanted_model_never_moves() -> None:
    mesh = mesh_of(2, "kept", "hot")
    ask(mesh, "kept")
    mesh.until(lambda: mesh.serving("kept") == [1], within=20)
    for _ in range(60):
        ask(mesh, "kept")
        ask(mesh, "hot", 50)
        mesh.run(60)
        assert mesh.serving("kept") == [1]


def test_model_of_the_owner_never_moves() -> None:
    mesh = mesh_of(2, "own", "hot")
    mesh.tell(1, e.ModelWanted("own"))
    mesh.run(RESIDENCE_SECONDS + 2 * HALF_LIFE_SECONDS)
    for _ in range(10):
        ask(mesh, "hot", 50)
        mesh.run(60)
    assert mesh.serving("own") == [1]


@pytest.mark.parametrize("memory", [4 << 30, 5 << 30])
def test_standby_takes_what_fits_into_its_memory(memory: int) -> None:
    mesh = mesh_of(2, "m")
    mesh.tell(1, e.MachineObserved(memory))
    mesh.run(2)
    ask(mesh, "m")
    mesh.run(20)
    assert bool(mesh.serving("m")) is (memory > SIZE * 1.1)


def test_stopping_node_takes_nothing() -> None:
    mesh = mesh_of(2, "m")
    mesh.tell(1, e.StopWanted())
    ask(mesh, "m")
    mesh.run(20)
    assert mesh.serving("m") == []
