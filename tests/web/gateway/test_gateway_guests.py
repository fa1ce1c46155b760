"""Limits of guests: peers that may use models, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from web_rig import Bench, Call, Caller, Town, ask, node_id, served, town, well

from meshllm.web.gateway import peer_endpoint

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


async def status(place: Town, peer: str) -> int:
    """The status of one request of `peer`, on a connection of its own."""
    caller = await tunnel(place, peer)
    caller.send(ask())
    found = (await caller.response()).status
    await caller.close()
    return found


def host_of(place: Town) -> Bench:
    return place.benches[1]


async def test_guests_have_a_rate_of_requests_that_a_new_connection_does_not_reset(
    place: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_endpoint, "GUEST_REQUESTS_PER_SECOND", 0.0)
    monkeypatch.setattr(peer_endpoint, "GUEST_REQUESTS_BURST", 2.0)
    await place.serve(1)
    assert [await status(place, GUEST) for _ in range(3)] == [200, 200, 429]
    host_of(place).gateway._peer_endpoints.sweep(0.0)  # its endpoint is forgotten
    assert await status(place, GUEST) == 429
    assert [await status(place, MEMBER) for _ in range(5)] == [200] * 5


async def test_guests_have_fewer_requests_at_a_time(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_endpoint, "MAX_GUEST_REQUESTS", 1)
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await well(call)

    await place.serve(1, later)
    first, member = await tunnel(place, GUEST), await tunnel(place, MEMBER)
    first.send(ask())
    gateway = host_of(place).gateway
    await gateway.watch.until(lambda: gateway.active == 1)
    assert await status(place, GUEST) == 429
    member.send(ask())
    await gateway.watch.until(lambda: gateway.active == 2)
    release.set()
    assert [(await caller.response()).status for caller in (first, member)] == [200, 200]
    await first.close()
    await member.close()


async def test_bodies_of_guests_leave_memory_to_members(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_endpoint, "MAX_GUEST_BODIES_BYTES", 1000)
    await place.serve(1)
    caller = await tunnel(place, GUEST)
    caller.send(ask(text="x" * 2000))
    assert (await caller.response()).status == 503
    await caller.close()
    member = await tunnel(place, MEMBER)
    member.send(ask(text="x" * 2000))
    assert (await member.response()).status == 200
    await member.close()


async def test_peer_without_the_right_to_use_models_is_told_what_to_do(place: Town) -> None:
    await place.serve(1)
    host_of(place).gateway._peer_endpoints._may_use = lambda peer: peer != MEMBER
    caller = await tunnel(place, MEMBER)
    caller.send(ask())
    answer = await caller.response()
    error = answer.json["error"]
    assert (answer.status, error["type"], error["code"]) == (403, "permission_error", "no_right")
    assert "mesh-llm invite --rights use" in error["message"]
    await caller.close()
    assert await status(place, GUEST) == 200
    host_of(place).gateway._peer_endpoints._may_use = lambda peer: True  # it has a new certificate: no restart needed
    assert await status(place, MEMBER) == 200


async def test_engine_process_that_a_guest_has_used_is_known_until_after_its_end(place: Town) -> None:
    engine = await place.serve(1)
    gateway = host_of(place).gateway
    assert await status(place, MEMBER) == 200
    assert not gateway.had_guest("m", 1)
    assert await status(place, GUEST) == 200
    assert gateway.had_guest("m", 1)
    host_of(place).publish(served("m", engine.address, generation=2))
    assert gateway.had_guest("m", 1), "its prompts may be saved just now"
    assert await status(place, MEMBER) == 200
    assert not gateway.had_guest("m", 2)
    assert not gateway.had_guest("another", 1)
