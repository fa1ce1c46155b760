"""What coding agents need of the gateway: a choice of the model, errors that they recover from, signs of life."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_gateway_waiting import Gate
from web_rig import Bench, Call, Town, ask, backend, bench, coming, host, never, node_id, request, served, town, well

from meshllm.core.records import ServedModel
from meshllm.core.serving.template_traits import TemplateTraits
from meshllm.core.snapshot import ModelFacts, ModelState, Purpose
from meshllm.web.gateway.api_request import conversation_key
from meshllm.web.gateway.auto_model import MODEL_HEADER
from meshllm.web.gateway.backends import parse_models
from meshllm.web.gateway.relay import ResponseWriter
from meshllm.wire.api.routes import Api

ONE, TWO = node_id(1), node_id(2)
HELLO = [{"role": "user", "content": "hello"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
OVERFLOW = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    }
}


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three nodes; the first is asked."""
    async with town(folder) as made:
        yield made


async def too_long(call: Call) -> None:
    call.answer(OVERFLOW, 400)


def facts(**more: Any) -> ModelFacts:
    return ModelFacts("/m", 5, "llama", 65536, **more)


# -- cards


async def test_card_says_the_context_of_one_request_and_that_of_training(table: Bench) -> None:
    engine = await table.serve()
    table.publish(replace(served("m", engine.address), facts=facts()))
    card = (await table.get("/v1/models/m")).json
    assert card["meta"] == {"n_ctx": 4096, "n_ctx_train": 65536}
    assert "warning" not in card["mesh"]


async def test_card_of_a_peers_model_says_its_context(place: Town) -> None:
    place.here.meet(host(ONE, "far", context=2048), host(TWO, "far", context=8192))
    assert (await place.here.get("/v1/models/far")).json["meta"] == {"n_ctx": 8192}


async def test_card_warns_of_a_model_without_chat_template(table: Bench) -> None:
    engine = await table.serve()
    for purpose, warns in ((Purpose.GENERATE, True), (Purpose.EMBED, False)):
        table.publish(replace(served("base", engine.address), facts=facts(template=False, purpose=purpose)))
        told = (await table.get("/v1/models/base")).json["mesh"].get("warning", "")
        assert told.startswith("base has no chat template") == warns


# -- auto


def generating(name: str, address: str, **more: Any) -> ModelState:
    return replace(served(name, address), facts=facts(**more))


async def test_auto_picks_by_what_the_request_needs(table: Bench) -> None:
    text, sees, vectors = [await table.engine(well) for _ in range(3)]
    table.publish(
        generating("text", text.address, template=True),
        generating("sees", sees.address, vision=True, template=False),
        generating("vectors", vectors.address, purpose=Purpose.EMBED),
    )
    hello = [{"role": "user", "content": "hello"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [PICTURE]}]}, "sees"),
        ("/v1/chat/completions", {"messages": hello, "tools": tools}, "text"),
        ("/v1/messages", {"messages": hello, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "text"),
        ("/v1/responses", {"input": "hello", "tools": [{"type": "function", "name": "f"}]}, "text"),
        ("/v1/embeddings", {"input": "hello"}, "vectors"),
    ]
    for path, body, name in cases:
        response = await table.call(ask(path, "auto", **body))
        assert (response.status, response.headers[MODEL_HEADER]) == (200, name), path
    assert {call.json["model"] for call in vectors.calls} == {"vectors"}
    assert all(call.json["model"] == "text" for call in text.calls)


async def test_auto_stays_with_its_model_in_a_session(table: Bench) -> None:
    first, second = await table.engine(well), await table.engine(well)
    table.publish(generating("b", first.address))

    async def picked(text: str = "hello", **more: Any) -> str:
        messages = [{"role": "user", "content": text}]
        return str((await table.call(ask(model="auto", messages=messages, **more))).headers[MODEL_HEADER])

    assert await picked() == "b"
    large = replace(generating("a", second.address), facts=replace(facts(), size=500))
    table.publish(generating("b", first.address), large)
    assert await picked("another session") == "a"
    assert await picked() == "b"
    assert await picked(prompt_cache_key="s") == "a"
    table.publish(large)
    assert await picked() == "a"


