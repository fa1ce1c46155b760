"""Bounded silence and bounded queues: who waits hears why, is served in turn, and is never forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from web_rig import (
    STREAMING,
    Bench,
    Call,
    Caller,
    Response,
    ask,
    backend,
    bench,
    broken,
    coming,
    never,
    request,
    served,
    well,
)

from meshllm.core.snapshot import BackendState, ModelState, ServerPhase
from meshllm.core.split.host import SplitState
from meshllm.web.http.client import UpstreamPool

pytestmark = pytest.mark.usefixtures("quick")


async def finish(caller: Caller, heard: bytes = b"") -> Response:
    """The rest of a stream whose head has been read."""
    response = Response(200, {}, heard)
    while piece := await caller.piece():
        response.body += piece
    return response


class Gate:
    """Answers one request at a time, when it is told to."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(0)
        self.order: list[int] = []

    async def __call__(self, call: Call) -> None:
        self.order.append(call.json["number"])
        await self._permits.acquire()
        await well(call)

    def let(self, number: int) -> None:
        """So many more may be answered."""
        for _ in range(number):
            self._permits.release()


async def queue(table: Bench, number: int, first: int = 0, *, stream: bool = False) -> list[Caller]:
    """Callers that wait, in this order, behind those that are there."""
    callers = []
    for n in range(first, first + number):
        caller = await table.caller()
        known = table.gateway.active + table.gateway.waiting
        caller.send(ask(number=n, stream=stream))
        await table.gateway.watch.until(lambda: table.gateway.active + table.gateway.waiting > known)  # noqa: B023
        callers.append(caller)
    return callers


@pytest.mark.parametrize("path", STREAMING)
async def test_waiting_stream_gets_progress_comments_then_its_response(table: Bench, path: str) -> None:
    engine = await table.engine(well)
    table.publish(coming("m", "downloading"))
    caller = await table.caller()
    caller.send(ask(path, stream=True))
    assert (await caller.head()).status == 200
    heard = await caller.until(b": downloading 50%: m\n\n")
    assert (b"event: ping" in heard) == (path == "/v1/messages")
    table.publish(coming("m", "loading"))
    heard += await caller.until(b": loading 50%: m\n\n")
    table.publish(served("m", engine.address))
    response = await finish(caller)
    assert b"Hello" in response.body
    assert table.gateway.outcomes == ["answered"]


@pytest.mark.parametrize("path", STREAMING)
async def test_waiting_stream_ends_with_an_error_when_its_model_fails(table: Bench, path: str) -> None:
    table.publish(coming("m"))
    caller, silent = await table.caller(), await table.caller()
    caller.send(ask(path, stream=True))
    silent.send(ask(path))
    await caller.head()
    await caller.piece()
    await table.gateway.watch.until(lambda: table.gateway.waiting == 2)
    table.publish(broken("m"))
    response = await finish(caller)
    assert b"The disk is full. Make room." in response.body
    assert b"event: error" in response.body or response.body.endswith(b"data: [DONE]\n\n")
    assert (await silent.response()).status == 503


