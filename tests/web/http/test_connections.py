"""Shares of connections and body memory: callers on other machines cannot use up what others need."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest
from web_rig import Call, ask, bench, request, well

from meshllm.web.http import connections
from meshllm.web.http.access_control import AccessPolicy, CallerKind, network_of
from meshllm.web.http.connections import SharedConnections
from meshllm.web.http.parser import MAX_BODY_BYTES

KEY = {"Authorization": "Bearer key"}
GET = request("GET", "/health")


class Fake:
    """A connection that is nothing but counted."""

    def __init__(self, peer: str, *, idle: bool = True) -> None:
        self.peer, self.idle, self.kind = peer, idle, CallerKind.KEYLESS
        self.aborted = False
        self.neighbours: dict[Fake, None] = {}

    def sweep(self, now: float) -> None:
        """Not used."""

    def retire(self) -> None:
        """Not used."""

    def stop(self) -> None:
        """Not used."""

    def abort(self) -> None:
        """Closed for another."""
        self.aborted = True


def shares(limit: int = 2048) -> SharedConnections[Fake]:
    return SharedConnections(lambda: None, limit)


def add(them: SharedConnections[Fake], peer: str, count: int = 1, *, idle: bool = True) -> list[Fake]:
    made = [Fake(peer, idle=idle) for _ in range(count)]
    for connection in made:
        assert them.add(connection)
    return made


def kept(made: list[Fake]) -> int:
    return sum(not each.aborted for each in made)


def test_mute_connections_of_one_address_have_a_small_share() -> None:
    them = shares()
    made = add(them, "192.0.2.1", 2100)
    assert [each.aborted for each in made] == [True] * 2068 + [False] * 32
    # Another address, and another prefix of IPv6, have theirs.
    assert kept(add(them, "192.0.2.2")) == kept(add(them, "2001:db8::1")) == 1


def test_mute_connections_of_many_addresses_have_a_share_and_displace_one_another() -> None:
    them = shares()
    early = add(them, "198.51.100.7")
    made = [add(them, f"2001:db8:0:{number:x}::1", 8) for number in range(200)]
    assert sum(map(kept, made)) + kept(early) == 256
    assert kept(early) == 1  # the addresses with most connections give way first


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    them = shares()
    made = [add(them, f"2001:db8::{number:x}")[0] for number in range(1, 101)]
    assert kept(made) == 32
    assert network_of("2001:db8::1%eth0") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1")


def test_local_callers_find_room_whatever_others_hold() -> None:
    them = shares(64)
    for number in range(100):
        for connection in add(them, f"192.0.2.{number}", 3):
            if number % 2:
                them.reclassify(connection, CallerKind.KEYED)
    local = add(them, "127.0.0.1", 32, idle=False)
    assert kept(local) == 32
    assert len([each for each in them.live if not each.aborted]) <= 64


def test_full_server_closes_the_least_recently_used_connection_of_the_largest_remote_address() -> None:
    them = shares(16)
    few, many = add(them, "192.0.2.1"), add(them, "192.0.2.2")
    for connection in (*few, *many, more := Fake("192.0.2.2")):
        if connection not in them.live:
            assert them.add(connection)
        assert them.reclassify(connection, CallerKind.KEYED)
    them.used(many[0])
    local = add(them, "127.0.0.1", 14, idle=False)
    assert (more.aborted, kept(few), kept(many), kept(local)) == (True, 1, 1, 14)


def test_connection_is_refused_only_if_none_is_idle() -> None:
    them = shares(16)
    add(them, "127.0.0.1", 16, idle=False)
    assert not them.add(Fake("127.0.0.1"))


def test_full_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    them = shares(8)
    with caplog.at_level("WARNING", logger="meshllm.web.http.connections"):
        add(them, "127.0.0.1", 100)
    assert sum("open files" in record.getMessage() for record in caplog.records) == 1


def test_removed_connections_free_their_places() -> None:
    them = shares()
    made = add(them, "192.0.2.1", 32)
    for connection in made:
        them.remove(connection)
    assert kept(add(them, "192.0.2.1", 32)) == 32
    assert kept(made) == 32


def test_connection_limit_follows_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, limit in ((64, 32), (1024, 512), (1 << 20, 2048), (resource.RLIM_INFINITY, 2048)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections.connection_limit() == limit


def test_bodies_of_one_address_and_of_all_remote_ones_are_bounded() -> None:
    them = shares()
    made = [add(them, f"192.0.2.{number}")[0] for number in range(5)]
    for connection in made:
        them.reclassify(connection, CallerKind.KEYED)
    first = them.bodies_of(made[0])
    first.add(connections.MAX_ADDRESS_BODIES_BYTES)
    assert first.add(0)
    first.add(1)
    assert not first.add(0)
    assert them.bodies_of(made[1]).add(0)
    for connection in made[1:]:
        them.bodies_of(connection).add(MAX_BODY_BYTES)
    assert not any(them.bodies_of(each).add(0) for each in made)
    local = add(them, "127.0.0.1")[0]
    assert them.bodies_of(local).add(0)


# -- over sockets


async def test_body_of_a_caller_without_the_key_is_not_read(folder: Path) -> None:
    """The 401 is sent when the head is complete, and a caller that goes on sending can read it."""
    async with bench(folder, AccessPolicy("key")) as table:
        head, _, _ = ask(headers={"Via": "1.1 proxy"}).partition(b"\r\n\r\n")
        head = head.replace(b"Content-Length: ", b"X-Was: ") + b"\r\nContent-Length: 60000000\r\n\r\n"
        caller = await table.caller()
        caller.send(head)
        assert (await caller.response()).status == 401
        caller = await table.caller()
        caller.send(head + bytes(1 << 20))
        response = await caller.response()
        assert (response.status, response.headers["connection"]) == (401, "close")
        assert response.json["error"]["code"] == "invalid_api_key"
        assert table.gateway.body_bytes == 0
        await caller.close()


async def test_page_can_read_that_its_key_is_wrong(folder: Path) -> None:
    async with bench(folder, AccessPolicy("key")) as table:
        response = await table.call(ask(headers={"Via": "1.1 proxy", "Origin": "http://localhost:5173"}))
        assert response.status == 401
        assert response.headers["access-control-allow-origin"] == "http://localhost:5173"


async def test_key_behind_a_proxy_gets_the_remote_share(folder: Path) -> None:
    release = asyncio.Event()

    async def later(call: Call) -> None:
        await release.wait()
        await well(call)

    async with bench(folder, AccessPolicy("key")) as table:
        await table.serve(later)
        caller = await table.caller()
        caller.send(ask(headers={"Via": "1.1 proxy", **KEY}))
        await table.gateway.watch.until(lambda: table.gateway.active == 1)
        shared = table.gateway._connections
        assert shared._remote_bodies.held == table.gateway.body_bytes > 0
        release.set()
        assert (await caller.response()).status == 200
        assert shared._remote_bodies.held == table.gateway.body_bytes == 0


async def test_new_caller_takes_the_place_of_an_idle_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "connection_limit", lambda: 8)
    async with bench(folder) as table:
        idle = [await table.caller() for _ in range(8)]
        for caller in idle:
            caller.send(GET)
            assert (await caller.response()).status == 200
        assert (await table.get("/health")).status == 200
        assert await idle[0].eof() == b""
        idle[1].send(GET)
        assert (await idle[1].response()).status == 200
