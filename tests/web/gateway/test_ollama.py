"""Ollama's API at the gateway: the same path as OpenAI's, in Ollama's shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_gateway_peers import inside
from web_rig import (
    ANSWERS,
    CHAT_STREAM,
    Bench,
    Call,
    Response,
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

from meshllm.core.snapshot import ModelFacts, Purpose
from meshllm.errors import PortTaken
from meshllm.web.gateway.gateway import Gateway
from meshllm.web.gateway.ollama_caller import OllamaCaller
from meshllm.wire.api.ollama_models import NEVER
from meshllm.wire.api.ollama_request import AnswerForm
from meshllm.wire.api.ollama_routes import ROUTES

MESSAGES = [{"role": "user", "content": "hello"}]
MODEL_PATHS = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")


def post(path: str, **body: Any) -> bytes:
    return request("POST", path, body)


def lines(response: Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.body.splitlines()]


def error(response: Response) -> str:
    """The message of an error, which must have Ollama's shape."""
    assert response.headers["content-type"] == "application/json"
    assert set(response.json) == {"error"}
    return str(response.json["error"])


async def test_chat_is_a_stream_of_lines(table: Bench) -> None:
    engine = await table.serve()
    response = await table.call(post("/api/chat", model="m:latest", messages=MESSAGES))
    assert response.status == 200
    found = lines(response)
    assert [line["message"]["content"] for line in found] == ["Hello", " there", ""]
    assert [line["done"] for line in found] == [False, False, True]
    assert {line["model"] for line in found} == {"m:latest"}
    call = engine.calls[-1]
    assert (call.path, call.json["model"], call.json["stream"]) == ("/v1/chat/completions", "m", True)
    assert table.gateway.outcomes == ["answered"]
    assert 'api="ollama"' in (await table.get("/metrics")).body.decode()
    assert table.gateway.requests.snapshot()[-1].path == "/api/chat"


async def test_whole_answers(table: Bench) -> None:
    await table.serve()
    chat = (await table.call(post("/api/chat", model="m", messages=MESSAGES, stream=False))).json
    assert (chat["message"]["content"], chat["done"]) == ("Hello", True)
    generated = (await table.call(post("/api/generate", model="m", prompt="a", stream=False))).json
    assert (generated["response"], generated["done"]) == ("Hello", True)
    raw = (await table.call(post("/api/generate", model="m", prompt="a", raw=True, stream=False))).json
    assert raw["response"] == "Hello"
    embedded = (await table.call(post("/api/embed", model="m", input=["a"]))).json
    assert (embedded["embeddings"], embedded["model"]) == ([[0.5]], "m")
    assert (await table.call(post("/api/embeddings", model="m", prompt="a"))).json == {"embedding": [0.5]}


async def test_a_request_without_a_prompt_asks_a_host(table: Bench) -> None:
    engine = await table.serve()
    whole = (await table.call(post("/api/generate", model="m", stream=False))).json
    assert (whole["response"], whole["done_reason"]) == ("", "load")
    found = lines(await table.call(post("/api/chat", model="m")))
    assert [line["done_reason"] for line in found] == ["load"]
    assert [call.path for call in engine.calls] == ["/v1/completions"] * 2
    assert (await table.call(post("/api/embed", model="m"))).json["embeddings"] == []


async def test_a_peer_sees_openais_api_alone(folder: Path) -> None:
    """The node that is asked translates: an older host knows no other paths."""
    async with town(folder) as place:
        engine = await place.serve(1)
        place.here.meet(host(node_id(1), "m"))
        found = lines(await place.here.call(post("/api/chat", model="m:latest", messages=MESSAGES)))
        assert found[-1]["done"] is True
        whole = await place.here.call(post("/api/embed", model="m", input="a"))
        assert whole.json["embeddings"] == [[0.5]]
        assert [call.path for call in engine.calls] == ["/v1/chat/completions", "/v1/embeddings"]
        caller = await inside(place)
        caller.send(post("/api/chat", model="m", messages=MESSAGES))
        assert (await caller.response()).status == 403
        await caller.close()


