"""Made-up nodes: what a hostile member can do with them, and what they cost. `scripts/sim sybils` has the full size."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from meshllm.core.membership.certificates import MAX_NODES_PER_INVITE
from meshllm.core.records import (
    FailureReport,
    MeshId,
    ModelLoad,
    NodeId,
    NodeRecord,
    RecordVersion,
    ServedModel,
    SignedRecord,
)
from tests.sim.__main__ import SCENARIOS
from tests.sim.play import Player
from tests.sim.scenario import parse
from tests.sim.simulation import sign
from tests.sim.sybils import SYBIL_RIGHTS, memory_taken
from tests.sim.test_sim_requirements import SEED

MAX_TAKEN = 5_000_000
INVITER = NodeId(b"inviter.".ljust(32, b"i"))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [14, 24], ids=["all watch all", "rings"])
def test_made_up_nodes_part_nobody_silence_nobody_and_hide_no_death(nodes: int) -> None:
    text = (SCENARIOS / "sybils.txt").read_text(encoding="utf-8").replace("2000", "300")
    for old, new in {"{N}": str(nodes), "{N-1}": str(nodes - 1), "60 rounds": "5 rounds"}.items():
        text = text.replace(old, new)
    player = Player(parse(text), seed=SEED)
    player.play()
    assert player.kilobytes > 100, "there were some in the table"


def _flood(kind: str) -> list[SignedRecord]:
    player = Player(parse("nodes 1"))
    key = player.simulation.mesh_key
    assert key is not None
    made = []
    # More than the quotas hold of each kind.
    for number in range(150 if "models" in kind else 400):
        node = NodeId(hashlib.sha256(b"made up %d" % number).digest())
        others = [NodeId(hashlib.sha256(b"other %d %d" % (number, n)).digest()) for n in range(64)]
        invite = b"%08d" % (number // MAX_NODES_PER_INVITE)
        member = key.certify(node, SYBIL_RIGHTS, inviter=INVITER, invite=invite)
        record = NodeRecord(node, RecordVersion(1, 1), MeshId(bytes([1] * 16)), certificate=member.data)
        if "reports" in kind:
            record = replace(record, failure_reports=tuple(FailureReport(other, 1) for other in sorted(others)))
        if "models" in kind:
            names = [f"{number}{n:03x}" for n in range(256)]
            record = replace(
                record,
                serves=tuple(ServedModel(name) for name in names),
                loads=tuple(ModelLoad(name, 1, 1) for name in names),
                wants=tuple(names[:32]),
                on_disk=tuple(names[:64]),
            )
        made.append(replace(sign(record), member=member.certificate))
    return made


@pytest.mark.parametrize("kind", ["plain", "reports", "models", "reports and models"])
def test_made_up_nodes_take_little_memory_whatever_their_records_hold(kind: str) -> None:
    player = Player(parse("nodes 2\nstart 0\nstart 1\nexpect within 30s whole"))
    player.play()
    taken = memory_taken(player.simulation, player.simulation.nodes[0], [], _flood(kind))
    assert 100_000 < taken < MAX_TAKEN
