"""What nodes and clients share: round-trip times, local dial limits, published facts, resubscription."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.certificates import ALL_RIGHTS, Right
from meshllm.core.membership.client import MAX_LINKS, RESUBSCRIBE_SECONDS
from meshllm.core.membership.member import MeshConfig
from meshllm.core.node import NodeCore
from meshllm.core.records import BootstrapAddress, MeshId, ModelLoad, NodeRecord, RecordVersion, Role, SignedRecord
from tests.core.small_mesh import DELAY, SmallMesh, address, node_id, sign
from tests.mesh_key import FakeMeshKey


def lone_node(written: list[SignedRecord]) -> NodeCore:
    """Node 0, which appends each record that it signs to `written`."""

    def signer(record: NodeRecord) -> SignedRecord:
        written.append(sign(record))
        return written[-1]

    config = MeshConfig(node_id(0), MeshId(b"\x02" * 16), Role.NODE, 1, "n", "t", (1, 1), signer)
    return NodeCore(config, random.Random(1))


@pytest.mark.parametrize("role", Role)
def test_participant_replaces_the_round_trip_of_the_handshake_by_that_of_pings(role: Role) -> None:
    mesh = SmallMesh()
    mesh.start(0)
    mesh.busy = 0.5
    mesh.start(9, [mesh.way(0)], role=role)
    mesh.until(lambda: bool(mesh.view(9).peers))
    mesh.run(5)
    peer = next(peer for peer in mesh.view(9).peers if peer.node == node_id(0))
    assert peer.rtt == pytest.approx(2 * DELAY, abs=0.002)


@pytest.mark.parametrize("local", [True, False])
def test_member_reports_no_failure_after_its_own_dial_limit(local: bool) -> None:
    written: list[SignedRecord] = []
    core = lone_node(written)
    mesh = MeshId(b"\x02" * 16)
    core.handle(e.LinkUp(node_id(1), Role.NODE, mesh, address(1), 0.01, True), 0.0)
    core.handle(e.MessageReceived(node_id(1), m.Records((sign(other_record(mesh)),))), 0.1)
    core.handle(e.LinkDown(node_id(1), "gone"), 0.2)
    # Each dial fails at once. Only a peer's own failures count towards a report about it.
    failed = e.DialFailed(BootstrapAddress(node_id(1), (address(1),)), "why", local=local)
    for turn in range(5):
        core.handle(failed, 0.21 + turn / 100)
    reported = [report.node for report in written[-1].record.failure_reports]
    assert reported == ([] if local else [node_id(1)])


def other_record(mesh: MeshId) -> NodeRecord:
    """A record of node 1."""
    return NodeRecord(node_id(1), RecordVersion(1, 1), mesh, addresses=(address(1),))


def test_member_writes_few_records_however_often_speed_and_load_change() -> None:
    written: list[SignedRecord] = []
    core, rng, now = lone_node(written), random.Random(1), 0.0
    core.handle(e.MachineObserved(16 << 30, models=("m",)), now)
    before = len(written)
    for _ in range(3600):
        now += 1.0
        core.handle(e.SpeedMeasured(int(20e9 * rng.uniform(0.9, 1.1))), now)
        core.handle(e.LoadsChanged((ModelLoad("m", rng.randrange(4), rng.randrange(9)),)), now)
        core.handle(e.TimePassed(), now)
    # One heartbeat per 30 s, and the first speed.
    assert len(written) - before <= 3600 / 27 + 2
    before = len(written)
    for turn in range(3600):
        now += 1.0
        core.handle(e.SpeedMeasured(int(20e9 * (1 + 9 * (turn % 2)))), now)
        core.handle(e.MachineObserved((16 << 30) + (turn % 7 << 30), models=("m",)), now)
        core.handle(e.TimePassed(), now)
    assert len(written) - before <= 3600 / 27 + 60 + 3
    # What was decided is published at once all the same.
    count = len(written)
    core.handle(e.MeshModelRequested("other"), now)
    assert len(written) == count + 1
    assert written[-1].record.wants == ("other",)


def test_client_subscribes_to_one_provider_at_a_time() -> None:
    mesh = SmallMesh()
    mesh.start(0)
    for number in range(1, 6):
        mesh.start(number, [mesh.way(0)])
    mesh.until(mesh.whole)
    mesh.start(9, [mesh.way(0)], role=Role.CLIENT)
    mesh.run(30)
    assert len(mesh.links[9]) == MAX_LINKS
    mesh.sent.clear()
    asked: dict[int, int] = {}
    for _ in range(int(2 * RESUBSCRIBE_SECONDS)):
        mesh.run(1.0)
        turn = [other for one, other, message in mesh.sent if one == 9 and isinstance(message, m.Subscribe)]
        mesh.sent.clear()
        assert len(turn) <= 1
        for other in turn:
            asked[other] = asked.get(other, 0) + 1
    # Each gets its turn, about once in RESUBSCRIBE_SECONDS.
    assert set(asked) == mesh.links[9]
    assert all(1 <= count <= 3 for count in asked.values())


def test_member_backs_off_after_a_local_dial_limit_without_counting_a_failure() -> None:
    core = lone_node([])
    target = BootstrapAddress(node_id(1), (address(1),))
    dials = []
    for turn in range(3):
        now = 100.0 * turn
        found = core.handle(e.JoinWanted((target,)), now)
        dials += [command for command in found if isinstance(command, c.DialPeer)]
        core.handle(e.DialFailed(target, "too many dials", local=True), now + 0.1)
    assert dials
    assert core._mesh is not None
    assert core._mesh._links._failures[target.prefix][0] == 0


@pytest.mark.parametrize("role", Role)
def test_mesh_id_comes_from_members_that_may_admit_only(role: Role) -> None:
    mesh_key, own, smaller = FakeMeshKey(), MeshId(b"\x02" * 16), MeshId(bytes(16))
    held = {right: mesh_key.certify(node_id(1), right) for right in (ALL_RIGHTS & ~Right.ADMIT, ALL_RIGHTS)}
    for rights, certificate in held.items():
        config = MeshConfig(node_id(0), own, role, 1, "n", "t", (1, 1), sign, authority=mesh_key.authority())
        core = NodeCore(config, random.Random(1))
        member = certificate.certificate
        record = NodeRecord(node_id(1), RecordVersion(1, 1), smaller, certificate=certificate.data)
        # In the hello, in a message of its own, and in its record.
        events = (
            e.LinkUp(node_id(1), Role.NODE, smaller, address(1), 0.01, True, member=member),
            e.MessageReceived(node_id(1), m.Adopted(smaller)),
            e.MessageReceived(node_id(1), m.Records((replace(sign(record), member=member),))),
        )
        for event in events:
            done = core.handle(event, 0.0)
            adopted = any(isinstance(command, c.SaveMesh) for command in done)
            assert adopted == (Right.ADMIT in rights and event is events[0])
        view = core.snapshot().mesh
        assert view is not None
        assert view.mesh == (smaller if Right.ADMIT in rights else own)