async def test_auto_is_streamed_with_the_header_and_listed(table: Bench) -> None:
    engine = await table.engine(well)
    table.publish(generating("m", engine.address))
    response = await table.call(ask(model="Auto", stream=True))
    assert response.headers[MODEL_HEADER] == "m"
    assert MODEL_HEADER not in (await table.call(ask(model="m"))).headers
    listed = (await table.get("/v1/models")).json["data"]
    assert [card["id"] for card in listed] == ["m", "auto"]
    assert (await table.get("/v1/models/auto")).json == listed[-1]
    assert listed[-1]["meta"] == {"n_ctx": 4096}
    assert parse_models(json.dumps({"data": listed}).encode()) == ("m",)


async def test_auto_without_a_choice_is_a_typed_error(table: Bench) -> None:
    response = await table.call(ask(model="auto"))
    assert (response.status, response.json["error"]["code"]) == (404, "model_not_found")
    assert "no node of the mesh serves one" in response.json["error"]["message"]
    assert (await table.get("/v1/models")).json["data"] == []
    engine = await table.engine(well)
    table.publish(generating("vectors", engine.address, purpose=Purpose.EMBED))
    response = await table.call(ask("/v1/messages", "auto"))
    assert response.status == 404
    assert "no model that generates text" in response.json["error"]["message"]


async def test_a_model_named_auto_and_an_alias_come_first(folder: Path) -> None:
    async with bench(folder, aliases={"auto": "mine"}) as table:
        engine = await table.engine(well)
        table.publish(generating("mine", engine.address), generating("other", engine.address))
        response = await table.call(ask(model="auto"))
        assert response.status == 200
        assert MODEL_HEADER not in response.headers
        assert engine.calls[-1].json["model"] == "mine"


@pytest.mark.parametrize("name", ["auto", "AUTO", "auto.gguf", "auto-Q8_0", "auto:latest"])
async def test_peer_does_not_get_all_requests_by_naming_its_model_auto(place: Town, name: str) -> None:
    here = place.here
    engine = await here.engine(well)
    here.publish(generating("m", engine.address))
    here.meet(host(ONE, name))
    response = await here.call(ask(model="auto"))
    assert (response.status, response.headers[MODEL_HEADER]) == (200, "m")
    assert (await here.get("/v1/models/auto")).json["owned_by"] == "mesh-llm"
    listed = {card["id"]: card for card in (await here.get("/v1/models")).json["data"]}
    assert "choices" in listed["auto"]["mesh"]
    for asked in ("auto", "auto:latest"):
        response = await here.call(request("POST", "/api/chat", {"model": asked, "messages": HELLO}))
        assert (response.status, response.headers[MODEL_HEADER]) == (200, "m")


async def test_model_here_named_auto_is_that_model(table: Bench) -> None:
    engine = await table.engine(well)
    table.publish(generating("auto", engine.address), generating("other", engine.address))
    response = await table.call(ask(model="auto"))
    assert (response.status, MODEL_HEADER in response.headers) == (200, False)
    assert [card["id"] for card in (await table.get("/v1/models")).json["data"]] == ["auto", "other"]


async def test_auto_waits_for_a_model_that_is_coming(table: Bench) -> None:
    table.publish(coming("m"))
    caller = await table.caller()
    caller.send(ask(model="auto"))
    await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
    engine = await table.engine(well)
    table.publish(generating("m", engine.address))
    assert (await caller.response()).headers[MODEL_HEADER] == "m"


async def test_auto_asks_for_tools_where_the_template_has_them(table: Bench) -> None:
    with_tools, without = await table.engine(well), await table.engine(well)
    bare = generating("large", without.address)
    assert bare.server_facts is not None
    bare = replace(
        bare,
        facts=replace(facts(), size=500),
        server_facts=replace(bare.server_facts, template=TemplateTraits(tools=False)),
    )
    table.publish(bare, generating("small", with_tools.address))
    tools = [{"type": "function", "function": {"name": "f"}}]
    hello = [{"role": "user", "content": "hello"}]
    asked = await table.call(ask(model="auto", messages=hello, tools=tools))
    assert asked.headers[MODEL_HEADER] == "small"


