"""A wire between two loopback ports: every byte arrives a fixed time later, and is counted.

Law: order is kept and nothing is lost; leaving the `with` block closes every connection and ends every thread.
Threads, not asyncio: an event loop's timer is a millisecond coarse, a thread's sleep 0.1 ms.
"""

from __future__ import annotations

import contextlib
import socket
import time
from queue import Queue
from threading import Lock, Thread
from types import TracebackType

CHUNK = 1 << 16
IN_FLIGHT = 1024  # chunks in one direction; then the sender is held back


class Relay:
    """Listens on `port` and connects each caller with the loopback port `target`; `delay` is seconds one way.

    `sent` counts the bytes from callers to the target, `received` those back.
    """

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.sent = 0
        self.received = 0
        self._target = target
        self._delay = delay
        self._lock = Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

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

    def cut(self) -> None:
        """Close every connection now, as a host that dies does."""
        with self._lock:
            for connection in self._connections:
                _close(connection)

    def _start(self, work: object, *arguments: object) -> None:
        thread = Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                caller.close()
                continue
            with self._lock:
                self._connections += [caller, target]
            for source, sink, is_sent in ((caller, target, True), (target, caller, False)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                queue: Queue[tuple[float, bytes]] = Queue(IN_FLIGHT)
                self._start(self._read, source, queue, is_sent)
                self._start(_write, sink, queue)

    def _read(self, source: socket.socket, queue: Queue[tuple[float, bytes]], is_sent: bool) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            if is_sent:
                self.sent += len(data)
            else:
                self.received += len(data)
            queue.put((time.monotonic() + self._delay, data))


def _write(sink: socket.socket, queue: Queue[tuple[float, bytes]]) -> None:
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
    _close(sink)


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
