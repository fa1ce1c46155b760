"""A delay line between endpoints of this machine: every byte arrives after a fixed delay and is counted.

Invariant: order is kept and no byte is lost; leaving the `with` block closes every connection and ends every thread.
Threads instead of asyncio: timers of an event loop have a resolution of 1 ms, a thread's sleep of 0.1 ms.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from queue import Queue
from threading import Lock, Thread
from types import TracebackType

CHUNK = 1 << 16
IN_FLIGHT = 4096  # chunks in one direction; then the sender is held back


class Relay:
    """Listens on `endpoint` (HOST:PORT) and connects each caller with `target` (that, or the path of a Unix socket).

    `delay` is seconds one way. `sent` counts the bytes from callers to the target, `received` those back, `turns` how
    often an answer followed what was sent: about the number of round trips, if only one side waits for the other.
    """

    def __init__(self, target: str, delay: float = 0.0) -> None:
        self.sent = 0
        self.received = 0
        self.turns = 0
        self.connections = 0
        self._last_was_sent = False
        self._target = target
        self._delay = delay
        self._lock = Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()  # not before: a thread may have been in a call on it

    def cut(self) -> None:
        """End every connection now, as a machine that dies does."""
        with self._lock:
            for connection in self._connections:
                _end(connection)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                target = connect(self._target)
            except OSError:
                caller.close()
                continue
            with self._lock:
                self.connections += 1
                self._connections += [caller, target]
            for source, sink, is_sent in ((caller, target, True), (target, caller, False)):
                if sink.family == socket.AF_INET:
                    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                queue: Queue[tuple[float, bytes]] = Queue(IN_FLIGHT)
                self._start(self._read, source, queue, is_sent)
                self._start(self._write, sink, queue)

    def _read(self, source: socket.socket, queue: Queue[tuple[float, bytes]], is_sent: bool) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            with self._lock:
                self._count(len(data), is_sent)
            queue.put((time.monotonic() + self._delay, data))

    def _count(self, size: int, is_sent: bool) -> None:
        if is_sent:
            self.sent += size
        else:
            self.received += size
            self.turns += self._last_was_sent
        self._last_was_sent = is_sent

    def _write(self, sink: socket.socket, queue: Queue[tuple[float, bytes]]) -> None:
        alive = True
        while True:
            due, data = queue.get()
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            if not data:
                break
            try:
                if alive:
                    sink.sendall(data)
            except OSError:
                alive = False  # what still arrives is thrown away, so that the reader never waits for room
        with self._lock:
            _end(sink)


def connect(endpoint: str) -> socket.socket:
    """A connection to HOST:PORT, or to the Unix socket of that path. Raises OSError."""
    if endpoint.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(endpoint)
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = endpoint.rpartition(":")
    return socket.create_connection((host, int(port)))


def _end(connection: socket.socket) -> None:
    """Have both sides see the end of it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
