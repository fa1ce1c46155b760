"""Several models on one node: which run beside the first, which are unloaded, and what the owner's words do."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core import node
from meshllm.core.node import DROPPED_SECONDS, NodeCore
from meshllm.core.records import ModelLoad
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability
from meshllm.core.serving import next_step
from meshllm.core.serving.wishes import BESIDE_SECONDS, TAKEN_SECONDS
from meshllm.core.snapshot import ModelFacts, ModelOrigin, ModelPhase, ModelState, ServerFacts, ServerPhase
from meshllm.core.split.host import MeasuredModel
from tests.core.small_mesh import SmallMesh
from tests.core.waits import check_waits

GB = 10**9


class Machine:
    """A node in no mesh, with `room` bytes and models of so many bytes; it carries out commands at once.

    `busy`: requests of each model; a process that is drained ends when it has none.
    """

    def __init__(self, room: int, sizes: dict[str, int], idle_unload: float | None = None) -> None:
        self.room, self.sizes = room, sizes
        self.core = NodeCore(idle_unload=idle_unload)
        self.now = 0.0
        self.busy = dict.fromkeys(sizes, 0)
        self.held: dict[str, int] = {}
        self.draining: dict[str, int] = {}
        self.stopped_busy: list[str] = []
        self.commands: list[c.Command] = []

    def tell(self, *events: e.Event) -> None:
        queue = list(events)
        while queue:
            for command in self.core.handle(queue.pop(0), self.now):
                self.commands.append(command)
                queue += self._answers(command)
            assert sum(self.held.values()) <= self.room
            check_waits(self.core, self.now)

    def _answers(self, command: c.Command) -> Iterator[e.Event]:
        match command:
            case c.PrepareEngine():
                yield e.EngineReady("1")
            case c.FetchModel(model):
                yield e.FileReady(model, ModelFacts(f"/{model}", self.sizes[model], "llama", 8192))
            case c.MeasureModel(model):
                assert model not in self.held
                free = self.room - sum(self.held.values())
                fits = self.sizes[model] <= free
                if fits:
                    self.held[model] = self.sizes[model]
                yield e.ModelMeasured(model, MeasuredModel(fits, free, least_bytes=self.sizes[model]))
            case c.StartServer(model, generation):
                self.held[model] = self.sizes[model]
                facts = ServerFacts(f"/{model}/{generation}", 1, 4, 8192, memory=self.sizes[model])
                yield e.ServerReady(model, generation, facts)
            case c.StopServer(model, generation, _, drain):
                if drain and self.busy[model]:
                    self.draining[model] = generation
                else:
                    self.stopped_busy += [model] * (self.busy[model] > 0)
                    self.draining.pop(model, None)
                    del self.held[model]
                    yield e.ServerGone(model, generation, "it was stopped")
            case c.ForgetModel(model):
                self.held.pop(model, None)

    def work(self, model: str, requests: int) -> None:
        """`model` has so many requests now."""
        self.busy[model] = requests
        if not requests and model in self.draining:
            del self.held[model]
            self.tell(e.ServerGone(model, self.draining.pop(model), "it was stopped"))
        self.tell(e.LoadsChanged(tuple(ModelLoad(name, self.busy[name], 0) for name in self.serving)))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.tell(e.TimePassed())
        self.now = end

    def model(self, name: str) -> ModelState:
        """Its state."""
        found = self.core.snapshot().model(name)
        assert found is not None
        return found

    @property
    def serving(self) -> set[str]:
        """The models that answer."""
        return {model.name for model in self.core.snapshot().models if model.server_facts and model.wanted}

    def phase(self, name: str) -> ModelPhase:
        """For users."""
        return next_step.phase(self.core.snapshot().engine, self.model(name))


def loaded(*names: str) -> list[e.Event]:
    """As of `--serve-all`."""
    return [e.ModelWanted(name, origin=ModelOrigin.LOADED) for name in names]


def test_second_model_is_served_beside_the_first_if_it_fits() -> None:
    machine = Machine(10, {"a": 6, "b": 3, "big": 5})
    machine.tell(e.ModelWanted("a"), e.MeshModelRequested("b"), e.MeshModelRequested("big"))
    assert machine.serving == {"a", "b"}, "without a mesh nobody else can take it"
    assert machine.phase("big") is ModelPhase.FAILED
    route = routes.route(machine.core.snapshot(), "big")
    assert route.availability is Availability.FAILED
    assert "it does not fit beside a, b" in route.message
    measured = next(command for command in machine.commands if isinstance(command, c.MeasureModel))
    assert measured.beside == ("b", "big"), "the plan of the first model keeps memory for the others"


def test_model_that_does_not_fit_beside_is_never_split_nor_read_from_the_disk() -> None:
    core = NodeCore()
    for event in (e.ModelWanted("a"), e.EngineReady("1"), e.MeshModelRequested("b")):
        core.handle(event, 0.0)
    for name in "ab":
        core.handle(e.FileReady(name, ModelFacts(name, 1, "llama", 8192)), 0.0)
    core.handle(e.ModelMeasured("a", MeasuredModel(fits_locally=True, free_bytes=9)), 0.0)
    paging = MeasuredModel(fits_locally=False, free_bytes=9, disk_paging=True, least_bytes=10)
    assert core.handle(e.ModelMeasured("b", paging), 0.0) == []
    found = core.snapshot().model("b")
    assert found is not None
    assert found.server is ServerPhase.NONE


def mesh_of(models: tuple[str, ...], *, standby_has: tuple[str, ...] | None = None) -> SmallMesh:
    """A node with these `--model`s, joined by a second one that has other models on its disk (None: it serves "b")."""
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    if standby_has is None:
        mesh.serve(2, "b")
    else:
        mesh.tell(2, e.MachineObserved(1 << 30, models=standby_has))
    mesh.until(mesh.whole)
    for number, model in enumerate(models):
        mesh.tell(1, e.MeshModelRequested(model) if number else e.ModelWanted(model))
    return mesh


def has(mesh: SmallMesh, model: str) -> bool:
    """Whether the first node has taken it."""
    return mesh.cores[1].snapshot().model(model) is not None


def test_second_model_runs_here_if_no_node_takes_it_within_ten_seconds() -> None:
    mesh = mesh_of(("a", "b"), standby_has=())
    mesh.run(BESIDE_SECONDS - 1)
    assert not has(mesh, "b")
    mesh.run(4)
    assert has(mesh, "b")
    assert "b" in mesh.cores[1].snapshot().mesh.record.wants, "other nodes may still take it"  # type: ignore[union-attr]


def test_model_that_does_not_fit_beside_is_no_split_candidate() -> None:
    mesh = mesh_of(("a", "b"), standby_has=())
    mesh.run(BESIDE_SECONDS + 4)
    mesh.tell(1, e.EngineReady("1"))
    for name in "ab":
        mesh.tell(1, e.FileReady(name, ModelFacts(name, 1, "llama", 8192)))
        mesh.tell(1, e.ModelMeasured(name, MeasuredModel(fits_locally=False, free_bytes=9, least_bytes=10)))
    record = mesh.view(1).record
    assert record is not None
    assert [candidate.model for candidate in record.splits] == ["a"], "nobody waits for this node to split b"
    assert record.wants == ("a", "b")


def test_second_model_is_left_to_a_node_that_serves_it_until_that_is_gone() -> None:
    mesh = mesh_of(("a", "b"))
    mesh.run(300)
    assert not has(mesh, "b")
    mesh.kill(2, seen=True)
    assert mesh.until(lambda: has(mesh, "b")) > BESIDE_SECONDS - 1, "a standby gets the chance first"


def test_second_model_waits_longer_for_a_standby_that_has_it_on_its_disk() -> None:
    mesh = mesh_of(("a", "b"), standby_has=("b",))
    mesh.run(TAKEN_SECONDS - 5)
    assert not has(mesh, "b"), "the standby loads it"
    mesh.run(10)
    assert has(mesh, "b"), "it did not come about"


def test_idle_model_is_unloaded_and_loaded_again_by_a_request() -> None:
    machine = Machine(10, {"a": 6}, idle_unload=60.0)
    machine.tell(e.ModelWanted("a"))
    machine.work("a", 1)
    machine.wait(600)
    assert machine.serving == {"a"}, "it answers"
    machine.work("a", 0)
    machine.wait(59)
    assert machine.serving == {"a"}
    assert machine.core.snapshot().idle_unload == 60.0
    machine.wait(2)
    assert machine.serving == set()
    assert machine.phase("a") is ModelPhase.AVAILABLE
    assert machine.held == {}
    machine.wait(1e5)
    assert machine.serving == set(), "nobody asks for it"
    route = routes.route(machine.core.snapshot(), "a")
    assert (route.availability, route.loads) == (Availability.COMING, True)
    machine.tell(e.ModelRequested("a"))
    assert machine.serving == {"a"}
    assert machine.model("a").restarts == 0


def test_request_that_comes_while_an_idle_model_is_stopped_gets_a_new_process() -> None:
    machine = Machine(10, {"a": 6}, idle_unload=60.0)
    machine.tell(e.ModelWanted("a"))
    machine.busy["a"] = 1  # a moment before the load is reported
    machine.wait(61)
    assert machine.phase("a") is ModelPhase.STOPPING
    assert not routes.offers_here(machine.core.snapshot(), "a")
    assert routes.route(machine.core.snapshot(), "a").loads
    machine.tell(e.ModelRequested("a"))
    assert machine.held == {"a": 6}, "the answer in progress goes on"
    machine.work("a", 0)
    assert machine.serving == {"a"}
    assert machine.model("a").generation == 2
    assert machine.stopped_busy == []


def test_model_that_waits_for_room_gets_it_before_one_that_is_requested_later() -> None:
    """Measuring takes a moment in which others come: the one that waits must not be passed again and again."""
    core = NodeCore()
    now = 0.0
    fits, short = MeasuredModel(True, 10), MeasuredModel(False, 4, least_bytes=6)

    def measures(*events: e.Event) -> list[str]:
        found = [command for event in events for command in core.handle(event, now)]
        return [command.model for command in found if isinstance(command, c.MeasureModel)]

    def wanted(name: str) -> list[e.Event]:
        facts = ModelFacts(f"/{name}", 6, "llama", 8192)
        return [e.ModelWanted(name, origin=ModelOrigin.LOADED), e.FileReady(name, facts)]

    def serve(name: str) -> None:
        facts = ServerFacts(f"/{name}", 1, 4, 8192, memory=6)
        core.handle(e.ServerReady(name, 1, facts), now)

    assert measures(*wanted("a"), e.EngineReady("1")) == ["a"]
    core.handle(e.ModelMeasured("a", fits), now)
    serve("a")
    core.handle(e.LoadsChanged((ModelLoad("a", 1, 0),)), now)
    assert measures(*wanted("b"), e.ModelMeasured("b", short), *wanted("c")) == ["b", "c"], "c may fit where b does not"
    assert measures(e.ModelMeasured("c", short)) == []
    now = 2.0
    idle = core.handle(e.LoadsChanged((ModelLoad("a", 0, 0),)), now)
    now = 4.0
    idle += core.handle(e.TimePassed(), now)
    assert [command.model for command in idle if isinstance(command, c.StopServer)] == ["a"]
    assert measures(*wanted("d")) == [], "room is being made for b"
    assert measures(e.ServerGone("a", 1, "it was stopped")) == ["b"]
    assert measures(e.TimePassed()) == []
    assert measures(e.ModelMeasured("b", MeasuredModel(False, 10, least_bytes=12))) == ["c"], "the first does not fit"
    assert measures(e.ModelMeasured("c", fits)) == ["d"]


def test_least_recently_used_loaded_model_makes_room() -> None:
    machine = Machine(10, {"a": 4, "b": 3, "c": 3, "d": 3})
    machine.tell(e.ModelWanted("a"), *loaded("b", "c"))
    for at, name in enumerate(("c", "b", "a")):
        machine.now = 10.0 + at
        machine.work(name, 1)
        machine.work(name, 0)
    machine.tell(e.LoadWanted("d"))
    assert machine.serving == {"a", "b", "d"}
    assert machine.phase("c") is ModelPhase.AVAILABLE
    machine.now = 20.0
    machine.tell(e.ModelRequested("c"))
    assert machine.serving == {"a", "c", "d"}, "b was used before d was loaded"


def test_busy_model_is_never_evicted_and_the_other_waits_for_it() -> None:
    machine = Machine(6, {"a": 3, "b": 3, "c": 3})
    machine.tell(*loaded("a", "b"))
    machine.work("a", 1)
    machine.work("b", 2)
    machine.tell(e.LoadWanted("c"))
    machine.wait(100)
    assert machine.serving == {"a", "b"}
    assert routes.route(machine.core.snapshot(), "c").message == "waiting for memory: c"
    machine.work("b", 0)
    assert machine.serving == {"a", "b"}, "a request may be on its way to it"
    machine.wait(2)
    assert machine.serving == {"a", "c"}
    assert machine.stopped_busy == []


def test_model_that_cannot_fit_evicts_nothing() -> None:
    machine = Machine(10, {"a": 6, "b": 3, "c": 5})
    machine.tell(e.ModelWanted("a"), *loaded("b"), e.LoadWanted("c"))
    assert machine.serving == {"a", "b"}
    assert machine.phase("c") is ModelPhase.FAILED
    assert "it needs" in machine.model("c").reason
    machine.tell(e.DropWanted("a"))
    assert machine.serving == {"b", "c"}, "now it fits"


def test_dropped_model_ends_its_answers_first_and_is_removed() -> None:
    machine = Machine(10, {"a": 6})
    machine.tell(e.ModelWanted("a"))
    machine.work("a", 1)
    machine.tell(e.DropWanted("a"))
    route = routes.route(machine.core.snapshot(), "a")
    assert (route.offers, route.availability) == ((), Availability.FAILED)
    assert "its owner dropped it" in route.message
    assert machine.held == {"a": 6}
    machine.work("a", 0)
    assert machine.core.snapshot().models == ()
    assert c.ForgetModel("a") in machine.commands
    assert routes.route(machine.core.snapshot(), "a").availability is Availability.UNKNOWN
    machine.tell(e.LoadWanted("a"))
    assert machine.serving == {"a"}
    assert machine.model("a").generation == 2, "events of the old process are stale"


def test_drop_of_a_model_that_is_being_downloaded_stops_that() -> None:
    core = NodeCore()
    core.handle(e.LoadWanted("a"), 0.0)
    saved = c.SaveDropped((("a", 1.0 + DROPPED_SECONDS),))
    assert core.handle(e.DropWanted("a"), 1.0) == [c.ForgetModel("a"), saved]
    assert core.handle(e.FileReady("a", ModelFacts("a", 1, "llama", 8192)), 2.0) == []
    assert core.snapshot().models == ()


def test_dropped_model_of_an_earlier_run_is_not_taken_for_the_mesh_but_for_the_owner() -> None:
    core = NodeCore(dropped={"a": 500.0})
    assert core.handle(e.BackendAdded("http://x"), 0.0) == [c.ProbeBackend("http://x")], "nothing new is saved"
    assert core.handle(e.ModelWanted("a"), 1.0)[-1] == c.SaveDropped(())
    assert NodeCore(dropped={"a": 500.0}).handle(e.TimePassed(), 501.0) == []


def test_load_while_a_dropped_model_ends_brings_it_back() -> None:
    machine = Machine(10, {"a": 6})
    machine.tell(e.ModelWanted("a"))
    machine.work("a", 1)
    machine.tell(e.DropWanted("a"), e.LoadWanted("a"))
    machine.work("a", 0)
    assert machine.serving == {"a"}


def test_load_tries_a_failed_model_again_at_once() -> None:
    core = NodeCore()
    core.handle(e.LoadWanted("a"), 0.0)
    core.handle(e.FileFailed("a", "no such model", "", final=True), 1.0)
    assert core.handle(e.TimePassed(), 1e6) == []
    assert core.handle(e.LoadWanted("a"), 1e6) == [c.FetchModel("a")]


def test_node_stops_although_a_dropped_model_still_answers() -> None:
    machine = Machine(10, {"a": 6})
    machine.tell(e.ModelWanted("a"))
    machine.work("a", 1)
    machine.tell(e.DropWanted("a"), e.StopWanted())
    assert machine.commands[-2:] == [c.ForgetModel("a"), c.Finish()], "the answer is not waited for"


def test_standby_does_not_take_a_dropped_model_again_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DROPPED_SECONDS == 86_400, "a day"
    monkeypatch.setattr(node, "DROPPED_SECONDS", 300.0)
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    mesh.until(mesh.whole)
    mesh.tell(2, e.MachineObserved(1 << 30, models=("m",)))
    mesh.tell(1, e.MeshModelRequested("m"))
    mesh.until(lambda: mesh.cores[2].snapshot().model("m") is not None)
    mesh.tell(2, e.DropWanted("m"))
    mesh.run(290)
    assert mesh.cores[2].snapshot().model("m") is None
    record = mesh.view(2).record
    assert record is not None
    assert record.on_disk == (), "others must not count on it"
    mesh.until(lambda: mesh.cores[2].snapshot().model("m") is not None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_is_requested_memory_holds_and_no_answer_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {f"m{number}": rng.randint(1, 5) for number in range(8)}
    machine = Machine(9, sizes, idle_unload=rng.choice([None, 30.0]))
    machine.tell(*loaded(*sizes))
    for _ in range(60):
        name = rng.choice(sorted(sizes))
        match rng.randrange(6):
            case 0 if name in machine.serving:
                machine.work(name, rng.choice([0, 1, 3]))
            case 1:
                machine.wait(rng.choice([0.5, 40.0]))
            case 2:
                machine.tell(e.DropWanted(name))
            case 3:
                machine.tell(e.LoadWanted(name))
            case _ if machine.core.snapshot().model(name) is not None:
                machine.tell(e.ModelRequested(name))
        for other in sizes:
            if rng.random() < 0.3 and machine.busy[other]:
                machine.work(other, 0)
    assert machine.stopped_busy == []
    for name in sizes:
        machine.work(name, 0)
    wanted = rng.choice(sorted(sizes))
    machine.tell(e.LoadWanted(wanted))
    # Each is left a moment for requests on their way, before it makes room for the next one that waits.
    assert any(machine.wait(0.5) or wanted in machine.serving for _ in range(40)), (
        "every model fits alone, and all are idle"
    )
