"""The demand of nodes and clients of a mesh: counted once, for known names, in few records."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshllm.core import events as e
from meshllm.core.demand.counter import GUEST_REQUESTS, REPORT_TTL_SECONDS, REVIEW_SECONDS
from meshllm.core.demand.levels import HALF_LIFE_SECONDS, DemandLevel, keyed, model_key, requests_of
from meshllm.core.membership import messages as m
from meshllm.core.membership.authority import restricted
from meshllm.core.membership.certificates import ALL_RIGHTS, GUEST_RIGHTS, Right
from meshllm.core.membership.links import ALLOWANCE_BURST
from meshllm.core.membership.member import REPORT_PRICE
from meshllm.core.membership.views import PeerStatus
from meshllm.core.records import MeshId, NodeRecord, RecordVersion, Role, SignedRecord
from tests.core.membership.test_participant import lone_node
from tests.core.small_mesh import SmallMesh, node_id

# The models of these tests.
MODELS = (*"abcdefghijklmnopqrstuvwxyz", "served")


def asked(**counts: int) -> e.ModelsAsked:
    return e.ModelsAsked(tuple(counts.items()))


def published(mesh: SmallMesh, number: int, of: int) -> dict[str, int]:
    """The demand of node `of`, as `number` knows it."""
    record = mesh.view(number).record if number == of else None
    if record is None:
        record = next(peer.record for peer in mesh.view(number).peers if peer.node == node_id(of))
    names = {model_key(name): name for name in MODELS}
    return {names[entry.key]: entry.level for entry in record.demand}


def with_client(rights: Right = GUEST_RIGHTS) -> SmallMesh:
    """Nodes 0 and 1, of which 1 has models on its disk, and client 9."""
    mesh = SmallMesh()
    mesh.start(0)
    mesh.start(1, [mesh.way(0)])
    mesh.rights[9] = rights
    mesh.start(9, [mesh.way(0)], role=Role.CLIENT)
    mesh.tell(1, e.MachineObserved(1 << 30, models=("m", "n")))
    mesh.until(lambda: mesh.whole() and len(mesh.view(9).peers) == 2, within=20)
    mesh.run(5)
    return mesh


def test_demand_reaches_the_other_nodes_at_once_and_decays_by_itself() -> None:
    mesh = with_client()
    mesh.tell(0, asked(m=1, invented=99))
    mesh.run(1)
    assert published(mesh, 1, 0) == {"m": 1}, "only what some node knows counts"
    mesh.run(2 * HALF_LIFE_SECONDS + 2 * REVIEW_SECONDS)
    assert published(mesh, 1, 0) == {}


def test_demand_of_invented_names_never_fills_the_counter() -> None:
    mesh = with_client()
    for batch in range(50):
        mesh.tell(0, e.ModelsAsked(tuple((f"invented {batch} {number}", 1000) for number in range(64))))
        mesh.run(0.5)
    mesh.tell(0, asked(n=1))
    mesh.run(1)
    assert published(mesh, 1, 0) == {"n": 1}


def test_demand_writes_few_records_however_often_it_changes() -> None:
    written: list[SignedRecord] = []
    core, rng, now = lone_node(written), random.Random(1), 0.0
    core.handle(e.MachineObserved(16 << 30, models=("m", "n")), now)
    before = len(written)
    while now < 3600:
        now += 0.5
        busy = int(now / 60) % 2  # a minute of many requests, a minute without any
        core.handle(asked(m=rng.randrange(1, 400), n=1) if busy else e.TimePassed(), now)
    # A heartbeat each 30 s, and the two names.
    assert len(written) - before <= 3600 / 27 + 2 + 2


def test_model_that_no_record_has_is_told_at_once_and_levels_with_the_heartbeat() -> None:
    written: list[SignedRecord] = []
    core = lone_node(written)
    core.handle(e.MachineObserved(16 << 30, models=tuple("abcdefgh")), 0.0)
    before = len(written)
    for second in range(8):
        core.handle(asked(a=4**second), 1.0 + second)
    assert len(written) - before == 1, "seven changes of the level"
    for second, name in enumerate("bcdefgh"):
        core.handle(asked(**{name: 1}), 10.0 + second)
        assert model_key(name) in {entry.key for entry in written[-1].record.demand}, "at once"


def test_demand_for_a_served_model_waits_for_the_heartbeat() -> None:
    mesh = with_client()
    mesh.serve(1, "m")
    mesh.run(1)
    mesh.tell(0, asked(m=1))
    mesh.run(1)
    assert published(mesh, 1, 0) == {}
    mesh.kill(1, seen=True)
    mesh.tell(0, e.MachineObserved(1 << 30, models=("m",)))
    mesh.until(lambda: not mesh.view(0).peers or mesh.status(0, 1) is not PeerStatus.ALIVE, within=20)
    mesh.tell(0, asked(m=1))
    mesh.run(0.1)
    assert published(mesh, 0, 0) == {"m": 1}, "its only host is gone"


def test_client_reports_to_one_node_which_counts_it() -> None:
    mesh = with_client()
    mesh.tell(9, asked(m=1))
    mesh.run(1)
    counted = [number for number in (0, 1) if published(mesh, number, number)]
    assert len(counted) == 1
    mesh.run(1000)
    assert sum(bool(published(mesh, number, number)) for number in (0, 1)) == 1, "it repeats its report"
    mesh.run(HALF_LIFE_SECONDS + REPORT_TTL_SECONDS)
    assert [published(mesh, number, number) for number in (0, 1)] == [{}, {}]


def test_client_reports_to_another_node_when_its_node_is_gone() -> None:
    mesh = with_client()
    mesh.tell(9, asked(m=4))
    mesh.run(1)
    first = next(number for number in (0, 1) if published(mesh, number, number))
    other = 1 - first
    if first == 1:  # the names come from its disk
        mesh.tell(0, e.MachineObserved(1 << 30, models=("m",)))
    mesh.kill(first, seen=True)
    mesh.run(30)
    assert published(mesh, other, other) == {"m": 2}


@pytest.mark.parametrize(("rights", "most"), [(GUEST_RIGHTS, GUEST_REQUESTS), (ALL_RIGHTS, 1024.0)])
def test_client_counts_with_a_bounded_number_of_requests(rights: Right, most: float) -> None:
    mesh = with_client(rights)
    mesh.tell(9, asked(m=10_000, n=10_000))
    mesh.run(1)
    demand = published(mesh, 0, 0) or published(mesh, 1, 1)
    assert demand.keys() == {"m", "n"}
    assert sum(map(requests_of, demand.values())) <= most


def test_client_that_floods_reports_is_ignored() -> None:
    mesh = with_client()
    mesh.run(10)
    reports = [m.ReportDemand((DemandLevel("m" if turn % 2 else "n", 1),)) for turn in range(100)]
    seen = set()
    for report in reports:
        mesh.tell(0, e.MessageReceived(node_id(9), report))
        seen.add(mesh.cores[0].snapshot().version)
    assert len(seen) <= ALLOWANCE_BURST / REPORT_PRICE + 2


def test_demand_reports_of_nodes_and_strangers_do_not_count() -> None:
    mesh = with_client()
    mesh.tell(0, e.MessageReceived(node_id(1), m.ReportDemand((DemandLevel("m", 8),))))
    mesh.tell(0, e.MessageReceived(node_id(55), m.ReportDemand((DemandLevel("m", 8),))))
    mesh.run(1)
    assert published(mesh, 0, 0) == {}


def test_demand_needs_the_right_to_use_models() -> None:
    record = NodeRecord(node_id(1), RecordVersion(1, 1), MeshId(bytes(16)), demand=keyed([DemandLevel("m", 1)]))
    assert restricted(record, ALL_RIGHTS).demand
    assert restricted(record, ALL_RIGHTS & ~Right.USE) == replace(record, demand=())
