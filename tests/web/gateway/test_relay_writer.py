"""The response writer names the target that answered, in the head or in a comment, and keeps its speed."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_gateway_waiting import finish
from web_rig import (
    PATHS,
    STREAMING,
    Bench,
    Call,
    ask,
    backend,
    chat_chunk,
    coming,
    host,
    node_id,
    request,
    served,
    town,
    well,
)

from meshllm.web.gateway.auto_model import MODEL_HEADER
from meshllm.web.gateway.relay import HOST_HEADER


async def telling(call: Call) -> None:
    """An engine that says how fast it was, and a model that lies about it."""
    lie = chat_chunk({"content": '"predicted_per_second":99999,'})
    timings = b'data: {"choices":[],"timings":{"predicted_n":3,"predicted_per_second":41.5}}\n\n'
    if call.json["stream"]:
        call.stream(lie, timings, chat_chunk({}, "stop"), b"data: [DONE]\n\n")
        call.hang_up()
    else:
        call.answer(b'{"choices":[],"timings":{"predicted_per_second": 17}}')


@pytest.mark.parametrize("path", PATHS)
async def test_host_header_names_the_engine(table: Bench, path: str) -> None:
    await table.serve()
    assert (await table.call(ask(path))).headers[HOST_HEADER] == "engine"
    if path in STREAMING:
        assert (await table.call(ask(path, stream=True))).headers[HOST_HEADER] == "engine"


async def test_host_header_names_the_backend_url(table: Bench) -> None:
    upstream = await table.pool()
    assert (await table.call(ask())).headers[HOST_HEADER] == f"backend {upstream.address}"


async def test_host_header_names_the_peer_and_is_not_sent_to_peers(folder: Path) -> None:
    async with town(folder, 2) as place:
        engine = await place.serve(1)
        place.here.meet(host(node_id(1), "m"))
        for stream in (False, True):
            response = await place.here.call(ask(stream=stream))
            assert response.headers[HOST_HEADER] == f"peer {node_id(1).hex()[:10]}"
            assert b"answered by" not in response.body
        assert engine.calls


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", STREAMING)
async def test_host_is_a_comment_if_the_head_was_sent_before(table: Bench, path: str) -> None:
    engine = await table.engine(well)
    table.publish(coming("m"))
    caller = await table.caller()
    caller.send(ask(path, stream=True))
    head = await caller.head()
    assert HOST_HEADER not in head.headers
    heard = await caller.until(b"downloading")
    table.publish(served("m", engine.address))
    body = (await finish(caller, heard)).body
    comment = b"\n\n: answered by engine\n\n"
    assert body.count(comment) == 1
    assert body.index(comment) < body.index(b"Hello")


async def test_host_header_is_absent_in_errors(table: Bench) -> None:
    await table.serve()
    assert HOST_HEADER not in (await table.call(ask(model="unknown"))).headers
    assert HOST_HEADER not in (await table.get("/v1/models")).headers


async def test_host_header_is_exposed_to_pages(table: Bench) -> None:
    await table.serve()
    body = {"model": "m"}
    response = await table.call(request("POST", "/v1/chat/completions", body, {"Origin": "http://localhost:3131"}))
    assert response.headers["access-control-expose-headers"] == f"{HOST_HEADER}, {MODEL_HEADER}, x-request-id"
    assert "access-control-expose-headers" not in (await table.call(ask())).headers


async def test_target_keeps_the_speed_of_its_last_response(table: Bench) -> None:
    await table.serve(telling)
    for stream, speed in ((True, 41.5), (False, 17.0)):
        await table.call(ask(stream=stream))
        [desk] = table.gateway.target_queues()
        assert desk.tokens_per_second == speed


async def test_target_speed_is_unknown_if_not_reported(table: Bench) -> None:
    upstream = await table.backend(well)
    table.publish(backends=(backend(upstream.address, "m"),))
    await table.call(ask(stream=True))
    [desk] = table.gateway.target_queues()
    assert desk.tokens_per_second is None