@pytest.mark.parametrize("stream", [True, False])
async def test_waiting_for_the_nodes_of_a_split_times_out_although_the_reason_changes(
    table: Bench, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("meshllm.core.routing.routes.OTHER_NODES_SECONDS", 0.1)
    caller = await table.caller()
    waiting = coming("m")
    table.publish(replace(waiting, split=SplitState("dialling")))
    caller.send(ask(stream=stream))
    await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
    table.publish(replace(waiting, split=SplitState("cellar disconnected")))
    if stream:
        await caller.head()
    response = await (finish(caller) if stream else caller.response())
    assert b"model_unavailable" in response.body
    assert b"cellar disconnected" in response.body
    assert table.gateway.outcomes == ["failed"]


async def test_waiting_for_a_model_times_out(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.request.WAIT_SILENT_SECONDS", 0.2)
    monkeypatch.setattr("meshllm.web.gateway.request.WAIT_STREAMING_SECONDS", 0.3)
    table.publish(coming("m"))
    silent = await table.call(ask())
    assert (silent.status, silent.headers["retry-after"]) == (503, "10")
    assert silent.json["error"]["code"] == "model_not_ready"
    assert "downloading 50%" in silent.json["error"]["message"]
    stream = await table.call(ask("/v1/messages", stream=True))
    assert stream.status == 200
    assert b"event: error" in stream.body
    assert b"model_not_ready" in stream.body
    # A place in a queue is no different.
    await table.serve(never, slots=1)
    holder, waiter = await queue(table, 2)
    assert (await waiter.response()).json["error"]["code"] == "model_not_ready"
    holder.abort()
    waiter.abort()
    await table.idle()


async def test_long_prompt_gets_keep_alive_comments(table: Bench) -> None:
    gate = Gate()
    await table.serve(gate)
    caller = await table.caller()
    caller.send(ask(stream=True, number=1))
    await caller.head()
    await caller.until(b": processing the prompt\n\n")
    gate.let(1)
    assert b"Hello" in (await finish(caller)).body


async def test_keep_alive_comments_stand_between_events(table: Bench) -> None:
    """However an event is cut on its way, a comment never stands inside one."""
    more = asyncio.Event()

    async def script(call: Call) -> None:
        call.begin_stream()
        event = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"one"}}]}\n\n'
        call.chunk(event + event[:20])
        await more.wait()
        call.chunk(event[20:] + b"data: [DONE]\n\n")
        call.end_stream()
        call.hang_up()

    await table.serve(script)
    caller = await table.caller()
    caller.send(ask(stream=True))
    await caller.head()
    heard = await caller.until(b'"one"')
    while heard.count(b"\n: ") < 2:
        heard += await caller.piece()
    more.set()
    response = await finish(caller, heard)
    events = [event for event in response.body.split(b"\n\n") if event and not event.startswith(b":")]
    assert all(event.startswith(b"data: ") for event in events)
    assert sum(b'"one"' in event for event in events) == 2


async def test_queue_is_first_come_first_served(table: Bench) -> None:
    gate = Gate()
    await table.serve(gate, slots=2)
    callers = await queue(table, 12)
    assert (table.gateway.active, table.gateway.queued) == (2, 10)
    gate.let(12)
    for caller in callers:
        assert (await caller.response()).status == 200
        await caller.close()
    assert gate.order == list(range(12))
    await table.idle()


async def test_queued_stream_gets_its_position(table: Bench) -> None:
    gate = Gate()
    await table.serve(gate, slots=1)
    callers = await queue(table, 3, stream=True)
    await callers[2].head()
    await callers[2].until(b": waiting for a free slot, 1 ahead\n\n")
    gate.let(1)
    await callers[2].until(b": waiting for a free slot, 0 ahead\n\n")
    gate.let(2)
    await finish(callers[2])


