"""Downloads that fail: tried again by the node, told to callers at once, and no failure of an engine."""

from __future__ import annotations

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.node import NodeCore
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability
from meshllm.core.serving import next_step
from meshllm.core.snapshot import ModelFacts, ModelPhase, ModelState
from meshllm.core.split.host import MeasuredModel
from meshllm.util.progress import Progress

FACTS = ModelFacts("/models/m.gguf", 100, "llama", 8192)


def offline() -> tuple[NodeCore, float]:
    """A core whose first download has failed, and when it tries again."""
    node = NodeCore()
    node.handle(e.ModelWanted("m"), 0.0)
    node.handle(e.EngineReady("1"), 0.0)
    node.handle(e.FileFailed("m", "no network.", "Plug it in."), 1.0)
    due = node.next_deadline()
    assert due is not None
    return node, due


def model(node: NodeCore) -> ModelState:
    return node.snapshot().models[0]


def phase(node: NodeCore) -> ModelPhase:
    return next_step.phase(node.snapshot().engine, model(node))


def availability(node: NodeCore) -> Availability:
    return routes.route(node.snapshot(), "m").availability


def test_nothing_was_started_so_nothing_restarts() -> None:
    node, due = offline()
    for _ in range(next_step.CRASH_LOOP_FAILURES + 2):
        assert phase(node) is ModelPhase.FETCHING
        assert node.handle(e.TimePassed(), due) == [c.FetchModel("m")]
        assert phase(node) is ModelPhase.FETCHING
        node.handle(e.FileFailed("m", "no network.", "Plug it in."), due)
        following = node.next_deadline()
        assert following is not None
        assert following > due
        due = following


def test_callers_are_refused_at_once_with_the_cause_and_that_it_is_tried_again() -> None:
    node, due = offline()
    route = routes.route(node.snapshot(), "m")
    assert route.availability is Availability.FAILED
    assert route.message.startswith("m is not downloaded yet: no network. Plug it in. This node tries again by itself")
    # Also while it tries: the attempt is likely to end as the last one did.
    node.handle(e.TimePassed(), due)
    node.handle(e.FileProgress("m", Progress("connecting", 0, 100)), due)
    assert availability(node) is Availability.FAILED


def test_callers_wait_again_once_bytes_arrive() -> None:
    node, due = offline()
    node.handle(e.TimePassed(), due)
    node.handle(e.FileProgress("m", Progress("connecting", 10, 100)), due)
    assert availability(node) is Availability.FAILED, "these bytes are of an earlier attempt"
    node.handle(e.FileProgress("m", Progress("downloading", 11, 100)), due)
    assert availability(node) is Availability.COMING
    assert model(node).reason == ""


def test_final_failure_is_not_tried_again() -> None:
    node, due = offline()
    node.handle(e.TimePassed(), due)
    node.handle(e.FileFailed("m", "not GGUF.", "Use another.", final=True), due)
    assert phase(node) is ModelPhase.FAILED
    assert "tries again" not in routes.route(node.snapshot(), "m").message


def test_rejected_file_is_not_measured_five_times() -> None:
    node = NodeCore()
    node.handle(e.ModelWanted("m"), 0.0)
    node.handle(e.EngineReady("1"), 0.0)
    node.handle(e.FileReady("m", FACTS), 0.0)
    node.handle(e.MeasureFailed("m", "the engine rejects it", hopeless=True), 1.0)
    assert phase(node) is ModelPhase.FAILED
    assert node.next_deadline() == 1.0 + next_step.CRASH_LOOP_RETRY_SECONDS


def test_failed_measurement_is_a_longer_start_and_no_restart() -> None:
    node = NodeCore()
    node.handle(e.ModelWanted("m"), 0.0)
    node.handle(e.EngineReady("1"), 0.0)
    node.handle(e.FileReady("m", FACTS), 0.0)
    node.handle(e.MeasureFailed("m", "a probe was killed"), 1.0)
    assert phase(node) is ModelPhase.LOADING


def test_leaving_out_split_is_advised_only_where_the_model_fits() -> None:
    for fits in (True, False):
        node = NodeCore()
        node.handle(e.ModelWanted("m", split=True), 0.0)
        node.handle(e.EngineReady("1"), 0.0)
        node.handle(e.FileReady("m", FACTS), 0.0)
        node.handle(e.ModelMeasured("m", MeasuredModel(fits_locally=fits, free_bytes=1 << 30)), 1.0)
        assert model(node).reason
        assert ("leave out --split" in model(node).advice) is fits
