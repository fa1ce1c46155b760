"""The connection of a launcher to a node."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from queue import Queue
from threading import Thread

import pytest

from meshllm.agents.attachment import Attachment
from meshllm.agents.node import NodeAddress

WAIT_SECONDS = 30.0


class Console:
    """Takes connections; each, with the head that was sent, lies in `arrived` once it is answered."""

    def __init__(self, status: bytes = b"200 OK") -> None:
        self.arrived: Queue[tuple[socket.socket, bytes]] = Queue()
        self._status = status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.node = NodeAddress(1, self._listener.getsockname()[1], "token")
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                head = connection.recv(4096)
                connection.sendall(b"HTTP/1.1 " + self._status + b"\r\ncontent-type: text/plain\r\n\r\n")
                self.arrived.put((connection, head))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(WAIT_SECONDS)
        while not self.arrived.empty():
            self.arrived.get()[0].close()


@pytest.fixture
def console() -> Iterator[Console]:
    console = Console()
    yield console
    console.close()


def test_connection_is_opened_again_when_the_node_starts_again(console: Console) -> None:
    attachment = Attachment(lambda: console.node)
    assert attachment.open(console.node)
    attachment.keep()
    for _ in range(3):
        connection, head = console.arrived.get(timeout=WAIT_SECONDS)
        assert head.startswith(b"POST /api/attach HTTP/1.1\r\n")
        assert b"x-mesh-llm-token: token\r\n" in head
        connection.close()
    last, _ = console.arrived.get(timeout=WAIT_SECONDS)
    attachment.close()
    last.settimeout(WAIT_SECONDS)
    assert last.recv(1) == b""
    last.close()


def test_refusal_and_silence_are_no_attachment() -> None:
    refusing = Console(b"409 Conflict")
    assert not Attachment(lambda: None).open(refusing.node)
    refusing.close()
    assert not Attachment(lambda: None).open(refusing.node)
