"""Streams of a link as asyncio transports, over any `StreamConnection`.

Invariants: `write` never blocks or drops: bytes beyond the peer's window wait in the stream's buffer and
`pause_writing` is called. Bytes that a protocol has not read extend no window. `connection_lost` is called exactly once
for each stream whose `connection_made` was called.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from meshllm.errors import LinkClosed
from meshllm.net.base import MAX_STREAMS_PER_LINK, StreamKind
from meshllm.net.connection_protocol import ABORTED, CONTROL, ENDED, REFUSED, StreamConnection
from meshllm.net.quic.flow_control import FlowBudget, FlowWindow, unsent_limit

# Buffer sizes for `pause_writing` and `resume_writing`: asyncio's defaults.
HIGH_WATER = 64 << 10
LOW_WATER = 16 << 10


class Stream(asyncio.Transport):
    """One stream. Extra info: `peer` (NodeId), `kind`, `peername` (host and port)."""

    def __init__(self, table: Streams, number: int, kind: StreamKind | None) -> None:
        super().__init__()
        self.number = number
        self.kind = kind
        self.window = FlowWindow(table.budget)
        self._table = table
        self._protocol: asyncio.Protocol | None = None
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._reading = True
        self._draining = False
        self._ended = False  # the peer has sent its last byte
        self._end_told = False
        self._backlog: deque[bytes | memoryview] = deque()
        self._backlog_bytes = 0
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._writing_paused = False
        self._write_dead = False  # the peer sent STOP_SENDING
        self._eof_wanted = False
        self._eof_sent = False
        self._closing = False
        self._lost = False

    # -- asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            address = self._table.connection.address
            return address.host, address.port
        return {"peer": self._table.peer, "kind": self.kind}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            if (self._inbox or self._ended) and not self._draining:
                self._draining = True
                self._table.loop.call_soon(self._drain)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof_wanted:
            raise RuntimeError("Cannot write after write_eof()")
        if not data or self._closing or self._write_dead:
            return
        if not self._backlog:
            limit = self._table.sendable(self)
            if limit >= len(data):
                self._table.connection.send(self.number, bytes(data))
                return
            if limit > 0:
                self._table.connection.send(self.number, bytes(data[:limit]))
                data = data[limit:]
            self._table.backlogged.add(self)
        self._backlog.append(bytes(data))
        self._backlog_bytes += len(data)
        self._check_high()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_wanted and not self._closing:
            self._eof_wanted = True
            self._send_end()

    def get_write_buffer_size(self) -> int:
        return self._backlog_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        high = (HIGH_WATER if low is None else 4 * low) if high is None else high
        low = high // 4 if low is None else low
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and both not negative")
        self._high, self._low = high, low
        self._check_high()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = self._eof_wanted = True
        self._drop_inbox()
        if not self._ended:
            self._table.connection.stop(self.number, ENDED)
        self._send_end()

    def abort(self) -> None:
        self._give_up(ABORTED, None)

    # -- for Streams

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """Connect the stream to its protocol."""
        self.set_protocol(protocol)
        protocol.connection_made(self)

    @property
    def unread(self) -> int:
        """Bytes that arrived and that the protocol has not read."""
        return self._inbox_bytes

    def feed(self, data: bytes, end: bool) -> None:
        """Bytes from the peer."""
        if self._closing or self._ended:
            return
        self._ended = end
        if data:
            if self._inbox or not self._reading or self._draining:
                self._inbox.append(data)
                self._inbox_bytes += len(data)
                return
            self._deliver(data)
        if end and not self._inbox:
            self._tell_end()

    def pump(self) -> None:
        """Send buffered bytes as far as the window allows."""
        backlog, table = self._backlog, self._table
        while backlog and (limit := table.sendable(self)) > 0:
            data = backlog.popleft()
            if len(data) > limit:
                rest = memoryview(data)
                backlog.appendleft(rest[limit:])
                data = rest[:limit]
            self._backlog_bytes -= len(data)
            table.connection.send(self.number, data)
        if not backlog:
            table.backlogged.discard(self)
        self._check_low()
        if self._eof_wanted:
            self._send_end()

    def stopped(self) -> None:
        """STOP_SENDING: drop the write buffer; the protocol need not wait."""
        self._write_dead = True
        self._drop_backlog()
        if self._closing:
            self._finish(None)
        elif self._end_told and not self._eof_sent:
            self._give_up(ENDED, ConnectionResetError("The peer has closed the stream."))
        else:
            self._check_low()

    def was_reset(self, code: int) -> None:
        """The peer reset its direction: give up the other one as well, unless this side has closed."""
        self._ended = True
        if self._closing:
            return
        self._give_up(ENDED, ConnectionResetError(f"The peer has reset the stream ({code})."))

    def lose(self, error: Exception | None) -> None:
        """The link is lost."""
        self._closing = True
        self._finish(error)

    # -- internals

    def _deliver(self, data: bytes) -> None:
        limit = self.window.consume(len(data))
        if limit is not None and not self._ended:
            self._table.connection.grant(self.number, limit)
        try:
            cast(asyncio.Protocol, self._protocol).data_received(data)
        except Exception as error:  # noqa: BLE001 - a protocol's defect costs its own stream, as in asyncio
            self._defect(error)

    def _drain(self) -> None:
        self._draining = False
        while self._inbox and self._reading and not self._closing:
            data = self._inbox.popleft()
            self._inbox_bytes -= len(data)
            self._deliver(data)
        if self._ended and not self._inbox and self._reading:
            self._tell_end()

    def _tell_end(self) -> None:
        if self._end_told or self._closing:
            return
        self._end_told = True
        try:
            keep = cast(asyncio.Protocol, self._protocol).eof_received()
        except Exception as error:  # noqa: BLE001 - as above
            self._defect(error)
            return
        if self._write_dead and not self._closing:
            self._give_up(ENDED, ConnectionResetError("The peer has closed the stream."))
        elif not keep:
            self.close()

    def _defect(self, error: Exception) -> None:
        self._table.loop.call_exception_handler(
            {"message": f"protocol of {self!r} failed", "exception": error, "transport": self}
        )
        self._give_up(ABORTED, error)

    def _check_high(self) -> None:
        if self._backlog_bytes > self._high and not self._writing_paused and not self._closing:
            self._writing_paused = True
            cast(asyncio.Protocol, self._protocol).pause_writing()

    def _check_low(self) -> None:
        if self._writing_paused and self._backlog_bytes <= self._low:
            self._writing_paused = False
            if not self._lost:
                cast(asyncio.Protocol, self._protocol).resume_writing()

    def _send_end(self) -> None:
        if not self._backlog and not self._eof_sent:
            self._eof_sent = True
            if not self._write_dead:
                self._table.connection.send(self.number, b"", end=True)
        if self._closing and not self._backlog:
            self._finish(None)

    def _drop_inbox(self) -> None:
        self._inbox.clear()
        self._inbox_bytes = 0

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0
        self._table.backlogged.discard(self)

    def _give_up(self, code: int, error: Exception | None) -> None:
        if self._lost:
            return
        self._closing = True
        if not (self._eof_sent and not self._backlog):
            self._table.connection.reset(self.number, code)
        if not self._ended:
            self._table.connection.stop(self.number, code)
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._drop_inbox()
        self._drop_backlog()
        self._table.forget(self)
        if self._protocol is not None:
            self._table.loop.call_soon(self._protocol.connection_lost, error)

    def __repr__(self) -> str:
        state = "lost" if self._lost else "closing" if self._closing else "open"
        return f"<Stream {self.number} {self.kind.name if self.kind else 'control'} {state}>"


class Streams:
    """The streams of one connection. `peer` is shown to their protocols."""

    def __init__(
        self,
        connection: StreamConnection,
        accept: Callable[[StreamKind], asyncio.BaseProtocol | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.connection = connection
        self.loop = loop
        self.peer: bytes | None = None
        self.budget = FlowBudget()
        self.backlogged: set[Stream] = set()
        self.open_streams: dict[int, Stream] = {}
        self._accept = accept
        self._next = 4 if connection.dialled else 1
        # Numbers of the peer's streams: below `_new` all were opened, except those in `_skipped`.
        self._new = 1 if connection.dialled else 4
        self._skipped: set[int] = set()
        self._ours = 0
        self._streams_allowed = False

    def control(self, protocol: asyncio.BaseProtocol) -> Stream:
        """The control stream, at both ends."""
        stream = self.open_streams[CONTROL] = Stream(self, CONTROL, None)
        stream.begin(protocol)
        return stream

    def allow_streams(self) -> None:
        """The peer is authenticated: both ends may open streams."""
        self._streams_allowed = True
        self.connection.allow_streams()

    def __len__(self) -> int:
        return len(self.open_streams) - (CONTROL in self.open_streams)

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> Stream:
        """Open a stream. Raises LinkClosed if there are too many."""
        if self._ours >= MAX_STREAMS_PER_LINK:
            raise LinkClosed("The link has its maximum number of streams.")
        stream = Stream(self, self._next, kind)
        self._next += 4
        self._ours += 1
        self.open_streams[stream.number] = stream
        self.connection.send(stream.number, bytes([kind]))
        stream.begin(protocol)
        return stream

    def data(self, number: int, data: bytes, end: bool) -> None:
        """Bytes from the connection."""
        stream = self.open_streams.get(number)
        if stream is None:
            if not self._is_new(number):
                return
            stream = self._accepted(number, data)
            if stream is None:
                return
            data = data[1:]
        stream.feed(data, end)

    def was_reset(self, number: int, code: int) -> None:
        """The peer reset its direction of a stream."""
        stream = self.open_streams.get(number)
        if stream is not None:
            stream.was_reset(code)
        elif self._is_new(number):
            self.connection.reset(number, ENDED)

    def was_stopped(self, number: int) -> None:
        """The peer sent STOP_SENDING."""
        if (stream := self.open_streams.get(number)) is not None:
            stream.stopped()

    def pump(self) -> None:
        """Send what waits, as far as windows allow."""
        for stream in tuple(self.backlogged):
            stream.pump()

    @property
    def unread(self) -> int:
        """Bytes that no protocol has read."""
        return sum(stream.unread for stream in self.open_streams.values())

    def sendable(self, stream: Stream) -> int:
        """Bytes that a stream may send now."""
        return unsent_limit(len(self.open_streams)) - self.connection.unacknowledged(stream.number)

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        if self.open_streams.pop(stream.number, None) is not None:
            stream.window.release()
            if stream.number != CONTROL and bool(stream.number & 1) != self.connection.dialled:
                self._ours -= 1

    def close(self, error: Exception | None) -> None:
        """The connection is lost."""
        for stream in tuple(self.open_streams.values()):
            stream.lose(error)

    def _is_new(self, number: int) -> bool:
        """Whether a number that is not open is a new stream of the peer, and not one that was closed here."""
        if bool(number & 1) != self.connection.dialled or number == CONTROL or number & 2:
            return False
        if number in self._skipped:
            self._skipped.remove(number)
            return True
        if number < self._new or number - self._new > 4 * MAX_STREAMS_PER_LINK:
            return False
        self._skipped.update(range(self._new, number, 4))
        self._new = number + 4
        return True

    def _accepted(self, number: int, data: bytes) -> Stream | None:
        """Accept a stream of the peer, or refuse it and return None."""
        protocol, kind = None, None
        theirs = len(self) - self._ours
        if data and self._streams_allowed and theirs < MAX_STREAMS_PER_LINK and data[0] in _KINDS:
            kind = StreamKind(data[0])
            protocol = self._accept(kind)
        if protocol is None or kind is None:
            self.connection.reset(number, REFUSED)
            self.connection.stop(number, REFUSED)
            return None
        stream = self.open_streams[number] = Stream(self, number, kind)
        stream.window.consume(1)
        stream.begin(protocol)
        return stream


_KINDS = frozenset(int(kind) for kind in StreamKind)
