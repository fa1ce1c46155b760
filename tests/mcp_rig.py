"""The MCP server over a board in memory: in this process, on the standard streams of a child, and over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any

from meshllm.board.mcp import McpSetting
from meshllm.board.mcp_connection import McpConnection
from meshllm.board.mcp_tools import LocalCalls
from tests.local_board import LocalBoard

OLD, NEW = "2025-11-25", "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": NEW,
    "io.modelcontextprotocol/clientInfo": {"name": "Claude Code", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def nonces() -> Any:
    numbers = itertools.count(0xA0000000)
    return lambda: f"{next(numbers):08x}"


class Clock:
    """The wall clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A client in this process. `said`: what the server sent that is no response."""

    def __init__(self, board: LocalBoard, clock: Clock, **options: Any) -> None:
        room, name = options.pop("room", ""), options.pop("name", "")
        self.said: list[dict[str, Any]] = []
        self.answers: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self.lost: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        setting = McpSetting(LocalCalls(lambda: board), "1.2", clock, loop.time, nonces(), room, name)
        self.connection = McpConnection(setting, self._take, **options)
        self._numbers = itertools.count(1)

    def _take(self, message: dict[str, Any]) -> None:
        message = json.loads(json.dumps(message))
        if "method" in message:
            self.said.append(message)
        elif message["id"] in self.answers:
            self.answers[message["id"]].set_result(message)
        else:
            self.lost.append(message)

    def begin(self, method: str, params: dict[str, Any] | None = None, number: Any = None) -> Any:
        """Send a request; returns its id."""
        number = next(self._numbers) if number is None else number
        self.answers[number] = asyncio.get_running_loop().create_future()
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        self.connection.receive(json.dumps(message).encode())
        return number

    async def ask(self, method: str, params: dict[str, Any] | None = None, number: Any = None) -> dict[str, Any]:
        """The response to a request."""
        number = self.begin(method, params, number)
        async with asyncio.timeout(10):
            return await self.answers[number]

    async def new(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The same in the era without a handshake."""
        return await self.ask(method, {**(params or {}), "_meta": META})

    def tell(self, method: str, params: dict[str, Any] | None = None) -> None:
        """Send a notification."""
        self.raw(json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}}).encode())

    def raw(self, data: bytes) -> None:
        self.connection.receive(data)

    async def ended(self, number: Any) -> None:
        """Wait until a request is no more in progress."""
        async with asyncio.timeout(10):
            while number in self.connection._running:  # noqa: ASYNC110 - it ends in another task
                await asyncio.sleep(0)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool. `from_` stands for `from`."""
        given = {key.rstrip("_"): value for key, value in arguments.items()}
        answer = await self.ask("tools/call", {"name": tool, "arguments": given})
        result: dict[str, Any] = answer["result"]
        return result


def text_of(result: dict[str, Any]) -> str:
    """The text of a tool's result."""
    assert [block["type"] for block in result["content"]] == ["text"]
    return str(result["content"][0]["text"])


async def serve_stdio(room: str) -> None:
    """Serve a board in memory with one message of bob on the standard streams."""
    import secrets
    import time

    from meshllm.board import stdio

    wall = time.time  # noqa: TID251 - ages of messages
    board = LocalBoard()
    board.arrive("STATUS: hello from bob", kind="status", room=room)
    target = stdio.private_output()
    setting = McpSetting(LocalCalls(lambda: board), "1", wall, time.monotonic, lambda: secrets.token_hex(4), room)
    await stdio.serve(setting, target=target)


if __name__ == "__main__":
    asyncio.run(serve_stdio(sys.argv[1] if len(sys.argv) > 1 else ""))
