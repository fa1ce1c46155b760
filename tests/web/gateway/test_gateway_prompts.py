"""What guests may ask of an engine, whose prompts they share, and requests that crash engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from web_rig import Bench, Call, Caller, Town, ask, host, node_id, served, town, well

from meshllm.core.routing.routes import Target, TargetKind
from meshllm.web.gateway.crashed_requests import REMEMBER_SECONDS, CrashedRequests
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
