"""The MCP server on the standard streams of a process: one JSON message a line, nothing else on standard output.

Two daemon threads read and write: descriptors of terminals, files and pipes alike are left as they are (a non-blocking
mode would be that of the client, too), and a client that does not read does not stop the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable

from meshllm.board.mcp import McpSetting
from meshllm.board.mcp_connection import McpConnection
from meshllm.board.mcp_protocol import INVALID_REQUEST, MAX_MESSAGE_BYTES, Json, McpError, encode
from meshllm.tasks import Owner

log = logging.getLogger(__name__)

READ_BYTES = 64 << 10
# Chunks that were read and not yet taken: a client that sends faster waits.
MAX_CHUNKS = 4
# Answers that wait for a client to read them; one that does not read for so many is dropped.
MAX_WAITING_BYTES = 16 << 20
# After the end of the input: for requests in progress, so that `echo '...' | mesh-llm blackboard --mcp` answers; and
# for the client to read the last answers.
LAST_ANSWERS_SECONDS, LAST_WRITE_SECONDS = 0.5, 0.3


class Lines:
    """Cuts bytes into lines. A line that is too long is dropped up to its end, and reported once."""

    def __init__(self, line: Callable[[bytes], None], too_long: Callable[[], None], limit: int) -> None:
        self._line, self._too_long, self._limit = line, too_long, limit
        self._rest = bytearray()
        self._dropping = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        first, *more = data.split(b"\n")
        self._add(first)
        for part in more:
            self._end()
            self._add(part)

    def close(self) -> None:
        """The input has ended: the rest is a line."""
        self._end()

    def _add(self, part: bytes) -> None:
        if self._dropping:
            return
        self._rest += part
        if len(self._rest) > self._limit:
            self._dropping = True
            self._rest.clear()
            self._too_long()

    def _end(self) -> None:
        line, self._rest = bytes(self._rest).strip(), bytearray()
        self._dropping = False
        if line:
            self._line(line)


class _Writer:
    """Writes lines to a descriptor in a thread. `broken` is called there once no reader is left."""

    def __init__(self, descriptor: int, broken: Callable[[], None]) -> None:
        self._descriptor, self._broken = descriptor, broken
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mcp output", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        with self._changed:
            if self._closed:
                return
            if self._waiting > MAX_WAITING_BYTES:
                self._closed = True
                self._lines.clear()
                self._broken()
            self._lines.append(line)
            self._waiting += len(line)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Write what waits, for so long at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closed:
                    self._changed.wait()
                if not self._lines:
                    return
                data = b"".join(self._lines)
                self._lines.clear()
            try:
                while data:
                    written = _write(self._descriptor, data)
                    data = data[written:]
                    with self._changed:
                        self._waiting -= written
            except OSError as error:
                log.info("the client does not read any more: %s", error.strerror)
                self._broken()
                return


async def serve(
    setting: McpSetting,
    *,
    room_of: Callable[[str], str] | None = None,
    source: int = 0,
    target: int = 1,
) -> None:
    """Serve a client on two descriptors until it closes the first one, or SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(MAX_CHUNKS)
    stopped = asyncio.Event()

    def tell(call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call, *arguments)

    def read() -> None:
        data = b" "
        while data:
            room.acquire()
            try:
                data = _read(source)
            except OSError:
                data = b""
            tell(chunks.put_nowait, data)

    writer = _Writer(target, lambda: tell(stopped.set))
    connection = McpConnection(setting, lambda message: writer.write(_line(message)), room_of=room_of)
    too_long = McpError(INVALID_REQUEST, f"A message is longer than {MAX_MESSAGE_BYTES} bytes.")
    lines = Lines(connection.receive, lambda: connection.refuse(too_long), MAX_MESSAGE_BYTES)
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # not the main thread
            loop.add_signal_handler(number, stopped.set)
    threading.Thread(target=read, name="mcp input", daemon=True).start()

    async def take() -> None:
        while data := await chunks.get():
            lines.feed(data)
            room.release()
            await asyncio.sleep(0)  # what came is begun before more is taken
        lines.close()
        await connection.idle(LAST_ANSWERS_SECONDS)
        stopped.set()

    owner = Owner("mcp input")
    owner.start(take(), "take")
    try:
        await stopped.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
                loop.remove_signal_handler(number)
        await owner.close()
        await connection.close()
        writer.close(LAST_WRITE_SECONDS)


def _read(descriptor: int) -> bytes:
    """The next bytes; waits for them also where another owner of the open file made it non-blocking."""
    while True:
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            select.select([descriptor], [], [])


def _write(descriptor: int, data: bytes) -> int:
    """Write some of `data`, likewise; returns how much."""
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            select.select([], [descriptor], [])


def _line(message: Json) -> bytes:
    return encode(message) + b"\n"


def private_output() -> int:
    """A descriptor of standard output for the protocol alone; what else the process prints goes to standard error."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return own
