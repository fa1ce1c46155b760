"""Lanes: admission, fallback where TCP does not get through, and cleanup."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from contextlib import closing
from pathlib import Path

import pytest
from lane_rig import Ear, FakeLink, Town, town

from meshllm.core.records import BootstrapAddress, PeerAddress
from meshllm.net.base import StreamKind
from meshllm.net.identity import Identity
from meshllm.net.lanes import dialler, lanes
from meshllm.net.lanes import listener as lane_listener
from meshllm.net.lanes.dialler import hosts_to_try
from meshllm.net.lanes.lanes import BLOCKED_SECONDS
from meshllm.net.lanes.listener import MAX_TICKETS_PER_ASK, MAX_TICKETS_PER_PEER, TICKET_SECONDS

HTTP = StreamKind.HTTP_TUNNEL
PATIENT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts: the machine may be busy."""
    monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", PATIENT_SECONDS)
    monkeypatch.setattr(lanes, "CONNECT_SECONDS", PATIENT_SECONDS)
    monkeypatch.setattr(lane_listener, "TICKET_DEADLINE_SECONDS", PATIENT_SECONDS)


async def lane(place: Town, kind: StreamKind = HTTP) -> Ear:
    """A lane from the first node to the second."""
    ear = await place.nodes[0].lanes.open(place.link(), kind, Ear)
    assert isinstance(ear, Ear)
    return ear


async def knock(place: Town, ticket: bytes, identity: Identity | None = None) -> tuple[bytes, Ear]:
    """What the second node's listener answers to a connection with `ticket`."""
    context = (identity or place.nodes[0].identity).client_context()
    _, ear = await asyncio.get_running_loop().create_connection(
        Ear, "127.0.0.1", place.nodes[1].port, ssl=context, ssl_shutdown_timeout=1
    )
    ear.transport.write(ticket)
    await ear.when(lambda ear: bool(ear.heard) or ear.gone.done())
    return bytes(ear.heard), ear


def tickets(place: Town, count: int = 1, kind: int = HTTP) -> list[bytes]:
    """Tickets that the second node issues to the first."""
    answer = place.nodes[1].lanes._listener.issue(place.nodes[0].node, "127.0.0.1", kind, count)
    assert int.from_bytes(answer[:2], "big") == place.nodes[1].port
    assert answer[3] * 32 == len(answer) - 4
    return [answer[start : start + 32] for start in range(4, len(answer), 32)]


# -- opening


