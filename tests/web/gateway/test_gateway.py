"""Every path answers, and fails, in the shape that its callers understand."""

from __future__ import annotations

import codecs
import json
from dataclasses import replace
from pathlib import Path

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from web_rig import (
    ANSWERS,
    ENDS,
    PATHS,
    STREAMING,
    Bench,
    Call,
    Response,
    ask,
    backend,
    bench,
    broken,
    coming,
    request,
    served,
)

from meshllm.core.snapshot import ModelFacts
from meshllm.web.http.access_control import AccessPolicy

# What is tested here does not depend on the loop, and there is much of it.
pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])


def shaped(path: str, response: Response, code: str | None = None) -> str:
    """The message of an error, whose shape must be that of the API at `path`."""
    body = response.json
    assert response.headers["content-type"] == "application/json"
    if "/messages" in path:
        assert body["type"] == "error"
        assert set(body["error"]) >= {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) >= {"message", "type", "param", "code"}
    if code is not None:
        assert body["error"]["code"] == code
    return str(body["error"]["message"])


@pytest.mark.parametrize("path", PATHS)
async def test_gateway_sends_aliases_upstream_under_the_canonical_path(table: Bench, path: str) -> None:
    engine = await table.serve()
    for asked in (path, path.removeprefix("/v1"), path + "?beta=true"):
        response = await table.call(ask(asked, anthropic_version="x"))
        assert (response.status, engine.calls[-1].path) == (200, path)
        given = response.json
        assert {key: given[key] for key in ANSWERS[path] if key != "content"} == {
            key: value for key, value in ANSWERS[path].items() if key != "content"
        }
    assert table.gateway.outcomes == ["answered"] * 3


@pytest.mark.parametrize("path", STREAMING)
async def test_gateway_forwards_streams_whole(table: Bench, path: str) -> None:
    await table.serve()
    response = await table.call(ask(path, stream=True))
    assert response.status == 200
    assert response.chunked
    assert response.headers["content-type"].startswith("text/event-stream")
    assert b"Hello" in response.body
    assert response.body.replace(b" ", b"").endswith(ENDS[path].replace(b" ", b""))


async def test_gateway_forwards_only_allowed_headers(folder: Path) -> None:
    async def tell(call: Call) -> None:
        call.answer({"head": call.head.decode()})

    async with bench(folder, AccessPolicy("secret")) as table:
        engine = await table.serve(tell)
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "é": "ü"}
        headers = {
            "Authorization": "Bearer secret",
            "X-Api-Key": "secret",
            "Cookie": "secret",
            "Anthropic-Version": "2023-06-01",
            "Anthropic-Beta": "a,b",
            "X-Forwarded-For": "secret",
            "Connection": "x-hop",
            "X-Hop": "secret",
        }
        response = await table.call(request("POST", "/v1/chat/completions", body, headers))
        head = response.json["head"]
        assert "secret" not in head
        assert "anthropic-version: 2023-06-01\r\n" in head
        assert "anthropic-beta: a,b\r\n" in head
        assert engine.calls[0].json == body


async def test_backend_request_has_its_key_host_and_path(folder: Path) -> None:
    async def tell(call: Call) -> None:
        call.answer({"head": call.head.decode()})

    keys: dict[str, str] = {}
    async with bench(folder, backend_keys=keys) as table:
        upstream = await table.backend(tell)
        url = upstream.address + "/deep/er"
        table.gateway._proxy._keys[url] = "k3y"
        table.publish(backends=(backend(url, "m"),))
        head = (await table.call(ask())).json["head"]
        assert head.startswith("POST /deep/er/v1/chat/completions HTTP/1.1\r\n")
        assert f"host: {upstream.address.removeprefix('http://')}\r\n" in head
        assert "authorization: Bearer k3y\r\n" in head


@pytest.mark.parametrize("path", PATHS)
async def test_unknown_model_is_404(table: Bench, path: str) -> None:
    engine = await table.serve()
    response = await table.call(ask(path, model="n"))
    assert response.status == 404
    assert "'n'" in shaped(path, response, "model_not_found")
    assert not engine.calls


