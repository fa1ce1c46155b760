"""A node that has no sandbox for other nodes' layers answers a proposal with that reason, and starts nothing."""

from __future__ import annotations

import random

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import ALL_RIGHTS
from meshllm.core.membership.own_record import MeshConfig
from meshllm.core.node import NodeCore
from meshllm.core.records import MeshId, NodeRecord, Role, SignedRecord
from meshllm.core.split.lease import Lease, LeasedFile, LeasePhase, Propose, WorkerReport
from meshllm.core.split.planner import WorkerShare
from tests.core.small_mesh import address, node_id, sign
from tests.mesh_key import FakeMeshKey

LEASE = Lease(
    b"s" * 16, 1, "m", (LeasedFile("m.gguf", 5, "ab" * 32),),
    (WorkerShare(node_id(1), 0, 1, 1), WorkerShare(node_id(0), 1, 1, 1)),
)  # fmt: skip


@pytest.mark.parametrize("refusal", ["", "it has no sandbox"])
def test_lease_without_a_sandbox_is_refused_with_the_reason(refusal: str) -> None:
    def signer(record: NodeRecord) -> SignedRecord:
        return sign(record)

    mesh = MeshId(b"\x02" * 16)
    key = FakeMeshKey()
    config = MeshConfig(
        node_id(0),
        mesh,
        Role.NODE,
        1,
        "n",
        "t",
        (1, 1),
        signer,
        lease_refusal=refusal,
        authority=key.authority(),
        rights=ALL_RIGHTS,
    )
    core = NodeCore(config, random.Random(1))
    core.handle(e.MachineObserved(1 << 30), 0.0)
    host = key.certify(node_id(1)).certificate
    core.handle(e.LinkUp(node_id(1), Role.NODE, mesh, address(1), 0.001, False, host), 0.0)
    commands = core.handle(e.MessageReceived(node_id(1), Propose(LEASE)), 0.1)
    messages = [getattr(command, "message", None) for command in commands]
    assert [(message.phase, message.detail) for message in messages if isinstance(message, WorkerReport)] == [
        (LeasePhase.ENDED, refusal) if refusal else (LeasePhase.PREPARING, "preparing")
    ]
    assert any(isinstance(command, c.StartWorker) for command in commands) is not bool(refusal)
