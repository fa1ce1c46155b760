"""Several gateways, each with an engine of its own: who is asked, what a peer may do, what happens when one dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_gateway_fuzz import VALID, answers
from test_gateway_waiting import Gate, finish, queue
from web_rig import (
    PATHS,
    STREAMING,
    STREAMS,
    Call,
    Caller,
    Script,
    Town,
    Watch,
    ask,
    backend,
    bench,
    coming,
    host,
    never,
    node_id,
    request,
    served,
    town,
)

from meshllm.core.membership.views import JoinPhase, PeerStatus
from meshllm.core.records import ModelLoad, ServedModel
from meshllm.core.routing.routes import TargetKind
from meshllm.core.snapshot import ModelFacts, Purpose, ServerPhase
from meshllm.web.gateway import peer_endpoint
from meshllm.web.gateway.proxy import Proxy

ONE, TWO = node_id(1), node_id(2)
# Of a host that is asked only when there is no other: it is far away and kept busy by others.
LAST: dict[str, Any] = {"rtt": 5.0, "loads": (ModelLoad("m", 4, 0),)}


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Three nodes; the first is asked and serves nothing."""
    async with town(folder) as made:
        yield made


def hello(text: str = "hello", *, stream: bool = False, **more: Any) -> bytes:
    """A chat with one turn."""
    return ask(stream=stream, messages=[{"role": "user", "content": text}], **more)


def refusing(status: int, code: str, **more: Any) -> Script:
    """An engine that answers with an error."""

    async def script(call: Call) -> None:
        call.answer({"error": {"code": status, "type": code, "message": "no", **more}}, status)

    return script


