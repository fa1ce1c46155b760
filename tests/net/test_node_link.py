"""The contract of every transport, on memory and QUIC: links, messages, streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from net_rig import MEMBER, MESH, SECRET, Node, Recorder, Talker, World, client, identity

from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, Role
from meshllm.errors import LinkClosed, PeerRefused, PeerUnreachable
from meshllm.net import node_link
from meshllm.net.base import MAX_MESSAGE_BYTES, Link, StreamKind
from meshllm.net.node_transport import NodeTransport
from meshllm.net.quic import flow_control, happy_eyeballs, streams
from meshllm.net.quic.flow_control import GROWN_CREDIT_BYTES, LINK_UNSENT_BYTES
from meshllm.tasks import Owner

HTTP = StreamKind.HTTP_TUNNEL


@pytest.fixture(params=["memory", "quic"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = World(request.param)
    yield made
    await made.close()


# -- links


async def test_link_knows_the_peer_at_both_ends(world: World) -> None:
    one, other, dialled, accepted = await world.pair()
    assert (dialled.facts.peer, accepted.facts.peer) == (other.id, one.id)
    assert (dialled.facts.dialled, accepted.facts.dialled) == (True, False)
    assert dialled.facts.mesh == accepted.facts.mesh == MESH
    assert dialled.facts.role is accepted.facts.role is Role.NODE
    assert dialled.facts.protocol == accepted.facts.protocol == 2
    assert dialled.facts.address == other.address
    assert accepted.facts.address == one.address
    assert dialled.facts.observed == one.address
    assert dialled.facts.rtt >= 0
    assert dialled.facts.admitted is None
    assert one.transport.link(other.id) is dialled
    assert one.transport.links() == [dialled]
    assert one.heard.events == [("up", other.id)]


async def test_second_dial_returns_the_same_link(world: World) -> None:
    one, other, dialled, _ = await world.pair()
    assert await one.transport.dial(other.way) is dialled
    assert await other.transport.dial(BootstrapAddress(one.id[:16], ())) is other.heard.up[one.id]


async def test_concurrent_dials_share_one_link(world: World) -> None:
    one, other = await world.node(), await world.node()
    half = BootstrapAddress(other.id[:16], (other.address,))
    found = await asyncio.gather(*(one.transport.dial(way) for way in (other.way, half, other.way)))
    assert len(set(map(id, found))) == 1
    await other.heard.until(lambda: other.heard.up)
    assert other.heard.events == [("up", one.id)]


async def test_cancelled_dial_does_not_end_it_for_others(world: World) -> None:
    one, other = await world.node(), await world.node()
    tasks = Owner("callers")
    first = tasks.start(one.transport.dial(other.way), "first")
    second = tasks.start(one.transport.dial(other.way), "second")
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).facts.peer == other.id
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("seed", range(4))
async def test_mutual_dials_end_in_one_link(world: World, seed: int) -> None:
    """Both ends have the same link for any interleaving, and streams work on it."""
    one, other = await world.node(), await world.node()
    rng = random.Random(seed)

    async def dial(here: Node, there: Node) -> None:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        await here.transport.dial(there.way)

    await asyncio.gather(dial(one, other), dial(other, one))
    await one.heard.until(lambda: other.id in one.heard.up)
    await other.heard.until(lambda: one.id in other.heard.up)
    assert talks(one, other)
    link, back = one.transport.links()[0], other.transport.links()[0]
    assert link.facts.dialled != back.facts.dialled
    talker = Talker()
    link.open(HTTP, talker).write(b"hello")
    await other.heard.until(lambda: other.heard.streams)
    await other.heard.streams[0].until(lambda: other.heard.streams[0].received == b"hello")


def talks(one: Node, other: Node) -> bool:
    return len(one.transport.links()) == 1 == len(other.transport.links())


@pytest.mark.parametrize(
    "first",
    ["smaller", "larger", "larger, and the other after the welcome", "smaller, and the other after the refusal"],
)
async def test_mutual_dials_keep_the_link_of_the_smaller_node(
    world: World, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Both sides have proved themselves before either is welcomed, in both orders."""
    smaller, larger = await ordered(world)
    read = node_link.LinkGreeting.data_received
    held: dict[NodeId, Callable[[], None]] = {}
    hellos: set[object] = set()

    def hold_proofs(self: node_link.LinkGreeting, data: bytes) -> None:
        if self._link.connection.dialled or self not in hellos:
            hellos.add(self)
            read(self, data)
            return
        acceptor = cast(NodeTransport, self._link._owner).identity.node
        held[acceptor] = lambda: read(self, data)
        if len(held) == 2:
            order = [smaller.id, larger.id] if first.startswith("smaller") else [larger.id, smaller.id]
            for node in order[: 1 if "after" in first else 2]:
                held[node]()

    def up(link: Link) -> None:
        Recorder.link_up(smaller.heard, link)
        if "after the welcome" in first and len(smaller.heard.events) == 1:
            held[smaller.id]()

    def refused(link: node_link.NodeLink, error: PeerRefused) -> None:
        assert error.reason == "duplicate"
        NodeTransport.refused(larger.transport, link, error)
        if "after the refusal" in first:
            held[larger.id]()

    smaller.heard.link_up = up  # type: ignore[method-assign]
    larger.transport.refused = refused  # type: ignore[method-assign]

    monkeypatch.setattr(node_link.LinkGreeting, "data_received", hold_proofs)
    found = await asyncio.gather(smaller.transport.dial(larger.way), larger.transport.dial(smaller.way))
    assert [link.facts.peer for link in found] == [larger.id, smaller.id]
    assert len(held) == 2
    assert smaller.transport.links()[0].facts.dialled
    assert not larger.transport.links()[0].facts.dialled
    assert smaller.heard.events == [("up", larger.id)]
    assert larger.heard.events == [("up", smaller.id)]


