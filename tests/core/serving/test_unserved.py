"""Models that a node does not serve: what its record says, and what callers of other nodes hear."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshllm.core import events as e
from meshllm.core.records import MAX_UNSERVED, UnservedCause, UnservedModel
from meshllm.core.routing import routes
from meshllm.core.routing.routes import Availability, ModelRoute
from meshllm.core.serving.unserved import MAX_REASON, short, unserved_models
from meshllm.core.snapshot import EnginePhase, EngineState, ModelFacts
from meshllm.core.split.host import MeasuredModel
from tests.core.small_mesh import SmallMesh


def two_nodes() -> SmallMesh:
    """The second one is asked."""
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    mesh.until(mesh.whole)
    return mesh


def file_fails(mesh: SmallMesh) -> None:
    mesh.tell(1, e.ModelWanted("m"))
    mesh.tell(1, e.FileFailed("m", "/home/anna/models/m.gguf is no model.", "Delete it.", final=True))


def download_fails(mesh: SmallMesh) -> None:
    mesh.tell(1, e.ModelWanted("m"))
    mesh.tell(1, e.FileFailed("m", "The hub does not answer.", "", final=False))


def engine_fails(mesh: SmallMesh) -> None:
    mesh.tell(1, e.ModelWanted("m"))
    mesh.tell(1, e.EngineFailed("No compiler was found.", ""))


def loading_for_a_request_fails(mesh: SmallMesh) -> None:
    mesh.tell(1, e.MachineObserved(1 << 30, models=("m",), model_sizes=(1000,)))
    mesh.tell(1, e.ModelRequested("m"))
    mesh.tell(1, e.EngineReady("1"))
    mesh.tell(1, e.FileReady("m", ModelFacts("/m.gguf", 100, "llama", 8192)))
    mesh.tell(1, e.ModelMeasured("m", MeasuredModel(fits_locally=True, free_bytes=1000)))
    mesh.tell(1, e.ServerGone("m", 1, "It ended at once.", "", hopeless=True))
    mesh.run(10)


def file_is_damaged(mesh: SmallMesh) -> None:
    damaged = (("m", "its file m.gguf is damaged: it is truncated.", True),)
    mesh.tell(1, e.MachineObserved(1 << 30, models=("other",), damaged=damaged))


def owner_drops(mesh: SmallMesh) -> None:
    mesh.tell(1, e.MachineObserved(1 << 30, models=("m",)))
    mesh.tell(1, e.DropWanted("m"))


def route_elsewhere(mesh: SmallMesh) -> ModelRoute:
    mesh.run(20)
    return routes.route(mesh.cores[2].snapshot(), "m", now=mesh.now)


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (file_fails, "m.gguf is no model."),
        (download_fails, "The hub does not answer."),
        (engine_fails, "No compiler was found."),
        (loading_for_a_request_fails, "It ended at once."),
    ],
)
def test_callers_elsewhere_hear_what_failed_and_are_to_retry(happens: Callable[[SmallMesh], None], said: str) -> None:
    mesh = two_nodes()
    happens(mesh)
    route = route_elsewhere(mesh)
    assert route.availability in (Availability.FAILED, Availability.COMING), "a 503"
    text = route.message if route.availability is Availability.FAILED else route.timeout_message
    assert "m is not served at the moment. n1 (" in text
    assert f"could not serve it: {said}" in text
    assert text.endswith("Retry later.")
    assert "anna" not in text
    assert "--join" not in text


@pytest.mark.parametrize("happens", [file_is_damaged, owner_drops])
def test_what_only_an_owner_changes_is_no_reason_to_retry(happens: Callable[[SmallMesh], None]) -> None:
    mesh = two_nodes()
    happens(mesh)
    assert route_elsewhere(mesh).availability is Availability.UNKNOWN, "a 404, whose text says it"
    index = routes.mesh_index(mesh.cores[2].snapshot().mesh)
    ((_, told),) = index.unserved["m"]
    assert told.cause is (UnservedCause.DROPPED if happens is owner_drops else UnservedCause.DAMAGED)
    assert routes.names(mesh.cores[2].snapshot(), index, {}).find("M.gguf") == "m"


def test_damaged_file_of_this_node_is_named() -> None:
    mesh = two_nodes()
    file_is_damaged(mesh)
    route = routes.route(mesh.cores[1].snapshot(), "m", now=mesh.now)
    assert route.availability is Availability.FAILED
    assert "m.gguf is damaged: it is truncated. Its owner deletes the file" in route.message


def test_file_that_others_may_not_know_of_is_named_to_callers_here_only() -> None:
    mesh = two_nodes()
    mesh.tell(1, e.MachineObserved(1 << 30, models=(), damaged=(("m", "its file is damaged.", False),)))
    assert routes.route(mesh.cores[1].snapshot(), "m").availability is Availability.FAILED
    route_elsewhere(mesh)
    assert not routes.mesh_index(mesh.cores[2].snapshot().mesh).unserved


def test_model_that_another_node_serves_is_no_failure() -> None:
    mesh = two_nodes()
    file_fails(mesh)
    mesh.start(3, [mesh.way(1)])
    mesh.serve(3, "m")
    mesh.until(mesh.whole)
    assert route_elsewhere(mesh).targets


def test_causes_of_long_ago_are_gone() -> None:
    mesh = two_nodes()
    loading_for_a_request_fails(mesh)
    route_elsewhere(mesh)
    mesh.run(700)
    assert not routes.mesh_index(mesh.cores[2].snapshot().mesh).unserved


def test_list_is_bounded_and_each_model_is_in_it_once() -> None:
    engine = EngineState(EnginePhase.READY)
    dropped = [f"d{number}" for number in range(20)]
    found = unserved_models(engine, [], {"m": "it broke"}, ["m", *dropped], {"m": "damaged", "x": "y" * 999})
    assert len(found) == MAX_UNSERVED
    assert found[0] == UnservedModel("m", UnservedCause.FAILED, "it broke")
    assert [model.name for model in found[1:3]] == ["x", "d0"]
    assert len(found[1].reason) <= MAX_REASON


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("/a/b c/m.gguf is cut", "b c/m.gguf is cut"),
        ("cannot read '/home/x/.models/m.gguf': denied", "cannot read 'm.gguf': denied"),
        ("~/m/x.gguf and https://hub.example/a/b", "x.gguf and https://hub.example/a/b"),
        ("2 tokens/s, 3/4", "2 tokens/s, 3/4"),
        ("ä" * 300, "ä" * 98 + "..."),
    ],
)
def test_reasons_name_no_folders_and_are_short(reason: str, said: str) -> None:
    assert short(reason) == said


def test_node_whose_download_failed_is_not_waited_for_until_it_tries_again() -> None:
    SmallMesh.catalog = {"big": 1000}
    try:
        mesh = two_nodes()
    finally:
        SmallMesh.catalog = {}
    mesh.tell(1, e.MachineObserved(8 << 30, models=(), download_room=8 << 30))
    mesh.run(5)

    def route() -> ModelRoute:
        return routes.route(mesh.cores[2].snapshot(), "big", now=mesh.now)

    assert route().waits_for == "a download"
    mesh.tell(2, e.ModelsAsked((("big", 1),)))
    mesh.until(lambda: mesh.cores[1].snapshot().model("big") is not None)
    mesh.tell(1, e.FileFailed("big", "The hub does not answer.", "", final=False))
    mesh.until(lambda: mesh.cores[1].snapshot().model("big") is None, 15)
    mesh.until(lambda: route().availability is Availability.FAILED, 5)  # once its record is there
    failed = route()
    assert "could not serve it: The hub does not answer" in failed.message
    mesh.until(lambda: mesh.cores[1].snapshot().model("big") is not None, 700)
    assert route().availability is Availability.COMING