# -- sessions

NAMED = [
    ({"prompt_cache_key": "s-1"}, {}),
    ({}, {"session_id": "s-1"}),
    ({}, {"conversation_id": "s-1"}),
    ({}, {"x-claude-code-session-id": "s-1"}),
    ({}, {"x-session-affinity": "s-1"}),
    ({}, {"x-opencode-session": "s-1"}),
    ({}, {"agent-session-id": "s-1"}),
    ({"metadata": {"user_id": "user_9_account_8_session_s-1"}}, {}),
    ({"metadata": {"user_id": '{"device_id": "d", "account_uuid": "", "session_id": "s-1"}'}}, {}),
    ({"user": "s-1"}, {}),
]


@pytest.mark.parametrize(("body", "headers"), NAMED)
def test_every_agent_names_its_session(body: dict[str, Any], headers: dict[str, str]) -> None:
    given = {name.encode(): value.encode() for name, value in headers.items()}
    key = conversation_key(Api.CHAT, {"model": "m", **body}, given)
    assert key == conversation_key(Api.CHAT, {"model": "m", "prompt_cache_key": "s-1"}, {})
    assert key != conversation_key(Api.CHAT, {"model": "m", "prompt_cache_key": "s-2"}, {})


@pytest.mark.parametrize(
    "user", ["{", "[]", '{"session_id": 1}', "x_session_", "{" * 5000, '{"session_id": ""}', "\ud800"]
)
def test_a_user_without_a_session_counts_as_a_whole(user: str) -> None:
    keys = {conversation_key(Api.MESSAGES, {"model": "m", "metadata": {"user_id": each}}, {}) for each in (user, "u")}
    assert len(keys) == 2


async def test_title_of_a_busy_session_does_not_move_it(place: Town) -> None:
    gate = Gate()
    await place.serve(1, gate, slots=1)
    two = await place.serve(2)
    place.here.meet(host(ONE, "m", slots=1))
    tools = [{"type": "function", "function": {"name": "f"}}]
    hello = [{"role": "user", "content": "hi"}]
    turn = ask(messages=hello, tools=tools, session_id="s", number=1)
    for both in (False, True):
        caller = await place.here.caller()
        caller.send(turn)
        if both:  # while it is busy, the title goes elsewhere
            await place.here.gateway.watch.until(lambda: place.here.gateway.active == 1)
            place.here.meet(host(ONE, "m", slots=1), host(TWO, "m", rtt=5.0))
            assert (await place.here.call(ask(messages=hello, session_id="s"))).status == 200
            assert len(two.calls) == 1
        gate.let(1)
        await caller.response()
        await caller.close()
    caller = await place.here.caller()
    caller.send(turn)
    gate.let(1)
    await caller.response()
    assert len(two.calls) == 1
    await caller.close()


# -- a prompt above the context


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_overflow_names_the_models_with_enough_context(place: Town, path: str) -> None:
    engine = await place.here.engine(too_long)
    place.here.publish(generating("m", engine.address), backends=(backend("http://10.0.0.1:1", "b"),))
    place.here.meet(
        host(ONE, ServedModel("large", Purpose.GENERATE, 32768), ServedModel("vectors", Purpose.EMBED, 65536)),
        host(TWO, "small", context=4999),
    )
    response = await place.here.call(ask(path))
    error = response.json["error"]
    assert (response.status, error["type"], error["code"]) == (400, "invalid_request_error", "context_length_exceeded")
    assert error["message"].endswith("Models with enough context: large (32768).")
    start = "prompt is too long: 5000 tokens > 4096 maximum"
    assert error["message"].startswith(
        start if path == "/v1/messages" else "This model's maximum context length is 4096"
    )