async def ordered(world: World) -> tuple[Node, Node]:
    """Two nodes, the one with the smaller id first."""
    small, large = sorted((identity(), identity()), key=lambda who: who.node)
    return await world.node(who=small), await world.node(who=large)


@pytest.mark.parametrize("smaller_dialled", [True, False])
@pytest.mark.parametrize("dialler_returns", [True, False])
async def test_restarted_peer_replaces_its_link(world: World, smaller_dialled: bool, dialler_returns: bool) -> None:
    """For either dialler of the old link, and any ids."""
    one, other = await ordered(world)
    if not smaller_dialled:
        one, other = other, one
    await one.transport.dial(other.way)
    await other.heard.until(lambda: other.heard.up)
    stays, returns = (other, one) if dialler_returns else (one, other)
    again = await world.node(who=returns.transport.identity)
    await again.transport.dial(stays.way)
    await stays.heard.until(lambda: len(stays.heard.events) == 3)
    assert stays.heard.events == [("up", returns.id), ("down", returns.id), ("up", returns.id)]
    assert stays.transport.links()[0].facts.address == again.address


@pytest.mark.parametrize("smaller_dialled", [True, False])
@pytest.mark.parametrize("dialler_loses", [True, False])
async def test_peer_that_lost_its_link_replaces_it(world: World, smaller_dialled: bool, dialler_loses: bool) -> None:
    one, other = await ordered(world)
    if not smaller_dialled:
        one, other = other, one
    await one.transport.dial(other.way)
    await other.heard.until(lambda: other.heard.up)
    loser, still = (one, other) if dialler_loses else (other, one)
    lost = cast(node_link.NodeLink, loser.transport.links()[0])
    lost.connection._end()  # type: ignore[attr-defined]
    lost.lost("as if the network had been away for longer than this end waits")
    await loser.transport.dial(still.way)
    await still.heard.until(lambda: len(still.heard.events) == 3)
    assert still.heard.events == [("up", loser.id), ("down", loser.id), ("up", loser.id)]
    assert talks(one, other)


async def test_close_sends_the_reason_and_ends_the_streams(world: World) -> None:
    one, other, dialled, accepted = await world.pair()
    here = Talker()
    dialled.open(HTTP, here)
    await other.heard.until(lambda: other.heard.streams)
    dialled.close("because")
    dialled.close("twice")
    assert one.heard.reasons == ["because"]
    await other.heard.until(lambda: not other.heard.up)
    assert other.heard.reasons == ["because"]
    there = other.heard.streams[0]
    for talker in (here, there):
        await talker.until(lambda: here.lost and there.lost)
        assert isinstance(talker.error, ConnectionResetError)
    with pytest.raises(LinkClosed):
        dialled.open(HTTP, Talker())
    assert not accepted.send(b"too late")


