"""The baseline of `scripts/bench swarm`: sends bytes of memory over TLS, with the event loop and TLS of a lane.

A client gets SIZE bytes as fast as it reads them. The first line on standard output is the port.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop

from meshllm.net.identity import Identity

# What lanes are given at a time, too.
BLOCK_BYTES = 256 << 10


class Source(asyncio.Protocol):
    """Sends."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._block = bytes(BLOCK_BYTES)
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, once the connection is made to its end."""
        self._transport = cast(asyncio.Transport, transport)
        asyncio.get_running_loop().call_soon(self._go_on)

    def pause_writing(self) -> None:
        """Enough for now."""
        self._paused = True

    def resume_writing(self) -> None:
        """More."""
        self._paused = False
        self._go_on()

    def _go_on(self) -> None:
        assert self._transport is not None
        while self._left and not self._paused and not self._transport.is_closing():
            size = min(self._left, BLOCK_BYTES)
            self._left -= size
            self._transport.write(self._block[:size])
        if not self._left:
            self._transport.close()


async def main(folder: Path, size: int) -> None:
    """Listen until the input ends."""
    context = Identity.load_or_create(folder).server_context()
    server = await asyncio.get_running_loop().create_server(lambda: Source(size), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2])))
