"""`next_step` and the core that applies it: it settles, whatever happens and in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.memory.context_size import DEFAULT_CONTEXT, DEFAULT_SLOTS, DEFAULT_TEXT, SMALLEST_CONTEXT, candidates
from meshllm.core.node import NodeCore
from meshllm.core.routing import route_texts, routes
from meshllm.core.serving import next_step
from meshllm.core.snapshot import (
    EnginePhase,
    FilePhase,
    ModelFacts,
    ModelPhase,
    Purpose,
    ServerFacts,
    ServerPhase,
)
from meshllm.core.split.host import MeasuredModel
from meshllm.util.progress import Progress

FACTS = ModelFacts("/models/m.gguf", 100, "llama", 8192)
SERVER = ServerFacts("/run/m.sock", 42, 4, 8192)
FITS = MeasuredModel(fits_locally=True, free_bytes=1 << 30)


def serving_mesh(now: float = 0.0) -> NodeCore:
    """A core whose one model is being served by generation 1."""
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), now)
    mesh.handle(e.EngineReady("1"), now)
    mesh.handle(e.FileReady("m", FACTS), now)
    mesh.handle(e.ModelMeasured("m", FITS), now)
    mesh.handle(e.ServerReady("m", 1, SERVER), now)
    return mesh


def test_model_that_does_not_fit_fails_at_once_and_is_retried() -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    mesh.handle(e.EngineReady("1"), 0.0)
    mesh.handle(e.FileReady("m", FACTS), 0.0)
    mesh.handle(e.ModelMeasured("m", FITS), 0.0)
    assert mesh.handle(e.ServerGone("m", 1, "it does not fit", "buy more", hopeless=True), 1.0) == []
    assert phase(mesh) is ModelPhase.FAILED
    due = mesh.next_deadline()
    assert due == 1.0 + next_step.CRASH_LOOP_RETRY_SECONDS
    # The memory is looked at again, and by then others may help.
    assert mesh.handle(e.TimePassed(), due) == [c.MeasureModel("m")]


def phase(mesh: NodeCore) -> ModelPhase:
    """The phase of the one model."""
    snapshot = mesh.snapshot()
    return next_step.phase(snapshot.engine, snapshot.models[0])


def test_file_and_engine_are_prepared_together_before_the_start() -> None:
    mesh = NodeCore()
    assert mesh.handle(e.ModelWanted("m"), 0.0) == [c.FetchModel("m"), c.PrepareEngine()]
    assert mesh.handle(e.FileReady("m", FACTS), 1.0) == []
    assert phase(mesh) is ModelPhase.WAITING
    assert mesh.handle(e.EngineReady("1"), 2.0) == [c.MeasureModel("m")]
    assert phase(mesh) is ModelPhase.WAITING
    assert mesh.handle(e.ModelMeasured("m", FITS), 2.5) == [c.StartServer("m", 1)]
    assert phase(mesh) is ModelPhase.LOADING
    assert mesh.handle(e.ServerReady("m", 1, SERVER), 3.0) == []
    assert phase(mesh) is ModelPhase.SERVING
    assert mesh.next_deadline() is None


def test_settled_core_gives_no_commands() -> None:
    mesh = serving_mesh()
    before = mesh.snapshot()
    assert mesh.handle(e.TimePassed(), 1000.0) == []
    assert mesh.handle(e.ModelWanted("m"), 1000.0) == []
    assert mesh.snapshot() is before


def test_crash_restarts_at_once_and_then_with_backoff() -> None:
    mesh = serving_mesh()
    assert mesh.handle(e.ServerGone("m", 1, "killed"), 100.0) == [c.StartServer("m", 2)]
    waits, now, generation = [], 100.0, 2
    while phase(mesh) is not ModelPhase.FAILED:
        assert mesh.handle(e.ServerGone("m", generation, "killed again"), now) == []
        due = mesh.next_deadline()
        assert due is not None
        waits.append(due - now)
        assert mesh.handle(e.TimePassed(), due - 0.01) == []
        now, generation = due, generation + 1
        assert mesh.handle(e.TimePassed(), now) == [c.StartServer("m", generation)]
    assert waits == sorted(waits)
    assert waits[-1] == next_step.CRASH_LOOP_RETRY_SECONDS
    assert len(waits) == next_step.CRASH_LOOP_FAILURES - 1
    route = routes.route(mesh.snapshot(), "m")
    assert route.availability is routes.Availability.FAILED
    assert "killed again" in route.message


def test_stable_server_resets_the_crash_count() -> None:
    mesh = serving_mesh()
    for generation in (1, 2, 3):
        now = generation * 1000.0
        todo = mesh.handle(e.ServerGone("m", generation, "killed"), now)
        assert todo == [c.StartServer("m", generation + 1)]
        mesh.handle(e.ServerReady("m", generation + 1, SERVER), now + 1)
    assert mesh.snapshot().models[0].restarts == 3
    assert mesh.snapshot().models[0].failures == 1
    assert mesh.snapshot().models[0].reason == "", "it serves again"
    assert mesh.snapshot().models[0].last_failure == "killed"


def test_events_of_an_older_generation_are_ignored() -> None:
    mesh = serving_mesh()
    mesh.handle(e.ServerGone("m", 1, "killed"), 100.0)
    before = mesh.snapshot()
    assert mesh.handle(e.ServerReady("m", 1, SERVER), 100.1) == []
    assert mesh.handle(e.ServerGone("m", 1, "killed"), 100.2) == []
    assert mesh.handle(e.ServerProgress("m", 1, Progress("x")), 100.3) == []
    assert mesh.snapshot() is before


def test_failed_measurement_is_retried_and_reported() -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    mesh.handle(e.FileReady("m", FACTS), 0.0)
    mesh.handle(e.EngineReady("1"), 0.0)
    assert mesh.handle(e.MeasureFailed("m", "the engine crashed on it", "fetch it again"), 1.0) == [c.MeasureModel("m")]
    assert mesh.handle(e.MeasureFailed("m", "the engine crashed on it", "fetch it again"), 2.0) == []
    assert mesh.snapshot().models[0].reason == "the engine crashed on it"
    due = mesh.next_deadline()
    assert due is not None
    assert mesh.handle(e.TimePassed(), due) == [c.MeasureModel("m")]


def test_model_too_large_for_a_node_without_mesh_is_refused() -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    mesh.handle(e.FileReady("m", FACTS), 0.0)
    mesh.handle(e.EngineReady("1"), 0.0)
    assert mesh.handle(e.ModelMeasured("m", MeasuredModel(fits_locally=False, free_bytes=10)), 1.0) == []
    assert phase(mesh) is ModelPhase.FAILED
    route = routes.route(mesh.snapshot(), "m")
    assert route.availability is routes.Availability.FAILED
    assert "too large" in route.message
    assert "--join" in route.message


def test_stop_stops_all_models_and_finishes_once() -> None:
    mesh = serving_mesh()
    assert mesh.handle(e.StopWanted(), 1.0) == [c.StopServer("m", 1)]
    assert phase(mesh) is ModelPhase.STOPPING
    assert mesh.handle(e.StopWanted(), 1.5) == []
    assert mesh.handle(e.ServerGone("m", 1, "it was stopped"), 2.0) == [c.Finish()]
    assert mesh.handle(e.TimePassed(), 3.0) == []
    assert mesh.handle(e.ModelWanted("other"), 4.0) == []


def test_stop_without_processes_finishes_at_once() -> None:
    assert NodeCore().handle(e.StopWanted(), 0.0) == [c.Finish()]


def test_engine_failure_is_reported_to_callers() -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    mesh.handle(e.FileReady("m", FACTS), 0.0)
    mesh.handle(e.EngineFailed("no compiler", "apt install g++"), 1.0)
    route = routes.route(mesh.snapshot(), "m")
    assert route.availability is routes.Availability.FAILED
    assert "no compiler" in route.message
    assert "apt install g++" in route.message


def test_failed_download_is_retried_unless_final() -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    assert mesh.handle(e.FileFailed("m", "no network"), 10.0) == []
    due = mesh.next_deadline()
    assert due is not None
    assert mesh.handle(e.TimePassed(), due) == [c.FetchModel("m")]
    assert mesh.handle(e.FileFailed("m", "not GGUF", final=True), due + 1) == []
    assert mesh.next_deadline() is None
    assert phase(mesh) is ModelPhase.FAILED


def test_backends_are_probed_and_routed_while_they_answer() -> None:
    mesh = NodeCore()
    assert mesh.handle(e.BackendAdded("http://b"), 0.0) == [c.ProbeBackend("http://b")]
    assert routes.route(mesh.snapshot(), "x").availability is routes.Availability.COMING
    mesh.handle(e.BackendAnswered("http://b", ("x", "y")), 1.0)
    assert [t.address for t in routes.route(mesh.snapshot(), "x").targets] == ["http://b"]
    assert routes.route(mesh.snapshot(), "z").availability is routes.Availability.UNKNOWN
    due = mesh.next_deadline()
    assert due is not None
    assert mesh.handle(e.TimePassed(), due) == [c.ProbeBackend("http://b")]
    mesh.handle(e.BackendSilent("http://b", "refused"), due)
    gone = routes.route(mesh.snapshot(), "x")
    assert gone.targets == ()
    assert gone.availability is routes.Availability.COMING
    for _ in range(routes.BACKEND_MAX_FAILURES):
        later = mesh.next_deadline()
        assert later is not None
        assert mesh.handle(e.TimePassed(), later) == [c.ProbeBackend("http://b")]
        mesh.handle(e.BackendSilent("http://b", "refused"), later)
    assert routes.route(mesh.snapshot(), "x").availability is routes.Availability.FAILED


def test_local_model_comes_before_a_backend_of_the_same_name() -> None:
    mesh = serving_mesh()
    mesh.handle(e.BackendAdded("http://b"), 0.0)
    mesh.handle(e.BackendAnswered("http://b", ("m",)), 0.0)
    kinds = [target.kind for target in routes.route(mesh.snapshot(), "m").targets]
    assert kinds == [routes.TargetKind.ENGINE, routes.TargetKind.BACKEND]
    assert routes.models(mesh.snapshot()) == ("m",)


def test_target_offers_equal_the_routes() -> None:
    mesh = serving_mesh()
    for url, names in (("http://a", ("x", "m")), ("http://b", ("y", "x"))):
        mesh.handle(e.BackendAdded(url), 0.0)
        mesh.handle(e.BackendAnswered(url, names), 0.0)
    mesh.handle(e.ModelWanted("coming"), 0.0)
    found = routes.all_offers(mesh.snapshot())
    assert tuple(found) == routes.models(mesh.snapshot()) == ("m", "coming", "x", "y")
    assert {name: tuple(offers) for name, offers in found.items()} == {
        name: routes.route(mesh.snapshot(), name).offers for name in found
    }


ANSWERS = st.sampled_from(["ready", "gone", "progress", "stale", "time", "stop", "file-failed", "engine-failed"])


@given(st.lists(st.tuples(ANSWERS, st.floats(0.0, 300.0)), max_size=60))
def test_core_keeps_its_invariants_under_any_events(history: list[tuple[str, float]]) -> None:
    """At most one process of a model at a time; never a start after a stop; snapshots only grow; it always settles."""
    mesh, now, started, stopped, version = NodeCore(), 0.0, 0, False, 0

    def happen(event: e.Event) -> None:
        nonlocal started
        for command in mesh.handle(event, now):
            if isinstance(command, c.StartServer):
                assert not stopped
                assert command.generation == started + 1
                started = command.generation

    happen(e.ModelWanted("m"))
    for what, later in history:
        now += later
        generation = mesh.snapshot().models[0].generation
        stopped = stopped or what == "stop"
        happen(
            {
                "ready": e.ServerReady("m", generation, SERVER),
                "gone": e.ServerGone("m", generation, "gone"),
                "progress": e.ServerProgress("m", generation, Progress.at("loading", 0.5)),
                "stale": e.ServerGone("m", generation - 1, "gone"),
                "time": e.TimePassed(),
                "stop": e.StopWanted(),
                "file-failed": e.FileFailed("m", "no"),
                "engine-failed": e.EngineFailed("no"),
            }[what]
        )
        if what == "time" and mesh.snapshot().models[0].file is FilePhase.FETCHING:
            happen(e.FileReady("m", FACTS))
            happen(e.EngineReady("1"))
            happen(e.ModelMeasured("m", FITS))
        assert mesh.snapshot().version >= version
        version = mesh.snapshot().version
        state = mesh.snapshot().models[0]
        assert state.generation == started
    mesh.handle(e.StopWanted(), now)
    model = mesh.snapshot().models[0]
    mesh.handle(e.ServerGone("m", model.generation, "stopped"), now)
    assert mesh.snapshot().models[0].server is ServerPhase.NONE
    assert mesh.next_deadline() is None


@given(st.sampled_from(list(EnginePhase)), st.sampled_from(list(FilePhase)), st.sampled_from(list(ServerPhase)))
def test_each_state_has_a_phase_and_a_message(engine: EnginePhase, file: FilePhase, server: ServerPhase) -> None:
    from meshllm.core.snapshot import EngineState, ModelState

    model = ModelState("m", file=file, server=server)
    assert isinstance(next_step.phase(EngineState(engine), model), ModelPhase)
    assert "m" in next_step.progress_message(EngineState(engine), model)
    assert next_step.next_step(EngineState(engine), model, 0.0) == next_step.next_step(EngineState(engine), model, 0.0)


@pytest.mark.parametrize("purpose", Purpose)
def test_route_has_the_purpose_once_the_file_is_read(purpose: Purpose) -> None:
    mesh = NodeCore()
    mesh.handle(e.ModelWanted("m"), 0.0)
    assert routes.route(mesh.snapshot(), "m").purpose is None
    mesh.handle(e.FileReady("m", ModelFacts("/m.gguf", 1, "bert", 512, purpose=purpose)), 1.0)
    assert routes.route(mesh.snapshot(), "m").purpose is purpose
    mesh.handle(e.EngineReady("1"), 2.0)
    mesh.handle(e.ModelMeasured("m", FITS), 2.5)
    mesh.handle(e.ServerReady("m", 1, SERVER), 3.0)
    route = routes.route(mesh.snapshot(), "m")
    assert (route.purpose, len(route.targets)) == (purpose, 1)
    assert "m" in route_texts.purpose_message("m", purpose)


@given(st.integers(0, 1 << 22), st.none() | st.integers(256, 1 << 20))
def test_candidates_get_smaller_and_keep_a_requested_context(trained: int, asked: int | None) -> None:
    sizes = candidates(trained, asked)
    assert sizes[-1].slots == 1
    assert sizes == tuple(sorted(sizes, key=lambda size: (-size.context_length, -size.slots)))
    if asked:
        assert {size.context_length for size in sizes} == {min(asked, trained or asked)}
    else:
        assert sizes[0].context_length <= DEFAULT_CONTEXT
        assert all(size.context_length >= min(SMALLEST_CONTEXT, sizes[0].context_length) for size in sizes)


@given(st.sampled_from([Purpose.EMBED, Purpose.RERANK]), st.integers(0, 1 << 22), st.none() | st.integers(256, 1 << 20))
def test_candidates_of_embedding_models_stay_within_their_context(
    purpose: Purpose, trained: int, asked: int | None
) -> None:
    sizes = candidates(trained, asked, purpose)
    free = candidates(trained, asked, purpose, slots_are_free=True)
    assert {size.slots for size in free} == {DEFAULT_SLOTS}
    assert {size.context_length for size in free} == {size.context_length for size in sizes}
    assert all(0 < size.context_length <= (trained or 1 << 22) for size in sizes)
    if asked is None:
        assert sizes[0].context_length <= DEFAULT_TEXT
    else:
        assert {size.context_length for size in sizes} == {min(asked, trained or asked)}


@pytest.mark.parametrize("failures", range(1, 20))
def test_restart_delay_never_shrinks(failures: int) -> None:
    assert next_step.restart_delay(failures + 1) >= next_step.restart_delay(failures)