async def test_dead_address_does_not_delay_a_good_one(world: World) -> None:
    one, other = await world.node(), await world.node()
    dead = [PeerAddress("127.0.0.1", 1), PeerAddress("10.255.255.1", 4433), PeerAddress("nonsense", 7)]
    link = await one.transport.dial(BootstrapAddress(other.id, (*dead, other.address)))
    assert link.facts.address == other.address


async def test_dial_without_an_answer_fails_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(happy_eyeballs, "DIAL_SECONDS", 0.3)
    one = await world.node()
    with pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1:1"):
        await one.transport.dial(BootstrapAddress(identity().node, (PeerAddress("127.0.0.1", 1),)))
    with pytest.raises(PeerUnreachable, match="no address"):
        await one.transport.dial(BootstrapAddress(identity().node, ()))


async def test_dial_to_another_node_is_refused(world: World) -> None:
    one, other = await world.node(), await world.node()
    with pytest.raises(PeerRefused) as caught:
        await one.transport.dial(BootstrapAddress(identity().node, (other.address,)))
    assert caught.value.reason == "wrong_node"
    assert other.heard.events == []


async def test_dial_to_itself_is_refused(world: World) -> None:
    one = await world.node()
    with pytest.raises(PeerRefused) as caught:
        await one.transport.dial(one.way)
    assert caught.value.reason == "itself"


async def test_clients_are_bounded_by_max_clients(world: World) -> None:
    host = await world.node(max_clients=1)
    first, second, member = await world.node(client()), await world.node(client()), await world.node()
    await first.transport.dial(host.way)
    with pytest.raises(PeerRefused) as caught:
        await second.transport.dial(host.way)
    assert caught.value.reason == "too_many_clients"
    await member.transport.dial(host.way)
    assert {host.transport.links()[n].facts.role for n in (0, 1)} == {Role.CLIENT, Role.NODE}
    first.transport.links()[0].close("room for another")
    await host.heard.until(lambda: len(host.heard.up) == 1)
    await second.transport.dial(host.way)


# -- messages


async def test_messages_arrive_whole_and_in_order(world: World) -> None:
    one, other, dialled, accepted = await world.pair()
    sent = [b"", b"x", bytes(MAX_MESSAGE_BYTES), *(str(n).encode() for n in range(100))]
    for payload in sent:
        assert dialled.send(payload)
    assert accepted.send(b"back")
    await other.heard.until(lambda: len(other.heard.messages) == len(sent))
    assert other.heard.messages == sent
    await one.heard.until(lambda: one.heard.messages == [b"back"])


async def test_send_refuses_an_oversized_message(world: World) -> None:
    *_, dialled, _ = await world.pair()
    with pytest.raises(ValueError, match="at most"):
        dialled.send(bytes(MAX_MESSAGE_BYTES + 1))


async def test_send_drops_messages_beyond_the_queue(world: World) -> None:
    _, other, dialled, _ = await world.pair()
    taken = [dialled.send(bytes(200_000)) for _ in range(10)]
    assert taken == [True] * 5 + [False] * 5
    await other.heard.until(lambda: len(other.heard.messages) == 5)
    assert dialled.send(b"room again")


async def test_peer_beyond_the_message_rate_is_read_more_slowly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "MESSAGES_AT_ONCE", 5.0)
    _, other, dialled, accepted = await world.pair()
    now = [asyncio.get_running_loop().time()]
    assert accepted.closed is None
    control = accepted._streams.open_streams[0]
    control.get_protocol()._clock = lambda: now[0]  # type: ignore[attr-defined]
    for number in range(8):
        dialled.send(bytes([number]))
    await other.heard.until(lambda: len(other.heard.messages) == 5 and not control.is_reading())
    now[0] += 100.0
    await other.heard.until(lambda: len(other.heard.messages) == 8)
    assert control.is_reading()