async def test_overflow_of_a_streamed_response_ends_the_stream(table: Bench) -> None:
    """Codex compacts its conversation on `response.failed` with this code; a 400 ends its task."""
    engine = await table.engine(too_long)
    table.publish(generating("m", engine.address))
    response = await table.call(ask("/v1/responses", stream=True))
    assert response.status == 200
    events = [json.loads(line[6:]) for line in response.body.decode().splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == [
        "response.created", "response.in_progress", "error", "response.failed",
    ]  # fmt: skip
    assert events[-1]["response"]["error"]["code"] == events[-2]["code"] == "context_length_exceeded"
    assert [event["sequence_number"] for event in events] == [0, 1, 2, 3]
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert (await table.call(ask(path, stream=True))).status == 400


async def test_overflow_at_a_peer_is_tried_elsewhere_before_a_stream_begins(place: Town) -> None:
    await place.serve(1, script=too_long)
    two = await place.serve(2)
    place.here.meet(host(ONE, "m", rtt=0.001), host(TWO, "m", context=8192, rtt=0.5))
    response = await place.here.call(ask("/v1/responses", stream=True))
    assert b"response.completed" in response.body
    assert len(two.calls) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("larger", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_overflow_in_a_begun_stream_of_a_peer(
    place: Town, monkeypatch: pytest.MonkeyPatch, path: str, larger: bool
) -> None:
    """The peer has sent comments before its engine refused: another host may still hold the prompt."""
    begun, send_head = asyncio.Event(), ResponseWriter._send_head

    def watched(writer: ResponseWriter, host: str = "") -> None:
        send_head(writer, host)
        if writer._from_peer:
            begun.set()

    async def late(call: Call) -> None:
        await begun.wait()
        await too_long(call)

    monkeypatch.setattr(ResponseWriter, "_send_head", watched)
    await place.serve(1, script=late)
    two = await place.serve(2)
    other = host(TWO, "m", context=8192, rtt=0.5) if larger else host(TWO, "large", context=32768)
    place.here.meet(host(ONE, "m", context=4096, rtt=0.001), other)
    response = await place.here.call(ask(path, stream=True))
    if larger:
        assert b"Hello" in response.body
        assert len(two.calls) == 1
    else:
        assert b"context_length_exceeded" in response.body
        assert b"5000 tokens" in response.body
        assert b"Models with enough context: large (32768)." in response.body


@pytest.mark.parametrize(("trained", "raised"), [(4096, False), (8192, True), (0, True)])
async def test_overflow_advises_more_context_only_if_the_model_has_more(
    place: Town, trained: int, raised: bool
) -> None:
    await place.serve(1, script=too_long)
    place.here.meet(host(ONE, ServedModel("m", Purpose.GENERATE, 4096, 4, 10, trained=trained)))
    response = await place.here.call(ask())
    message = response.json["error"]["message"]
    assert response.status == 400
    assert ("--ctx-size" in message) is raised
    assert ("The model was made for no longer context." in message) is not raised
    card = next(card for card in (await place.here.get("/v1/models")).json["data"] if card["id"] == "m")
    assert card["meta"] == {"n_ctx": 4096} | ({"n_ctx_train": trained} if trained else {})


# -- signs of life


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/messages", b'event: ping\ndata: {"type":"ping"}\n\n'),
        ("/v1/responses", b'event: keepalive\ndata: {"type":"keepalive","sequence_number":0}\n\n'),
        ("/v1/chat/completions", b""),
    ],
)
async def test_silent_stream_gets_events_where_clients_time_them(
    table: Bench, monkeypatch: pytest.MonkeyPatch, path: str, event: bytes
) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.EVENT_SILENCE_SECONDS", 0.05)
    engine = await table.engine(never)
    table.publish(generating("m", engine.address))
    caller = await table.caller()
    caller.send(ask(path, stream=True))
    await caller.head()
    await caller.until(event or b": processing the prompt\n\n")
    await engine.die()
    await caller.close()


@pytest.mark.usefixtures("quick")
async def test_keepalive_has_the_number_of_the_last_event(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.EVENT_SILENCE_SECONDS", 0.05)

    async def begins(call: Call) -> None:
        call.begin_stream()
        call.chunk(b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"}}\n\n')
        call.chunk(b'event: response.in_progress\ndata: {"type":"response.in_progress","response":{"id":"r"}}\n\n')
        await call.gone()

    engine = await table.engine(begins)
    table.publish(generating("m", engine.address))
    caller = await table.caller()
    caller.send(ask("/v1/responses", stream=True))
    await caller.head()
    await caller.until(b'{"type":"keepalive","sequence_number":1}\n\n')
    await caller.close()
