"""Audit, row 1: only a member that may host splits gets a lease; a client or a member without the right gets none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import ALL_RIGHTS, Certificate, Right
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.node import NO_WORK, NodeCore
from meshllm.core.records import MeshId, NodeRecord, Role, SignedRecord
from meshllm.core.split.coordinator import NO_HOST
from meshllm.core.split.lease import Lease, LeasedFile, LeasePhase, Propose, WorkerReport
from meshllm.core.split.planner import WorkerShare
from tests.core.small_mesh import address, node_id, sign
from tests.mesh_key import FakeMeshKey

MESH = MeshId(b"\x02" * 16)
LEASE = Lease(
    b"s" * 16, 1, "m", (LeasedFile("m.gguf", 5, "ab" * 32),),
    (WorkerShare(node_id(1), 0, 1, 1), WorkerShare(node_id(0), 1, 1, 1)),
)  # fmt: skip


def signer(record: NodeRecord) -> SignedRecord:
    return sign(record)


def worker(refusal: str = "", *, authority: Authority | None = None, rights: Right = ALL_RIGHTS) -> NodeCore:
    """A node with a gigabyte to lend. `rights`: its own."""
    config = MeshConfig(
        node_id(0), MESH, Role.NODE, 1, "n", "t", (1, 1), signer,
        lease_refusal=refusal, authority=authority, rights=rights,
    )  # fmt: skip
    core = NodeCore(config, random.Random(1))
    core.handle(e.MachineObserved(1 << 30), 0.0)
    return core


def proposed(core: NodeCore, role: Role, rights: Right | None) -> list[c.Command]:
    """What the core answers to a proposal of a peer that was admitted with `rights`."""
    member = None if rights is None else certificate(rights)
    core.handle(e.LinkUp(node_id(1), role, MESH, address(1), 0.001, False, member), 0.0)
    return core.handle(e.MessageReceived(node_id(1), Propose(LEASE)), 0.1)


def certificate(rights: Right) -> Certificate:
    """A certificate of node 1."""
    return Certificate(node_id(1), rights, 0, 1 << 40, bytes(8), node_id(2))


def reports(commands: list[c.Command]) -> list[tuple[LeasePhase, str]]:
    sent = [command.message for command in commands if isinstance(command, c.Send)]
    return [(report.phase, report.detail) for report in sent if isinstance(report, WorkerReport)]


@given(role=st.sampled_from(Role), bits=st.integers(0, ALL_RIGHTS.value))
def test_lease_counts_only_from_a_node_whose_certificate_holds_the_right(role: Role, bits: int) -> None:
    rights = Right(bits)
    commands = proposed(worker(authority=FakeMeshKey().authority()), role, rights)
    started = [command for command in commands if isinstance(command, c.StartWorker)]
    if role is Role.NODE and Right.HOST in rights:
        assert len(started) == 1
    else:
        assert not started
        assert reports(commands) == [(LeasePhase.ENDED, NO_HOST)]


@pytest.mark.parametrize("role", Role)
def test_lease_of_a_peer_without_a_certificate_is_refused_in_a_mesh_with_a_key(role: Role) -> None:
    assert reports(proposed(worker(authority=FakeMeshKey().authority()), role, None)) == [(LeasePhase.ENDED, NO_HOST)]


def test_node_without_the_right_to_work_takes_no_lease() -> None:
    core = worker(authority=FakeMeshKey().authority(), rights=ALL_RIGHTS & ~Right.WORK)
    assert reports(proposed(core, Role.NODE, ALL_RIGHTS)) == [(LeasePhase.ENDED, NO_WORK)]
    assert offered(core) == 0


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("rights", [None, ALL_RIGHTS])
def test_without_a_mesh_key_nobody_has_a_right(role: Role, rights: Right | None) -> None:
    assert reports(proposed(worker(), role, rights)) == [(LeasePhase.ENDED, NO_HOST)]


def test_right_ends_with_the_link() -> None:
    core = worker(authority=FakeMeshKey().authority())
    core.handle(e.LinkUp(node_id(1), Role.NODE, MESH, address(1), 0.001, False, certificate(ALL_RIGHTS)), 0.0)
    core.handle(e.LinkDown(node_id(1), "closed"), 0.1)
    core.handle(e.LinkUp(node_id(1), Role.CLIENT, MESH, address(1), 0.001, False), 0.2)
    commands = core.handle(e.MessageReceived(node_id(1), Propose(LEASE)), 0.3)
    assert reports(commands) == [(LeasePhase.ENDED, NO_HOST)]


def test_node_that_refuses_leases_offers_hosts_no_memory() -> None:
    assert offered(worker()) > 0
    assert offered(worker("the owner said no")) == 0


def offered(core: NodeCore) -> int:
    """The memory in the node's own record."""
    view = core.snapshot().mesh
    assert view is not None
    assert view.record is not None
    return view.record.memory
