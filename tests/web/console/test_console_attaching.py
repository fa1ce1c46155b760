"""POST /api/attach: a launcher is attached as long as its connection is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from web_rig import TOKEN

from meshllm.errors import EnvironmentFailure
from meshllm.web.console.server import Console
from meshllm.web.console.status import NodeStatus
from meshllm.web.http.access_control import AccessPolicy


class Holder:
    """Counts, and tells of each change."""

    def __init__(self) -> None:
        self.count, self.refuses = 0, False
        self.changed = asyncio.Event()

    @contextmanager
    def attach(self) -> Iterator[None]:
        if self.refuses:
            raise EnvironmentFailure("This node is stopping.")
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def _add(self, more: int) -> None:
        self.count += more
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count != count:
                await self.changed.wait()


async def attach(port: int, token: str) -> tuple[bytes, asyncio.StreamWriter]:
    """The first line of the response, and the open connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /api/attach HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx-mesh-llm-token: {token}\r\n"
    writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
    return await reader.readline(), writer


async def test_connection_attaches_until_it_is_lost() -> None:
    def status() -> NodeStatus:
        raise AssertionError("it is not read")

    holder = Holder()
    reading = cast(Callable[[], NodeStatus], status)
    console = Console(AccessPolicy(), reading, token=TOKEN, attach=holder.attach)
    port = await console.start(("127.0.0.1",), 0)
    try:
        first, one = await attach(port, TOKEN)
        second, two = await attach(port, TOKEN)
        assert (first, second) == (b"HTTP/1.1 200 OK\r\n",) * 2
        await holder.until(2)
        one.close()
        await holder.until(1)
        two.transport.abort()  # as when a process is killed
        await holder.until(0)
        refused, stranger = await attach(port, "wrong")
        assert b"403" in refused
        stranger.close()
        holder.refuses = True
        refused, late = await attach(port, TOKEN)
        assert b"409" in refused
        late.close()
        holder.refuses = False
        _, last = await attach(port, TOKEN)
        await holder.until(1)
    finally:
        await console.close()
    await holder.until(0)
    last.close()
