"""Ends of RPC tunnels: a connection to the engine joined to a connection to a peer.

Bytes are forwarded as they arrive; while one side cannot take more, reading from the other is paused. Before an inbound
tunnel is admitted, its 25-byte header is the only input, within HEADER_SECONDS.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import cast

from meshllm.core.split.lease import SESSION_BYTES

# The first bytes of a tunnel: session and generation of the lease, and its use (`rpc_tunnels.TunnelUse`).
HEADER = struct.Struct(f">{SESSION_BYTES}sQB")
# Time for the header after a tunnel is opened.
HEADER_SECONDS = 10.0


class PipeEnd(asyncio.Protocol):
    """One of two joined connections: bytes received here are sent on the other, and both close together.

    `count(n)` is called for each `n` bytes received; `made(self)`, if given, once connected.
    """

    def __init__(self, count: Callable[[int], None], made: Callable[[PipeEnd], None] | None = None) -> None:
        self._count = count
        self._made = made
        self._on_closed: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None
        self._other: PipeEnd | None = None
        self._buffered: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not descend from asyncio's
        if self._other is None:
            self.transport.pause_reading()
        if self._made is not None:
            self._made(self)

    def assign(self, count: Callable[[int], None], on_closed: Callable[[], None] | None = None) -> None:
        """Replace `count`; `on_closed` is called if this side closes first."""
        self._count, self._on_closed = count, on_closed

    def is_open(self) -> bool:
        """Whether the connection can still be written to."""
        return self.transport is not None and not self.transport.is_closing()

    def transport_name(self) -> str:
        """ "lane" or "quic"."""
        assert self.transport is not None
        return "lane" if self.transport.get_extra_info("ssl_object") is not None else "quic"

    def join(self, other: PipeEnd) -> None:
        """Forward to `other`: first the bytes received so far, then all others."""
        self._other = other
        for data in self._buffered:
            self._forward(data)
        self._buffered.clear()
        if self.transport is not None:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._buffered.append(data)
        else:
            self._forward(data)

    def _forward(self, data: bytes) -> None:
        self._count(len(data))
        assert self._other is not None
        if self._other.transport is not None:
            self._other.transport.write(data)

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._end()

    def _end(self) -> None:
        if self._other is not None and self._on_closed is not None:
            self._on_closed()
        self.close()

    def pause_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.resume_reading()

    def close(self) -> None:
        """Close both connections; bytes already written are still sent."""
        other, self._other = self._other, None
        if self.transport is not None:
            self.transport.close()
        if other is not None:
            other.close()


class InboundTunnel(PipeEnd):
    """A tunnel that a peer opened. `admit(self, header)` joins it to the engine or closes it."""

    def __init__(self, admit: Callable[[InboundTunnel, bytes], None]) -> None:
        super().__init__(lambda count: None)
        self._admit = admit
        self._header = b""
        self._deadline: asyncio.TimerHandle | None = None
        self.admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not descend from asyncio's
        self._deadline = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.close)

    def data_received(self, data: bytes) -> None:
        if self.admitted:
            super().data_received(data)
            return
        self._header += data
        if len(self._header) >= HEADER.size:
            self.admitted = True
            self._cancel_deadline()
            if self.transport is not None:
                self.transport.pause_reading()
            header, rest = self._header[: HEADER.size], self._header[HEADER.size :]
            self._header = b""
            if rest:
                super().data_received(rest)
            self._admit(self, header)

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(error)

    def close(self) -> None:
        self._cancel_deadline()
        super().close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