@pytest.mark.parametrize("path", MODEL_PATHS)
async def test_unknown_model_is_404(table: Bench, path: str) -> None:
    await table.serve()
    response = await table.call(post(path, model="nope:latest", messages=MESSAGES, prompt="a", input="a"))
    assert response.status == 404
    assert error(response).startswith("model 'nope:latest' not found.")
    assert "m" in error(response)


@pytest.mark.parametrize("path", MODEL_PATHS)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}", b'{"model":1}', b'{"model":"m","stream":1}'])
async def test_bodies_that_are_no_requests_are_400(table: Bench, path: str, body: bytes) -> None:
    await table.serve()
    response = await table.call(request("POST", path, body))
    assert response.status == 400
    assert error(response)


async def test_refusals_have_ollamas_names(table: Bench) -> None:
    engine = await table.serve()
    for body, named in (
        ({"options": {"temperature": -1}}, "'options.temperature'"),
        ({"options": {"top_k": "x"}}, '"top_k"'),
        ({"format": {"type": "string", "pattern": "("}}, "pattern"),
        ({"suffix": "x"}, "insert"),
    ):
        response = await table.call(post("/api/generate", model="m", prompt="a", **body))
        assert response.status == 400
        assert named in error(response)
    assert not engine.calls
    deep = b'{"model":"m","messages":[{"role":"user","content":"a"}],"format":{"a":%b}}'
    response = await table.call(request("POST", "/api/chat", deep % (b"[" * 900 + b"]" * 900)))
    assert response.status == 400
    assert error(response)


async def test_errors_of_an_engine_have_ollamas_shape(table: Bench) -> None:
    async def fails(call: Call) -> None:
        call.answer({"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}, status=400)

    await table.serve(fails)
    response = await table.call(post("/api/chat", model="m", messages=MESSAGES))
    assert (response.status, error(response)) == (400, "no")


async def test_an_error_in_a_stream_is_its_last_line(table: Bench) -> None:
    async def breaks(call: Call) -> None:
        call.begin_stream()
        for event in CHAT_STREAM[:2]:
            call.chunk(event)
        await call.drained()
        call.reset()

    await table.serve(breaks)
    found = lines(await table.call(post("/api/chat", model="m", messages=MESSAGES)))
    assert [set(line) for line in found[-1:]] == [{"error"}]
    assert found[0]["message"]["content"] == "Hello"


async def test_answers_of_another_shape_are_502(table: Bench) -> None:
    async def odd(call: Call) -> None:
        call.answer({"hello": 1})

    await table.serve(odd)
    response = await table.call(post("/api/chat", model="m", messages=MESSAGES, stream=False))
    assert response.status == 502
    assert error(response)


async def test_a_waiting_stream_says_that_it_is_alive(table: Bench, quick: None) -> None:
    table.publish(coming("m"))
    caller = await table.caller()
    caller.send(post("/api/chat", model="m", messages=MESSAGES))
    assert (await caller.head()).status == 200
    first = json.loads(await caller.piece())
    assert (first["message"]["content"], first["done"]) == ("", False)
    engine = await table.engine(well)
    table.publish(served("m", engine.address))
    rest = b""
    while b'"done":true' not in rest:
        rest += await caller.piece()
    assert "Hello" in rest.decode()
    await caller.close()


class Written:
    """A caller's connection that keeps what is written."""

    request_id = "req_1"
    busy = paused = False

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def send_data(self, data: bytes) -> None:
        self.data.append(data)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_a_stream_of_a_calls_arguments_says_that_it_is_alive() -> None:
    """A call is passed on when it is complete, which may take longer than a caller's patience."""
    now, connection = [0.0], Written()
    caller = OllamaCaller(connection, AnswerForm.CHAT, "m", streams=True, now=lambda: now[0])
    for moment, arguments in ((0.0, "{"), (4.0, '"a"'), (5.0, ":"), (6.0, "1"), (10.0, "}")):
        now[0] = moment
        caller.send_data(chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}))
    assert [bool(data) for data in connection.data] == [False, False, True, False, True]
    assert json.loads(connection.data[2])["message"] == {"role": "assistant", "content": ""}