async def inside(place: Town, number: int = 1, peer: str = "") -> Caller:
    """A peer's own connection into the tunnel of a node."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    await place.roads.connect(peer or node_id(0).hex(), node_id(number).hex(), lambda: protocol)
    writer = asyncio.StreamWriter(protocol._transport, protocol, reader, loop)  # type: ignore[attr-defined]
    return Caller(reader, writer)


# -- served elsewhere


@pytest.mark.parametrize("path", PATHS)
async def test_request_is_served_by_a_peer(place: Town, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proxy, "wall", lambda self: 1_800_000_000)  # `created_at` of two responses
    engine = await place.serve(1)
    place.here.meet(host(ONE, "m"))
    alone = await place.benches[1].call(ask(path))
    response = await place.here.call(ask(path))
    assert (response.status, response.json) == (200, alone.json)
    if path in STREAMING:
        stream = await place.here.call(ask(path, stream=True))
        assert b"Hello" in stream.body
        for event in STREAMS[path]:
            assert event.splitlines()[0] in stream.body
    assert all(call.path == path for call in engine.calls)
    assert set(place.here.gateway.outcomes) == set(place.benches[1].gateway.peer_outcomes) == {"answered"}


async def test_peer_connection_is_reused_after_streams(place: Town) -> None:
    await place.serve(1)
    place.here.meet(host(ONE, "m"))
    for number in range(6):
        assert (await place.here.call(ask(stream=number % 2 == 0))).status == 200
    assert place.roads.made == 1
    assert place.benches[1].gateway.tunnels == 1


async def test_own_engine_is_preferred_until_it_is_full(place: Town) -> None:
    gate = Gate()
    mine, theirs = await place.here.engine(gate), await place.serve(1)
    place.here.publish(served("m", mine.address, slots=1))
    place.here.meet(host(ONE, "m"))
    holder = (await queue(place.here, 1))[0]
    assert (await place.here.call(ask())).status == 200
    assert (len(mine.calls), len(theirs.calls)) == (1, 1)
    gate.let(1)
    assert (await holder.response()).status == 200


@pytest.mark.usefixtures("quick")
async def test_peer_serves_while_the_own_model_loads(place: Town) -> None:
    theirs = await place.serve(1)
    mine = await place.here.engine()
    place.here.publish(coming("m"))
    place.here.meet(host(ONE, "m"))
    assert (await place.here.call(ask())).status == 200
    place.here.publish(served("m", mine.address))
    assert (await place.here.call(ask())).status == 200
    assert (len(theirs.calls), len(mine.calls)) == (1, 1)


async def test_peers_are_ranked_by_load_then_rtt(place: Town) -> None:
    one, two = await place.serve(1), await place.serve(2)
    place.here.meet(host(ONE, "m", rtt=0.001), host(TWO, "m", rtt=0.08))
    assert (await place.here.call(ask())).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 0)
    place.here.meet(host(ONE, "m", rtt=0.001, loads=(ModelLoad("m", 3, 0),)), host(TWO, "m", rtt=0.08))
    assert (await place.here.call(ask())).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 1)


@pytest.mark.parametrize("status", [PeerStatus.SUSPECT, PeerStatus.DEAD, PeerStatus.LEFT, PeerStatus.UNVERIFIED])
@pytest.mark.usefixtures("quick")
async def test_gateway_uses_only_live_peers(place: Town, status: PeerStatus) -> None:
    one, two = await place.serve(1), await place.serve(2)
    place.here.meet(host(ONE, "m", status=status), host(TWO, "m", rtt=5.0))
    assert (await place.here.call(ask())).status == 200
    assert (len(one.calls), len(two.calls)) == (0, 1)


async def test_queued_request_moves_to_a_free_peer(place: Town) -> None:
    gate = Gate()
    await place.serve(1, gate, slots=1)
    two = await place.serve(2)
    place.here.meet(host(ONE, "m", slots=1))
    callers = await queue(place.here, 4)
    place.here.meet(host(ONE, "m", slots=1), host(TWO, "m"))
    for caller in callers[1:]:
        assert (await caller.response()).status == 200
    assert len(two.calls) == 3
    gate.let(1)
    assert (await callers[0].response()).status == 200


# -- when hosts die


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("used", [False, True], ids=["new connections", "used connections"])
async def test_requests_of_a_killed_host_are_retried_at_another(place: Town, stream: bool, used: bool) -> None:
    gate = Gate()
    one, two = await place.serve(1, gate, slots=16), await place.serve(2)
    place.here.meet(host(ONE, "m", slots=16), host(TWO, "m", **LAST))
    if used:
        # so that each of the sixteen is sent on a connection that has been in use
        first = await queue(place.here, 16)
        gate.let(16)
        for caller in first:
            await caller.response()
            await caller.close()
        gate.order.clear()
    callers = await queue(place.here, 16, stream=stream)
    await one.watch.until(lambda: len(gate.order) == 16)
    place.roads.kill(ONE)
    for caller in callers:
        response = await caller.response()
        assert response.status == 200
        assert b"Hello" in response.body
        await caller.close()
    assert len(two.calls) == 16
    gate.let(16)  # whatever the dead one may still say
    assert place.roads.refused == 0, "nobody is to wait for a link that cannot be had"
    await place.here.idle()


@pytest.mark.usefixtures("quick")
async def test_dead_peer_is_left_at_once(place: Town) -> None:
    """Its connection still stands: that of a machine without power does for a while."""
    one, two = await place.serve(1, never), await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", **LAST))
    callers = await queue(place.here, 3)
    await one.watch.until(lambda: len(one.calls) == 3)
    place.here.meet(host(ONE, "m", status=PeerStatus.SUSPECT), host(TWO, "m", **LAST))
    for caller in callers:
        assert (await caller.response()).status == 200
    assert len(two.calls) == 3


async def test_suspect_peer_keeps_requests_without_another_host(place: Town) -> None:
    gate = Gate()
    await place.serve(1, gate)
    place.here.meet(host(ONE, "m"))
    (caller,) = await queue(place.here, 1)
    place.here.meet(host(ONE, "m", status=PeerStatus.SUSPECT))
    gate.let(1)
    assert (await caller.response()).status == 200


@pytest.mark.parametrize("path", STREAMING)
async def test_begun_stream_ends_with_an_error_when_its_host_dies(place: Town, path: str) -> None:
    async def script(call: Call) -> None:
        call.begin_stream()
        for event in STREAMS[path][:3]:
            call.chunk(event)
        await call.gone()

    await place.serve(1, script)
    await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    caller = await place.here.caller()
    caller.send(ask(path, stream=True))
    await caller.head()
    heard = await caller.piece()
    place.roads.kill(ONE)
    assert b"upstream_lost" in (await finish(caller, heard)).body
    assert place.here.gateway.outcomes == ["lost"]


@pytest.mark.usefixtures("quick")
async def test_unreachable_host_is_left_for_another(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.CONNECT_TIMEOUT_SECONDS", 0.02)
    place.roads.slow[ONE.hex()] = asyncio.Event()
    await place.serve(1)
    two = await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    assert (await place.here.call(ask())).status == 200
    assert len(two.calls) == 1
    # Nobody goes on connecting for a request that has an answer.
    assert (place.roads.given_up, place.roads.made) == (1, 1)


async def test_caller_disconnect_while_connecting_to_a_peer(place: Town) -> None:
    """The slot is free at once, and the connection is not made for nobody."""
    place.roads.slow[ONE.hex()] = asyncio.Event()
    await place.serve(1)
    place.here.meet(host(ONE, "m"))
    (caller,) = await queue(place.here, 1)
    caller.abort()
    await place.here.idle()
    assert (place.here.gateway.outcomes, place.roads.given_up, place.roads.made) == (["abandoned"], 1, 0)


async def test_failed_host_rests_for_all_requests(place: Town) -> None:
    async def script(call: Call) -> None:
        call.reset()

    one, two = await place.serve(1, never), await place.serve(2)
    place.roads.kill(ONE)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    for _ in range(3):
        assert (await place.here.call(ask())).status == 200
    assert (place.roads.refused, len(one.calls), len(two.calls)) == (1, 0, 3)


# -- what hosts refuse


@pytest.mark.parametrize("stream", [False, True])
async def test_overloaded_host_is_left_for_another(place: Town, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr(peer_endpoint, "MAX_PEER_REQUESTS", 0)
    await place.serve(1)
    mine = await place.here.engine(gate := Gate())
    place.here.meet(host(ONE, "m"))
    refused = await place.here.call(ask(stream=stream))
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.json["error"]["type"] == "rate_limit_error"
    # The peer is the first choice, since the engine here is at work; then that queue is better than a refusal.
    place.here.publish(served("m", mine.address, slots=1))
    holder, other = await queue(place.here, 1), await place.here.caller()
    other.send(ask(stream=stream, number=2))
    await place.here.gateway.watch.until(lambda: place.here.gateway.queued == 1)
    gate.let(2)
    assert (await other.response()).status == 200
    assert (await holder[0].response()).status == 200


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [False, True])
async def test_request_that_waited_for_its_model_is_not_refused_by_a_full_queue(
    place: Town, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Requests that came while nobody served the model go to its new host at once, from all nodes."""
    monkeypatch.setattr("meshllm.web.gateway.target_selection.BUSY_SECONDS", 0.01)
    monkeypatch.setattr("meshllm.web.gateway.target.BUSY_SECONDS", 0.01)
    monkeypatch.setattr(peer_endpoint, "MAX_PEER_REQUESTS", 1)
    one = await place.serve(1, gate := Gate())
    place.here.publish(coming("m"))
    callers = [await place.here.caller() for _ in range(3)]
    for number, caller in enumerate(callers):
        caller.send(ask(stream=stream, number=number))
    await place.here.gateway.watch.until(lambda: place.here.gateway.waiting == 3)
    place.here.meet(host(ONE, "m"))
    gate.let(3)
    assert [(await caller.response()).status for caller in callers] == [200] * 3
    assert len(one.calls) == 3
    # One that comes when the model is served is told at once.
    holder = await place.here.caller()
    holder.send(ask(number=4))
    await place.benches[1].gateway.watch.until(lambda: place.benches[1].gateway.peer_requests == 1)
    assert (await place.here.call(ask(stream=stream, number=5))).status == 429
    gate.let(1)
    assert (await holder.response()).status == 200


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [False, True])
async def test_not_here_is_retried_at_another_host(place: Town, stream: bool) -> None:
    """The record that this node holds is older than what happened there."""
    two = await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    assert (await place.here.call(hello(stream=stream))).status == 200
    assert len(two.calls) == 1
    assert place.benches[1].gateway.peer_outcomes == ["failed"]


