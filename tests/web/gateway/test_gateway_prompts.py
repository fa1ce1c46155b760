"""What guests may ask of an engine, whose prompts they share, and requests that crash engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web_rig import Bench, Call, Caller, Town, Upstream, ask, host, never, node_id, served, town, well

from meshllm.core.routing.routes import Target, TargetKind
from meshllm.core.snapshot import ServerPhase
from meshllm.web.gateway.crashed_requests import (
    ABANDONED_SECONDS,
    MAX_ABANDONED,
    REMEMBER_SECONDS,
    CrashedRequests,
    CrashSuspects,
)
from meshllm.web.gateway.target import MAX_PASSED, CallerRank, TargetQueue
from meshllm.web.http.client import UpstreamPool

GUEST, MEMBER = node_id(7).hex(), node_id(0).hex()


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[Town]:
    """Two nodes; for the second, GUEST is one."""
    async with town(folder, 2) as made:
        made.benches[1].gateway._peer_endpoints._is_guest = lambda peer: peer == GUEST
        yield made


async def tunnel(place: Town, peer: str) -> Caller:
    """A connection of `peer` into the tunnel of the second node."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    await place.roads.connect(peer, node_id(1).hex(), lambda: protocol)
    writer = asyncio.StreamWriter(protocol._transport, protocol, reader, loop)  # type: ignore[attr-defined]
    return Caller(reader, writer)


async def test_guests_have_trust_domains_of_their_own_and_set_no_slots(place: Town) -> None:
    engine = await place.serve(1)
    for peer in (GUEST, MEMBER):
        caller = await tunnel(place, peer)
        caller.send(ask(id_slot=1, cache_prompt=True))
        assert (await caller.response()).status == 200
        await caller.close()
    response = await place.benches[1].call(ask(id_slot=1))
    assert response.status == 200
    guest, member, local = engine.calls
    assert f"x-prompt-cache-salt: {GUEST}".encode() in guest.head
    assert not {"id_slot", "cache_prompt"} & json.loads(guest.body).keys()
    for call in (member, local):
        assert b"x-prompt-cache-salt" not in call.head
        assert json.loads(call.body)["id_slot"] == 1


async def test_callers_cannot_name_a_trust_domain(table: Bench) -> None:
    engine = await table.serve(well)
    await table.call(_with_salt())
    assert b"x-prompt-cache-salt" not in engine.calls[0].head


def _with_salt() -> bytes:
    plain: bytes = ask()
    return plain.replace(b"\r\n", b"\r\nx-prompt-cache-salt: x\r\n", 1)


@pytest.mark.parametrize("fields", [{"prompt": ["x"] * 5000}, {"prompt": "x", "n": 5000}])
async def test_lists_of_prompts_are_bounded(table: Bench, fields: dict[str, Any]) -> None:
    engine = await table.serve(well)
    response = await table.call(ask("/v1/completions", **fields))
    assert response.status == 400
    assert response.json["error"]["code"] == "too_many_prompts"
    assert not engine.calls


async def test_grammars_do_not_reach_the_engine_if_they_are_too_deep(table: Bench) -> None:
    engine = await table.serve(well)
    response = await table.call(ask(grammar="root ::= " + "(" * 190_000))
    assert response.status == 400
    assert response.json["error"]["param"] == "grammar"
    assert not engine.calls


class Waiter:
    def __init__(self) -> None:
        self.granted = False

    def slot_granted(self, queue: TargetQueue) -> None:
        self.granted = True


def queue_of(slots: int) -> TargetQueue:
    target = Target(TargetKind.ENGINE, "/x", 1, slots)
    loop = asyncio.new_event_loop()
    try:
        return TargetQueue(target, UpstreamPool(target, loop))
    finally:
        loop.close()


def test_list_of_prompts_leaves_a_slot_to_others() -> None:
    for slots in (1, 4):
        queue = queue_of(slots)
        assert queue.take(500)
        assert queue.take()
        assert not queue.take()
        queue.release(1.0, 500)
        queue.release(1.0)
        assert queue.active == 0


