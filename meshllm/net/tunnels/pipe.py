"""The ends of RPC tunnels: two connections joined into one, and what a peer opens until it is known what for.

Law: bytes are handed on as they come, and what one side cannot take yet is not read from the other. Of a peer nothing
is read but a header, within a deadline, before somebody has let it in.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import cast

from meshllm.core.split.lease import SESSION_BYTES

# The first bytes of a tunnel: which lease it belongs to, and what for.
HEADER = struct.Struct(f">{SESSION_BYTES}sQB")
# A peer that has opened a tunnel has written its header already.
HEADER_SECONDS = 10.0


class PipeEnd(asyncio.Protocol):
    """One of two connections that are joined: what comes here goes out there, and both end together.

    `count` hears how many bytes have come; `made`, if given, that the connection is there.
    """

    def __init__(self, count: Callable[[int], None], made: Callable[[PipeEnd], None] | None = None) -> None:
        self._count = count
        self._made = made
        self._broken: Callable[[], None] | None = None
        self.transport: asyncio.Transport | None = None
        self._there: PipeEnd | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not descend from asyncio's
        if self._there is None:
            self.transport.pause_reading()
        if self._made is not None:
            self._made(self)

    def belongs(self, count: Callable[[int], None], broken: Callable[[], None] | None = None) -> None:
        """`count` hears of what comes from now on; `broken` if it is this one of the two that ends, not the other."""
        self._count, self._broken = count, broken

    def lives(self) -> bool:
        """Whether something can still be said on it."""
        return self.transport is not None and not self.transport.is_closing()

    def via(self) -> str:
        """What a connection to a peer runs over."""
        assert self.transport is not None
        return "lane" if self.transport.get_extra_info("ssl_object") is not None else "quic"

    def join(self, there: PipeEnd) -> None:
        """From now on bytes go to `there`, those that came early first."""
        self._there = there
        for data in self._early:
            self._hand_on(data)
        self._early.clear()
        if self.transport is not None:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._there is None:
            self._early.append(data)
        else:
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        self._count(len(data))
        assert self._there is not None
        if self._there.transport is not None:
            self._there.transport.write(data)

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._end()

    def _end(self) -> None:
        if self._there is not None and self._broken is not None:
            self._broken()
        self.close()

    def pause_writing(self) -> None:
        if self._there is not None and self._there.transport is not None:
            self._there.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._there is not None and self._there.transport is not None:
            self._there.transport.resume_reading()

    def close(self) -> None:
        """End both connections; what has been written is still sent."""
        there, self._there = self._there, None
        if self.transport is not None:
            self.transport.close()
        if there is not None:
            there.close()


class InboundTunnel(PipeEnd):
    """A tunnel that a peer has opened: its header is read, and then it leads on to the engine, or nowhere."""

    def __init__(self, admit: Callable[[InboundTunnel, bytes], None]) -> None:
        super().__init__(lambda count: None)
        self._admit = admit
        self._header = b""
        self._impatience: asyncio.TimerHandle | None = None
        self.admitted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not descend from asyncio's
        self._impatience = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.close)

    def data_received(self, data: bytes) -> None:
        if self.admitted:
            super().data_received(data)
            return
        self._header += data
        if len(self._header) >= HEADER.size:
            self.admitted = True
            self._quiet()
            if self.transport is not None:
                self.transport.pause_reading()
            header, rest = self._header[: HEADER.size], self._header[HEADER.size :]
            self._header = b""
            if rest:
                super().data_received(rest)
            self._admit(self, header)

    def connection_lost(self, error: Exception | None) -> None:
        self._quiet()
        super().connection_lost(error)

    def close(self) -> None:
        self._quiet()
        super().close()

    def _quiet(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