async def test_oversized_message_frame_closes_the_link(world: World) -> None:
    one, other, dialled, _ = await world.pair()
    dialled._streams.open_streams[0].write((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))
    await other.heard.until(lambda: not other.heard.up)
    assert "the limit is" in other.heard.reasons[0]
    await one.heard.until(lambda: not one.heard.up)


# -- streams


async def test_stream_carries_bytes_and_half_closes(world: World) -> None:
    _, other, dialled, accepted = await world.pair()
    here = Talker()
    stream = dialled.open(HTTP, here)
    assert stream.get_extra_info("peer") == other.id
    assert stream.get_extra_info("kind") is HTTP
    assert here.transport is stream
    stream.write(b"question")
    stream.write_eof()
    await other.heard.until(lambda: other.heard.streams)
    there = other.heard.streams[0]
    await there.until(lambda: there.ended)
    assert there.received == b"question"
    assert (dialled.streams, accepted.streams) == (1, 1)
    there.transport.write(b"answer")
    there.transport.close()
    await here.until(lambda: here.ended)
    assert here.received == b"answer"
    stream.close()
    await here.until(lambda: here.lost)
    await there.until(lambda: there.lost)
    assert here.error is there.error is None
    assert (dialled.streams, accepted.streams) == (0, 0)
    with pytest.raises(RuntimeError):
        stream.write(b"after the end")


async def test_stream_closes_with_the_peer_unless_kept_open(world: World) -> None:
    _, other, dialled, _ = await world.pair()
    other.heard.serve = lambda kind: Talker(keep=False)
    here = Talker(keep=False)
    dialled.open(HTTP, here).write_eof()
    await here.until(lambda: here.lost)
    assert here.ended
    assert here.error is None


@pytest.mark.parametrize("kind", [99, HTTP])
async def test_unwanted_stream_is_refused_and_the_link_stays(world: World, kind: int) -> None:
    one, other, dialled, _ = await world.pair()
    other.heard.serve = lambda kind: None
    here = Talker()
    stream = dialled.open(kind, here)  # type: ignore[arg-type]
    stream.write(b"anybody?")
    await here.until(lambda: here.lost)
    assert isinstance(here.error, ConnectionResetError)
    assert dialled.streams == 0
    assert one.heard.up
    assert other.heard.up


async def test_abort_resets_the_peers_stream(world: World) -> None:
    _, other, dialled, _ = await world.pair()
    here = Talker()
    stream = dialled.open(HTTP, here)
    stream.write(b"some")
    await other.heard.until(lambda: other.heard.streams)
    stream.abort()
    there = other.heard.streams[0]
    await there.until(lambda: there.lost)
    assert isinstance(there.error, ConnectionResetError)
    await here.until(lambda: here.lost)
    assert here.error is None
    assert stream.is_closing()
    stream.write(b"nobody hears this")


async def test_slow_reader_holds_the_writer_back(world: World) -> None:
    """Bytes in flight are bounded at both ends; all arrive once the reader reads."""
    _, other, dialled, accepted = await world.pair()
    other.heard.serve = lambda kind: Talker(pause=True)
    here = Talker()
    stream = dialled.open(HTTP, here)
    rng = random.Random(7)
    sent = bytearray()
    while not here.paused:
        chunk = rng.randbytes(50_000)
        sent += chunk
        stream.write(chunk)
        if not here.paused:
            await asyncio.sleep(0)
        assert len(sent) < 3 << 20
    await other.heard.until(lambda: other.heard.streams)
    there = other.heard.streams[0]
    held = accepted._streams.open_streams[next(n for n in accepted._streams.open_streams if n)]
    dialled.send(b"messages pass all the same")
    await other.heard.until(lambda: other.heard.messages)
    assert there.received == b""
    assert held.unread <= flow_control.FIRST_CREDIT_BYTES
    assert stream.get_write_buffer_size() > 0
    there.transport.resume_reading()
    await here.until(lambda: not here.paused)
    stream.write_eof()
    await there.until(lambda: there.ended)
    assert there.received == sent


async def test_blocked_stream_does_not_block_others(world: World) -> None:
    _, other, dialled, _ = await world.pair()
    served = iter([Talker(pause=True)])
    other.heard.serve = lambda kind: next(served, Talker(echo=True))
    stuck, lively = Talker(), Talker()
    dialled.open(HTTP, stuck).write(bytes(2 << 20))
    await other.heard.until(lambda: other.heard.streams)
    dialled.open(HTTP, lively).write(bytes(300_000))
    await lively.until(lambda: len(lively.received) == 300_000)
    assert dialled.send(b"and so do messages")
    await other.heard.until(lambda: other.heard.messages)


