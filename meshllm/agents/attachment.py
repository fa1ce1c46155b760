"""The connection by which a launcher is attached to a node that another launcher has started.

It is open as long as this process lives. If the node starts again (a new key), it is opened again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from meshllm.agents.node import NodeAddress

MAX_HEAD_BYTES = 16 << 10
RETRY_SECONDS = 0.5
# The first connection makes the console load its code, which takes a busy machine some seconds.
ATTACH_SECONDS = 30.0


class Attachment:
    """Attached to a node until `close`, or until this process ends."""

    def __init__(self, running: Callable[[], NodeAddress | None]) -> None:
        """`running`: the node of MESH_LLM_HOME."""
        self._running = running
        self._socket: socket.socket | None = None
        self._closed = threading.Event()

    def open(self, node: NodeAddress) -> bool:
        """Attach to `node`. False if it does not take this launcher: it stops, or it is none that can be asked."""
        self._socket = _attach(node)
        return self._socket is not None

    def keep(self) -> None:
        """Attach again, in the background, whenever the connection is lost. Called once the agent has started: a
        process with a second thread should not fork."""
        threading.Thread(target=self._keep, name="attachment", daemon=True).start()

    def close(self) -> None:
        """Let go of the node."""
        self._closed.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _keep(self) -> None:
        while not self._closed.is_set():
            if self._socket is not None:
                with suppress(OSError):
                    while self._socket.recv(4096):
                        pass
                self._socket.close()
            if self._closed.wait(RETRY_SECONDS):
                return
            node = self._running()
            self._socket = _attach(node) if node is not None else None
        if self._socket is not None:  # opened while `close` was called
            self._socket.close()


def _attach(node: NodeAddress) -> socket.socket | None:
    """The open connection, or None."""
    head = (
        f"POST /api/attach HTTP/1.1\r\nhost: 127.0.0.1:{node.console}\r\nx-mesh-llm-token: {node.token}\r\n"
        "transfer-encoding: chunked\r\ncontent-type: text/plain\r\n\r\n"
    )
    try:
        connection = socket.create_connection(("127.0.0.1", node.console), ATTACH_SECONDS)
    except OSError:
        return None
    try:
        connection.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = connection.recv(4096)
            answer += data
            if not data or len(answer) > MAX_HEAD_BYTES:
                raise ConnectionError("no answer")
        if answer.split(b" ", 2)[1] != b"200":
            raise ConnectionError("refused")
        connection.settimeout(None)
    except (OSError, IndexError):
        connection.close()
        return None
    return connection