async def test_full_queue_is_429_with_retry_after(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_MIN", 2)
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_PER_SLOT", 2)
    gate = Gate()
    await table.serve(gate, slots=1)
    callers = await queue(table, 3)
    for path in ("/v1/chat/completions", "/v1/messages"):
        response = await table.call(ask(path))
        assert response.status == 429
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert response.json["error"]["type"] == "rate_limit_error"
    # Counting tokens is no work to wait for.
    counting = await table.caller()
    counting.send(ask("/v1/messages/count_tokens", number=-1))
    gate.let(4)
    assert (await counting.response()).status == 200
    for caller in callers:
        assert (await caller.response()).status == 200


async def test_requests_that_waited_for_their_model_all_fit_into_its_queue(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_MIN", 2)
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_PER_SLOT", 2)
    gate = Gate()
    engine = await table.engine(gate)
    table.publish(coming("m", "loading"))
    callers = []
    for number in range(8):
        caller = await table.caller()
        caller.send(ask(number=number))
        await table.gateway.watch.until(lambda: table.gateway.waiting > number)  # noqa: B023
        callers.append(caller)
    table.publish(served("m", engine.address, slots=1))
    await table.gateway.watch.until(lambda: table.gateway.queued == 7)
    assert (await table.call(ask())).status == 429  # who comes now has not waited
    gate.let(8)
    for caller in callers:
        assert (await caller.response()).status == 200
    assert gate.order == list(range(8))


async def test_requests_that_waited_queue_in_their_order_although_the_gateway_has_just_swept(table: Bench) -> None:
    """A sweep wakes all that wait; the model may be loaded before they have looked for it."""
    gate = Gate()
    engine = await table.engine(gate)
    table.publish(coming("m", "loading"))
    callers = await queue(table, 8)
    table.gateway._sweep()
    table.publish(served("m", engine.address, slots=1))
    gate.let(8)
    for caller in callers:
        assert (await caller.response()).status == 200
    assert gate.order == list(range(8))


async def test_requests_that_lost_their_target_all_fit_into_the_queue_of_the_next(
    table: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_MIN", 2)
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_PER_SLOT", 2)
    gate = Gate()
    first, second = await table.engine(never), await table.engine(gate)
    table.publish(served("m", first.address, slots=8))
    callers = await queue(table, 8)
    assert table.gateway.active == 8
    table.publish(served("m", second.address, generation=2, slots=1))
    await first.die()
    await table.gateway.watch.until(lambda: table.gateway.queued == 7)
    gate.let(8)
    for caller in callers:
        assert (await caller.response()).status == 200


@pytest.mark.parametrize("waiting", [1, 2, 3], ids=["busy", "queue", "full queue"])
@pytest.mark.parametrize("stream", [False, True])
async def test_busy_engine_does_not_delay_the_refusal_of_a_request(
    table: Bench, monkeypatch: pytest.MonkeyPatch, waiting: int, stream: bool
) -> None:
    """What an engine cannot keep does not depend on a slot: the refusal names the field, and nothing is queued."""
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_MIN", 2)
    monkeypatch.setattr("meshllm.web.gateway.target.QUEUE_PER_SLOT", 2)
    gate = Gate()
    engine = await table.serve(gate, slots=1)
    callers = await queue(table, waiting)
    for path, field in (("/v1/chat/completions", "functions"), ("/v1/responses", "conversation")):
        refused = await table.call(ask(path, stream=stream, **{field: "x"}))
        assert (refused.status, refused.json["error"]["param"]) == (400, field)
    assert table.gateway.queued == waiting - 1
    gate.let(waiting)
    for caller in callers:
        assert (await caller.response()).status == 200
    assert len(engine.calls) == waiting


async def test_queue_is_left_when_the_caller_disconnects(table: Bench) -> None:
    gate = Gate()
    await table.serve(gate, slots=1)
    callers = await queue(table, 6)
    for number in (1, 3, 5):
        callers[number].abort()
    await table.gateway.watch.until(lambda: table.gateway.queued == 2)
    assert table.gateway.waiting == 2
    gate.let(3)
    for number in (0, 2, 4):
        assert (await callers[number].response()).status == 200
    assert gate.order == [0, 2, 4]
    # So does one who waits for a model.
    table.publish(coming("m"))
    for stream in (False, True):
        caller = await table.caller()
        caller.send(ask(stream=stream))
        await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
        caller.abort()
        await table.gateway.watch.until(lambda: table.gateway.waiting == 0)


async def test_queue_of_a_removed_target_moves_in_order(table: Bench) -> None:
    first, gate = await table.engine(never), Gate()
    second = await table.engine(gate)
    table.publish(served("m", first.address, slots=1))
    callers = await queue(table, 10)
    table.publish(coming("m", "restarting"))
    await first.die()
    await table.gateway.watch.until(lambda: table.gateway.waiting == 10)
    assert table.gateway.queued == 0
    table.publish(served("m", second.address, generation=2, slots=1))
    gate.let(10)
    for caller in callers:
        assert (await caller.response()).status == 200
        await caller.close()
    # The one that was at work has to begin again, and has lost its place by then; the others keep theirs.
    assert sorted(gate.order) == list(range(10))
    assert [number for number in gate.order if number] == list(range(1, 10))
    await table.idle()


@pytest.mark.usefixtures("quick_again")
async def test_waiting_requests_of_a_dead_target_all_get_errors(table: Bench) -> None:
    """Each is let in, finds nobody, lets the next one in: without recursion, and with an end."""
    first = await table.engine(never)
    table.publish(served("m", first.address, slots=32))
    callers = [await table.caller() for _ in range(300)]
    for caller in callers:
        caller.send(ask())
    await table.gateway.watch.until(lambda: table.gateway.active + table.gateway.queued == 300)
    await first.die()
    for caller in callers:
        response = await caller.response()
        assert (response.status, response.json["error"]["code"]) == (502, "upstream_lost")
        await caller.close()
    await table.idle()


async def test_waiting_requests_of_a_dead_target_are_served_by_the_next(table: Bench) -> None:
    first, second = await table.engine(never), await table.engine(well)
    table.publish(served("m", first.address, slots=32))
    callers = [await table.caller() for _ in range(300)]
    for number, caller in enumerate(callers):
        caller.send(ask(stream=bool(number % 2)))
    await table.gateway.watch.until(lambda: table.gateway.active + table.gateway.queued == 300)
    table.publish(served("m", second.address, generation=2, slots=32))
    await first.die()
    for caller in callers:
        assert (await caller.response()).status == 200
        await caller.close()
    await table.idle()
    assert table.gateway.outcomes.count("answered") == 300


async def test_queued_request_moves_to_an_idle_target(table: Bench) -> None:
    gate = Gate()
    busy, free = await table.engine(gate), await table.backend(well)
    table.publish(served("m", busy.address, slots=1))
    callers = await queue(table, 4)
    table.publish(served("m", busy.address, slots=1), backends=(backend(free.address, "m"),))
    for caller in callers[1:]:
        assert (await caller.response()).status == 200
    assert len(free.calls) == 3
    gate.let(1)
    assert (await callers[0].response()).status == 200


async def test_selection_prefers_the_engine_then_backends_in_order(table: Bench) -> None:
    gate = Gate()
    engine, one, two = await table.engine(gate), await table.backend(well), await table.backend(well)
    pool = (backend(one.address, "m"), backend(two.address, "m"))
    table.publish(served("m", engine.address, slots=1), backends=pool)
    holder = (await queue(table, 1))[0]
    assert (await table.call(ask())).status == 200
    assert (len(engine.calls), len(one.calls), len(two.calls)) == (1, 1, 0)
    gate.let(1)
    assert (await holder.response()).status == 200


async def test_unprobed_backends_are_waited_for(table: Bench) -> None:
    upstream = await table.backend(well)
    table.publish(backends=(BackendState(upstream.address),))
    caller = await table.caller()
    caller.send(ask(stream=True))
    await caller.head()
    await caller.until(b": asking the backends\n\n")
    table.publish(backends=(backend(upstream.address, "m"),))
    assert b"Hello" in (await finish(caller)).body
    gone = BackendState(upstream.address, models=("m",), reason="no route", failures=9)
    table.publish(backends=(gone,))
    response = await table.call(ask())
    assert response.status == 503
    assert "no route" in response.json["error"]["message"]
    caller = await table.caller()
    table.publish(backends=(BackendState(upstream.address),))
    caller.send(ask(model="x"))
    await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
    table.publish(backends=(backend(upstream.address, "m"),))
    assert (await caller.response()).status == 404


# -- closing


async def test_close_finishes_responses_and_accepts_no_requests(table: Bench) -> None:
    gate = Gate()
    await table.serve(gate)
    stream, plain, idle = [await table.caller() for _ in range(3)]
    stream.send(ask(stream=True, number=1))
    plain.send(ask(number=2))
    await table.gateway.watch.until(lambda: table.gateway.active == 2)
    await stream.head()
    await stream.piece()
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(table.gateway.close(5.0))
        assert await idle.eof() == b""
        with pytest.raises(ConnectionRefusedError):
            await table.caller()
        gate.let(2)
        assert b"Hello" in (await finish(stream)).body
        assert await stream.eof() == b""
        response = await plain.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        await closing
    await table.gateway.close()


@pytest.mark.parametrize("path", STREAMING)
async def test_close_ends_late_responses_with_an_error(table: Bench, path: str) -> None:
    await table.serve(never, slots=1)
    stream, plain, queued = [await table.caller() for _ in range(3)]
    stream.send(ask(path, stream=True))
    await table.gateway.watch.until(lambda: table.gateway.active == 1)
    await stream.head()
    plain.send(ask(path))
    queued.send(ask("/v1/messages/count_tokens"))
    await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
    await table.gateway.close(0.01)
    response = await finish(stream)
    assert b"This node is stopping." in response.body
    refused = await plain.response()
    assert (refused.status, refused.headers["connection"]) == (503, "close")
    assert (await queued.response()).status == 503


async def test_close_while_connecting(table: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    called = asyncio.Event()

    async def connect(self: UpstreamPool) -> None:
        called.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(UpstreamPool, "connect", connect)
    await table.serve(well)
    caller = await table.caller()
    caller.send(ask())
    await called.wait()
    await table.gateway.close()
    await caller.eof()


def unloaded(model: str = "m") -> ModelState:
    """A model whose memory was freed."""
    state = served(model, "/none")
    return replace(state, unloaded=True, server=ServerPhase.NONE, server_facts=None, last_run=state.server_facts)


@pytest.mark.parametrize("stream", [True, False])
async def test_request_for_an_unloaded_model_has_it_loaded_and_waits(folder: Path, stream: bool) -> None:
    asked: list[str] = []
    async with bench(folder, on_dial=asked.append) as table:
        engine = await table.engine(well)
        table.publish(unloaded())
        card = (await table.call(request("GET", "/v1/models/m", None))).json
        assert (card["mesh"]["phase"], card["mesh"]["loaded"]) == ("available", False)
        assert card["max_input_tokens"] == 4096
        caller = await table.caller()
        caller.send(ask(stream=stream))
        if stream:
            await caller.head()
            await caller.until(b": loading m\n\n")
        else:
            await table.gateway.watch.until(lambda: table.gateway.waiting == 1)
        assert asked == ["m"]
        table.publish(served("m", engine.address))
        response = await (finish(caller) if stream else caller.response())
        assert b"Hello" in response.body
        card = (await table.call(request("GET", "/v1/models/m", None))).json
        assert (card["mesh"]["phase"], card["mesh"]["loaded"]) == ("serving", True)


async def test_engine_is_busy_until_the_answer_of_a_withdrawn_model_has_ended(table: Bench) -> None:
    gate = Gate()
    engine = await table.engine(gate)
    table.publish(served("m", engine.address, slots=1))
    answering, waiting = await queue(table, 2)
    assert table.gateway.is_busy("m", 1)
    assert not table.gateway.is_busy("m", 2)
    assert not table.gateway.is_busy("other", 1)
    dropped = served("m", engine.address, slots=1)
    table.publish(replace(dropped, wanted=False, dropped=True, reason="its owner dropped it"))
    refused = await waiting.response()
    assert (refused.status, refused.json["error"]["code"]) == (503, "model_unavailable")
    assert "its owner dropped it" in refused.json["error"]["message"]
    assert table.gateway.is_busy("m", 1), "the answer in progress goes on"
    gate.let(1)
    assert (await answering.response()).status == 200
    assert not table.gateway.is_busy("m", 1)