@pytest.mark.parametrize("path", PATHS)
async def test_model_is_found_by_its_name_in_other_letters_and_by_an_alias(folder: Path, path: str) -> None:
    async with bench(folder, aliases={"gpt-4o": "m"}) as table:
        engine = await table.serve()
        for asked in ("m", "M", "m.gguf", "M.GGUF", "gpt-4o"):
            response = await table.call(ask(path, model=asked))
            assert response.status == 200, asked
            assert engine.calls[-1].json["model"] == "m"
        assert (await table.get("/v1/models/gpt-4o")).json["id"] == "gpt-4o"
        assert (await table.call(ask(path, model="gpt-4"))).status == 404
        labels = (await table.get("/metrics")).body.decode()
        assert 'model="m"' in labels
        assert "gpt-4o" not in labels


@pytest.mark.parametrize("path", PATHS)
async def test_body_without_model_is_400(table: Bench, path: str) -> None:
    for body in ({}, {"model": None}, {"model": ""}, {"model": 7}, {"model": "x" * 513}, [], "m", 1):
        response = await table.call(request("POST", path, body))
        assert response.status == 400
        shaped(path, response, "invalid_parameter")


@pytest.mark.parametrize("path", PATHS)
async def test_known_models_are_named_where_the_body_names_none(table: Bench, path: str) -> None:
    await table.serve()
    for body, named in (({}, True), ({"model": None}, True), ({"model": ""}, True), ({"model": 7}, False)):
        response = await table.call(request("POST", path, body))
        assert ("Models here: m." in shaped(path, response, "invalid_parameter")) is named, body
    response = await table.call(request("POST", path, {"model": "m", "stream": 7}))
    assert "Models here" not in shaped(path, response, "invalid_parameter")


@pytest.mark.parametrize("path", PATHS)
async def test_the_first_byte_that_is_not_utf_8_is_named(table: Bench, path: str) -> None:
    await table.serve()
    for body, byte in ((b'{"model": "\xff"}', "byte 11 is 0xff"), (b"\xfe", "byte 0 is 0xfe")):
        message = shaped(path, await table.call(request("POST", path, body)), "invalid_json")
        assert byte in message
        assert "UTF-8" in message


BAD_JSON = {
    "empty": b"",
    "half": b'{"model": "m"',
    "deep": b'{"model": "m", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "huge number": b'{"model": "m", "a": 1e999}',
    "NaN": b'{"model": "m", "a": NaN}',
    "Infinity": b'{"model": "m", "a": -Infinity}',
    "half a surrogate pair": b'{"model": "\\ud800"}',
    "NUL": b'{"model": "m\x00"}',
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "m"}'.encode("utf-16"),
    "two marks before it": b'\xef\xbb\xbf\xef\xbb\xbf{"model": "m"}',
    "two": b'{"model": "m"}{"model": "m"}',
    "a comment": b'{"model": "m" /* */}',
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_body_that_is_not_json_is_400(table: Bench, body: bytes) -> None:
    engine = await table.serve()
    for path in ("/v1/chat/completions", "/v1/messages"):
        response = await table.call(request("POST", path, body))
        assert response.status == 400
        shaped(path, response, "invalid_json")
    assert not engine.calls


@pytest.mark.parametrize("path", PATHS)
async def test_a_byte_order_mark_before_the_body_is_skipped(table: Bench, path: str) -> None:
    engine = await table.serve()
    body = ask(path).partition(b"\r\n\r\n")[2]
    assert (await table.call(request("POST", path, codecs.BOM_UTF8 + body))).status == 200
    assert not engine.calls[0].body.startswith(codecs.BOM_UTF8)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_stream_parameter_must_be_boolean(table: Bench, path: str) -> None:
    await table.serve()
    for stream in ("yes", 1, 0, [], {}, "true"):
        response = await table.call(request("POST", path, {"model": "m", "stream": stream}))
        assert response.status == 400
        assert "'stream'" in shaped(path, response, "invalid_parameter")


async def test_stream_parameter_may_be_null_and_is_ignored_by_apis_without_streams(table: Bench) -> None:
    await table.serve()
    assert (await table.call(request("POST", "/v1/chat/completions", {"model": "m", "stream": None}))).status == 200
    assert (await table.call(ask("/v1/embeddings", stream=True))).json == ANSWERS["/v1/embeddings"]


@pytest.mark.parametrize("path", PATHS)
async def test_wrong_method_is_405_with_allow(table: Bench, path: str) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        response = await table.get(path, method)
        assert (response.status, response.headers["allow"]) == (405, "POST")
        shaped(path, response, "method_not_allowed")