async def test_lane_carries_bytes_on_the_loops_own_transport(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ear = await lane(place)
        assert type(ear.transport).__module__ in ("asyncio.sslproto", "uvloop.loop")
        ear.transport.write(b"hello")
        assert await ear.until(5) == b"hello"
        assert place.nodes[1].ears[0].heard == b"hello"
        tls = ear.transport.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert place.nodes[0].lanes.count(place.nodes[1].node) == 1
        assert place.nodes[1].lanes.count(place.nodes[0].node) == 1
        facts = place.nodes[0].lanes.facts(place.nodes[1].node)
        assert facts.proved
        assert facts.blocked == ""
        if hasattr(socket, "TCP_INFO"):
            assert facts.sent is not None
            assert facts.sent > 0
            assert facts.received is not None
            assert facts.received > 0
        ear.transport.close()
        await ear.gone
        await place.nodes[1].ears[0].gone
        assert place.nodes[0].lanes.count(place.nodes[1].node) == 0
        assert place.nodes[1].lanes.count(place.nodes[0].node) == 0


async def test_lane_keeps_bytes_sent_with_the_acceptance(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        greeting = b"x" * 100_000

        class Eager(Ear):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.transport.write(greeting)

        place.nodes[1].tunnels.serve(HTTP, lambda _: Eager())
        ear = await lane(place)
        assert await ear.until(len(greeting)) == greeting


async def test_lane_supports_buffered_protocols(tmp_path: Path) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer, self.heard, self.full = bytearray(3), b"", asyncio.Event()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.heard += self.buffer[:nbytes]
            if len(self.heard) == 14:
                self.full.set()

    protocol = Buffered()
    dialler._deliver(protocol, b"welcome")
    assert protocol.heard == b"welcome"
    async with town(tmp_path) as place:
        assert await place.nodes[0].lanes.open(place.link(), HTTP, lambda: protocol) is protocol
        place.nodes[1].ears[0].transport.write(b"welcome")
        async with asyncio.timeout(PATIENT_SECONDS):
            await protocol.full.wait()
        assert protocol.heard == b"welcomewelcome"


async def test_lanes_fetch_several_tickets_at_once(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        for _ in range(lanes.TICKETS_PER_REQUEST):
            await lane(place)
        assert place.link().opened == [StreamKind.LANE_TICKET]
        await lane(place)
        assert place.link().opened == [StreamKind.LANE_TICKET] * 2


async def test_lanes_skip_expired_tickets(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        await lane(place)
        place.clock.now += TICKET_SECONDS
        await lane(place)
        assert place.link().opened == [StreamKind.LANE_TICKET] * 2
        assert place.nodes[0].lanes.facts(place.nodes[1].node).blocked == ""


async def test_lanes_open_concurrently(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ears = await asyncio.gather(*(lane(place) for _ in range(24)))
        for number, ear in enumerate(ears):
            ear.transport.write(b"%05d" % number)
        assert [await ear.until(5) for ear in ears] == [b"%05d" % number for number in range(24)]
        assert place.nodes[1].lanes.count(place.nodes[0].node) == 24


async def test_lanes_open_from_both_ends(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ear = await lane(place)
        back = place.nodes[1].transport.link(place.nodes[0].node)
        assert isinstance(back, FakeLink)
        other = await place.nodes[1].lanes.open(back, HTTP, Ear)
        assert isinstance(other, Ear)
        other.transport.write(b"back")
        assert await other.until(4) == b"back"
        assert not ear.gone.done()
        assert place.nodes[0].lanes.count(place.nodes[1].node) == 2


async def test_lane_applies_backpressure(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ear = await lane(place)
        served = place.nodes[1].ears[0]
        await served.when(lambda _: True)
        served.echo = False
        served.transport.pause_reading()
        sent = 0
        while not ear.paused:
            assert sent < 64 << 20, "nothing holds the writer back"
            ear.transport.write(bytes(1 << 16))
            sent += 1 << 16
            await asyncio.sleep(0)
        served.transport.resume_reading()
        await ear.when(lambda ear: not ear.paused)
        await served.until(sent)
        assert len(served.heard) == sent


async def test_lane_has_no_half_close(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ear = await lane(place)
        assert not ear.transport.can_write_eof()
        ear.transport.write(b"last words")
        ear.transport.close()
        served = place.nodes[1].ears[0]
        await served.gone
        assert served.heard == b"last words"
        assert served.end_seen
        await ear.gone


# -- refused connections


async def test_ticket_is_valid_once(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        (ticket,) = tickets(place)
        said, first = await knock(place, ticket)
        assert said == b"\x01"
        assert (await knock(place, ticket))[0] == b""
        assert len(place.nodes[1].ears) == 1
        assert not first.gone.done()
        first.transport.abort()


@pytest.mark.parametrize("wrong", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(32), bytes(10_000)])
async def test_listener_closes_a_connection_with_a_wrong_ticket(
    tmp_path: Path, wrong: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(wrong) < 32:
        monkeypatch.setattr(lane_listener, "TICKET_DEADLINE_SECONDS", 0.2)
    async with town(tmp_path) as place:
        assert tickets(place)
        said, ear = await knock(place, wrong)
        assert said == b""
        await ear.gone
        assert place.nodes[1].ears == []


async def test_listener_refuses_bytes_after_the_ticket(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        (ticket,) = tickets(place)
        said, ear = await knock(place, ticket + b"POST")
        assert said == b""
        await ear.gone
        assert place.nodes[1].ears == []


async def test_listener_refuses_an_expired_ticket(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        (ticket,) = tickets(place)
        place.clock.now += TICKET_SECONDS
        assert (await knock(place, ticket))[0] == b""
        assert place.nodes[1].ears == []


async def test_ticket_is_bound_to_kind_and_peer(tmp_path: Path) -> None:
    """A ticket is bound to the peer and kind it was issued for, whoever presents it."""
    async with town(tmp_path) as place:
        seen = []

        def served(kind: StreamKind) -> None:
            place.nodes[1].tunnels.serve(kind, lambda peer: seen.append((kind, peer)) or Ear())  # type: ignore[func-returns-value]

        served(HTTP)
        served(StreamKind.RPC_TUNNEL)
        (ticket,) = tickets(place, kind=StreamKind.RPC_TUNNEL)
        said, ear = await knock(place, ticket)
        assert said == b"\x01"
        assert seen == [(StreamKind.RPC_TUNNEL, place.nodes[0].node)]
        ear.transport.abort()


async def test_ticket_ends_with_its_link(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        (ticket,) = tickets(place)
        place.link().close("over")
        assert (await knock(place, ticket))[0] == b""
        assert place.nodes[1].ears == []


async def test_tickets_of_other_peers_survive_forget(tmp_path: Path) -> None:
    async with town(tmp_path, 3) as place:
        listener = place.nodes[1].lanes._listener
        (mine,) = tickets(place)
        other = listener.issue(place.nodes[2].node, "127.0.0.1", HTTP, 1)[4:]
        listener.forget(place.nodes[2].node)
        assert listener.redeem(other) is None
        assert listener.redeem(mine) == (place.nodes[0].node, HTTP)


async def test_tickets_are_bounded_per_peer_and_freed_on_use_or_expiry(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        held = [ticket for _ in range(20) for ticket in tickets(place, 255)]
        assert len(held) == MAX_TICKETS_PER_PEER
        assert len(set(held)) == len(held)
        assert place.nodes[1].lanes._listener.redeem(held[0]) is not None
        assert len(tickets(place, MAX_TICKETS_PER_ASK)) == 1
        place.clock.now += TICKET_SECONDS
        assert len(tickets(place, MAX_TICKETS_PER_ASK)) == MAX_TICKETS_PER_ASK


@pytest.mark.parametrize("kind", [0, 1, StreamKind.LANE_TICKET, 99, 255])
async def test_listener_issues_no_ticket_for_other_kinds(tmp_path: Path, kind: int) -> None:
    async with town(tmp_path) as place:
        assert tickets(place, 1, kind) == []


@pytest.mark.parametrize("question", [b"\x04\x01\x04", b"\x04" * 1000])
async def test_ticket_request_of_wrong_length_is_aborted(tmp_path: Path, question: bytes) -> None:
    async with town(tmp_path) as place:
        ear = Ear()
        place.link().open(StreamKind.LANE_TICKET, ear).write(question)
        assert isinstance(await ear.gone, ConnectionError)
        assert ear.heard == b""


async def test_slow_ticket_request_is_aborted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_listener, "TICKET_DEADLINE_SECONDS", 0.02)
    async with town(tmp_path) as place:
        ear = Ear()
        place.link().open(StreamKind.LANE_TICKET, ear).write(b"\x04")
        assert isinstance(await ear.gone, ConnectionError)


async def test_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_listener, "TICKET_DEADLINE_SECONDS", 0.05)
    async with town(tmp_path) as place:
        loop = asyncio.get_running_loop()
        _, silent = await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port)
        await silent.gone
        assert silent.heard == b""
        _, rude = await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port)
        rude.transport.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
        await rude.gone
        assert b"HTTP" not in rude.heard


async def test_pending_connections_are_bounded_without_locking_out_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_listener, "MAX_UNAUTHENTICATED", 3)
    monkeypatch.setattr(lane_listener, "MAX_PENDING_PER_HOST", 5)
    async with town(tmp_path) as place:
        loop, listener = asyncio.get_running_loop(), place.nodes[1].lanes._listener
        crowd = [(await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port))[1] for _ in range(3)]
        one_more = (await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port))[1]
        await crowd[0].gone  # the oldest makes room
        crowd = [*crowd[1:], one_more]
        assert listener._without_ticket == 3
        await lane(place)  # its host holds a ticket
        assert listener._without_ticket == 3
        assert not any(ear.gone.done() for ear in crowd)
        for ear in crowd:
            ear.transport.abort()
        await asyncio.gather(*(ear.gone for ear in crowd))
        await lane(place)


async def test_pending_connections_are_bounded_for_hosts_with_tickets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_listener, "MAX_PENDING_PER_HOST", 2)
    async with town(tmp_path) as place:
        loop = asyncio.get_running_loop()
        assert tickets(place)
        crowd = [(await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port))[1] for _ in range(2)]
        one_more = (await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port))[1]
        await crowd[0].gone
        assert not one_more.gone.done()
        for ear in (*crowd, one_more):
            ear.transport.abort()


async def test_unserved_lane_is_refused(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        place.nodes[1].tunnels._servers.clear()
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        assert place.nodes[0].lanes.facts(place.nodes[1].node).blocked == "the peer refused the lane"


async def test_failing_factory_leaves_no_lane(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with town(tmp_path) as place:

        def fail(peer: bytes) -> asyncio.BaseProtocol:
            raise ValueError("no such thing")

        place.nodes[1].tunnels.serve(HTTP, fail)
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        assert place.nodes[1].lanes._listener._pending == {}
    assert "no such thing" in caplog.text


# -- servers that are not the peer


def impersonate(listening: socket.socket, context: ssl.SSLContext) -> bytes:
    """Everything that a caller sends to a TLS server with another node's certificate."""
    connection, _ = listening.accept()
    heard = b""
    with connection:
        connection.settimeout(PATIENT_SECONDS)
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                while data := secure.recv(4096):
                    heard += data
        except OSError:  # the caller does not shut TLS down
            pass
    return heard


async def test_dialler_sends_nothing_to_another_node(tmp_path: Path) -> None:
    context = Identity.load_or_create(tmp_path / "impostor").server_context()
    async with town(tmp_path) as place:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            heard = asyncio.get_running_loop().run_in_executor(None, impersonate, listening, context)
            place.nodes[1].lanes._listener.port = listening.getsockname()[1]
            assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
            assert "does not get through" in place.nodes[0].lanes.facts(place.nodes[1].node).blocked
            assert await heard == b""


async def test_dialler_refuses_a_server_without_tls(tmp_path: Path) -> None:
    ears: list[Ear] = []

    class Rude(Ear):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            ears.append(self)
            self.transport.write(b"220 hello\r\n")

    server = await asyncio.get_running_loop().create_server(Rude, "127.0.0.1", 0)
    async with town(tmp_path) as place:
        place.nodes[1].lanes._listener.port = server.sockets[0].getsockname()[1]
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        await asyncio.gather(*(ear.gone for ear in ears))
        assert all(b"POST" not in ear.heard for ear in ears)
    server.close()


@pytest.mark.parametrize("answer", [b"", b"\x00", bytes((1, 2, 10, 9)), bytes((0, 80, 10, 1)) + bytes(33), bytes(5000)])
async def test_malformed_ticket_answer_is_no_ticket(tmp_path: Path, answer: bytes) -> None:
    class Odd(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(answer)
            transport.close()

    async with town(tmp_path) as place:
        place.nodes[1].lanes.ticket_handler = lambda link: Odd()  # type: ignore[method-assign]
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        assert place.nodes[0].lanes.facts(place.nodes[1].node).blocked


async def test_dialler_tries_other_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(tmp_path) as place:
        link = place.link()
        monkeypatch.setattr(lanes, "hosts_to_try", lambda linked, others: ("127.0.0.3", "127.0.0.1"))
        ear = await place.nodes[0].lanes.open(link, HTTP, Ear)
        assert isinstance(ear, Ear)
        ear.transport.write(b"found")
        assert await ear.until(5) == b"found"


def test_hosts_to_try_keeps_order_and_drops_loopback_claims() -> None:
    claimed = ["127.0.0.1", "::1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "odd", "10.0.0.1", "10.0.0.9", "fd00::1"]
    found = hosts_to_try(PeerAddress("10.0.0.9", 5), [PeerAddress(host, 5) for host in claimed])
    assert found == ("10.0.0.9", "10.0.0.1", "fd00::1")
    assert hosts_to_try(PeerAddress("127.0.0.1", 5), []) == ("127.0.0.1",)
    many = [PeerAddress(f"10.0.0.{number}", 5) for number in range(20)]
    assert len(hosts_to_try(many[0], many)) == dialler.MAX_HOSTS


# -- TCP does not get through


async def test_closed_port_is_probed_once_a_minute_in_the_background(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        opener, peer = place.nodes[0].lanes, place.nodes[1].node
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            free = other.getsockname()[1]
        real, place.nodes[1].lanes._listener.port = place.nodes[1].port, free
        assert await opener.open(place.link(), HTTP, Ear) is None
        assert str(free) in opener.facts(peer).blocked
        place.link().opened.clear()
        assert await opener.open(place.link(), HTTP, Ear) is None
        assert place.link().opened == []  # no ticket is requested
        place.nodes[1].lanes._listener.port = real
        opener._paths[peer].tickets.clear()
        place.clock.now += BLOCKED_SECONDS
        assert await opener.open(place.link(), HTTP, Ear) is None  # no caller waits for the probe
        await asyncio.gather(*opener._owner._tasks)
        assert opener.facts(peer).blocked == ""
        assert place.nodes[1].ears == []  # a probe opens no lane
        await lane(place)


async def test_silent_port_delays_a_caller_only_briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(tmp_path) as place:
        with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts and never answers
            place.nodes[1].lanes._listener.port = deaf.getsockname()[1]
            opener, peer = place.nodes[0].lanes, place.nodes[1].node
            monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", 0.01)
            assert await opener.open(place.link(), HTTP, Ear) is None
            attempts = len(opener._owner._tasks)
            assert attempts
            assert "still being tried" in opener.facts(peer).blocked  # the attempt goes on
            monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", PATIENT_SECONDS)
            assert await opener.open(place.link(), HTTP, Ear) is None  # the next caller does not wait
            assert len(opener._owner._tasks) == attempts
            for attempt in tuple(opener._owner._tasks):
                attempt.cancel()
            await asyncio.gather(*opener._owner._tasks, return_exceptions=True)
            assert opener.facts(peer).blocked == ""
            monkeypatch.setattr(lanes, "CONNECT_SECONDS", 0.01)
            assert await opener.open(place.link(), HTTP, Ear) is None
            assert "does not get through" in opener.facts(peer).blocked


async def test_late_lane_is_dropped_but_marks_tcp_as_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", -1.0)
    async with town(tmp_path) as place:
        opener = place.nodes[0].lanes
        made: list[Ear] = []
        assert await opener.open(place.link(), HTTP, lambda: made.append(Ear()) or made[-1]) is None  # type: ignore[func-returns-value]
        await asyncio.gather(*opener._owner._tasks)
        assert made == []
        assert opener.facts(place.nodes[1].node).proved
        assert opener.count(place.nodes[1].node) == 0
        monkeypatch.setattr(lanes, "OPEN_WAIT_SECONDS", PATIENT_SECONDS)
        await lane(place)


async def test_peer_without_listener_blocks_lanes(tmp_path: Path) -> None:
    async with town(tmp_path, listening=False) as place:
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        assert place.nodes[0].lanes.facts(place.nodes[1].node).blocked == "the peer accepts no lanes"


async def test_unanswered_ticket_request_blocks_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "CONNECT_SECONDS", 0.01)
    async with town(tmp_path) as place:
        place.nodes[1].lanes.ticket_handler = lambda link: asyncio.Protocol()  # type: ignore[method-assign]
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        assert "did not answer" in place.nodes[0].lanes.facts(place.nodes[1].node).blocked
        assert place.link().streams == 0


async def test_new_link_resets_blocked_lanes(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        listener = place.nodes[1].lanes._listener
        listener.port = 0
        assert await place.nodes[0].lanes.open(place.link(), HTTP, Ear) is None
        listener.port = place.nodes[1].port
        place.link().close("changed networks")
        await place.nodes[0].transport.dial(BootstrapAddress(place.nodes[1].node, ()))
        await lane(place)


# -- ending


async def test_lanes_end_with_their_link(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ears = [await lane(place) for _ in range(3)]
        place.link().close("over")
        await asyncio.gather(*(ear.gone for ear in [*ears, *place.nodes[1].ears]))
        assert place.nodes[0].lanes.count(place.nodes[1].node) == 0


async def test_link_that_ends_during_open_leaves_no_lane(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        opening = asyncio.get_running_loop().create_task(place.nodes[0].lanes.open(place.link(), HTTP, Ear))
        await asyncio.sleep(0)
        place.link().close("over")
        assert await opening is None
        assert place.nodes[0].lanes.count(place.nodes[1].node) == 0


async def test_lane_is_dropped_if_the_link_ended_before_acceptance(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        here, there = place.nodes
        made: list[Ear] = []

        def served(peer: bytes) -> Ear:
            here.lanes.forget(there.node)  # as when the link ends while the acceptance is in flight
            return there.serve(here.node)

        there.tunnels.serve(HTTP, served)
        assert await here.lanes.open(place.link(), HTTP, lambda: made.append(Ear()) or made[-1]) is None  # type: ignore[func-returns-value]
        assert made == []
        assert here.lanes.count(there.node) == 0
        await there.ears[0].gone


async def test_cancelled_caller_leaves_nothing(tmp_path: Path) -> None:
    """Cancel at every step: `turns` iterations of the loop after the start."""
    async with town(tmp_path) as place:
        opener, taken = place.nodes[0].lanes, 0
        for turns in range(0, 120, 3):
            opening = asyncio.get_running_loop().create_task(opener.open(place.link(), HTTP, Ear))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait({opening})
            taken += not opening.cancelled()
            if opener._owner._tasks:
                await asyncio.wait(opener._owner._tasks)
            place.clock.now += lanes.REFUSED_SECONDS
        for ear in place.nodes[1].ears:
            if opener.count(place.nodes[1].node) == 0:
                await ear.gone
        assert opener.count(place.nodes[1].node) == taken


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_close_leaves_no_port_connection_or_file(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        ears = [await lane(place) for _ in range(2)]
        loop = asyncio.get_running_loop()
        _, stranger = await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port)
        for node in place.nodes:
            await node.lanes.close()
        await asyncio.gather(*(ear.gone for ear in [*ears, *place.nodes[1].ears, stranger]))
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await loop.create_connection(Ear, "127.0.0.1", place.nodes[1].port)
    gc.collect()  # an open socket would raise a ResourceWarning, which is an error
    assert files(tmp_path) == ["node-key", "node-key"]


async def test_listener_falls_back_to_a_free_port(tmp_path: Path) -> None:
    async with town(tmp_path, listening=False) as place:
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            taken = other.getsockname()[1]
            port = place.nodes[1].tunnels.start(taken, "127.0.0.1")
            assert port not in (0, taken)
            await lane(place)


async def test_listener_uses_the_links_port_if_free(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        free = other.getsockname()[1]
    async with town(tmp_path, listening=False) as place:
        assert place.nodes[1].tunnels.start(free) == free
        await lane(place)


async def test_listener_refuses_tls_1_2(tmp_path: Path) -> None:
    async with town(tmp_path) as place:
        old = place.nodes[0].identity.client_context()
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.get_running_loop().create_connection(Ear, "127.0.0.1", place.nodes[1].port, ssl=old)
