"""`POST /mcp`: who may call, both eras over HTTP, streams, and the bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from meshllm.web.console import mcp
from tests.local_board import LocalBoard
from tests.mcp_http_rig import KEY, TOKEN, served
from tests.mcp_rig import META, NEW, OLD, Clock

OWNER = {"x-mesh-llm-token": TOKEN}
BEARER = {"Authorization": f"Bearer {KEY}"}
BOTH_TYPES = {"Accept": "application/json, text/event-stream"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture
def board() -> LocalBoard:
    return LocalBoard("ada", now=Clock())


@pytest.fixture
async def url(board: LocalBoard) -> AsyncIterator[str]:
    async with served(board) as address:
        yield address


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def post(url: str, message: Any, headers: dict[str, str] | None = None, **options: Any) -> Answer:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    sent = {"Content-Type": "application/json", **BOTH_TYPES, **(OWNER if headers is None else headers)}
    async with ClientSession() as session, session.post(url, data=data, headers=sent, **options) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def new(method: str, params: dict[str, Any] | None = None, number: Any = 1) -> tuple[dict[str, Any], dict[str, str]]:
    """A request of the new era, and its headers."""
    params = {**(params or {}), "_meta": META}
    headers = {**OWNER, "MCP-Protocol-Version": NEW, "Mcp-Method": method}
    name = params.get("name") or params.get("uri")
    if name:
        headers["Mcp-Name"] = name
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}, headers


# -- callers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWNER, 200),
        (BEARER, 200),
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"x-mesh-llm-token": "wrong"}, 401),
        ({**OWNER, "Host": "evil.example"}, 403),
        ({**OWNER, "X-Forwarded-For": "192.0.2.1"}, 401),
        ({**BEARER, "X-Forwarded-For": "192.0.2.1"}, 403),
        ({**OWNER, "Origin": "https://evil.example"}, 403),
        ({**BEARER, "Origin": "https://evil.example"}, 403),
        ({**OWNER, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**OWNER, "Origin": "http://localhost:6274"}, 200),
    ],
)
async def test_callers_are_on_this_machine_and_know_a_secret(url: str, headers: dict[str, str], status: int) -> None:
    answer = await post(url, PING, headers)
    assert answer.status == status, answer.body
    assert (answer.json.get("result") == {}) is (status == 200)
    if status == 401 and "X-Forwarded-For" not in headers:
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_without_an_api_key_only_the_token_counts(board: LocalBoard) -> None:
    async with served(board, key=None) as url:
        assert (await post(url, PING, {"Authorization": "Bearer "})).status == 401
        assert (await post(url, PING)).status == 200


async def test_other_methods_and_types_are_refused(url: str) -> None:
    async with ClientSession() as session:
        for method in ("GET", "DELETE", "PUT"):
            async with session.request(method, url, headers={**OWNER, **BOTH_TYPES}) as answer:
                assert answer.status == 405
                assert "POST" in answer.headers["allow"]
    assert (await post(url, PING, {**OWNER, "Content-Type": "text/plain"})).status == 415
    assert (await post(url, PING, {**OWNER, "Accept": "text/html"})).status == 406


async def test_bodies_and_calls_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await post(url, b"x" * (mcp.MAX_BODY_BYTES + 1))).status == 413
    assert (await post(url, b"\xff")).json["error"]["code"] == -32700
    assert (await post(url, [PING])).json["error"]["code"] == -32600
    monkeypatch.setattr(mcp, "MAX_EXCHANGES", 0)
    assert (await post(url, PING)).status == 503


# -- eras


async def test_the_old_era_needs_no_session(url: str) -> None:
    start = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    answer = await post(url, {**PING, "method": "initialize", "params": start})
    assert answer.json["result"]["protocolVersion"] == OLD
    assert "subscribe" not in answer.json["result"]["capabilities"]["resources"]
    assert "mcp-session-id" not in answer.headers
    told = await post(
        url, {"jsonrpc": "2.0", "method": "notifications/initialized"}, {**OWNER, "MCP-Protocol-Version": OLD}
    )
    assert (told.status, told.body) == (202, b"")
    listed = await post(url, {**PING, "method": "tools/list"}, {**OWNER, "MCP-Protocol-Version": OLD})
    assert len(listed.json["result"]["tools"]) == 4
    assert (await post(url, PING, {**OWNER, "MCP-Protocol-Version": "1999-01-01"})).json["error"]["code"] == -32022
    unknown = await post(url, {**PING, "method": "x"})
    assert (unknown.status, unknown.json["error"]["code"]) == (200, -32601)
    refused = await post(url, {**PING, "method": "resources/subscribe", "params": {"uri": "board://feed"}})
    assert "stdio" in refused.json["error"]["message"]


async def test_the_new_era_checks_its_headers(url: str) -> None:
    message, headers = new("tools/call", {"name": "blackboard_feed", "arguments": {}})
    answer = await post(url, message, headers)
    assert (answer.status, answer.json["result"]["resultType"]) == (200, "complete")
    encoded = {**headers, "Mcp-Name": "=?base64?YmxhY2tib2FyZF9mZWVk?="}
    assert (await post(url, message, encoded)).status == 200
    for change in (
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": ""},
        {"Mcp-Name": "blackboard_post"},
        {"Mcp-Name": "=?base64?!?="},
        {"MCP-Protocol-Version": OLD},
        {"MCP-Protocol-Version": ""},
    ):
        answer = await post(url, message, {**headers, **change})
        assert (answer.status, answer.json["error"]["code"], answer.json["id"]) == (400, -32020, 1), change
    message, headers = new("nonsense")
    assert (await post(url, message, headers)).status == 404
    message, headers = new("resources/read", {"uri": "board://nothing"})
    answer = await post(url, message, headers)
    assert (answer.status, answer.json["error"]["code"]) == (400, -32602)


async def test_the_room_is_in_the_address_and_the_program_in_the_header(url: str, board: LocalBoard) -> None:
    call = {**PING, "method": "tools/call", "params": {"name": "blackboard_post", "arguments": {"text": "x"}}}
    await post(f"{url}?room=acme/rocket", call, {**OWNER, "User-Agent": "claude-code/2.1 (cli)"})
    message, headers = new("tools/call", {"name": "blackboard_post", "arguments": {"text": "y"}})
    await post(url, message, headers)
    assert [(each.room, each.program) for each in board.posts] == [("acme/rocket", "claude-code"), ("", "claude-code")]
    assert (await post(f"{url}?room={'x' * 200}", call)).status == 400


# -- streams


async def test_a_subscription_is_a_stream_that_ends_with_the_server(
    board: LocalBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.board.mcp_connection.PAUSE_SECONDS", 0.01)
    message, headers = new("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["board://feed"]}}, "l")
    events: list[dict[str, Any]] = []
    async with ClientSession() as session, asyncio.timeout(20):
        async with served(board) as url:
            sent = {"Content-Type": "application/json", **BOTH_TYPES, **headers}
            answer = await session.post(url, json=message, headers=sent)
            assert answer.content_type == "text/event-stream"
            events.append(await _event(answer))
            await asyncio.sleep(0.1)
            board.arrive("news")
            events.append(await _event(answer))
            alone = await post(url, message, {**headers, "Accept": "application/json"})
            assert "text/event-stream" in alone.json["error"]["message"]
        events.append(await _event(answer))
        answer.close()
    assert [event.get("method") for event in events] == [
        "notifications/subscriptions/acknowledged",
        "notifications/resources/updated",
        None,
    ]
    assert events[2]["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "l"


async def _event(answer: Any) -> dict[str, Any]:
    while True:
        line = await answer.content.readline()
        assert line, "the stream has ended"
        if line.startswith(b"data: "):
            found: dict[str, Any] = json.loads(line[6:])
            return found


async def test_a_call_ends_when_its_caller_goes_away(board: LocalBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "LOOK_SECONDS", 0.05)
    ended = asyncio.Event()
    feed = board.feed

    async def watched(query: Any) -> Any:
        try:
            return await feed(query)
        except asyncio.CancelledError:
            ended.set()
            raise

    monkeypatch.setattr(board, "feed", watched)
    async with served(board) as url:
        call = {"name": "blackboard_feed", "arguments": {"wait_seconds": 50}}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await post(url, {**PING, "method": "tools/call", "params": call})
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_long_call_reports_its_progress_as_events(
    url: str, board: LocalBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.board.mcp_tools.PROGRESS_SECONDS", 0.05)
    params = {"name": "blackboard_feed", "arguments": {"wait_seconds": 0.3}, "_meta": {"progressToken": 5}}
    message = {**PING, "method": "tools/call", "params": params}
    answer = await post(url, message)
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: ")]
    assert data[0]["method"] == "notifications/progress"
    assert data[-1]["id"] == 1
    plain = await post(url, message, {**OWNER, "Accept": "application/json"})
    assert "No new message" in plain.json["result"]["content"][0]["text"]
