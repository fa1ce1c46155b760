"""Whatever happens, in whatever order and from however hostile a peer: the core does not fail, and its word holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.membership.member import MeshConfig
from meshllm.core.node import NodeCore
from meshllm.core.records import (
    MAX_NUMBER,
    BootstrapAddress,
    FailureReport,
    MeshId,
    NodeId,
    NodeRecord,
    RecordVersion,
    Role,
    ServedModel,
    SignedRecord,
)
from tests.core.small_mesh import address, node_id, sign
from tests.core.waits import check_waits

NUMBERS = st.integers(0, 5)
NODES = NUMBERS.map(node_id)
MESHES = st.integers(0, 3).map(lambda n: MeshId(bytes([n]) * 16))
BIG = st.one_of(st.integers(-1, 3), st.sampled_from([(1 << 53) - 1, 1 << 53, 1 << 64]))
STAMPS = st.builds(RecordVersion, BIG, BIG)
WAYS = st.builds(
    lambda n, size: BootstrapAddress(node_id(n)[:size], (address(n),) if size else ()),
    NUMBERS,
    st.sampled_from([0, 16, 32]),
)
COMPLAINTS = st.lists(st.builds(FailureReport, NODES, BIG), max_size=4).map(tuple)
RECORDS = st.builds(
    lambda node, stamp, mesh, complaints, leaving, serves: sign(
        NodeRecord(
            node, stamp, mesh, failure_reports=complaints, leaving=leaving, serves=serves, addresses=(address(1),)
        )
    ),
    NODES, STAMPS, MESHES, COMPLAINTS, st.booleans(), st.sampled_from([(), (ServedModel("m"),)]),
)  # fmt: skip
SOME_RECORDS = st.lists(RECORDS, max_size=4).map(tuple)
MESSAGES = st.one_of(
    st.builds(m.Ping, BIG),
    st.builds(m.Pong, BIG),
    st.builds(m.Digest, st.integers(-1, 9), st.sampled_from([b"", bytes(4), bytes(1024)])),
    st.builds(
        m.Difference,
        st.integers(-1, 9),
        st.lists(st.integers(-1, 300), max_size=3).map(tuple),
        st.lists(st.tuples(NODES, STAMPS), max_size=4).map(tuple),
    ),
    st.builds(m.Wanted, st.lists(NODES, max_size=4).map(tuple)),
    st.builds(m.Records, SOME_RECORDS, st.booleans()),
    st.just(m.Subscribe()),
    st.builds(m.TableUpdate, SOME_RECORDS, st.lists(NODES, max_size=3).map(tuple), st.booleans(), st.booleans()),
    st.builds(m.Adopted, MESHES),
)
EVENTS = st.one_of(
    st.builds(e.JoinWanted, st.lists(WAYS, max_size=3).map(tuple), st.booleans()),
    st.builds(e.AddressesFound, st.lists(NUMBERS.map(address), max_size=2).map(tuple)),
    st.builds(e.LinkUp, NODES, st.sampled_from(Role), MESHES, NUMBERS.map(address), st.floats(0, 3), st.booleans()),
    st.builds(e.LinkDown, NODES, st.just("why")),
    st.builds(e.DialFailed, WAYS, st.just("why"), st.just(""), st.booleans()),
    st.builds(e.MessageReceived, NODES, MESSAGES),
    st.builds(e.MessageReceived, NODES, MESSAGES),
    st.just(e.TimePassed()),
    st.builds(e.ModelWanted, st.just("m")),
    st.builds(e.MeshModelRequested, st.just("n")),
    st.builds(e.ModelRequested, st.just("m")),
    st.builds(e.LoadWanted, st.sampled_from("mn")),
    st.builds(e.DropWanted, st.sampled_from("mn")),
    st.builds(e.MachineObserved, st.just(None), models=st.just(("m",))),
    st.just(e.StopWanted()),
)
STEPS = st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 1.0, 7.0, 400.0])), max_size=40)


def core(role: Role, written: list[SignedRecord]) -> NodeCore:
    """Node 0, which keeps all that it signs."""

    def signer(record: NodeRecord) -> SignedRecord:
        written.append(sign(record))
        return written[-1]

    config = MeshConfig(node_id(0), MeshId(b"\x02" * 16), role, 1, "n", "t", (1, 1), signer)
    return NodeCore(config, random.Random(1))


def consistent(mesh: NodeCore) -> None:
    """The snapshot says what the core says; asking twice gives the same object."""
    snapshot = mesh.snapshot()
    assert mesh.snapshot() is snapshot
    assert snapshot.mesh is not None
    for peer in snapshot.mesh.peers:
        assert mesh.peer_status(peer.node) is peer.status
        assert peer.node != node_id(0)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(Role), STEPS)
def test_node_survives_any_order_of_events(role: Role, steps: list[tuple[e.Event, float]]) -> None:
    written: list[SignedRecord] = []
    mesh, now, saved, finished = core(role, written), 0.0, 1, 0
    for event, seconds in steps:
        now += seconds
        for command in mesh.handle(event, now):
            if isinstance(command, c.SaveIncarnation):
                assert command.incarnation > saved
                saved = command.incarnation
            finished += isinstance(command, c.Finish)
        consistent(mesh)
        check_waits(mesh, now)
    assert finished <= 1
    stamps = [signed.record.version for signed in written]
    assert stamps == sorted(set(stamps))
    assert (role is Role.NODE) or not written
    settle(mesh, now)


def settle(mesh: NodeCore, now: float) -> None:
    """With nothing but time passing, the core does not spin: its next deadline is always ahead."""
    for _ in range(300):
        check_waits(mesh, now)
        deadline = mesh.next_deadline()
        if deadline is None:
            return
        assert deadline >= now - 400.0
        now = max(now, deadline)
        mesh.handle(e.TimePassed(), now)
        again = mesh.next_deadline()
        assert again is None or again > now or again != deadline
    consistent(mesh)


def flood(message: m.Message, times: int) -> list[c.Command]:
    """What a peer gets out of saying so `times` times at once."""
    mesh = core(Role.NODE, [])
    mesh.handle(e.LinkUp(node_id(1), Role.NODE, MeshId(b"\x02" * 16), address(1), 0.01, False), 0.0)
    found: list[Any] = []
    for _ in range(times):
        found += mesh.handle(e.MessageReceived(node_id(1), message), 0.1)
    return [command for command in found if isinstance(command, c.Send)]


def test_member_limits_answers_to_a_flooding_peer() -> None:
    assert len(flood(m.Ping(1), 5000)) <= 210
    assert len(flood(m.Digest(0, bytes(4)), 5000)) <= 50
    assert len(flood(m.Wanted((node_id(0),)), 5000)) <= 110


def test_member_unsigned_version_hint_raises_incarnation_by_one() -> None:
    mesh = core(Role.NODE, [])
    mesh.handle(e.LinkUp(node_id(1), Role.NODE, MeshId(b"\x02" * 16), address(1), 0.01, False), 0.0)
    # What a peer says of a node that it counts as gone.
    held = ((node_id(0), RecordVersion(1 << 50, MAX_NUMBER)),)
    found = mesh.handle(e.MessageReceived(node_id(1), m.Difference(0, (), held)), 1.0)
    assert c.SaveIncarnation(2) in found
    found = mesh.handle(e.MessageReceived(node_id(1), m.Difference(0, (), held)), 1.1)
    assert not [command for command in found if isinstance(command, c.SaveIncarnation)]


def test_member_asks_for_the_record_behind_an_unsigned_version_hint() -> None:
    mesh = core(Role.NODE, [])
    mesh.handle(e.LinkUp(node_id(1), Role.NODE, MeshId(b"\x02" * 16), address(1), 0.01, False), 0.0)
    held = ((node_id(0), RecordVersion(1 << 50, 3)),)
    found = mesh.handle(e.MessageReceived(node_id(1), m.Difference(0, (), held)), 1.0)
    assert c.Send(node_id(1), m.Wanted((node_id(0),))) in found
    assert not [command for command in found if isinstance(command, c.SaveIncarnation)]


def test_member_ignores_messages_of_clients_and_unlinked_peers() -> None:
    mesh = core(Role.NODE, [])
    record = sign(NodeRecord(node_id(3), RecordVersion(1, 1), MeshId(bytes(16))))
    mesh.handle(e.MessageReceived(node_id(1), m.Records((record,), push=True)), 0.0)
    mesh.handle(e.LinkUp(node_id(2), Role.CLIENT, MeshId(bytes(16)), address(2), 0.01, False), 0.0)
    for message in (
        m.Records((record,)),
        m.Adopted(MeshId(bytes(16))),
        m.Digest(0, bytes(4)),
        m.TableUpdate((record,)),
    ):
        assert mesh.handle(e.MessageReceived(node_id(2), message), 1e-9) == []
    snapshot = mesh.snapshot()
    assert snapshot.mesh is not None
    assert snapshot.mesh.peers == ()
    assert len(snapshot.mesh.clients) == 1
    assert snapshot.mesh.mesh == b"\x02" * 16


def test_member_refutes_reports_by_a_new_incarnation() -> None:
    mesh = core(Role.NODE, [])
    for number in (1, 2, 3):
        mesh.handle(e.LinkUp(node_id(number), Role.NODE, MeshId(b"\x02" * 16), address(1), 0.01, False), 0.0)
        known = sign(NodeRecord(node_id(number), RecordVersion(1, 1), MeshId(bytes(16))))
        mesh.handle(e.MessageReceived(node_id(number), m.Records((known,))), 0.0)
    for number, risen in ((1, False), (2, True)):
        complaint = (FailureReport(node_id(0), 1),)
        said = sign(NodeRecord(node_id(number), RecordVersion(1, 2), MeshId(bytes(16)), failure_reports=complaint))
        found = mesh.handle(e.MessageReceived(node_id(number), m.Records((said,))), 5.0)
        assert (c.SaveIncarnation(2) in found) is risen


def test_member_sends_clients_routable_nodes_and_removals() -> None:
    mesh, client, host = core(Role.NODE, []), node_id(4), node_id(1)
    mesh.handle(e.LinkUp(host, Role.NODE, MeshId(b"\x02" * 16), address(1), 0.01, False), 0.0)
    mesh.handle(e.LinkUp(client, Role.CLIENT, MeshId(b"\x02" * 16), address(4), 0.01, False), 0.0)
    tables = list(told(mesh.handle(e.MessageReceived(client, m.Subscribe()), 0.0), client))
    assert [(table.first, table.more) for table in tables] == [(True, False)]
    for version, leaving in ((1, False), (2, True)):
        record = sign(NodeRecord(host, RecordVersion(1, version), MeshId(b"\x02" * 16), leaving=leaving))
        mesh.handle(e.MessageReceived(host, m.Records((record,))), version)
        found = list(told(mesh.handle(e.TimePassed(), version + 0.5), client))
        assert found == [m.TableUpdate((), gone=(host,)) if leaving else m.TableUpdate((record,))]


def told(commands: list[c.Command], client: NodeId) -> Iterator[m.TableUpdate]:
    """The tables a client gets."""
    for command in commands:
        if isinstance(command, c.Send) and command.peer == client and isinstance(command.message, m.TableUpdate):
            yield command.message
