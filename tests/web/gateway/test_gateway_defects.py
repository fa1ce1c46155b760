"""A defect at any stage of a request: the caller gets a typed error or a closed connection at once, and all that the
request held is returned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from web_rig import DONE, Bench, Call, Truncated, ask, chat_chunk, well

from meshllm.web.gateway import relay as relay_module
from meshllm.web.gateway import request as request_module
from meshllm.web.gateway.api_request import ApiRequest
from meshllm.web.gateway.proxy import RequestRecorder
from meshllm.web.gateway.relay import Relay, ResponseWriter
from meshllm.web.gateway.request_log import RequestLog
from meshllm.web.gateway.target_selection import TargetSelection
from meshllm.web.http.client import UpstreamConnection, UpstreamPool
from meshllm.wire.api.chat_stream import ChatRepair

CLOSED = (Truncated, ConnectionError, EOFError)
# Generous: a caller that is left alone waits for minutes.
AT_ONCE_SECONDS = 20.0


class Defect(Exception):
    """What no code of ours expects."""


def breaks(*_: Any, **__: Any) -> Any:
    raise Defect("injected")


WHOLE = [
    (request_module, "understand"),
    (TargetSelection, "decide"),
    (UpstreamPool, "take"),
    (UpstreamPool, "connect"),
    (ApiRequest, "prepare"),
    (ApiRequest, "wire"),
    (Relay, "connect"),
    (UpstreamConnection, "send"),
    (relay_module, "WholeResponse"),
    (relay_module, "retry_after"),
    (ApiRequest, "whole_response"),
    (request_module, "whole_usage"),
    (ResponseWriter, "whole"),
    (RequestLog, "add"),
    (RequestRecorder, "attempt_ended"),
]
STREAM = [
    (ApiRequest, "stream_repair"),
    (ChatRepair, "feed"),
    (ChatRepair, "finish"),
    (Relay, "first_byte"),
    (ResponseWriter, "usage"),
    (ResponseWriter, "end"),
]


@pytest.mark.parametrize(("holder", "name"), WHOLE, ids=lambda value: getattr(value, "__name__", value))
async def test_a_defect_never_leaves_a_caller_unanswered(
    table: Bench, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str
) -> None:
    await check(table, monkeypatch, holder, name, stream=False)


@pytest.mark.parametrize(("holder", "name"), [*WHOLE[:8], *STREAM], ids=lambda value: getattr(value, "__name__", value))
async def test_a_defect_never_leaves_a_streaming_caller_unanswered(
    table: Bench, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str
) -> None:
    await check(table, monkeypatch, holder, name, stream=True)


async def ended(table: Bench) -> None:
    """Until nothing is held, and the ends of tasks are in the log, some turns of the loop later."""
    await table.idle()
    for _ in range(10):
        await asyncio.sleep(0)


async def check(table: Bench, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, *, stream: bool) -> None:
    """Break one function, ask, mend it, and ask again."""
    await table.serve(well, slots=1)
    with monkeypatch.context() as broken:
        broken.setattr(holder, name, breaks)
        caller = await table.caller()
        caller.send(ask(stream=stream))
        try:
            async with asyncio.timeout(AT_ONCE_SECONDS):
                response = await caller.response()
        except CLOSED:
            response = None  # closed, in the middle of a stream or without an answer
        await caller.close()
    if response is not None:
        # A defect of what counts an answer comes after the answer was made.
        assert response.status in (200, 500, 502)
        if response.status != 200:
            error = response.json["error"]
            assert {"message", "type", "param", "code"} <= set(error)
    await ended(table)
    faults = [fault for fault in table.faults if "injected" in fault]
    assert faults, "the defect is in the log"
    table.faults[:] = [fault for fault in table.faults if fault not in faults]
    again = await table.call(ask(stream=stream))  # the only slot is free
    assert again.status == 200
    assert not stream or again.body.endswith(DONE)


async def test_a_defect_before_the_answer_is_a_typed_error(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await table.serve(well)
    with monkeypatch.context() as broken:
        broken.setattr(ApiRequest, "wire", breaks)
        response = await table.call(ask())
    assert response.status == 500
    assert response.json["error"]["code"] == "internal_error"
    await ended(table)
    table.faults.clear()


async def test_a_defect_in_the_middle_of_a_stream_closes_the_connection(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begun(call: Call) -> None:
        call.begin_stream()
        call.chunk(chat_chunk({"role": "assistant", "content": "a"}))
        await call.gone()  # the target's work is stopped, too

    await table.serve(begun, slots=1)
    monkeypatch.setattr(Relay, "first_byte", breaks)
    caller = await table.caller()
    caller.send(ask(stream=True))
    async with asyncio.timeout(AT_ONCE_SECONDS):
        response = await caller.response()
    assert (response.status, response.json["error"]["code"]) == (500, "internal_error")
    monkeypatch.undo()
    monkeypatch.setattr(ResponseWriter, "forward", breaks)
    caller.send(ask(stream=True))
    async with asyncio.timeout(AT_ONCE_SECONDS):
        response = await caller.response()
    assert (response.status, response.json["error"]["code"]) == (500, "internal_error")
    monkeypatch.undo()
    original = ResponseWriter.forward

    def written_then_broken(self: ResponseWriter, data: bytes, now: float) -> None:
        original(self, data, now)
        raise Defect("injected")

    monkeypatch.setattr(ResponseWriter, "forward", written_then_broken)
    caller.send(ask(stream=True))
    async with asyncio.timeout(AT_ONCE_SECONDS):
        with pytest.raises(CLOSED):
            await caller.response()
    await caller.close()
    await ended(table)
    table.faults.clear()


async def test_a_defect_ends_a_request_once(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpstreamConnection, "send", breaks)
    await table.serve(well)
    assert (await table.call(ask())).status == 500
    assert table.gateway.outcomes == ["failed"]
    await ended(table)
    table.faults.clear()
