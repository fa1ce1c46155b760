"""Which node loads a model that no node has in memory: pure functions of the records, alike on every node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.records import MeshId, NodeId, NodeRecord, RecordVersion, Role, ServedModel
from meshllm.core.routing import routes
from meshllm.core.routing.on_demand import Loader, Loaders, ordered
from meshllm.core.routing.routes import Availability
from meshllm.core.serving.placement import load_order, may_load
from meshllm.core.snapshot import FilePhase, ModelOrigin, ModelState, ServerPhase, Snapshot

MESH = MeshId(bytes(16))
MIB = 1 << 20
ME = 99


def record(number: int, *disk: str, size: int = 1000, room: int = 4000, memory: int = 4000) -> NodeRecord:
    """A node with these models on its disk. Sizes in MiB."""
    return NodeRecord(
        NodeId(bytes([number]) * 32),
        RecordVersion(1, 1),
        MESH,
        f"n{number}",
        on_disk=disk,
        disk_sizes=(size,) * len(disk),
        room=room * MIB,
        memory=memory * MIB,
    )


def serving(found: NodeRecord, *models: str, slots: int = 4) -> NodeRecord:
    """The same node with these models: in memory, or without slots."""
    return replace(found, serves=tuple(ServedModel(model, slots=slots, size=1, on_demand=True) for model in models))


def seen(*records: NodeRecord, own: NodeRecord | None = None, available: tuple[str, ...] = ()) -> Snapshot:
    """What a node knows of the others; a client without an `own` record."""
    peers = tuple(PeerView(each, PeerStatus.ALIVE) for each in records)
    node = NodeId(bytes([ME]) * 32)
    role = Role.CLIENT if own is None else Role.NODE
    return Snapshot(mesh=MeshView(node, MESH, role, JoinPhase.JOINED, record=own, peers=peers), available=available)


def asked(snapshot: Snapshot, model: str = "m") -> list[int]:
    """The numbers of the peers that the route names."""
    return [bytes.fromhex(target.address)[0] for target in routes.route(snapshot, model).targets]


@given(st.permutations(range(1, 7)), st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6)))
def test_every_node_asks_the_same_one(order: list[int], full: set[int], ours: set[int]) -> None:
    records = {number: record(number, "m", memory=10 if number in full else 4000) for number in order}
    loaders = [Loader(records[number], number in ours) for number in order]
    first = ordered(loaders, "m")
    assert first == ordered(sorted(loaders, key=lambda loader: loader.record.node), "m")
    assert sorted(first) == sorted(each.node for each in records.values())
    chosen = first[0][0]
    if empty := set(order) - full:
        assert chosen in empty, "a node with free memory, before one that must unload another model"
        if ours & empty:
            assert chosen in ours, "of these, one of the owner's"


def test_node_that_loads_it_already_is_asked_before_all_others() -> None:
    records = [record(number, "m") for number in range(1, 6)]
    for number in range(5):
        busy = replace(records[number], loading=("m",), memory=10)
        found = load_order([*records[:number], busy, *records[number + 1 :]], "m", ())
        assert found[0] is busy


@pytest.mark.parametrize(
    ("node", "loads"),
    [
        (record(1, "m"), True),
        (record(1, "m", room=0), False),  # its owner does not let it
        (record(1, "m", size=3900), False),  # without its context
        (record(1, "other"), False),
        (replace(record(1, "m"), leaving=True), False),
        (replace(record(1, "m"), disk_sizes=()), True),  # unknown
    ],
)
def test_what_fits_nowhere_is_not_offered(node: NodeRecord, loads: bool) -> None:
    assert may_load(node, "m") == loads
    assert ("m" in Loaders([Loader(node, True)])) == loads
    assert ("m" in routes.models(seen(node))) == loads
    assert bool(asked(seen(node))) == loads


def test_further_names_of_a_file_are_loaded_but_not_listed() -> None:
    node = replace(record(1, "m", "same"), aliases=(("same", "m"),))
    assert routes.models(seen(node)) == ("m",)
    assert asked(seen(node), "same") == [1]


def test_host_that_has_it_in_memory_is_asked_instead() -> None:
    assert asked(seen(record(1, "m"), serving(record(2, "m"), "m"))) == [2]
    loaders = [record(1, "m"), serving(record(2, "m"), "m", slots=0), record(3, "m", memory=10)]
    assert sorted(asked(seen(*loaders))) == [1, 2, 3], "one that unloaded it is one of several"
    assert asked(seen(*loaders))[2] == 3


def test_node_itself_loads_it_if_it_is_the_first() -> None:
    for number in range(1, 6):
        others = [record(other, "m") for other in range(1, 6) if other != number]
        own = replace(record(number, "m"), node=NodeId(bytes([ME]) * 32))
        first = load_order([own, *others], "m", {own.node})[0]
        found = routes.route(seen(*others, own=own, available=("m",)), "m")
        assert first is own, "it is one of the owner's"
        assert (found.offers, found.loads, found.availability) == ((), True, Availability.COMING)
        full = replace(own, memory=10 * MIB)
        assert number not in asked(seen(*others, own=full, available=("m",)))
        assert len(asked(seen(*others, own=full, available=("m",)))) == 4


def test_lost_host_is_replaced_at_once_and_one_that_was_never_met_is_looked_for() -> None:
    standby = PeerView(record(1, "m"), PeerStatus.ALIVE)
    for status in (PeerStatus.SUSPECT, PeerStatus.DEAD, PeerStatus.LEFT):
        host = PeerView(serving(record(2), "m"), status)
        known = seen()
        assert known.mesh is not None
        assert asked(replace(known, mesh=replace(known.mesh, peers=(standby, host)))) == [1]
    host = PeerView(serving(record(2), "m"), PeerStatus.UNVERIFIED)
    found = routes.route(replace(known, mesh=replace(known.mesh, peers=(standby, host))), "m")
    assert (found.offers, found.dial_hosts) == ((), True)


def test_joining_node_waits_for_the_mesh_before_it_loads_anything() -> None:
    own = replace(record(1, "m"), node=NodeId(bytes([ME]) * 32))
    known = seen(own=own, available=("m",))
    assert known.mesh is not None
    joining = replace(known, mesh=replace(known.mesh, phase=JoinPhase.SYNCING))
    found = routes.route(joining, "m")
    assert (found.availability, found.loads, found.max_wait) == (Availability.COMING, False, None)
    assert routes.route(known, "m").loads


STATE = ModelState("m", file=FilePhase.READY, origin=ModelOrigin.MESH, generation=1)
FAILED = replace(STATE, failures=5, reason="the file is damaged", server=ServerPhase.NONE)


@pytest.mark.parametrize("server", [ServerPhase.NONE, ServerPhase.STARTING])
def test_request_waits_where_the_model_is_being_loaded(server: ServerPhase) -> None:
    loading = replace(STATE, server=server)
    here = replace(seen(record(1, "m")), models=(loading,))
    for found in (routes.route(here, "m"), routes.route_here(here, "m")):
        assert (found.offers, found.availability) == ((), Availability.COMING)


def test_peer_hears_why_the_model_could_not_be_loaded() -> None:
    here = replace(seen(), models=(FAILED,))
    found = routes.route_here(here, "m")
    assert found.availability is Availability.FAILED
    assert "the file is damaged" in found.message
    assert asked(replace(seen(record(1, "m")), models=(FAILED,))) == [1], "another node is asked"
    unknown = routes.route_here(seen(), "m")
    assert unknown.availability is Availability.UNKNOWN


def test_restart_of_an_engine_here_makes_no_other_node_load_the_model() -> None:
    restarting = replace(STATE, origin=ModelOrigin.STARTED, server=ServerPhase.STARTING, restarts=1, last_run=None)
    here = replace(seen(record(1, "m")), models=(restarting,))
    assert routes.route(here, "m").offers == ()
