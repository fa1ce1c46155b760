"""Arbitrary bytes and arbitrary JSON: every connection ends, with sound HTTP or none, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from web_rig import PATHS, Bench, Caller, Response, ask, bench, coming, request, served, well

T = TypeVar("T")
FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Place:
    """A bench that outlives the examples, on a loop of its own."""

    def __init__(self, factory: Any) -> None:
        self._runner = asyncio.Runner(loop_factory=factory)
        self._folder = tempfile.TemporaryDirectory(prefix="mesh-")
        self._context = bench(Path(self._folder.name))
        self.bench: Bench = self.run(self._context.__aenter__())
        self.run(self._set_up())

    async def _set_up(self) -> None:
        engine = await self.bench.engine(well)
        self.bench.publish(served("m", engine.address), coming("c"))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Close, and prove that nothing is left."""
        try:
            self.run(self._context.__aexit__(None, None, None))
        finally:
            self._runner.close()
            self._folder.cleanup()


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop)
    yield made
    made.close()


async def answers(caller: Caller) -> list[Response]:
    """Everything that the server says, which must be whole answers, until it hangs up."""
    found = []
    while True:
        try:
            found.append(await caller.response())
        except (EOFError, ConnectionError):
            return found


async def poke(table: Bench, pieces: list[bytes]) -> list[Response]:
    """Send bytes in pieces, then no more; the answers. Afterwards the gateway is as it was."""
    caller = await table.caller()
    for piece in pieces:
        caller.send(piece)
        await asyncio.sleep(0)
    if caller.writer.can_write_eof():
        caller.writer.write_eof()
    found = await answers(caller)
    await caller.close()
    table.callers.remove(caller)
    await table.idle()
    assert (await table.get("/health")).json == {"status": "ok"}
    await table.idle()
    faults = "\n".join(table.faults)
    table.faults.clear()  # they are this example's, not the next one's
    assert not faults, faults
    return found


VALID = [
    request("GET", "/health"),
    request("GET", "/v1/models", headers={"Origin": "http://localhost"}),
    request("OPTIONS", "/v1/messages", headers={"Origin": "http://localhost"}),
    ask(),
    ask("/v1/messages", stream=True),
    ask("/v1/responses", model="nobody"),
    request("POST", "/v1/embeddings", {"model": "m"}, {"Expect": "100-continue"}),
    request("POST", "/v1/rerank", {"model": "m"}, {"Connection": "Upgrade", "Upgrade": "h2c"}),
    request("POST", "/v1/completions", {"model": "m"}, {"Connection": "close"}),
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\n{"mod\r\n8;x="y"\r\nel":"m"}\r\n0\r\nX: y\r\n\r\n',
]
FRAGMENTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/messages HTTP/1.1\r\n",
        b"Host: localhost\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 18446744073709551616\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"\r\n",
        b"\n",
        b"\x00",
        b'{"model":"m"}',
    ]
)


@FEW
@given(st.binary(max_size=2000) | st.lists(FRAGMENTS | st.binary(max_size=5), max_size=12).map(b"".join))
@example(b"")
@example(b"\r\n\r\n")
@example(b"CONNECT x:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
@example(b"HEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
def test_gateway_answers_arbitrary_bytes(place: Place, data: bytes) -> None:
    if b"HEAD" in data:
        data = data.replace(b"HEAD", b"GET")  # of whose answers this reader would not know that they have no body
    place.run(poke(place.bench, [data]))


@FEW
@given(st.sampled_from(VALID), st.data())
def test_gateway_answers_mutated_requests(place: Place, valid: bytes, data: st.DataObject) -> None:
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        match data.draw(st.sampled_from(["put", "drop", "cut", "repeat"])):
            case "put":
                changed[at : at + 1] = data.draw(st.binary(min_size=1, max_size=3))
            case "drop":
                del changed[at : at + data.draw(st.integers(1, 20))]
            case "cut":
                del changed[at:]
            case "repeat":
                changed[at:at] = changed[max(0, at - 30) : at]
    place.run(poke(place.bench, [bytes(changed)]))


@FEW
@given(st.lists(st.sampled_from(VALID), min_size=1, max_size=4), st.data())
def test_gateway_responses_do_not_depend_on_segmentation(
    place: Place, requests: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(requests)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def both() -> tuple[list[int], list[int]]:
        got = []
        for parts in ([whole], pieces):
            caller = await place.bench.caller()
            for part in parts:
                caller.send(part)
                await asyncio.sleep(0)
            statuses = []
            for sent in requests:
                statuses.append((await caller.response()).status)
                if b"Connection: close" in sent:
                    break
            await caller.close()
            place.bench.callers.remove(caller)
            await place.bench.idle()
            got.append(statuses)
        return got[0], got[1]

    one, other = place.run(both())
    assert one == other
    assert set(one) <= {200, 204, 404}
    assert not place.bench.faults


def test_gateway_accepts_requests_byte_by_byte(place: Place) -> None:
    async def drip() -> list[int]:
        caller = await place.bench.caller()
        statuses = []
        for valid in VALID[:-2]:
            for byte in valid:
                caller.send(bytes([byte]))
                await asyncio.sleep(0)
            statuses.append((await caller.response()).status)
        await caller.close()
        await place.bench.idle()
        return statuses

    assert place.run(drip()) == [200, 200, 204, 200, 200, 404, 200, 200]


# -- bodies

KEYS = st.sampled_from(
    ["model", "stream", "messages", "input", "tools", "n", "role", "content", "type", "text", "summary", "max_tokens"]
) | st.text(max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["m", "c?", "user", "assistant", "reasoning", "message", 1, True])
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


@settings(FEW, max_examples=100)
@given(
    st.sampled_from(PATHS),
    ANYTHING | st.dictionaries(KEYS, ANYTHING, max_size=5).map(lambda body: {**body, "model": "m"}),
    st.booleans(),
)
@example(
    "/v1/responses", {"model": "m", "input": [{"type": "reasoning", "summary": 7, "content": [{"text": None}]}]}, False
)
@example("/v1/chat/completions", {"model": "m", "stream": True, "n": 2**70}, True)
@example("/v1/responses", {"model": "m", "stream": True, "tools": [{}], "max_output_tokens": "x"}, True)
def test_gateway_answers_arbitrary_json(place: Place, path: str, body: object, ascii_only: bool) -> None:
    data = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    async def call() -> Response:
        response = await place.bench.call(request("POST", path, data))
        place.bench.callers.clear()
        await place.bench.idle()
        return response

    response = place.run(call())
    if response.status != 200:
        assert response.status in (400, 404)
        error = response.json["error"]
        assert error["message"]
        assert error["type"]
        assert ("type" in response.json) == ("/messages" in path)
    assert not place.bench.faults
