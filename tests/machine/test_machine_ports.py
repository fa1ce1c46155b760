"""Port probes."""

from __future__ import annotations

import os
import socket

from meshllm.machine.ports import probe


def test_free_port(unused_tcp_port: int) -> None:
    assert probe(unused_tcp_port).free
    assert probe(unused_tcp_port).free, "the probe itself must not keep it"


def test_port_in_use_names_its_program() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        found = probe(holder.getsockname()[1])
    assert not found.free
    assert found.permitted
    assert found.holder_pid in (os.getpid(), None)


def test_invalid_port_is_not_free() -> None:
    assert not probe(99_999).free