@pytest.mark.usefixtures("quick")
async def test_not_here_everywhere_is_an_error(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target_selection.NOT_HERE_SECONDS", 0.0)
    place.here.meet(host(ONE, "m"))
    response = await place.here.call(ask("/v1/messages"))
    assert (response.status, response.json["error"]["code"]) == (503, "model_unavailable")
    assert "not_here" not in response.body.decode()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", STREAMING)
async def test_error_after_comments_only_is_retried(place: Town, path: str) -> None:
    """The host had begun to stream to say that it was alive: its engine then failed."""
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        await gate.wait()
        call.reset()

    await place.serve(1, script)
    await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    caller = await place.here.caller()
    caller.send(ask(path, stream=True))
    await caller.head()
    heard = await caller.until(b"processing the prompt")
    gate.set()
    response = await finish(caller, heard)
    assert b"Hello" in response.body
    assert b"error" not in response.body.replace(b'"error":null', b"")
    assert place.here.gateway.outcomes == ["answered"]


async def test_error_of_the_request_itself_is_forwarded(place: Town) -> None:
    one, two = await place.serve(1, refusing(400, "invalid_request_error")), await place.serve(2)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    response = await place.here.call(ask())
    assert (response.status, response.json["error"]["message"]) == (400, "no")
    assert (len(one.calls), len(two.calls)) == (1, 0)


# -- context


TOO_LONG = refusing(400, "exceed_context_size_error", n_prompt_tokens=3000, n_ctx=2048)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_prompt_too_long_is_retried_at_a_larger_context(place: Town, path: str) -> None:
    small, large = await place.serve(1, TOO_LONG), await place.serve(2)
    small_host = host(ONE, "m", context=2048)
    place.here.meet(small_host, host(TWO, "m", context=8192, rtt=5.0))
    assert (await place.here.call(ask(path))).status == 200
    assert (len(small.calls), len(large.calls)) == (1, 1)
    # One that has less than the prompt needs is not asked; then the caller is told.
    place.here.meet(small_host, host(TWO, "m", context=2900, rtt=5.0))
    response = await place.here.call(ask(path))
    assert (response.status, response.json["error"]["code"]) == (400, "context_length_exceeded")
    assert response.json["error"]["message"].count("prompt is too long") == (path == "/v1/messages")
    assert (len(small.calls), len(large.calls)) == (2, 1)


async def test_long_prompt_goes_to_a_large_context_first(place: Town) -> None:
    mine, large = await place.here.engine(), await place.serve(2)
    place.here.publish(served("m", mine.address))
    place.here.meet(host(TWO, "m", context=1 << 17, rtt=5.0))
    assert (await place.here.call(hello("word " * 8000))).status == 200
    assert (len(mine.calls), len(large.calls)) == (0, 1)
    # An image is large and not long.
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    assert (await place.here.call(ask(messages=[{"role": "user", "content": [picture]}]))).status == 200
    assert (len(mine.calls), len(large.calls)) == (1, 1)


@pytest.mark.usefixtures("quick")
async def test_prompt_too_long_for_the_own_engine_goes_to_a_peer(place: Town) -> None:
    mine, large = await place.here.engine(TOO_LONG), await place.serve(2)
    place.here.publish(served("m", mine.address))
    place.here.meet(host(TWO, "m", context=1 << 17))
    assert (await place.here.call(ask(stream=True))).status == 200
    assert (len(mine.calls), len(large.calls)) == (1, 1)


# -- conversations


@pytest.mark.parametrize("more", [{}, {"user": "u"}, {"metadata": {"user_id": "x_session_1"}}])
async def test_conversation_stays_with_its_host(place: Town, more: dict[str, Any]) -> None:
    one, two = await place.serve(1), await place.serve(2)
    near, far = host(ONE, "m", rtt=0.001), host(TWO, "m", rtt=0.5)
    place.here.meet(far)
    for conversation in (hello(**more), hello("another one", session_id="other")):
        assert (await place.here.call(conversation)).status == 200
    place.here.meet(near, far)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello"}]
    again = ask(messages=[*turns, {"role": "user", "content": "and?"}], **more)
    assert (await place.here.call(again)).status == 200
    assert (len(one.calls), len(two.calls)) == (0, 3)
    assert (await place.here.call(hello("something else"))).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 3)
    # One that fails is not waited for, and not asked again when it is back.
    place.roads.kill(TWO)
    assert (await place.here.call(hello(**more))).status == 200
    assert (TargetKind.PEER, TWO.hex()) not in place.here.gateway._table.affinity._keys
    place.roads.closed.clear()
    assert (await place.here.call(hello(**more))).status == 200
    assert (len(one.calls), len(two.calls)) == (3, 3)