def test_owner_comes_before_guests_and_guests_leave_a_slot() -> None:
    queue = queue_of(2)
    assert queue.take(1, CallerRank.GUEST)
    assert not queue.take(1, CallerRank.GUEST)
    guest, peer, local = Waiter(), Waiter(), Waiter()
    assert queue.join(guest, 1, CallerRank.GUEST)
    assert queue.take()
    assert queue.join(peer, 1, CallerRank.PEER)
    assert queue.join(local)
    assert [queue.position(waiter) for waiter in (guest, peer, local)] == [2, 1, 0]
    queue.release(1.0)
    assert (guest.granted, peer.granted, local.granted) == (False, False, True)
    queue.release(1.0)
    assert (guest.granted, peer.granted) == (False, True)
    queue.release(1.0, 1, CallerRank.GUEST)
    assert guest.granted


def test_no_request_waits_for_ever() -> None:
    queue = queue_of(4)
    assert queue.take()
    assert queue.take()
    big = Waiter()
    assert queue.join(big, 8)
    for _ in range(MAX_PASSED):
        assert queue.take()
        queue.release(1.0)
    assert not queue.take()  # slots are kept for the list
    queue.release(1.0)
    assert big.granted


def test_request_that_is_alone_with_an_engine_at_two_deaths_is_refused_for_an_hour() -> None:
    crashed = CrashedRequests()
    assert not crashed.died(b"a", 0.0, alone=True)
    assert not crashed.refuses(b"a", 0.0)
    assert crashed.died(b"a", 1.0, alone=True)
    assert crashed.refuses(b"a", REMEMBER_SECONDS)
    assert not crashed.refuses(b"a", 1.0 + REMEMBER_SECONDS)
    assert not crashed.died(b"b", 0.0, alone=False)
    assert not crashed.died(b"b", 0.0, alone=False)
    assert crashed.died(b"b", 0.0, alone=False)


async def test_request_at_two_deaths_of_an_engine_is_not_tried_again(table: Bench) -> None:
    engines = []

    async def dies(call: Call) -> None:
        await next_engine()
        call.hang_up()

    async def next_engine() -> None:
        engine = await table.engine(dies)
        engines.append(engine)
        table.publish(served("m", engine.address, slots=1, generation=len(engines)))

    await next_engine()
    response = await table.call(ask())
    assert (response.status, response.json["error"]["code"]) == (400, "request_crashed_engine")
    assert sum(len(engine.calls) for engine in engines) == 2
    response = await table.call(ask())
    assert response.json["error"]["code"] == "request_crashed_engine"
    assert sum(len(engine.calls) for engine in engines) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_host_that_says_that_a_request_crashed_its_engine_is_the_last_one_asked(
    folder: Path, *, stream: bool
) -> None:
    error = {"error": {"message": "crashed", "type": "server_error", "code": "request_crashed_engine"}}

    async def crashed(call: Call) -> None:
        if stream:
            call.begin_stream()
            data = b": waiting\n\ndata: " + json.dumps(error).encode() + b"\n\n"
            call.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            call.answer(error, 502)

    async with town(folder, 3) as made:
        hosts = [await made.serve(number, crashed) for number in (1, 2)]
        made.here.meet(host(node_id(1), "m"), host(node_id(2), "m"))
        for _ in range(2):
            response = await made.here.call(ask(stream=stream))
            assert b"request_crashed_engine" in response.body
        assert sum(len(each.calls) for each in hosts) == 1


# -- a request whose caller went away before the engine died of it


async def abandon(table: Bench, engine: Upstream, data: bytes) -> None:
    """A caller sends a request, and hangs up while the engine is at work on it."""
    calls, ended = len(engine.calls), len(table.gateway.outcomes)
    caller = await table.caller()
    caller.send(data)
    await engine.watch.until(lambda: len(engine.calls) > calls)
    caller.abort()
    await table.gateway.watch.until(lambda: len(table.gateway.outcomes) > ended)
    assert table.gateway.outcomes[-1] == "abandoned"


