"""Other nodes as the console shows them."""

from __future__ import annotations

import pytest

from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import MeshId, ModelLoad, NodeId, NodeRecord, RecordVersion, Role, ServedModel
from meshllm.web.console.mesh_status import mesh_status

ME, OTHER, MESH = NodeId(b"m" * 32), NodeId(b"o" * 32), MeshId(b"x" * 16)


@pytest.mark.parametrize("status", PeerStatus)
def test_peer_that_is_gone_serves_and_does_nothing(status: PeerStatus) -> None:
    record = NodeRecord(OTHER, RecordVersion(1, 1), MESH, "attic", serves=(ServedModel("m"),), wants=("w",))
    peer = PeerView(record, status, loads=(ModelLoad("m", 1, 2),))
    (shown,) = mesh_status(MeshView(ME, MESH, Role.NODE, peers=(peer,)), {}, (), None, 0.0).peers
    known = (shown.models, [served.name for served in shown.serves], shown.wants, shown.active, shown.waiting)
    gone = status in (PeerStatus.DEAD, PeerStatus.LEFT)
    assert known == (([], [], [], 0, 0) if gone else (["m"], ["m"], ["w"], 1, 2))