async def test_conversation_leaves_a_full_host(place: Town) -> None:
    gate = Gate()
    await place.serve(1, gate, slots=1)
    two = await place.serve(2)
    place.here.meet(host(ONE, "m", slots=1))
    first = await place.here.caller()
    first.send(hello(number=1, session_id="s"))
    gate.let(1)
    await first.response()
    (holder,) = await queue(place.here, 1)
    place.here.meet(host(ONE, "m", slots=1), host(TWO, "m", rtt=5.0))
    assert (await place.here.call(hello(number=2, session_id="s"))).status == 200
    assert len(two.calls) == 1
    gate.let(1)
    await holder.response()


# -- time


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["peer", "backend"])
async def test_slow_first_byte_is_retried_at_another_host(
    place: Town, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("meshllm.core.routing.first_byte_timeout.UNKNOWN_SECONDS", 0.05)
    monkeypatch.setattr("meshllm.core.routing.first_byte_timeout.UNKNOWN_TOKENS_PER_SECOND", 1e9)
    two = await place.serve(2)
    if kind == "peer":
        slow = await place.serve(1, never)
        place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    else:
        slow = await place.here.pool(never)
        place.here.meet(host(TWO, "m"))
    assert b"Hello" in (await place.here.call(ask(stream=True))).body
    assert (len(slow.calls), len(two.calls)) == (1, 1)
    if kind == "peer":
        await place.benches[1].gateway.watch.until(lambda: place.benches[1].gateway.peer_outcomes == ["abandoned"])


@pytest.mark.usefixtures("quick")
async def test_slow_host_is_kept_without_another(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.core.routing.first_byte_timeout.UNKNOWN_SECONDS", 0.0)
    monkeypatch.setattr("meshllm.core.routing.first_byte_timeout.UNKNOWN_TOKENS_PER_SECOND", 1e9)
    gate = Gate()
    await place.serve(1, gate)
    place.here.meet(host(ONE, "m"))
    caller = await place.here.caller()
    caller.send(ask(stream=True, number=1))
    await caller.head()
    heard = b""
    while heard.count(b": processing the prompt") < 5:
        heard += await caller.piece()
    gate.let(1)
    assert b"Hello" in (await finish(caller, heard)).body
    assert place.roads.made == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [False, True])
async def test_working_peer_sends_keep_alives(place: Town, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """With comments in a stream, else with interim answers."""
    # Lost after 0.9 s: a busy machine may stand still for a moment.
    monkeypatch.setattr("meshllm.web.gateway.relay.PEER_SILENCE_SECONDS", 0.3)
    gate = Gate()
    await place.serve(1, gate)
    place.here.meet(host(ONE, "m"))
    caller = await place.here.caller()
    caller.send(ask(stream=stream, number=1))
    # For several times as long as it takes to give up one that says nothing.
    asyncio.get_running_loop().call_later(2.5, gate.let, 1)
    assert b"Hello" in (await caller.response()).body
    assert (place.roads.made, len(gate.order)) == (1, 1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [False, True])
async def test_silent_peer_times_out(place: Town, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setattr("meshllm.web.gateway.relay.PEER_SILENCE_SECONDS", 0.05)
    one, two = await place.serve(1, never), await place.serve(2)
    # Its gateway's clock stands still.
    monkeypatch.setattr(place.benches[1].gateway._peer_endpoints, "sweep", lambda now: True)
    place.here.meet(host(ONE, "m"), host(TWO, "m", rtt=5.0))
    assert (await place.here.call(ask(stream=stream))).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 1)


# -- turning up


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stream", [False, True])
async def test_request_during_join_is_served_after_it(place: Town, stream: bool) -> None:
    await place.serve(1)
    place.here.meet(phase=JoinPhase.DIALLING)
    caller = await place.here.caller()
    caller.send(ask(stream=stream))
    if stream:
        await caller.head()
        await caller.until(b": joining the mesh: dialling\n\n")
    await place.here.gateway.watch.until(lambda: place.here.gateway.waiting == 1)
    place.here.meet(phase=JoinPhase.SYNCING)
    place.here.meet(host(ONE, "m"))
    response = await finish(caller) if stream else await caller.response()
    assert b"Hello" in response.body


@pytest.mark.usefixtures("quick")
async def test_waiting_for_the_join_times_out(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.core.routing.routes.SETTLING_SECONDS", 0.02)
    place.here.meet(phase=JoinPhase.DIALLING)
    response = await place.here.call(ask())
    assert (response.status, response.json["error"]["code"]) == (503, "model_unavailable")
    assert "has not joined its mesh" in response.json["error"]["message"]
    place.here.meet(phase=JoinPhase.FAILED)
    response = await place.here.call(ask())
    assert (response.status, response.json["error"]["code"]) == (503, "model_unavailable")
    place.here.meet()
    assert (await place.here.call(ask())).status == 404


@pytest.mark.usefixtures("quick")
async def test_unverified_host_is_dialled(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.serve(1)
    place.here.meet(host(ONE, "m", "other", status=PeerStatus.UNVERIFIED))
    caller = await place.here.caller()
    caller.send(ask(stream=True))
    await caller.head()
    await caller.until(b": connecting to a host of m\n\n")
    assert place.sought == ["m"]
    place.here.meet(host(ONE, "m"))
    assert b"Hello" in (await finish(caller)).body
    monkeypatch.setattr("meshllm.core.routing.routes.LOOKING_SECONDS", 0.02)
    place.here.meet(host(ONE, "m", "other", status=PeerStatus.UNVERIFIED))
    response = await place.here.call(ask(model="other"))
    assert response.status == 503
    assert "does not answer" in response.json["error"]["message"]
    assert place.sought == ["m", "other"]
    card = (await place.here.get("/v1/models/other")).json
    listed = (await place.here.get("/v1/models")).json["data"]
    assert (card["mesh"]["phase"], card["mesh"]["served_by"]) == ("heard of", [])
    assert [found["id"] for found in listed] == ["m", "other"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("by", ["this node", "a peer"])
async def test_wanted_model_without_a_host_says_what_to_do(
    place: Town, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr("meshllm.core.routing.routes.WANTED_SECONDS", 0.02)
    if by == "this node":
        place.here.meet(wants=("w",))
    else:
        place.here.meet(host(ONE, "m", wants=("w",)))
    response = await place.here.call(ask(model="w"))
    assert (response.status, response.json["error"]["code"]) == (503, "model_unavailable")
    assert "No node serves w yet. Start one: mesh-llm --model w --join INVITE" in (response.json["error"]["message"])
    card = (await place.here.get("/v1/models/w")).json
    assert (card["id"], card["mesh"]["phase"], card["mesh"]["served_by"]) == ("w", "wanted", [])


async def test_unknown_model_error_lists_models_of_the_mesh(place: Town) -> None:
    place.here.meet(host(ONE, "qwen-9b", "llama"), host(TWO, "llama", "gone", status=PeerStatus.DEAD))
    response = await place.here.call(ask(model="qwen-8b"))
    assert response.status == 404
    assert "Did you mean qwen-9b? Models in the mesh: qwen-9b, llama." in response.json["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("smollm2:135m", "Unknown model 'smollm2:135m'. Did you mean SmolLM2-135M-Instruct?"),
        ("llama:Q8_0", "'llama:Q8_0' is not served as Q8_0. Served: llama.Q4_K_M. Use llama.Q4_K_M."),
        ("smollm2-135m-instruct:q8_0", "Served: SmolLM2-135M-Instruct (Q4_1). Use SmolLM2-135M-Instruct."),
    ],
)
async def test_unknown_model_error_names_the_model_that_is_meant(place: Town, asked: str, told: str) -> None:
    place.here.meet(host(ONE, "llama.Q4_K_M"))
    facts = ModelFacts("/m", 5, "llama", 65536, "Q4_1")
    mine = await place.here.engine()
    place.here.publish(replace(served("SmolLM2-135M-Instruct", mine.address), facts=facts))
    response = await place.here.call(ask(model=asked))
    assert (response.status, response.json["error"]["code"]) == (404, "model_not_found")
    assert told in response.json["error"]["message"]


async def test_dropped_model_is_not_found_and_the_error_says_how_to_get_it_back(place: Town) -> None:
    place.here.meet(host(ONE, "llama"))
    place.here.gateway.publish(
        replace(place.here.snapshot, dropped=(("Qwen-8B", asyncio.get_running_loop().time() + 7300.0),))
    )
    for response in (await place.here.call(ask(model="qwen-8b")), await place.here.get("/v1/models/Qwen-8B")):
        assert (response.status, response.json["error"]["code"]) == (404, "model_not_found")
        message = response.json["error"]["message"]
        assert message.startswith("Qwen-8B is not served. The owner of this node dropped it: for 2 h ")
        assert message.endswith("'mesh-llm load Qwen-8B' brings it back. Models in the mesh: llama.")


# -- the door


async def test_peer_may_only_post_to_model_routes(place: Town) -> None:
    engine = await place.serve(1)
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/"),
        ("HEAD", "/"),
        ("OPTIONS", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/api/status"),
        ("POST", "/v1/models"),
        ("POST", "/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions/../models"),
        ("POST", "/v1/chat%2fcompletions"),
        ("POST", "/slots/0?action=erase"),
        ("POST", "//v1/chat/completions"),
        ("POST", "http://localhost/api/status"),
    ]:
        peer = await inside(place)
        peer.send(request(method, path, {"model": "m"}))
        response = await peer.response(method)
        assert response.status == 403, (method, path)
        if method != "HEAD":
            assert response.json["error"]["code"] == "path_not_allowed"
        await peer.close()
    peer = await inside(place)
    for body, status in [({"model": "m"}, 200), ({}, 400), ([], 400), (b"{", 400), ({"model": "nobody"}, 503)]:
        # whatever it says of itself counts for nothing
        peer.send(request("POST", "/v1/embeddings", body, {"Origin": "http://evil.com"}, host="evil.com"))
        response = await peer.response()
        assert response.status == status, body
        assert "access-control-allow-origin" not in response.headers
    assert response.json["error"]["code"] == "not_here"
    assert len(engine.calls) == 1
    await peer.close()


@pytest.mark.parametrize("seed", range(4))
async def test_arbitrary_bytes_of_a_peer_get_valid_http_or_none(place: Town, seed: int) -> None:
    rng = random.Random(seed)
    await place.serve(1)
    gateway = place.benches[1].gateway
    for _ in range(60):
        data = bytearray(b"".join(rng.choices(VALID, k=rng.randint(1, 3))))
        for _ in range(rng.randint(0, 4)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice((0, 0, 1, 30))] = rng.randbytes(rng.randint(0, 3))
        peer = await inside(place)
        for at in range(0, len(data), 200):
            peer.send(bytes(data[at : at + 200]))
            await asyncio.sleep(0)
        if peer.writer.can_write_eof():
            peer.writer.write_eof()
        found = await answers(peer)
        assert {response.status for response in found} <= {200, 400, 403, 408, 413, 415, 431, 503, 505}, data
        await peer.close()
    await gateway.watch.until(lambda: not gateway.peer_requests)
    await gateway.close()
    assert (gateway.tunnels, gateway.body_bytes) == (0, 0)
    assert not place.benches[1].faults


async def test_peer_request_makes_no_second_hop(place: Town) -> None:
    two = await place.serve(2)
    place.benches[1].meet(host(TWO, "m"))
    assert (await place.benches[1].call(ask())).status == 200
    peer = await inside(place)
    peer.send(ask())
    response = await peer.response()
    assert (response.status, response.json["error"]["code"]) == (503, "not_here")
    assert len(two.calls) == 1
    # Nor does it wait for what is coming here.
    place.benches[1].publish(coming("m"))
    peer.send(ask())
    assert (await peer.response()).json["error"]["code"] == "not_here"
    await peer.close()


async def test_peer_request_is_served_by_backends(place: Town) -> None:
    upstream = await place.benches[1].pool()
    place.here.meet(host(ONE, ServedModel("m")))
    assert (await place.here.call(ask(stream=True))).status == 200
    assert len(upstream.calls) == 1


async def test_requests_of_one_peer_are_bounded(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_endpoint, "MAX_PEER_REQUESTS", 2)
    gate = Gate()
    await place.serve(1, gate, slots=8)
    gateway = place.benches[1].gateway
    peers = [await inside(place) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.send(ask(number=number))
    refused = await peers[2].response()
    assert (refused.status, refused.json["error"]["code"]) == (429, "overloaded")
    # It costs that peer alone.
    other = await inside(place, peer=TWO.hex())
    other.send(ask(number=3))
    await gateway.watch.until(lambda: gateway.peer_requests == 3)
    gate.let(3)
    for peer in (*peers[:2], other):
        assert (await peer.response()).status == 200
    for peer in (*peers, other):
        await peer.close()


async def test_peers_fill_only_a_part_of_the_queue(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_MIN", 4)
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_PER_SLOT", 4)
    gate = Gate()
    await place.serve(1, gate, slots=1)
    gateway = place.benches[1].gateway
    peers = []
    for number in range(4):
        peers.append(await inside(place))
        peers[-1].send(ask(number=number))
        if number < 3:
            await gateway.watch.until(lambda: gateway.peer_requests == number + 1)  # noqa: B023
    assert (await peers[3].response()).status == 429
    mine = await queue(place.benches[1], 2, 10)
    gate.let(5)
    for caller in (*peers[:3], *mine):
        assert (await caller.response()).status == 200
    for peer in peers:
        await peer.close()


async def test_body_memory_of_one_peer_is_bounded(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_endpoint, "MAX_PEER_BODIES_BYTES", 5000)
    monkeypatch.setattr(peer_endpoint, "MAX_PEER_CONNECTIONS", 2)
    await place.serve(1)
    one, two = await inside(place), await inside(place)
    begun = b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: 9000\r\n\r\n"
    one.send(begun + b" " * 3000)
    two.send(begun + b" " * 3000)
    assert {(await one.response()).status if one.reader._buffer else 503, (await two.response()).status} == {503}  # type: ignore[attr-defined]
    other = await inside(place, peer=TWO.hex())
    other.send(ask(text=" " * 4000))
    assert (await other.response()).status == 200
    more = await inside(place)
    assert (await more.response()).status == 503
    for peer in (one, two, other, more):
        await peer.close()
    gateway = place.benches[1].gateway
    await gateway.close()
    assert (gateway.tunnels, gateway.body_bytes) == (0, 0)


async def test_caller_disconnect_stops_the_peers_work(place: Town) -> None:
    engine = await place.serve(1, never)
    place.here.meet(host(ONE, "m"))
    for stream in (False, True):
        before = len(engine.calls)
        caller = await place.here.caller()
        caller.send(ask(stream=stream))
        await engine.watch.until(lambda: len(engine.calls) == before + 1)  # noqa: B023
        caller.abort()
        await engine.watch.until(lambda: engine.open == 0)
    await place.here.idle()
    assert place.benches[1].gateway.peer_outcomes == ["abandoned"] * 2


async def test_backpressure_reaches_the_peers_engine(place: Town) -> None:
    """Through both gateways: neither keeps what nobody takes."""
    sent = 0
    event = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    full = asyncio.Event()

    async def script(call: Call) -> None:
        nonlocal sent
        call.begin_stream()
        for number in range(600):
            call.chunk(event)
            sent = number
            try:
                async with asyncio.timeout(0.5):
                    await call.drained()
            except TimeoutError:
                full.set()
                await call.drained()
        call.chunk(b"data: [DONE]\n\n")
        call.end_stream()
        call.hang_up()

    await place.serve(1, script)
    place.here.meet(host(ONE, "m"))
    caller = await place.here.caller(limit=1 << 16)
    caller.send(ask(stream=True))
    await caller.head()
    async with asyncio.timeout(20):
        await full.wait()
    assert sent < 300, "18 MB are somewhere on the way"
    assert len((await finish(caller)).body) > 600 * 60_000


async def test_close_finishes_peer_requests_and_accepts_no_streams(place: Town) -> None:
    gate = Gate()
    await place.serve(1, gate)
    peer, idle = await inside(place), await inside(place)
    peer.send(ask(number=1))
    gateway = place.benches[1].gateway
    await gateway.watch.until(lambda: gateway.peer_requests == 1)
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(gateway.close(5.0))
        assert await idle.eof() == b""
        gate.let(1)
        assert (await peer.response()).status == 200
        await closing
    reader = asyncio.StreamReader()
    await place.roads.connect("aa", ONE.hex(), lambda: asyncio.StreamReaderProtocol(reader))
    assert await reader.read() == b""
    for each in (peer, idle):
        await each.close()


# -- what is told


async def test_models_list_names_the_hosts(place: Town) -> None:
    mine = await place.here.engine()
    place.here.publish(served("m", mine.address), backends=(backend("http://10.0.0.1:1", "b"),))
    far = ServedModel("far", Purpose.EMBED, 2048, 2, 1000)
    place.here.meet(host(ONE, "m", far), host(TWO, "m", context=8192, loads=(ModelLoad("m", 2, 1),)), wants=("w",))
    listed = (await place.here.get("/v1/models")).json["data"]
    assert [(card["id"], card["mesh"]["phase"]) for card in listed] == [
        ("m", "serving"), ("b", "serving"), ("far", "serving"), ("w", "wanted"), ("auto", "serving"),
    ]  # fmt: skip
    m, b, distant, _, _ = (card["mesh"] for card in listed)
    assert m["served_by"] == ["this node", "node1 (0101010101)", "node2 (0202020202)"]
    assert m["hosts"][2] == {
        "kind": "peer", "name": "node2", "node": "0202020202", "rtt_ms": 1.0,
        "context_length": 8192, "slots": 4, "active": 2, "waiting": 1,
    }  # fmt: skip
    assert listed[0]["max_input_tokens"] == listed[0]["meta"]["n_ctx"] == 8192
    assert b["served_by"] == ["http://10.0.0.1:1"]
    assert (distant["purpose"], distant["context_length"], distant["slots"], distant["size"]) == (
        "embed",
        2048,
        2,
        1000,
    )


async def test_wrong_purpose_of_a_peers_model_is_400(place: Town) -> None:
    await place.serve(1)
    place.here.meet(host(ONE, ServedModel("m", Purpose.EMBED, slots=4)))
    assert (await place.here.call(ask("/v1/embeddings"))).status == 200
    response = await place.here.call(ask())
    assert (response.status, response.json["error"]["code"]) == (400, "wrong_purpose")
    # One that says so of a model that others chat with is only not asked.
    place.here.meet(host(ONE, ServedModel("m", Purpose.EMBED, slots=4)), host(TWO, "m", rtt=5.0))
    two = await place.serve(2)
    assert (await place.here.call(ask())).status == 200
    assert len(two.calls) == 1


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SHOWN = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [PICTURE]}]},
    "/v1/messages": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]}]
    },
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
}


