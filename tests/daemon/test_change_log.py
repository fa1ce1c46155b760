"""The lines an operator reads in the log: one for each change, with its cause."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshllm.core import events as e
from meshllm.core.membership.views import JoinPhase, MeshView, PeerStatus, PeerView
from meshllm.core.node import NodeCore
from meshllm.core.records import MeshId, NodeId, NodeRecord, RecordVersion, Role
from meshllm.core.snapshot import ModelFacts, Snapshot
from meshllm.daemon.change_log import MAX_PEER_LINES, ChangeLog

MESH = MeshView(NodeId(b"n" * 32), MeshId(b"m" * 16), Role.NODE)


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "meshllm")


def peer(number: int, status: PeerStatus, reason: str = "") -> PeerView:
    node = NodeId(number.to_bytes(32, "big"))
    record = NodeRecord(node, RecordVersion(1, 1), MESH.mesh, f"box{number}")
    return PeerView(record, status, reason=reason)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, object]]]:
    found = [(record.message, record.fields) for record in caplog.records]  # type: ignore[attr-defined]
    caplog.clear()
    return found


def test_change_log_reports_peers_with_reason(caplog: pytest.LogCaptureFixture) -> None:
    changes = ChangeLog()
    alive = replace(MESH, phase=JoinPhase.JOINED, peers=(peer(1, PeerStatus.ALIVE), peer(2, PeerStatus.DEAD)))
    changes.publish(Snapshot(mesh=alive))
    assert [text for text, _ in lines(caplog)] == ["mesh joined", "peer joined"]
    changes.publish(Snapshot(mesh=replace(alive, peers=(peer(1, PeerStatus.DEAD, "no answer"),))))
    assert lines(caplog) == [("peer died", {"peer": "0" * 10, "name": "box1", "reason": "no answer"})]


def test_change_log_bounds_the_lines_of_a_large_mesh(caplog: pytest.LogCaptureFixture) -> None:
    peers = tuple(peer(number, PeerStatus.ALIVE) for number in range(MAX_PEER_LINES + 10))
    ChangeLog().publish(Snapshot(mesh=replace(MESH, peers=peers)))
    found = lines(caplog)
    assert len(found) == MAX_PEER_LINES + 2
    assert found[-1] == ("more peers changed", {"count": 10})


def test_change_log_reports_a_model_from_request_to_failure(caplog: pytest.LogCaptureFixture) -> None:
    core, changes = NodeCore(), ChangeLog()
    for now, event in enumerate(
        [
            e.ModelWanted("m"),
            e.EngineReady("1.0"),
            e.FileReady("m", ModelFacts("/m.gguf", 100, "llama", 8192)),
            e.BackendAdded("http://b"),
            e.BackendAnswered("http://b", ("x",)),
            e.BackendSilent("http://b", "refused"),
        ]
    ):
        core.handle(event, float(now))
        changes.publish(core.snapshot())
        changes.publish(core.snapshot())
    found = lines(caplog)
    texts = [text for text, _ in found]
    for text in ("engine ready", "model fetching", "model file: ready", "backend answers", "backend does not answer"):
        assert texts.count(text) == 1, texts
    assert ("backend does not answer", {"url": "http://b", "reason": "refused"}) in found
