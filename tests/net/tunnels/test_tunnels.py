"""Tunnels over real links, in memory and over QUIC, with and without lanes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lane_rig import Ear
from tunnel_rig import HTTP, street

from meshllm.core.records import BootstrapAddress
from meshllm.errors import LinkClosed, PeerUnreachable
from meshllm.net.base import StreamKind
from meshllm.net.lanes import lanes
from meshllm.net.tunnels import tunnels


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts: the machine may be busy."""
    monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", 20.0)
    monkeypatch.setattr(lanes, "CONNECT_SECONDS", 20.0)


both_kinds = pytest.mark.parametrize("kind", ["memory", "quic"])
both_ways = pytest.mark.parametrize("with_lanes", [True, False], ids=["lanes", "streams"])


@both_kinds
@both_ways
async def test_tunnel_dials_the_link_and_carries_bytes(tmp_path: Path, kind: str, with_lanes: bool) -> None:
    async with street(kind, tmp_path, with_lanes) as (here, there):
        ear = await here.open(there)
        ear.transport.write(b"hello")
        assert await ear.until(5) == b"hello"
        assert there.callers == [here.node]
        facts = here.tunnels.facts()[there.node]
        assert facts.transport == ("lane" if with_lanes else "quic")
        assert facts.lanes.open == int(with_lanes)
        assert here.tunnels.count(there.node) >= 1
        assert there.tunnels.count(here.node) >= 1
        ear.transport.close()
        await ear.gone
        await there.ears[0].gone


@both_kinds
@both_ways
async def test_tunnel_carries_a_megabyte_both_ways(tmp_path: Path, kind: str, with_lanes: bool) -> None:
    async with street(kind, tmp_path, with_lanes) as (here, there):
        ear, data = await here.open(there), bytes(range(256)) * 4096
        ear.transport.write(data)
        assert await ear.until(len(data)) == data


@both_kinds
async def test_tunnels_open_concurrently_in_both_directions(tmp_path: Path, kind: str) -> None:
    async with street(kind, tmp_path, True) as (here, there):
        ears = await asyncio.gather(*(here.open(there) for _ in range(12)), *(there.open(here) for _ in range(12)))
        for number, ear in enumerate(ears):
            ear.transport.write(b"%05d" % number)
        assert [await ear.until(5) for ear in ears] == [b"%05d" % number for number in range(24)]


@both_kinds
async def test_tunnel_uses_quic_without_tcp(tmp_path: Path, kind: str) -> None:
    async with street(kind, tmp_path, True, listening=False) as (here, there):
        ear = await here.open(there)
        ear.transport.write(b"hello")
        assert await ear.until(5) == b"hello"
        facts = here.tunnels.facts()[there.node]
        assert (facts.transport, facts.reason) == ("quic", "the peer accepts no lanes")


@both_kinds
@both_ways
async def test_tunnel_applies_backpressure(tmp_path: Path, kind: str, with_lanes: bool) -> None:
    async with street(kind, tmp_path, with_lanes) as (here, there):
        ear = await here.open(there)
        ear.transport.write(b"x")
        await ear.until(1)
        served = there.ears[0]
        served.echo = False
        served.transport.pause_reading()
        sent = 1
        while not ear.paused:
            assert sent < 64 << 20, "nothing holds the writer back"
            ear.transport.write(bytes(1 << 16))
            sent += 1 << 16
            await asyncio.sleep(0)
        served.transport.resume_reading()
        await ear.when(lambda ear: not ear.paused)
        await served.until(sent)
        assert len(served.heard) == sent


@both_kinds
@both_ways
async def test_tunnel_ends_with_its_link(tmp_path: Path, kind: str, with_lanes: bool) -> None:
    async with street(kind, tmp_path, with_lanes) as (here, there):
        ear = await here.open(there)
        ear.transport.write(b"x")
        await ear.until(1)
        link = here.transport.link(there.node)
        assert link is not None
        link.close("over")
        await ear.gone
        await there.ears[0].gone
        assert here.tunnels.count(there.node) == 0
        assert here.tunnels.facts() == {}


@both_kinds
async def test_tunnel_of_an_unserved_kind_is_refused(tmp_path: Path, kind: str) -> None:
    async with street(kind, tmp_path, True) as (here, there):
        for unserved in (StreamKind.RPC_TUNNEL, StreamKind.FILES):
            ear = await here.open(there, unserved)
            assert await ear.gone is not None
        assert there.ears == []


@both_kinds
@both_ways
async def test_tunnels_are_bounded_per_peer(
    tmp_path: Path, kind: str, with_lanes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(kind, tmp_path, with_lanes) as (here, there):
        kept = [await here.open(there) for _ in range(3)]
        for ear in kept:
            ear.transport.write(b"x")
            await ear.until(1)
        monkeypatch.setattr(tunnels, "MAX_TUNNELS_PER_PEER", 3)
        refused = await here.open(there)
        assert await asyncio.wait_for(refused.gone, 20) is not None
        assert len(there.ears) == 3
        assert not any(ear.gone.done() for ear in kept)
        kept.pop().transport.close()
        await there.ears[-1].gone
        monkeypatch.setattr(tunnels, "MAX_TUNNELS_PER_PEER", 256)
        again = await here.open(there)
        again.transport.write(b"x")
        await again.until(1)


async def test_open_without_link_and_address_raises_unreachable(tmp_path: Path) -> None:
    async with street("memory", tmp_path, True) as (here, there):
        with pytest.raises(PeerUnreachable, match="none of its addresses is known"):
            await here.tunnels.open(there.node, HTTP, Ear)


async def test_open_on_a_closed_link_raises_link_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street("memory", tmp_path, True) as (here, there):
        link = await here.transport.dial(BootstrapAddress(there.node, (there.address,)))
        link.close("over")
        monkeypatch.setattr(here.transport, "link", lambda peer: link)
        with pytest.raises(LinkClosed):
            await here.open(there)