async def test_the_caller_going_away_ends_the_request(table: Bench) -> None:
    async def waits(call: Call) -> None:
        call.begin_stream()
        call.chunk(CHAT_STREAM[1])
        await call.gone()

    await table.serve(waits)
    caller = await table.caller()
    caller.send(post("/api/chat", model="m", messages=MESSAGES))
    await caller.head()
    await caller.until(b"Hello")
    await caller.close()
    await table.idle()
    assert table.gateway.outcomes == ["abandoned"]


async def test_a_defect_is_an_error_in_ollamas_shape(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await table.serve()

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("meshllm.web.gateway.request.understand", broken)
    response = await table.call(post("/api/chat", model="m", messages=MESSAGES))
    assert response.status == 500
    assert "defect" in error(response)
    table.faults.clear()


# -- lists


async def test_auto_is_listed_shown_and_picked(table: Bench) -> None:
    engine = await table.engine(well)
    table.publish(replace(served("m", engine.address), facts=ModelFacts("/m", 5, "llama", 4096)))
    assert [each["name"] for each in (await table.get("/api/tags")).json["models"]] == ["m", "auto"]
    for name in ("auto", "auto:latest"):
        assert (await table.call(post("/api/show", model=name))).status == 200
        response = await table.call(post("/api/chat", model=name, messages=MESSAGES))
        assert (response.status, response.headers["x-mesh-llm-model"]) == (200, "m")
        assert engine.calls[-1].json["model"] == "m"


async def test_tags_show_and_ps(table: Bench) -> None:
    engine = await table.serve()
    facts = ModelFacts("/x", 7, "qwen3", 40960, "Q4_K_M", "ab" * 32, Purpose.GENERATE, vision=True)
    table.publish(
        replace(served("Qwen3-8B", engine.address), facts=facts),
        coming("later"),
        backends=(backend("http://10.0.0.1:1", "far"),),
    )
    listed = (await table.get("/api/tags")).json["models"]
    assert [model["model"] for model in listed] == ["Qwen3-8B", "later", "far", "auto"]
    for name in ("auto", "auto:latest"):
        assert (await table.call(post("/api/show", model=name))).json["capabilities"] == [
            "completion",
            "tools",
            "vision",
        ]
        chat = await table.call(post("/api/chat", model=name, messages=MESSAGES, stream=False))
        assert (chat.json["model"], chat.json["message"]["content"]) == (name, "Hello")
    assert listed[0]["details"]["quantization_level"] == "Q4_K_M"
    assert (listed[0]["size"], listed[0]["digest"]) == (7, "ab" * 32)
    for name in ("Qwen3-8B", "qwen3:8b", "Qwen3-8B:latest", "qwen3-8b:Q4_K_M"):
        shown = (await table.call(post("/api/show", model=name))).json
        assert shown["model_info"]["qwen3.context_length"] == 4096
        assert shown["capabilities"] == ["completion", "tools", "vision"]
    missing = await table.call(post("/api/show", name="qwen3:8b-q8_0"))
    assert missing.status == 404
    assert error(missing).startswith("model 'qwen3:8b-q8_0' not found.")
    running = (await table.get("/api/ps")).json["models"]
    assert [model["model"] for model in running] == ["Qwen3-8B", "far"]
    assert running[0]["expires_at"] == NEVER
    version = (await table.get("/api/version")).json["version"]
    assert [int(part) for part in version.split(".")] > [0, 6, 4]
    head = await table.get("/api/tags", "HEAD")
    assert head.status == 200


async def test_ps_says_when_a_model_is_unloaded(table: Bench) -> None:
    engine = await table.serve()
    idle = replace(served("m", engine.address), idle_since=table.gateway.now())
    table.snapshot = replace(table.snapshot, idle_unload=600.0)
    table.publish(idle)
    expires = (await table.get("/api/ps")).json["models"][0]["expires_at"]
    assert expires != NEVER
    assert expires.endswith("Z")


@pytest.mark.parametrize("path", [path for path, route in ROUTES.items() if route.advice] + ["/api/blobs/sha256:00"])
async def test_what_commands_do_is_refused_with_their_names(table: Bench, path: str) -> None:
    await table.serve()
    method = "DELETE" if path == "/api/delete" else "POST"
    response = await table.call(request(method, path, {"model": "other", "source": "a", "destination": "b"}), method)
    assert response.status == 501
    assert "mesh-llm" in error(response) or "--model" in error(response) or "--alias" in error(response)


async def test_a_model_that_the_mesh_has_needs_no_pull(table: Bench) -> None:
    await table.serve()
    assert (await table.call(post("/api/pull", model="m:latest"))).json == {"status": "success"}


async def test_paths_and_methods_that_are_not_there(table: Bench) -> None:
    for method, path, status in (("GET", "/api/chat", 405), ("POST", "/api/tags", 405), ("GET", "/api/other", 404)):
        response = await table.call(request(method, path), method)
        assert response.status == status
        assert error(response)


async def test_refused_callers_get_ollamas_shape(table: Bench) -> None:
    for data in (
        request("GET", "/api/tags", host="evil.example"),
        request("POST", "/api/chat", {"model": "m"}, host="evil.example"),
        request("GET", "/api/tags", headers={"origin": "https://evil.example"}),
    ):
        response = await table.call(data)
        assert response.status == 403
        assert error(response)


# -- the port of Ollama


@pytest.fixture
async def port(table: Bench) -> int:
    """The port of Ollama of the bench's gateway."""
    return await table.gateway.start_ollama_port(("127.0.0.1",), 0)


async def at(table: Bench, port: int, data: bytes, method: str = "POST") -> Response:
    usual, table.port = table.port, port
    try:
        return await table.call(data, method)
    finally:
        table.port = usual


async def test_the_port_of_ollama(table: Bench, port: int) -> None:
    await table.serve()
    root = await at(table, port, request("GET", "/"), "GET")
    assert (root.status, root.body, root.headers["server"]) == (200, b"Ollama is running", "mesh-llm")
    assert (await at(table, port, request("HEAD", "/"), "HEAD")).status == 200
    assert (await table.get("/")).json["name"] == "mesh-llm"
    chat = await at(table, port, post("/api/chat", model="m", messages=MESSAGES))
    assert lines(chat)[-1]["done"] is True
    openai = await at(table, port, post("/v1/chat/completions", model="m", messages=MESSAGES))
    assert openai.json["choices"] == ANSWERS["/v1/chat/completions"]["choices"]
    for path in ("/v1/models", "/v1/models/m", "/api/tags"):
        assert (await at(table, port, request("GET", path), "GET")).status == 200
    for method, path in (
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/api/hello"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/rerank"),
        ("POST", "/"),
    ):
        body = {"model": "m", "max_tokens": 1, "messages": MESSAGES}
        assert (await at(table, port, request(method, path, body), method)).status == 404
    for path in ("/", "/api/tags", "/metrics"):
        assert (await at(table, port, request("GET", path, host="evil.example"), "GET")).status == 403


async def test_a_taken_port_of_ollama_names_its_option(table: Bench) -> None:
    with pytest.raises(PortTaken, match="in use") as taken:
        await Gateway(table.gateway._policy).start_ollama_port(("127.0.0.1",), table.port)
    assert taken.value.option == "--ollama-port"
