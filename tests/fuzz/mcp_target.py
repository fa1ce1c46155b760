"""The fuzz target of the MCP server: bytes as a client of its standard input would send them, and as POST bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from meshllm.board.mcp import McpSetting
from meshllm.board.mcp_connection import McpConnection
from meshllm.board.mcp_http import McpHttp
from meshllm.board.mcp_protocol import MAX_MESSAGE_BYTES, McpError, encode
from meshllm.board.mcp_tools import LocalCalls
from meshllm.board.stdio import Lines
from tests.local_board import LocalBoard
from tests.mcp_rig import META, NEW, OLD, Clock, nonces

# What a request that waits is given before it is cancelled: turns of the event loop.
TURNS = 12


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def mcp(data: bytes) -> None:
    """Each message gets one answer at most, of the protocol's shape; no request ends in a defect."""
    _runner().run(_run(data))


async def _run(data: bytes) -> None:
    clock = Clock()
    board = LocalBoard("ada", now=clock)
    board.arrive("QUESTION: hello", kind="question", room="a/b", to=("ada",))
    setting = McpSetting(LocalCalls(lambda: board), "1", clock, asyncio.get_running_loop().time, nonces(), "a/b")
    said: list[dict[str, Any]] = []
    connection = McpConnection(setting, said.append, room_of=lambda path: path[:100])
    long: list[McpError] = []
    lines = Lines(connection.receive, lambda: long.append(McpError(0, "")), MAX_MESSAGE_BYTES)
    half = len(data) // 2
    lines.feed(data[:half])
    lines.feed(data[half:])
    lines.close()
    for _ in range(TURNS):
        await asyncio.sleep(0)
    await connection.close()
    _check(said)
    answers = [message["id"] for message in said if "method" not in message and message["id"] is not None]
    assert len(answers) <= data.count(b"\n") + 1
    headers = {"mcp-protocol-version": NEW, "mcp-method": "tools/call", "mcp-name": "blackboard_feed"}
    for sent in ({}, headers):
        await _post(McpHttp(setting), data, sent)


async def _post(http: McpHttp, data: bytes, headers: dict[str, str]) -> None:
    emitted: list[bytes] = []

    async def emit(message: bytes) -> None:
        emitted.append(message)

    task = asyncio.ensure_future(http.exchange(data, headers, "", emit))  # noqa: TID251 - ends below
    for _ in range(TURNS):
        await asyncio.sleep(0)
    if task.done():
        status, body = task.result()
        assert status in (200, 202, 400, 404, 503)
        assert (status == 202) is (not body)
        _check([json.loads(each) for each in [*emitted, *([body] if body else [])]])
    else:
        task.cancel()
        await asyncio.wait([task])
    await http.close()


def _check(messages: list[dict[str, Any]]) -> None:
    for message in messages:
        line = encode(message)
        assert b"\n" not in line
        assert json.loads(line) == message
        assert message["jsonrpc"] == "2.0"
        assert sum(key in message for key in ("method", "result", "error")) == 1
        assert "defect" not in message.get("error", {}).get("message", "")


def mcp_messages() -> Iterator[bytes]:
    """Valid messages of both eras."""
    start = {"protocolVersion": OLD, "capabilities": {"roots": {}}, "clientInfo": {"name": "x", "version": "1"}}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("initialize", start),
        ("server/discover", {}),
        ("ping", {}),
        ("logging/setLevel", {"level": "info"}),
        ("tools/list", {}),
        ("tools/call", {"name": "blackboard_post", "arguments": {"text": "STATUS: x", "kind": "tip", "to": ["b"]}}),
        ("tools/call", {"name": "blackboard_search", "arguments": {"query": "hello", "limit": 3, "since_hours": 2}}),
        ("tools/call", {"name": "blackboard_feed", "arguments": {"from": "bob", "to_me": True, "wait_seconds": 1}}),
        ("tools/call", {"name": "blackboard_claim", "arguments": {"op": "acquire", "key": "k", "minutes": 5}}),
        ("resources/list", {}),
        ("resources/read", {"uri": "board://room/a%2Fb"}),
        ("resources/subscribe", {"uri": "board://feed"}),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["board://claims"]}}),
        ("prompts/get", {"name": "catch-up", "arguments": {"hours": "2"}}),
    ]
    for number, (method, params) in enumerate(calls):
        for meta in ({}, {"_meta": META}):
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, **meta}}
            yield json.dumps(message).encode()
    told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    began = {"jsonrpc": "2.0", "id": 9, "method": "initialize", "params": start}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    roots = {"jsonrpc": "2.0", "id": "mesh-roots", "result": {"roots": [{"uri": "file:///a%20b"}]}}
    yield b"\n".join(json.dumps(each).encode() for each in (told, began, ready, roots, told))
