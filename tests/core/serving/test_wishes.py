"""Wishes by names without a quantization: they mean what the mesh has under them."""

from __future__ import annotations

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.demand.mesh_demand import WISH_REQUESTS, DemandClaim, DemandScore, scores, totals
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, ServedModel
from meshllm.core.routing import routes
from meshllm.core.serving.wishes import BESIDE_SECONDS, CHECK_SECONDS
from tests.core.small_mesh import SmallMesh, node_id


def mesh_with(served: str) -> SmallMesh:
    """Two nodes; the first serves that model."""
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    mesh.serve(1, served)
    mesh.until(mesh.whole)
    return mesh


def wants(mesh: SmallMesh, number: int) -> tuple[str, ...]:
    """What the node wishes for, as others hear it."""
    record = mesh.view(number).record
    assert record is not None
    return record.wants


@pytest.mark.parametrize("served", ["m.Q4_1", "M-UD-Q4_K_XL", "m-f16"])
def test_wish_that_only_the_mesh_knows_becomes_the_model_that_it_has(served: str) -> None:
    mesh = mesh_with(served)
    commands: list[c.Command] = []
    core = mesh.cores[2]
    commands += core.handle(e.ModelWanted("m", unknown=True), mesh.now)
    mesh.now += CHECK_SECONDS
    commands += core.handle(e.TimePassed(), mesh.now)
    assert [model.name for model in core.snapshot().models] == [served]
    assert c.ForgetModel("m") in commands
    assert commands.index(c.TakeFromMesh(served, "m")) < commands.index(c.FetchModel(served))
    assert wants(mesh, 2) == (served,)


def test_wish_that_comes_before_the_model_is_found_when_the_mesh_has_it() -> None:
    mesh = SmallMesh()
    mesh.start(1)
    mesh.tell(1, e.ModelWanted("m", unknown=True))
    mesh.start(2, [mesh.way(1)])
    mesh.until(mesh.whole)
    mesh.run(10)
    assert wants(mesh, 1) == ("m",)
    mesh.serve(2, "m:Q8_0")
    mesh.until(lambda: wants(mesh, 1) == ("m:Q8_0",))


def test_wish_with_a_file_here_stays_what_it_is() -> None:
    mesh = mesh_with("m.Q4_1")
    mesh.tell(2, e.ModelWanted("m"))  # the catalogue knows it
    mesh.run(30)
    assert wants(mesh, 2) == ("m",)


def test_wish_for_one_of_several_models_chooses_none() -> None:
    mesh = mesh_with("m.Q4_1")
    mesh.start(3, [mesh.way(1)])
    mesh.serve(3, "m.Q8_0")
    mesh.until(mesh.whole)
    mesh.tell(2, e.ModelWanted("m", unknown=True))
    mesh.run(30)
    assert wants(mesh, 2) == ("m",)


def test_further_model_is_left_to_the_node_that_serves_it_by_its_full_name() -> None:
    mesh = mesh_with("b.Q4_1")
    mesh.tell(2, e.ModelWanted("a"))
    mesh.tell(2, e.MeshModelRequested("b", unknown=True))
    mesh.run(60)
    assert mesh.cores[2].snapshot().model("b.Q4_1") is None
    assert wants(mesh, 2) == ("a", "b.Q4_1")
    mesh.kill(1, seen=True)
    mesh.until(lambda: mesh.cores[2].snapshot().model("b") is not None, BESIDE_SECONDS + 30)


def test_standby_takes_the_model_on_its_disk_that_a_wish_means() -> None:
    mesh = SmallMesh()
    mesh.start(1)
    mesh.start(2, [mesh.way(1)])
    mesh.until(mesh.whole)
    mesh.tell(2, e.MachineObserved(1 << 30, models=("m.Q4_1", "n.Q4_1")))
    mesh.tell(1, e.ModelWanted("a"))
    mesh.tell(1, e.MeshModelRequested("m"))
    mesh.until(lambda: mesh.cores[2].snapshot().model("m.Q4_1") is not None)


def test_demand_counts_a_wish_for_the_model_that_it_means() -> None:
    version, mesh = RecordVersion(1, 1), MeshId(bytes(16))
    host = NodeRecord(node_id(1), version, mesh, serves=(ServedModel("m.Q4_1"),), on_disk=("n.Q8_0",))
    other = NodeRecord(node_id(2), version, mesh, wants=("m", "N", "absent", "m.Q4_1"))
    found = scores([DemandClaim(host, node_id(1), True), DemandClaim(other, node_id(2), True)])
    wish = DemandScore(WISH_REQUESTS, WISH_REQUESTS)
    assert found == {"m.Q4_1": wish, "n.Q8_0": wish, "absent": wish}
    assert {(total.model, total.wishes, total.hosts) for total in totals([host, other])} == {
        ("m.Q4_1", 1, 1),
        ("n.Q8_0", 1, 0),
        ("absent", 1, 0),
    }


def test_wish_is_no_name_of_the_mesh_beside_the_model_that_it_means() -> None:
    mesh = mesh_with("m.Q4_1")
    mesh.tell(2, e.ModelWanted("m"))
    mesh.tell(2, e.ModelWanted("absent", unknown=True))
    mesh.run(5)
    for number in (1, 2):
        snapshot = mesh.cores[number].snapshot()
        index = routes.mesh_index(snapshot.mesh)
        names = routes.names(snapshot, index, {})
        assert names.find("m") == names.find("M:q4_1") == "m.Q4_1"
        assert names.find("Absent") == "absent"
    assert routes.wanted(mesh.cores[1].snapshot()) == ("absent",)
