"""The taker's end of a tunnel for files: asks one peer, and puts the bytes of chunks where they belong.

Law: nothing comes in that was not asked for, in the order in which it was asked for, and not a byte more; a peer that
breaks this, or from which nothing is heard for STALL_SECONDS while it owes an answer, is hung up on. Bytes of a chunk
are received straight into the room that was given for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from meshllm.errors import BadMessage, LinkClosed, MeshError
from meshllm.wire.mesh import files as w

# A giver that must be slow still sends something (it lets many small pieces out, not a few large ones).
STALL_SECONDS: Final = 15.0
_MAX_REFUSAL_BYTES: Final = 64
A = TypeVar("A", bound=w.Answer)


@dataclass(slots=True)
class _Owed:
    """An answer that is to come: of `kind`, at most `most` bytes long; or the chunk that fills `room`."""

    kind: w.FileFrameKind
    most: int
    room: memoryview | None
    chunk: int
    answer: asyncio.Future[w.Answer | None]


class PeerConnection(asyncio.BufferedProtocol):
    """A connection to a peer that gives files. `heard` is called with the number of each few bytes that come."""

    def __init__(self, heard: Callable[[int], None] = lambda count: None, *, stall: float = STALL_SECONDS) -> None:
        self.via = ""
        self._heard = heard
        self._stall = stall
        self._transport: asyncio.Transport | None = None
        self._reader = w.FrameReader(self._place)
        self._owed: deque[_Owed] = deque()
        self._received = 0
        self._over: MeshError | None = None

    # -- asking

    async def have(self, sha256: str, chunks: int) -> w.ChunkListing | w.FileRefusal:
        """What the peer has of that file, which has so many chunks. Raises LinkClosed and BadMessage."""
        return await self._ask(w.HaveRequest(sha256), w.FileFrameKind.LISTING, w.listing_bytes(chunks), w.ChunkListing)

    async def find(self, name: str) -> w.FoundModels | w.FileRefusal:
        """Which models the peer has of that name. Raises LinkClosed and BadMessage."""
        return await self._ask(w.FindRequest(name), w.FileFrameKind.FOUND, w.MAX_FOUND_BYTES, w.FoundModels)

    async def get(self, chunk: int, room: memoryview) -> w.FileRefusal | None:
        """Fill `room` with the chunk of the file last asked for; its reason if the peer will not.

        Raises LinkClosed and BadMessage. Whoever is cancelled here hangs up: the bytes are on their way.
        """
        refusal = await self._exchange(w.ChunkRequest(chunk), _Owed(w.FileFrameKind.CHUNK, 0, room, chunk, _future()))
        return cast("w.FileRefusal | None", refusal)

    async def _ask(self, request: w.Request, kind: w.FileFrameKind, most: int, wanted: type[A]) -> A | w.FileRefusal:
        answer = await self._exchange(request, _Owed(kind, most, None, 0, _future()))
        assert isinstance(answer, wanted | w.FileRefusal)
        return answer

    async def _exchange(self, request: w.Request, owed: _Owed) -> w.Answer | None:
        if self._over is not None or self._transport is None:
            raise self._over or LinkClosed("The peer was hung up on.")
        self._owed.append(owed)
        self._transport.write(w.encode_request(request))
        try:
            while not owed.answer.done():
                before = self._received
                await asyncio.wait([owed.answer], timeout=self._stall)
                if self._received == before and not owed.answer.done():
                    self.end(LinkClosed(f"The peer has sent nothing for {self._stall:.0f} seconds."))
        except asyncio.CancelledError:
            self.end(LinkClosed("The peer was hung up on."))
            raise
        return owed.answer.result()

    # -- hearing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Streams over QUIC have no TLS of their own.
        self.via = "lane" if transport.get_extra_info("ssl_object") is not None else "quic"

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._count(nbytes)
        if self._over is not None:
            return
        try:
            if (frame := self._reader.advance(nbytes)) is not None:
                self._hear(frame)
        except BadMessage as error:
            self.end(error)

    def data_received(self, data: bytes) -> None:
        """The same where the transport has a buffer of its own (streams over QUIC)."""
        self._count(len(data))
        try:
            for frame in self._reader.feed(data if self._over is None else b""):
                self._hear(frame)
        except BadMessage as error:
            self.end(error)

    def eof_received(self) -> None:
        self.end(LinkClosed("The peer has hung up."))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(LinkClosed("The connection to the peer is gone."))

    def end(self, error: MeshError) -> None:
        """Hang up; whoever waits gets `error`. Idempotent."""
        if self._over is not None:
            return
        self._over = error
        if self._transport is not None:
            self._transport.abort()
        for owed in self._owed:
            if not owed.answer.done():
                owed.answer.set_exception(error)
                owed.answer.exception()  # seen, whether or not anybody still waits
        self._owed.clear()

    def _count(self, count: int) -> None:
        self._received += count
        self._heard(count)

    def _place(self, kind: int, number: int, length: int) -> memoryview:
        if not self._owed:
            raise BadMessage("an answer that nobody asked for")
        owed = self._owed[0]
        if kind == w.FileFrameKind.CHUNK and owed.room is not None:
            if number != owed.chunk or length != len(owed.room):
                raise BadMessage("a chunk that nobody asked for")
            return owed.room
        if not (kind == w.FileFrameKind.REFUSAL and length <= _MAX_REFUSAL_BYTES) and not (
            kind == owed.kind and length <= owed.most
        ):
            raise BadMessage("an answer that is too long, or to another question")
        return memoryview(bytearray(length))

    def _hear(self, frame: w.FileFrame) -> None:
        answer = None if frame.kind == w.FileFrameKind.CHUNK else w.decode_answer(frame)
        owed = self._owed.popleft()
        if not owed.answer.done():
            owed.answer.set_result(answer)


def _future() -> asyncio.Future[w.Answer | None]:
    return asyncio.get_running_loop().create_future()
