"""The daemon's part of `/mcp`: the board that it has now, and what is in progress when it stops."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from meshllm.core.board.service import Blackboard
from meshllm.daemon.board_mcp import BoardMcp
from meshllm.errors import BoardOff
from tests.local_board import LocalBoard
from tests.mcp_rig import META, NEW, Clock, text_of

FEED = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "blackboard_feed"}}


async def ask(mcp: BoardMcp, message: dict[str, Any]) -> dict[str, Any]:
    _, body = await mcp.exchange(json.dumps(message).encode(), {}, "", None)
    result: dict[str, Any] = json.loads(body)["result"]
    return result


async def test_each_call_asks_for_the_board_that_is_there_then() -> None:
    clock = Clock()
    board: LocalBoard | None = None

    def now() -> Blackboard:
        if board is None:
            raise BoardOff("This node is in no mesh.")
        return board

    mcp = BoardMcp(now, clock)
    assert "This node is in no mesh" in text_of(await ask(mcp, FEED))
    board = LocalBoard("ada", now=clock)
    board.arrive("hello")
    clock.now += 120
    assert "2 min\nhello" in text_of(await ask(mcp, FEED))
    await mcp.close()
    assert await mcp.exchange(b"{}", {}, "", None) == (503, b"")


async def test_a_stop_ends_streams_with_their_last_message() -> None:
    board = LocalBoard("ada", now=Clock())
    mcp = BoardMcp(lambda: board, Clock())
    emitted: list[bytes] = []
    began = asyncio.Event()

    async def emit(data: bytes) -> None:
        emitted.append(data)
        began.set()

    params = {"_meta": META, "notifications": {"resourceSubscriptions": ["board://feed"]}}
    message = {"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": params}
    headers = {"mcp-protocol-version": NEW, "mcp-method": "subscriptions/listen"}

    async def stop() -> None:
        await began.wait()
        await mcp.close()

    (status, body), _ = await asyncio.gather(mcp.exchange(json.dumps(message).encode(), headers, "", emit), stop())
    assert status == 200
    assert json.loads(body)["result"]["resultType"] == "complete"
    assert len(emitted) == 1