async def next_engine(table: Bench, generation: int) -> Upstream:
    engine = await table.engine(never)
    table.publish(served("m", engine.address, generation=generation))
    return engine


async def test_request_is_refused_if_engines_died_after_its_caller_had_gone(table: Bench) -> None:
    engine = await next_engine(table, 1)
    for generation in (2, 3):
        await abandon(table, engine, ask(grammar="bad"))
        await engine.die()
        engine = await next_engine(table, generation)
    engine.script = well
    response = await table.call(ask(grammar="bad"))
    assert (response.status, response.json["error"]["code"]) == (400, "request_crashed_engine")
    assert not engine.calls
    assert (await table.call(ask(grammar="good"))).status == 200


@pytest.mark.parametrize("why", ["stopped", "unwanted", "node stops"])
async def test_abandoned_request_is_not_blamed_for_an_engine_that_was_stopped(table: Bench, why: str) -> None:
    engine = await next_engine(table, 1)
    for generation in (2, 3, 4):
        await abandon(table, engine, ask())
        ending = replace(served("m", engine.address, generation=generation - 1), server_facts=None)
        stopping = ServerPhase.STOPPING if why == "stopped" else ServerPhase.NONE
        table.publish(replace(ending, server=stopping, wanted=why != "unwanted"), stopping=why == "node stops")
        await engine.die()
        engine = await next_engine(table, generation)
    engine.script = well
    assert (await table.call(ask())).status == 200


async def test_requests_abandoned_in_company_are_refused_after_three_deaths(table: Bench) -> None:
    engine = await next_engine(table, 1)
    for generation in (2, 3, 4):
        await abandon(table, engine, ask(n=1, grammar="bad"))
        await abandon(table, engine, ask(number=generation))
        await engine.die()
        engine = await next_engine(table, generation)
    engine.script = well
    assert (await table.call(ask(n=1, grammar="bad"))).status == 400
    assert (await table.call(ask(number=4))).status == 200


async def test_one_death_counts_once_for_each_request(table: Bench) -> None:
    """Three callers that send the same request at once are no three deaths."""
    first, second = await table.engine(never), await table.engine(well)
    table.publish(served("m", first.address))
    callers = [await table.caller() for _ in range(3)]
    for caller in callers:
        caller.send(ask())
    await first.watch.until(lambda: len(first.calls) == 3)
    await first.die()
    table.publish(served("m", second.address, generation=2))
    assert [(await caller.response()).status for caller in callers] == [200] * 3


def test_suspects_of_one_engine_process() -> None:
    suspects = CrashSuspects()
    suspects.abandon(b"old", 0.0)
    suspects.abandon(b"a", 1.0)
    now = ABANDONED_SECONDS + 0.5
    assert suspects.died_abandoned([], now) == [(b"a", True)]
    assert suspects.died_abandoned([], now) == []
    assert suspects.died(b"a") is None

    suspects = CrashSuspects()
    suspects.abandon(b"a", 0.0)
    suspects.lost([b"b"], 1.0)
    suspects.lost([b"c"], 1.0)  # a consequence of the same death
    assert suspects.died(b"b") is False
    assert suspects.died_abandoned([b"b"], 1.0) == [(b"a", False)]

    suspects = CrashSuspects()
    suspects.abandon(b"a", 0.0)
    suspects.lost([b"a"], 1.0)  # it was sent again
    assert suspects.died(b"a") is True

    suspects = CrashSuspects()
    for number in range(MAX_ABANDONED + 5):
        suspects.abandon(b"%d" % number, 0.0)
    found = suspects.died_abandoned([], 0.0)
    assert (len(found), found[0]) == (MAX_ABANDONED, (b"5", False))