async def test_models_endpoint_is_read_only(table: Bench) -> None:
    response = await table.call(request("POST", "/v1/models", {}))
    assert (response.status, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_unknown_path_is_404(table: Bench, method: str) -> None:
    for path in ("/nothing", "/v1", "/v1/", "/v1/chat", "/v1/chat//", "/v1/../v1/models"):
        response = await table.call(request(method, path), method)
        assert response.status == 404
        shaped(path, response, "not_found")
    assert (await table.call(request(method, "*"), method)).status in (400, 404)


async def test_models_list_is_parsed_by_both_sdks(table: Bench) -> None:
    engine = await table.serve()
    table.publish(
        served("m", engine.address),
        coming("org/c-1"),
        broken("b"),
        backends=(backend("http://10.0.0.1:1", "far", "m"),),
    )
    listed = (await table.get("/v1/models")).json
    names = ["m", "org/c-1", "b", "far", "auto"]
    assert [openai.types.Model.model_validate(card, strict=True).id for card in listed["data"]] == names
    assert [anthropic.types.ModelInfo.model_validate(card).id for card in listed["data"]] == names
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("m", "auto", False)
    phases = [card["mesh"]["phase"] for card in listed["data"]]
    assert phases == ["serving", "fetching", "failed", "serving", "serving"]
    assert listed["data"][0]["mesh"]["served_by"] == ["this node", "http://10.0.0.1:1"]
    for name in ("org/c-1", "org%2Fc-1"):
        assert (await table.get(f"/v1/models/{name}")).json == listed["data"][1]
    missing = await table.get("/v1/models/org%2Fc-2")
    assert missing.status == 404
    assert "Did you mean org/c-1?" in shaped("/v1/models", missing, "model_not_found")


@pytest.mark.parametrize(("sees", "told"), [(True, ["text", "image"]), (False, ["text"])])
async def test_models_list_shows_input_modalities(table: Bench, sees: bool, told: list[str]) -> None:
    engine = await table.serve()
    state = served("m", engine.address)
    table.publish(replace(state, facts=ModelFacts("/m.gguf", 5, "llama", 8192, vision=sees)), coming("c"))
    listed = (await table.get("/v1/models")).json["data"]
    assert listed[0]["mesh"]["input_modalities"] == told
    assert "input_modalities" not in listed[1]["mesh"], "nobody knows it before the file is there"


async def test_models_list_may_be_empty(table: Bench) -> None:
    assert (await table.get("/v1/models")).json == {"object": "list", "data": [], "has_more": False}
    assert "No model is served here now" in shaped("", await table.call(ask()), "model_not_found")


async def test_failed_model_error_has_the_reason(table: Bench) -> None:
    table.publish(broken("m"))
    for path in PATHS:
        response = await table.call(ask(path, stream=path in STREAMING))
        assert (response.status, response.headers["retry-after"]) == (503, "30")
        assert "The disk is full. Make room." in shaped(path, response, "model_unavailable")


async def test_metrics_are_parsed_by_the_reference_parser(table: Bench) -> None:
    engine = await table.serve()
    table.publish(served("m", engine.address), served('we"ird\\\n', "/nowhere"), backends=(backend("http://x:1", "f"),))
    await table.call(ask())
    await table.call(ask(stream=True))
    await table.call(ask(model="a stranger"))
    await table.call(ask(path="/v1/nothing"))
    text = (await table.get("/metrics")).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = {
        (sample.labels["api"], sample.labels["model"], sample.labels["outcome"]): sample.value
        for sample in families["mesh_llm_requests"].samples
        if sample.name.endswith("_total")
    }
    assert counted["chat", "m", "answered"] == 2
    assert "stranger" not in text
    assert [s.value for s in families["mesh_llm_backend_up"].samples] == [1]
    phases = {(s.labels["model"], s.labels["phase"]): s.value for s in families["mesh_llm_model_phase"].samples}
    assert phases["m", "serving"] == 1
    assert phases['we"ird\\\n', "failed"] == 0


async def test_head_has_no_body_and_keeps_the_connection(table: Bench) -> None:
    for path in ("/", "/health", "/api/hello", "/v1/models", "/metrics", "/nothing", "/v1/messages", "/v1/models/n"):
        caller = await table.caller()
        caller.send(request("HEAD", path))
        bare = await caller.response("HEAD")
        caller.send(request("GET", path))
        whole = await caller.response()
        assert bare.status == whole.status
        if path not in ("/metrics", "/v1/messages"):  # of which one changes, and one names the method
            assert bare.headers["content-length"] == whole.headers["content-length"]


async def test_health_endpoint(table: Bench) -> None:
    for path in ("/health", "/v1/health", "/api/hello"):
        assert (await table.get(path)).json == {"status": "ok"}


# -- who may call


async def test_api_accepts_loopback_host_names(table: Bench) -> None:
    for host in ["localhost", "localhost:9337", "127.0.0.1:1", "[::1]", "[::1]:80", "a.localhost", "LOCALHOST."]:
        assert (await table.call(request("GET", "/health", host=host), "GET")).status == 200


async def test_api_refuses_other_host_names(table: Bench) -> None:
    for host in ["", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "192.168.1.2", "[", "a:b", "0.0.0.0"]:
        for path in ["/health", "/v1/messages", "/v1/models"]:
            response = await table.call(request("GET", path, host=host), "GET")
            if host:
                assert response.status == 403
                shaped(path, response, "host_not_allowed")
            else:
                assert response.status in (400, 403)


async def test_api_refuses_foreign_origins(table: Bench) -> None:
    engine = await table.serve()
    for origin in ["http://evil.com", "null", "", "file://", "http://localhost.evil.com", "http://[", "x" * 9999]:
        for method in ("POST", "OPTIONS"):
            data = request(method, "/v1/chat/completions", {"model": "m"}, {"Origin": origin})
            response = await table.call(data)
            assert response.status == 403
            assert "access-control-allow-origin" not in response.headers
            shaped("", response, "origin_not_allowed")
    assert not engine.calls


async def test_api_refuses_cross_site_requests_without_origin(table: Bench) -> None:
    assert (await table.get("/v1/models", **{"Sec-Fetch-Site": "cross-site"})).status == 403
    for kind in ("none", "same-origin", "same-site"):
        assert (await table.get("/v1/models", **{"Sec-Fetch-Site": kind})).status == 200


async def test_api_allows_local_origins_and_preflight(table: Bench) -> None:
    await table.serve()
    origin = "http://localhost:5173"
    asked = await table.get(
        "/v1/chat/completions",
        "OPTIONS",
        **{
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-os",
        },
    )
    assert asked.status == 204
    assert asked.headers["access-control-allow-origin"] == origin
    assert asked.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in asked.headers["access-control-allow-methods"]
    for data in (
        ask(),
        ask(stream=True),
        ask(model="n"),
        request("POST", "/v1/embeddings", b"{"),
        request("GET", "/x"),
    ):
        response = await table.call(data.replace(b"\r\n", f"\r\nOrigin: {origin}\r\n".encode(), 1))
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["vary"] == "origin"


async def test_api_allows_origins_of_allow_origin(folder: Path) -> None:
    async with bench(folder, AccessPolicy(allowed_origins=frozenset({"https://app.example"}))) as table:
        assert (await table.get("/health", Origin="https://app.example")).status == 200
        assert (await table.get("/health", Origin="https://app.example.evil")).status == 403


async def test_api_needs_a_key_from_remote_callers(folder: Path) -> None:
    policy = AccessPolicy(key="sésame", allowed_origins=frozenset({"https://app.example"}))
    async with bench(folder, policy) as table:
        await table.serve()
        body = json.dumps({"model": "m", "max_tokens": 1}).encode()
        key = "sésame".encode().decode("latin-1")

        async def call(headers: dict[str, str], host: str = "box.lan:9337", path: str = "/v1/messages") -> Response:
            return await table.call(request("POST", path, body, headers, host=host))

        assert (await call({}, "localhost")).status == 200
        for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"bearer {key}"}, {"X-Api-Key": key}):
            assert (await call(headers)).status == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"X-Api-Key": ""}, {"Authorization": f"Basic {key}"}):
            refused = await call(headers)
            assert refused.status == 401
            shaped("/v1/messages", refused, "invalid_api_key")
        # A browser asks first, and has no key then; the answer gives nothing away.
        asked = request("OPTIONS", "/v1/messages", headers={"Origin": "https://app.example"}, host="box.lan")
        assert (await table.call(asked)).status == 204
        assert (await table.call(asked.replace(b"app.", b"evil."))).status == 403


async def test_api_empty_key_allows_no_remote_caller(folder: Path) -> None:
    async with bench(folder, AccessPolicy(key="")) as table:
        response = await table.call(request("GET", "/health", headers={"X-Api-Key": ""}, host="box.lan"))
        assert response.status == 403