@pytest.mark.parametrize("seed", range(3))
async def test_concurrent_streams_do_not_mix(world: World, seed: int) -> None:
    one, other, dialled, accepted = await world.pair()
    one.heard.serve = other.heard.serve = lambda kind: Talker(echo=True, keep=False)
    rng = random.Random(seed)
    talkers = []
    for link in (dialled, accepted) * 10:
        talker, data = Talker(), rng.randbytes(rng.randrange(1, 200_000))
        stream = link.open(HTTP, talker)
        at = 0
        while at < len(data):
            size = rng.choice((1, 100, 5000, 100_000))
            stream.write(memoryview(data)[at : at + size])
            at += size
        stream.write_eof()
        talkers.append((talker, data))
    for talker, data in talkers:
        await talker.end()
        assert talker.received == data
        talker.transport.close()


async def test_close_flushes_the_write_buffer(world: World) -> None:
    _, other, dialled, _ = await world.pair()
    stream = dialled.open(HTTP, Talker())
    stream.write(bytes(5 << 20))
    assert stream.get_write_buffer_size() > 0
    stream.close()
    await other.heard.until(lambda: other.heard.streams)
    there = other.heard.streams[0]
    await there.until(lambda: there.ended)
    assert len(there.received) == 5 << 20


async def test_window_grows_with_use_and_is_returned(world: World) -> None:
    _, other, dialled, accepted = await world.pair()
    stream = dialled.open(HTTP, Talker())
    stream.write(bytes(4 << 20))
    await other.heard.until(lambda: other.heard.streams)
    there = other.heard.streams[0]
    await there.until(lambda: len(there.received) == 4 << 20)
    assert accepted._streams.budget.left == GROWN_CREDIT_BYTES - (1 << 20) + flow_control.FIRST_CREDIT_BYTES
    stream.abort()
    await there.until(lambda: there.lost)
    assert accepted._streams.budget.left == GROWN_CREDIT_BYTES


def test_unread_bytes_of_a_link_are_bounded() -> None:
    for count in (1, 16, 17, 200, 1024):
        assert count * flow_control.unsent_limit(count) <= LINK_UNSENT_BYTES + count * flow_control.LEAST_UNSENT_BYTES


async def test_streams_of_a_link_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS_PER_LINK", 3)
    _, other, dialled, _ = await world.pair()
    opened = [dialled.open(HTTP, Talker()) for _ in range(3)]
    with pytest.raises(LinkClosed):
        dialled.open(HTTP, Talker())
    opened[0].abort()
    dialled.open(HTTP, Talker()).write(b"room again")
    await other.heard.until(lambda: any(talker.received == b"room again" for talker in other.heard.streams))


async def test_failing_protocol_ends_its_own_stream_only(world: World) -> None:
    _, other, dialled, _ = await world.pair()

    class Broken(Talker):
        def data_received(self, data: bytes) -> None:
            raise KeyError("a defect")

    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    other.heard.serve = lambda kind: Broken()
    here = Talker()
    dialled.open(HTTP, here).write(b"x")
    await here.until(lambda: here.lost)
    assert isinstance(here.error, ConnectionResetError)
    assert isinstance(told[0]["exception"], KeyError)
    assert other.heard.up


async def test_closing_a_transport_fails_its_dials(world: World) -> None:
    one, *_ = await world.pair()
    nowhere = BootstrapAddress(identity().node, (PeerAddress("127.0.0.1", 1),))
    waiting = Owner("caller").start(one.transport.dial(nowhere), "dial")
    await asyncio.sleep(0)
    await one.transport.close()
    with pytest.raises(PeerUnreachable):
        await waiting
    with pytest.raises(LinkClosed):
        await one.transport.dial(BootstrapAddress(identity().node, ()))
    assert one.transport.links() == []


def test_repr_of_credentials_and_facts_shows_no_secret() -> None:
    assert repr(SECRET)[2:-1] not in repr(MEMBER)
