"""A peer's reason for closing is shown without control characters."""

from __future__ import annotations

from pathlib import Path

from aioquic.quic.events import ConnectionTerminated

from meshllm.net.identity import Identity
from meshllm.net.quic.connection import MAX_REASON, MeshConnection, configuration


def test_close_reason_of_a_peer_is_printable_and_bounded(tmp_path: Path) -> None:
    connection = MeshConnection(configuration(Identity.load_or_create(tmp_path), client=True))
    assert connection.reason == ""
    for words, shown in (
        ("this node stops", "this node stops"),
        ("gone\n2026 ERROR forged \x1b[2J", "gone?2026 ERROR forged ?[2J"),
        ("x" * 1000, "x" * MAX_REASON),
        ("", "error 7"),
    ):
        connection._close_event = ConnectionTerminated(7, None, words)
        assert connection.reason == shown