@pytest.mark.parametrize("path", SHOWN)
async def test_image_goes_to_a_host_with_vision(place: Town, path: str) -> None:
    one, two = await place.serve(1), await place.serve(2)
    blind, sees = ServedModel("m", slots=4, vision=False), ServedModel("m", slots=4, vision=True)
    place.here.meet(host(ONE, blind, rtt=0.001), host(TWO, sees, rtt=0.2))
    assert (await place.here.call(ask(path, **SHOWN[path]))).status == 200
    assert (len(one.calls), len(two.calls)) == (0, 1)
    # A text goes to the nearest, and one of whom nothing is known may see.
    assert (await place.here.call(ask(path, messages=[{"role": "user", "content": "hi"}], input="hi"))).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 1)
    place.here.meet(host(ONE, blind, rtt=0.001), host(TWO, "m", rtt=0.2))
    assert (await place.here.call(ask(path, **SHOWN[path]))).status == 200
    assert (len(one.calls), len(two.calls)) == (1, 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", SHOWN)
async def test_image_for_a_model_without_vision_is_400(place: Town, path: str, stream: bool) -> None:
    here, there = await place.here.engine(), await place.serve(1)
    text = ModelFacts("/m", 1, "llama", 4096)
    mine = replace(served("m", here.address), facts=text)
    loading = replace(mine, server=ServerPhase.STARTING, server_facts=None)
    blind = host(ONE, ServedModel("m", vision=False))
    for models, peers in (((mine,), (blind,)), ((), (blind,)), ((loading,), ())):
        place.here.publish(*models)
        place.here.meet(*peers)
        response = await place.here.call(ask(path, stream=stream, **SHOWN[path]))
        error = response.json["error"]
        assert (response.status, error["type"], error["code"]) == (400, "invalid_request_error", "unsupported_input")
        assert "does not support images" in error["message"]
    assert (here.calls, there.calls) == ([], [])
    place.here.publish(mine)
    assert (await place.here.call(ask(path, messages=[{"role": "user", "content": "image"}]))).status == 200


async def test_models_list_shows_modalities_of_peers(place: Town) -> None:
    mine = await place.here.engine()
    seeing = replace(served("own", mine.address), facts=ModelFacts("/m", 1, "llama", 4096, vision=True))
    place.here.publish(seeing)
    place.here.meet(
        host(ONE, ServedModel("text", vision=False), ServedModel("both", vision=False)),
        host(TWO, ServedModel("both", vision=True), "unknown"),
    )
    listed = {card["id"]: card["mesh"] for card in (await place.here.get("/v1/models")).json["data"]}
    taken = {name: card.get("input_modalities") for name, card in listed.items()}
    seen = ["text", "image"]
    assert taken == {"own": seen, "text": ["text"], "both": seen, "unknown": None, "auto": seen}


async def test_metrics_count_requests_by_kind_of_target(place: Town) -> None:
    await place.serve(1)
    mine = await place.here.engine()
    place.here.publish(served("own", mine.address))
    place.here.meet(host(ONE, "m"))
    for model in ("m", "own", "nobody"):
        await place.here.call(ask(model=model))
    text = (await place.here.get("/metrics")).body.decode()
    assert 'mesh_llm_target_requests_total{outcome="answered",target="peer"} 1.0' in text
    assert 'mesh_llm_target_requests_total{outcome="answered",target="local"} 1.0' in text
    assert 'mesh_llm_target_requests_total{outcome="refused",target="none"} 1.0' in text
    text = (await place.benches[1].get("/metrics")).body.decode()
    assert 'mesh_llm_peer_requests_total{model="m",outcome="answered"} 1.0' in text
    assert "mesh_llm_target_requests_total{" not in text


async def test_engine_load_is_reported_on_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target_table.LOADS_SECONDS", 0.0)
    told: list[tuple[ModelLoad, ...]] = []
    watch = Watch()

    def hear(loads: tuple[ModelLoad, ...]) -> None:
        told.append(loads)
        watch.notify()

    async with bench(folder, on_loads=hear) as table:
        gate = Gate()
        await table.serve(gate, slots=1)
        await watch.until(lambda: told == [(ModelLoad("m", 0, 0),)])
        callers = await queue(table, 2)
        await watch.until(lambda: told[-1] == (ModelLoad("m", 1, 1),))
        assert table.gateway.loads() == told[-1]
        gate.let(2)
        for caller in callers:
            await caller.response()
        await watch.until(lambda: told[-1] == (ModelLoad("m", 0, 0),))
        assert all(one != other for one, other in pairwise(told))
        table.publish()
        await watch.until(lambda: told[-1] == ())
