"""QUIC only: the socket, unauthenticated connections, lost datagrams, changing addresses, flow control."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicHeader, QuicPacketType, pull_quic_header
from net_rig import MEMBER, Changes, Node, Recorder, Talker, World, identity

from meshllm.core.records import BootstrapAddress, PeerAddress
from meshllm.errors import PeerUnreachable, PortTaken
from meshllm.net import node_transport as transport
from meshllm.net.base import MAX_STREAMS_PER_LINK, STREAM_CREDIT_BYTES, StreamKind
from meshllm.net.quic import admission
from meshllm.net.quic import connection as quic_connection
from meshllm.net.quic.connection import MeshConnection, configuration
from meshllm.net.quic.endpoint import Endpoint, SocketAddress, address_key, to_address
from meshllm.net.quic.flow_control import FIRST_CREDIT_BYTES, LINK_CREDIT_BYTES
from meshllm.net.quic.transport import QuicStreamConnection, QuicTransport
from meshllm.tasks import Owner

HTTP = StreamKind.HTTP_TUNNEL


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World("quic")
    yield made
    await made.close()


class Wire(Changes, asyncio.DatagramProtocol):
    """A bare UDP socket."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[bytes] = []
        self.transport: asyncio.DatagramTransport = cast(asyncio.DatagramTransport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.append(data)
        self.change()

    async def close(self) -> None:
        """Whether the connection is gone."""
        self.transport.close()
        await asyncio.sleep(0)


async def wire(to: PeerAddress) -> Wire:
    """A socket that sends to one address."""
    loop = asyncio.get_running_loop()
    _, made = await loop.create_datagram_endpoint(Wire, remote_addr=(to.host, to.port))
    return made


def endpoint_of(node: Node) -> Endpoint:
    return cast(QuicTransport, node.transport).endpoint


def connection_of(link: object) -> MeshConnection:
    return cast(QuicStreamConnection, link.connection)._quic  # type: ignore[attr-defined]


def first_datagram() -> bytes:
    """A first datagram."""
    connection = MeshConnection(configuration(identity(), client=True))
    connection.connect(("127.0.0.1", 1), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]


def of_unknown_version() -> bytes:
    """A first datagram of another QUIC version."""
    datagram = first_datagram()
    return datagram[:1] + b"\x0a\x0a\x0a\x0a" + datagram[5:]


# -- the socket


async def test_endpoint_is_dual_stack() -> None:
    host, guest = (QuicTransport(identity(), lambda: MEMBER) for _ in range(2))
    port = await host.start(Recorder())
    await guest.start(Recorder())
    try:
        link = await guest.dial(BootstrapAddress(host.identity.node, (PeerAddress("127.0.0.1", port),)))
        assert link.facts.address == PeerAddress("127.0.0.1", port)
        assert link.facts.observed == PeerAddress("127.0.0.1", guest.endpoint.port)
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        link.close("again by IPv6")
        link = await guest.dial(BootstrapAddress(host.identity.node, (PeerAddress("::1", port),)))
        assert link.facts.address == PeerAddress("::1", port)
    finally:
        await guest.close()
        await host.close()


async def test_taken_port_raises_port_taken() -> None:
    one = QuicTransport(identity(), lambda: MEMBER)
    port = await one.start(Recorder())
    with pytest.raises(PortTaken, match=str(port)):
        await QuicTransport(identity(), lambda: MEMBER, port=port).start(Recorder())
    await one.close()
    again = QuicTransport(identity(), lambda: MEMBER, port=port)
    assert await again.start(Recorder()) == port
    await again.close()


async def test_address_of_a_missing_family_fails_at_once(world: World) -> None:
    one = await world.node()
    with pytest.raises(PeerUnreachable, match="no route"):
        await one.transport.dial(BootstrapAddress(identity().node, (PeerAddress("2001:db8::1", 9),)))


def test_to_address_has_one_form() -> None:
    assert to_address(("::ffff:192.0.2.1", 5, 0, 0)) == PeerAddress("192.0.2.1", 5)
    assert to_address(("fe80::1%eth0", 5, 0, 2)) == PeerAddress("fe80::1", 5)
    assert address_key("::ffff:192.0.2.1") == address_key("192.0.2.1") == "192.0.2.1"
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff") != address_key("2001:db8:0:1::1")


# -- unauthenticated connections


@pytest.mark.parametrize("seed", range(3))
async def test_endpoint_ignores_garbage(world: World, seed: int) -> None:
    one, other, dialled, _ = await world.pair()
    rng = random.Random(seed)
    bare = await wire(other.address)
    known = list(endpoint_of(other).routes)
    real = first_datagram()
    for number in range(400):
        choice = rng.randrange(5)
        if choice == 0:
            data = rng.randbytes(rng.randrange(1, 1400))
        elif choice == 1:
            data = bytes([0x40 | rng.randrange(64)]) + rng.choice(known) + rng.randbytes(rng.randrange(1300))
        elif choice == 2:
            data = bytes([0xC0 | rng.randrange(64)]) + rng.randbytes(4) + b"\x08" + rng.choice(known) + bytes(1200)
        else:
            altered = bytearray(real)
            for _ in range(rng.randrange(1, 9)):
                altered[rng.randrange(len(altered)) if choice == 3 else rng.randrange(40)] = rng.randrange(256)
            data = bytes(altered[: rng.choice((len(altered), rng.randrange(len(altered))))])
        bare.transport.sendto(data)
        if number % 20 == 0:
            await asyncio.sleep(0)
    talker = Talker()
    other.heard.serve = lambda kind: Talker(echo=True)
    dialled.open(HTTP, talker).write(b"still here")
    await talker.until(lambda: talker.received == b"still here")
    assert one.heard.events == [("up", other.id)]
    assert other.heard.events == [("up", one.id)]
    await bare.close()


async def test_unauthenticated_connections_are_bounded_without_locking_out_peers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First datagrams from made-up addresses use at most RETRY_ABOVE connections; a node that answers the Retry is
    admitted."""
    target, real = await world.node(), await world.node()
    bare = await wire(target.address)
    for _ in range(admission.RETRY_ABOVE + 10):
        bare.transport.sendto(first_datagram())
        await asyncio.sleep(0)

    def retries() -> list[bytes]:
        long = [data for data in bare.got if data[0] & 0x80]
        headers = [header_of(data) for data in long]
        return [header.token for header in headers if header.packet_type == QuicPacketType.RETRY]

    await bare.until(lambda: len(retries()) == 10)
    assert endpoint_of(target).unauthenticated == admission.RETRY_ABOVE
    link = await real.transport.dial(target.way)
    assert link.facts.peer == target.id
    assert endpoint_of(target).unauthenticated == admission.RETRY_ABOVE
    await bare.close()


def header_of(data: bytes) -> QuicHeader:
    return pull_quic_header(Buffer(data=data), host_cid_length=8)


async def test_retry_token_of_another_address_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RETRY_ABOVE", 0)
    target = await world.node()
    handler = endpoint_of(target)._retry
    accepted: list[object] = []
    endpoint_of(target)._accept = lambda *known: accepted.append(known)  # type: ignore[assignment]
    connection = MeshConnection(configuration(identity(), client=True))
    connection._peer_token = handler.create_token(
        address=("192.0.2.1", 7),
        original_destination_connection_id=connection.original_destination_connection_id,
        retry_source_connection_id=connection.original_destination_connection_id,
        now=0.0,
    )
    connection.connect(("127.0.0.1", 1), now=0.0)
    source: SocketAddress = ("127.0.0.1", 9)
    assert endpoint_of(target)._route(connection.datagrams_to_send(now=0.0)[0][0], source, 0.0) is None
    assert accepted == []


@pytest.mark.parametrize(
    ("bound", "limit"),
    [("MAX_UNAUTHENTICATED", 3), ("MAX_UNAUTHENTICATED_PER_ADDRESS", 4), ("NEW_CONNECTIONS_BURST", 5.0)],
)
async def test_connections_are_bounded_per_address(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str, limit: float
) -> None:
    monkeypatch.setattr(admission, "RESERVED_FOR_KNOWN", 0)
    monkeypatch.setattr(admission, bound, limit)
    monkeypatch.setattr(admission, "NEW_CONNECTIONS_PER_SECOND", 0.0)
    target = await world.node()
    bare = await wire(target.address)
    for _ in range(12):
        bare.transport.sendto(first_datagram())
    await bare.until(lambda: len(bare.got) >= limit)
    for _ in range(12):
        bare.transport.sendto(first_datagram())
    bare.transport.sendto(of_unknown_version())
    await bare.until(lambda: any(data[1:5] == bytes(4) for data in bare.got))  # all before any is processed
    assert endpoint_of(target).unauthenticated == limit
    await bare.close()


async def test_silent_unauthenticated_connection_is_closed_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_SECONDS", 0.1)
    target = await world.node()
    gone = Changes()
    known = endpoint_of(target).authenticated

    def note(route: object) -> None:
        known(route)  # type: ignore[arg-type]
        gone.change()

    endpoint_of(target).authenticated = note  # type: ignore[method-assign]
    bare = await wire(target.address)
    for _ in range(5):
        bare.transport.sendto(first_datagram())
    await bare.until(lambda: bare.got)
    await gone.until(lambda: endpoint_of(target).unauthenticated == 0)
    assert endpoint_of(target).routes == {}
    await bare.close()


async def test_unknown_quic_version_gets_version_negotiation(world: World) -> None:
    target = await world.node()
    bare = await wire(target.address)
    strange = of_unknown_version()
    bare.transport.sendto(strange[:1199])  # too short for an answer
    bare.transport.sendto(bytes([0xC0]) + bytes(4) + strange[5:])  # a Version Negotiation packet itself
    bare.transport.sendto(strange)
    await bare.until(lambda: bare.got)
    header = header_of(bare.got[0])
    assert header.packet_type == QuicPacketType.VERSION_NEGOTIATION
    assert header.supported_versions == quic_connection.VERSIONS
    assert len(bare.got) == 1
    assert endpoint_of(target).unauthenticated == 0
    await bare.close()


# -- flow control


async def test_peer_that_exceeds_flow_control_loses_the_link(world: World) -> None:
    one, other, dialled, _ = await world.pair()
    other.heard.serve = lambda kind: Talker(pause=True)
    stream = dialled.open(HTTP, Talker())
    await other.heard.until(lambda: other.heard.streams)
    connection = connection_of(dialled)
    connection._remote_max_data = 1 << 40
    connection._streams[stream.number].max_stream_data_remote = 1 << 40  # type: ignore[attr-defined]
    stream.write(bytes(FIRST_CREDIT_BYTES + 1))
    await other.heard.until(lambda: not other.heard.up)
    assert other.heard.reasons == ["Over stream data limit"]
    await one.heard.until(lambda: not one.heard.up)


async def test_unauthenticated_peer_cannot_make_us_buffer_a_gap(world: World) -> None:
    """One byte far ahead would make QUIC buffer the whole gap before it."""
    target = await world.node()
    stranger = await world.stranger(target)
    connection = cast(QuicStreamConnection, stranger.connection)._quic
    connection._remote_max_data = 1 << 40
    stranger.connection.send(0, b"\0")
    sender = connection._streams[0].sender
    sender._pending.subtract(0, 1)
    sender._buffer_start = sender._buffer_stop = 40_000
    stranger.connection.send(0, b"x")
    await stranger.until(lambda: stranger.why)
    assert stranger.why == "Over connection data limit"


async def test_flow_control_limits_follow_reading(world: World) -> None:
    """Many bytes are sent, and the peer's limit never exceeds the windows beyond what was read."""
    _, other, dialled, accepted = await world.pair()
    stream = dialled.open(HTTP, Talker())
    await other.heard.until(lambda: other.heard.streams)
    there, quic = other.heard.streams[0], connection_of(accepted)
    for _ in range(40):
        stream.write(bytes(1 << 20))
        await there.until(lambda: stream.get_write_buffer_size() == 0 or not there.received)
        await asyncio.sleep(0)
    stream.write_eof()
    await there.end()
    assert len(there.received) == 40 << 20
    limit = quic._local_max_data
    assert limit.value <= limit.used + LINK_CREDIT_BYTES
    assert connection_of(dialled)._remote_max_data <= limit.used + LINK_CREDIT_BYTES
    allowed = connection_of(dialled)._streams[stream.number].max_stream_data_remote  # type: ignore[attr-defined]
    assert allowed <= (40 << 20) + 1 + STREAM_CREDIT_BYTES


async def test_link_accepts_its_maximum_number_of_streams(world: World) -> None:
    """One stream before `allow_streams`, then MAX_STREAMS_PER_LINK, again and again as streams end."""
    _, other, dialled, accepted = await world.pair()
    other.heard.serve = lambda kind: Talker(keep=False)
    assert connection_of(accepted)._local_max_streams_bidi.value == MAX_STREAMS_PER_LINK + 1
    for _ in range(3):
        talkers = [Talker(keep=False) for _ in range(MAX_STREAMS_PER_LINK // 2)]
        for talker in talkers:
            dialled.open(HTTP, talker).write_eof()
        for talker in talkers:
            await talker.end()
    await other.heard.until(lambda: accepted.streams == 0)
    assert len(other.heard.streams) == 3 * (MAX_STREAMS_PER_LINK // 2)


# -- the network


class Relay:
    """A NAT: datagrams to `address` are forwarded from another port, which can change.

    `drop(towards the target, bytes)` says which datagrams are lost.
    """

    def __init__(self, target: PeerAddress) -> None:
        self.target = target
        self.inside, self.outside = self._socket(), self._socket()
        self.address = PeerAddress("127.0.0.1", self.inside.getsockname()[1])
        self.client: SocketAddress | None = None
        self.drop: Callable[[bool, bytes], bool] = lambda towards, data: False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.inside, self._in)
        self._loop.add_reader(self.outside, self._out)

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.bind(("127.0.0.1", 0))
        return made

    def rebind(self) -> None:
        """The NAT forgets its port."""
        self._loop.remove_reader(self.outside)
        self.outside.close()
        self.outside = self._socket()
        self._loop.add_reader(self.outside, self._out)

    def _in(self) -> None:
        data, self.client = self.inside.recvfrom(4096)
        if not self.drop(True, data):
            self.outside.sendto(data, (self.target.host, self.target.port))

    def _out(self) -> None:
        data, _ = self.outside.recvfrom(4096)
        if self.client is not None and not self.drop(False, data):
            self.inside.sendto(data, self.client)

    def close(self) -> None:
        for made in (self.inside, self.outside):
            self._loop.remove_reader(made)
            made.close()


async def test_link_survives_a_changed_peer_address(world: World) -> None:
    one, other = await world.node(), await world.node()
    relay = Relay(other.address)
    link = await one.transport.dial(BootstrapAddress(other.id, (relay.address,)))
    await other.heard.until(lambda: other.heard.up)
    other.heard.serve = lambda kind: Talker(echo=True)
    talker = Talker()
    stream = link.open(HTTP, talker)
    for round_ in range(3):
        sent = os.urandom(50_000)
        stream.write(sent)
        await talker.until(lambda: len(talker.received) == 50_000)
        assert talker.received == sent, round_
        talker.received.clear()
        relay.rebind()
    assert other.heard.events == [("up", one.id)]
    link.close("done")
    relay.close()


@pytest.mark.parametrize("seed", range(2))
async def test_lost_datagrams_are_retransmitted(world: World, seed: int) -> None:
    rng = random.Random(seed)
    one, other = await world.node(), await world.node()
    relay = Relay(other.address)
    relay.drop = lambda towards, data: rng.random() < 0.1
    other.heard.serve = lambda kind: Talker(echo=True, keep=False)
    link = await one.transport.dial(BootstrapAddress(other.id, (relay.address,)))
    talkers = []
    for _ in range(5):
        talker, data = Talker(), rng.randbytes(30_000)
        stream = link.open(HTTP, talker)
        stream.write(data)
        stream.write_eof()
        talkers.append((talker, data))
    for talker, data in talkers:
        await talker.end()
        assert talker.received == data
    link.close("done")
    relay.close()


async def test_killed_peer_is_detected(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_connection, "IDLE_SECONDS", 0.3)
    one, other, _, accepted = await world.pair()
    stream = Talker()
    accepted.open(HTTP, stream)
    endpoint_of(one).close()  # as after kill -9: no close packet, and no socket at the port
    await other.heard.until(lambda: not other.heard.up)
    assert other.heard.reasons == ["Idle timeout"]
    await stream.until(lambda: stream.lost)


async def test_lost_close_packet_is_sent_again(world: World) -> None:
    one, other, dialled, accepted = await world.pair()
    deaf = endpoint_of(one)
    send = deaf.send
    deaf.send = lambda data, destination: True  # type: ignore[method-assign]
    dialled.close("the words")
    deaf.send = send  # type: ignore[method-assign]
    accepted.send(b"are you there?")
    await other.heard.until(lambda: not other.heard.up)
    assert other.heard.reasons == ["the words"]


async def test_exception_in_aioquic_ends_that_connection_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, dialled, accepted = await world.pair()
    third = await world.node()
    await third.transport.dial(other.way)
    await other.heard.until(lambda: len(other.heard.up) == 2)

    def broken(*args: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(connection_of(accepted), "receive_datagram", broken)
    dialled.send(b"whatever")
    await other.heard.until(lambda: one.id not in other.heard.up)
    assert other.heard.reasons == ["QUIC failed: AssertionError"]
    assert third.id in other.heard.up


async def test_members_connect_during_a_flood_of_mute_handshakes(world: World) -> None:
    """45 mute handshakes a second from three addresses, each answering a Retry, beside six members that connect."""
    target = await world.node()
    members = [await world.node() for _ in range(6)]
    loop = asyncio.get_running_loop()
    flooders = []
    for number in range(3):
        made, _ = await loop.create_datagram_endpoint(Flooder, local_addr=(f"127.0.0.{number + 2}", 0))
        flooders.append(made)
    to = ("127.0.0.1", target.address.port)

    async def flood() -> None:
        while True:
            for each in flooders:
                cast("Flooder", each.get_protocol()).knock(to)
            await asyncio.sleep(1 / 15)

    for _ in range(admission.MAX_UNAUTHENTICATED):
        for each in flooders:
            cast("Flooder", each.get_protocol()).knock(to)
        await asyncio.sleep(0.001)
    owner = Owner("flood")
    owner.start(flood(), "flood")
    try:
        async with asyncio.timeout(30):
            links = await asyncio.gather(*(member.transport.dial(target.way) for member in members))
        assert {link.facts.peer for link in links} == {target.id}
        assert endpoint_of(target).unauthenticated > 0
    finally:
        await owner.close()
        for each in flooders:
            each.close()


class Flooder(asyncio.DatagramProtocol):
    """Begins QUIC handshakes, answers a Retry, and then says nothing."""

    def __init__(self) -> None:
        self._begun: dict[bytes, MeshConnection] = {}
        self._transport: asyncio.DatagramTransport = cast(asyncio.DatagramTransport, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def knock(self, to: tuple[str, int]) -> None:
        """Send one first datagram."""
        connection = MeshConnection(configuration(identity(), client=True))
        connection.connect(to, now=0.0)
        self._begun[connection.host_cid] = connection
        self._send(connection, to)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        header = header_of(data)
        connection = self._begun.pop(header.destination_cid, None)
        if connection is not None and header.packet_type == QuicPacketType.RETRY:
            connection.receive_datagram(data, addr, 0.0)
            self._send(connection, addr)

    def _send(self, connection: MeshConnection, to: tuple[str, int]) -> None:
        for data, _ in connection.datagrams_to_send(now=0.0):
            self._transport.sendto(data, to)
