"""RPC tunnels from one engine's socket to another's, admitted by leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lane_rig import Ear
from tunnel_rig import House, street

from meshllm.core.records import NodeId
from meshllm.net.base import StreamKind
from meshllm.net.lanes import lanes
from meshllm.net.tunnels import rpc_tunnels
from meshllm.net.tunnels.pipe import HEADER
from meshllm.net.tunnels.rpc_tunnels import MAX_CONNECTIONS, RpcTunnels, TunnelUse

LEASE = (b"s" * 16, 7)

both_ways = pytest.mark.parametrize("with_lanes", [True, False], ids=["lanes", "streams"])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts: the machine may be busy."""
    monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", 20.0)
    monkeypatch.setattr(lanes, "CONNECT_SECONDS", 20.0)


class Known:
    """The network of a node with one neighbour."""

    def __init__(self, house: House, other: House) -> None:
        self.serve = house.tunnels.serve
        self.house, self.other = house, other
        self.opened = 0

    async def open(
        self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.BaseProtocol:
        self.opened += 1
        return await self.house.tunnels.open(peer, kind, factory, addresses=[self.other.address])


class Split:
    """A host and a worker with an rpc-server that echoes."""

    def __init__(self, host: House, worker: House, folder: Path) -> None:
        self.host, self.worker = host, worker
        self.way = Known(host, worker)
        self.now = 0.0
        self.out = RpcTunnels(self.way, lambda: self.now)
        self.into = RpcTunnels(Known(worker, host))
        self.engine_socket, self.local_socket = folder / "e.sock", folder / "l.sock"
        self.heard: list[Ear] = []

    def engine(self) -> Ear:
        self.heard.append(Ear(echo=True))
        return self.heard[-1]

    async def listen(self) -> None:
        """The host's end, at the local socket."""
        await self.out.listen(LEASE, TunnelUse.COMMANDS, self.worker.node, self.local_socket)

    def admit(self, *peers: NodeId) -> None:
        self.into.admit(LEASE, TunnelUse.COMMANDS, peers or (self.host.node,), self.engine_socket)

    async def call(self) -> Ear:
        """The host's engine."""
        _, ear = await asyncio.get_running_loop().create_unix_connection(Ear, str(self.local_socket))
        return ear


@asynccontextmanager
async def split(folder: Path, with_lanes: bool = True) -> AsyncIterator[Split]:
    async with street("quic", folder, with_lanes) as (host, worker):
        found = Split(host, worker, folder)
        server = await asyncio.get_running_loop().create_unix_server(found.engine, str(found.engine_socket))
        try:
            yield found
        finally:
            await found.out.close()
            await found.into.close()
            server.close()
            await server.wait_closed()


@both_ways
async def test_rpc_tunnel_carries_bytes_between_engines(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        it.admit()
        await it.listen()
        ear = await it.call()
        ear.transport.write(b"hello")
        assert await ear.until(5) == b"hello"
        assert it.out.traffic(LEASE)[it.worker.node].sent == 5
        assert it.out.traffic(LEASE)[it.worker.node].received == 5
        assert it.into.traffic(LEASE)[it.host.node].received == 5
        assert it.out.traffic(LEASE)[it.worker.node].transport == ("lane" if with_lanes else "quic")
        it.now += 2.5
        assert it.out.traffic(LEASE)[it.worker.node].rate == 4  # ten bytes in 2.5 seconds
        ear.transport.close()
        await it.heard[0].gone


@both_ways
async def test_rpc_tunnel_carries_bulk_both_ways(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        it.admit()
        await it.listen()
        ears, data = [await it.call() for _ in range(3)], bytes(range(256)) * 8192
        for ear in ears:
            ear.transport.write(data)
        for ear in ears:
            assert await ear.until(len(data)) == data


async def test_rpc_tunnel_needs_a_lease(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        await it.listen()
        refused = await it.call()
        await refused.gone
        it.admit(it.worker.node)  # a lease of another node
        refused = await it.call()
        await refused.gone
        it.into.admit(LEASE, TunnelUse.TENSORS, [it.host.node], it.engine_socket)
        refused = await it.call()
        await refused.gone
        assert it.heard == []


async def test_rpc_tunnel_with_an_invalid_header_is_closed(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        it.admit()
        for said in (b"\xff" * 200, HEADER.pack(LEASE[0], 8, 0), HEADER.pack(LEASE[0], 7, 9)):
            ear = await it.host.tunnels.open(it.worker.node, StreamKind.RPC_TUNNEL, Ear, addresses=[it.worker.address])
            assert isinstance(ear, Ear)
            ear.transport.write(said)
            await ear.gone
        assert it.heard == []


async def test_rpc_tunnel_header_may_arrive_in_pieces(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        it.admit()
        ear = await it.host.tunnels.open(it.worker.node, StreamKind.RPC_TUNNEL, Ear, addresses=[it.worker.address])
        assert isinstance(ear, Ear)
        header = HEADER.pack(*LEASE, TunnelUse.COMMANDS)
        ear.transport.write(header[:7])
        await asyncio.sleep(0)
        ear.transport.write(header[7:] + b"and this")
        assert await ear.until(8) == b"and this"


@both_ways
async def test_revoke_ends_the_tunnels_of_a_lease(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        it.admit()
        await it.listen()
        ear = await it.call()
        ear.transport.write(b"x")
        await ear.until(1)
        it.into.revoke(LEASE)
        await ear.gone
        await it.heard[0].gone
        late = await it.call()
        await late.gone
        assert len(it.heard) == 1
        it.out.revoke(LEASE)
        with pytest.raises(OSError, match=r"."):
            await it.call()


@both_ways
async def test_on_failure_is_called_for_a_broken_tunnel_only(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        broken = asyncio.Event()
        it.admit()
        await it.out.listen(LEASE, TunnelUse.COMMANDS, it.worker.node, it.local_socket, broken.set)
        ear = await it.call()
        ear.transport.write(b"x")
        await ear.until(1)
        ear.transport.close()
        await it.heard[0].gone
        assert not broken.is_set()
        ear = await it.call()
        ear.transport.write(b"x")
        await ear.until(1)
        it.heard[1].transport.close()
        await ear.gone
        await broken.wait()


async def test_on_failure_is_called_for_a_tunnel_that_cannot_open(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        broken = asyncio.Event()
        await it.out.listen(LEASE, TunnelUse.COMMANDS, it.worker.node, it.local_socket, broken.set)
        ear = await it.call()  # it holds no lease
        await ear.gone
        await broken.wait()


async def test_revoke_does_not_call_on_failure(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        broken = asyncio.Event()
        it.admit()
        await it.out.listen(LEASE, TunnelUse.COMMANDS, it.worker.node, it.local_socket, broken.set)
        ear = await it.call()
        ear.transport.write(b"x")
        await ear.until(1)
        it.out.revoke(LEASE)
        await ear.gone
        await it.heard[0].gone
        assert not broken.is_set()


class Greeter(Ear):
    """An rpc-server that sends first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"welcome")


@both_ways
async def test_listen_opens_the_tunnel_before_the_engine_connects(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        greeter = Greeter(echo=True)
        greets = await asyncio.get_running_loop().create_unix_server(lambda: greeter, str(tmp_path / "greets.sock"))
        async with greets:
            it.into.admit(LEASE, TunnelUse.COMMANDS, [it.host.node], tmp_path / "greets.sock")
            await it.listen()
            await greeter.when(lambda ear: hasattr(ear, "transport"))
            ear = await it.call()
            assert await ear.until(7) == b"welcome"
            ear.transport.write(b"thanks")
            assert await ear.until(13) == b"welcomethanks"
            assert it.way.opened == 1
            assert it.out.traffic(LEASE)[it.worker.node].received == 13


@both_ways
async def test_preconnect_opens_the_tunnel_before_the_lease(tmp_path: Path, with_lanes: bool) -> None:
    async with split(tmp_path, with_lanes) as it:
        it.out.preconnect(it.worker.node)
        it.out.preconnect(it.worker.node)  # the first one is not needed then
        it.admit()
        await it.listen()
        for opened in (2, 3):
            ear = await it.call()
            ear.transport.write(b"x")
            assert await ear.until(1) == b"x"
            assert it.way.opened <= opened


async def test_old_preconnected_tunnel_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_tunnels, "PRECONNECT_SECONDS", -1.0)
    async with split(tmp_path) as it:
        it.out.preconnect(it.worker.node)
        it.admit()
        await it.listen()
        ear = await it.call()
        ear.transport.write(b"x")
        assert await ear.until(1) == b"x"
        assert it.way.opened == 2


async def test_connections_of_a_lease_are_bounded(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        it.admit()
        await it.listen()
        ears = [await it.call() for _ in range(MAX_CONNECTIONS)]
        for ear in ears:
            ear.transport.write(b"x")
            await ear.until(1)
        refused = await it.call()
        await refused.gone
        ears[0].transport.close()
        await asyncio.wait([ear.gone for ear in it.heard], return_when=asyncio.FIRST_COMPLETED)
        again = await it.call()
        again.transport.write(b"x")
        assert await again.until(1) == b"x"


async def test_tunnel_is_closed_if_the_engine_does_not_listen(tmp_path: Path) -> None:
    async with split(tmp_path) as it:
        it.into.admit(LEASE, TunnelUse.COMMANDS, [it.host.node], tmp_path / "nobody.sock")
        await it.listen()
        ear = await it.call()
        await ear.gone
