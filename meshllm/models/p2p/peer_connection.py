"""The downloading end of a file tunnel: requests chunks from one peer and receives them into given buffers.

Invariants: only requested answers are accepted, in the order of the requests and within their size; otherwise, or after
STALL_SECONDS of silence with a pending answer, the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from meshllm.errors import BadMessage, LinkClosed, MeshError
from meshllm.wire.mesh import files as w

# A peer with a low upload limit still sends small pieces within this time.
STALL_SECONDS: Final = 15.0
_MAX_REFUSAL_BYTES: Final = 64
A = TypeVar("A", bound=w.Answer)


@dataclass(slots=True)
class _PendingReply:
    """A pending answer of `kind`, at most `most` bytes long; or a chunk that fills `buffer`."""

    kind: w.FileFrameKind
    most: int
    buffer: memoryview | None
    chunk: int
    answer: asyncio.Future[w.Answer | None]


class PeerConnection(asyncio.BufferedProtocol):
    """A connection to a seeding peer. `on_bytes` is called with the number of received bytes."""

    def __init__(self, on_bytes: Callable[[int], None] = lambda count: None, *, stall: float = STALL_SECONDS) -> None:
        self.transport = ""
        self._on_bytes = on_bytes
        self._stall = stall
        self._transport: asyncio.Transport | None = None
        self._reader = w.FrameReader(self._buffer_for)
        self._pending: deque[_PendingReply] = deque()
        self._received = 0
        self._error: MeshError | None = None

    # -- requests

    async def request_listing(self, sha256: str, chunks: int) -> w.ChunkListing | w.FileRefusal:
        """The chunk digests of a file that has `chunks` chunks. Raises LinkClosed and BadMessage."""
        return await self._ask(w.HaveRequest(sha256), w.FileFrameKind.LISTING, w.listing_bytes(chunks), w.ChunkListing)

    async def find_models(self, name: str) -> w.FoundModels | w.FileRefusal:
        """The peer's models of that name. Raises LinkClosed and BadMessage."""
        return await self._ask(w.FindRequest(name), w.FileFrameKind.FOUND, w.MAX_FOUND_BYTES, w.FoundModels)

    async def read_chunk(self, chunk: int, buffer: memoryview) -> w.FileRefusal | None:
        """Receive a chunk of the last requested file into `buffer`; returns the refusal, if any.

        Raises LinkClosed and BadMessage. Cancelling closes the connection, because the bytes are on their way.
        """
        refusal = await self._exchange(
            w.ChunkRequest(chunk), _PendingReply(w.FileFrameKind.CHUNK, 0, buffer, chunk, _future())
        )
        return cast("w.FileRefusal | None", refusal)

    async def _ask(self, request: w.Request, kind: w.FileFrameKind, most: int, wanted: type[A]) -> A | w.FileRefusal:
        answer = await self._exchange(request, _PendingReply(kind, most, None, 0, _future()))
        assert isinstance(answer, wanted | w.FileRefusal)
        return answer

    async def _exchange(self, request: w.Request, pending: _PendingReply) -> w.Answer | None:
        if self._error is not None or self._transport is None:
            raise self._error or LinkClosed("The connection was closed.")
        self._pending.append(pending)
        self._transport.write(w.encode_request(request))
        try:
            while not pending.answer.done():
                before = self._received
                await asyncio.wait([pending.answer], timeout=self._stall)
                if self._received == before and not pending.answer.done():
                    self.end(LinkClosed(f"The peer sent nothing for {self._stall:.0f} seconds."))
        except asyncio.CancelledError:
            self.end(LinkClosed("The connection was closed."))
            raise
        return pending.answer.result()

    # -- received data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Streams over QUIC have no TLS of their own.
        self.transport = "lane" if transport.get_extra_info("ssl_object") is not None else "quic"

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._count(nbytes)
        if self._error is not None:
            return
        try:
            if (frame := self._reader.advance(nbytes)) is not None:
                self._receive(frame)
        except BadMessage as error:
            self.end(error)

    def data_received(self, data: bytes) -> None:
        """As `buffer_updated`, for transports with their own buffer (streams over QUIC)."""
        self._count(len(data))
        try:
            for frame in self._reader.feed(data if self._error is None else b""):
                self._receive(frame)
        except BadMessage as error:
            self.end(error)

    def eof_received(self) -> None:
        self.end(LinkClosed("The peer closed the connection."))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(LinkClosed("The connection to the peer was lost."))

    def end(self, error: MeshError) -> None:
        """Close the connection; pending requests fail with `error`. Idempotent."""
        if self._error is not None:
            return
        self._error = error
        if self._transport is not None:
            self._transport.abort()
        for pending in self._pending:
            if not pending.answer.done():
                pending.answer.set_exception(error)
                pending.answer.exception()  # retrieved, so that asyncio does not log it
        self._pending.clear()

    def _count(self, count: int) -> None:
        self._received += count
        self._on_bytes(count)

    def _buffer_for(self, kind: int, number: int, length: int) -> memoryview:
        if not self._pending:
            raise BadMessage("an answer without a request")
        pending = self._pending[0]
        if kind == w.FileFrameKind.CHUNK and pending.buffer is not None:
            if number != pending.chunk or length != len(pending.buffer):
                raise BadMessage("a chunk that was not requested")
            return pending.buffer
        if not (kind == w.FileFrameKind.REFUSAL and length <= _MAX_REFUSAL_BYTES) and not (
            kind == pending.kind and length <= pending.most
        ):
            raise BadMessage("an answer that is too long or of the wrong kind")
        return memoryview(bytearray(length))

    def _receive(self, frame: w.FileFrame) -> None:
        answer = None if frame.kind == w.FileFrameKind.CHUNK else w.decode_answer(frame)
        pending = self._pending.popleft()
        if not pending.answer.done():
            pending.answer.set_result(answer)


def _future() -> asyncio.Future[w.Answer | None]:
    return asyncio.get_running_loop().create_future()
