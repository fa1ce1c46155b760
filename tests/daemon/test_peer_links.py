"""The hands of the core for links: its wishes are done and answered; what peers send is bounded and told as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership import messages as m
from meshllm.core.records import (
    BootstrapAddress,
    MeshId,
    NodeId,
    NodeRecord,
    PeerAddress,
    RecordVersion,
    Role,
    SignedRecord,
)
from meshllm.daemon import peer_links as subject
from meshllm.daemon.peer_links import PeerLinks
from meshllm.errors import DialLimitReached, LinkClosed, MeshError, PeerRefused, PeerUnreachable
from meshllm.net.base import Link, LinkFacts, LinkHandler, StreamKind
from meshllm.wire.mesh.codec import ParsedMessage, encode_message, encode_record, parse_message

PEER, OTHER = NodeId(b"p" * 32), NodeId(b"o" * 32)
AT = PeerAddress("192.0.2.1", 7)
WAY = BootstrapAddress(PEER[:16], (AT,))


@dataclass
class FakeLink:
    """A link whose other end is the test."""

    peer: NodeId = PEER
    streams: int = 0
    rtt: float = 0.001
    sent: list[bytes] = field(default_factory=list)
    closed: str = ""
    deaf: bool = False

    @property
    def facts(self) -> LinkFacts:
        return LinkFacts(self.peer, Role.NODE, MeshId(b"m" * 16), AT, True, 0.001, 1)

    def open(self, kind: StreamKind, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        raise NotImplementedError

    def send(self, payload: bytes) -> bool:
        self.sent.append(payload)
        return not self.deaf

    def close(self, reason: str) -> None:
        self.closed = reason


@dataclass
class FakeTransport:
    """A transport with the links it was given; what is dialled fails with `error`, if there is one."""

    known: dict[NodeId, FakeLink] = field(default_factory=dict)
    error: Exception | None = None
    dialled: list[BootstrapAddress] = field(default_factory=list)

    async def start(self, handler: LinkHandler) -> int:
        return 1

    async def dial(self, way: BootstrapAddress) -> FakeLink:
        self.dialled.append(way)
        if self.error is not None:
            raise self.error
        return self.known[PEER]

    def link(self, peer: NodeId) -> FakeLink | None:
        return self.known.get(peer)

    def links(self) -> list[Link]:
        return list(self.known.values())

    async def close(self, reason: str = "") -> None:
        self.known.clear()


@dataclass
class Rig:
    """Links between a core (what was posted) and a network (the transport)."""

    posted: asyncio.Queue[e.Event]
    transport: FakeTransport
    links: PeerLinks
    busy: set[NodeId]
    invited: list[bool]  # not empty: it dials with an invite

    def up(self, peer: NodeId = PEER) -> FakeLink:
        link = self.transport.known[peer] = FakeLink(peer)
        self.links.link_up(link)
        return link

    async def next(self) -> e.Event:
        async with asyncio.timeout(10):
            return await self.posted.get()

    def all(self) -> list[e.Event]:
        return [self.posted.get_nowait() for _ in range(self.posted.qsize())]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Links that accept every signature."""
    posted: asyncio.Queue[e.Event] = asyncio.Queue()
    transport, busy = FakeTransport(), set[NodeId]()
    invited: list[bool] = []

    def serve(link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return asyncio.Protocol() if kind is StreamKind.HTTP_TUNNEL else None

    made = PeerLinks(
        posted.put_nowait,
        encode_message,
        parse_message,
        lambda *_: True,
        serve,
        busy.__contains__,
        by_invite=lambda: bool(invited),
    )
    made.attach(transport)
    yield Rig(posted, transport, made, busy, invited)
    await made.close()


async def test_peer_links_post_link_up_with_all_facts(rig: Rig) -> None:
    link = rig.up()
    assert await rig.next() == e.LinkUp(PEER, Role.NODE, MeshId(b"m" * 16), AT, 0.001, True)
    rig.links.link_down(link, "it stops")
    assert await rig.next() == e.LinkDown(PEER, "it stops")
    rig.links.link_down(link, "twice")
    rig.links.link_down(FakeLink(OTHER), "never up")
    assert rig.all() == []


@pytest.mark.parametrize("reason", ["revoked_invite", "used_invite", "wrong_invite", "expelled", "busy", "joining"])
@pytest.mark.parametrize("invited", [True, False])
async def test_peer_links_believe_that_an_invite_is_void_only_while_they_use_one(
    rig: Rig, reason: str, invited: bool
) -> None:
    rig.transport.error = PeerRefused("No.", reason=reason)
    rig.invited.extend([True] if invited else [])
    rig.links.carry_out(c.DialPeer(WAY))
    failed = await rig.next()
    assert isinstance(failed, e.DialFailed)
    assert failed.invite_void is (invited and reason not in ("busy", "joining"))


@pytest.mark.parametrize(
    ("error", "final", "local"),
    [
        (PeerUnreachable("Nobody answers.", advice="Look."), False, False),
        (PeerRefused("It will not have us.", advice="Look."), True, False),
        (MeshError("Something.", advice="Look."), False, False),
        (DialLimitReached("Too many dials.", advice="Look."), False, True),
        (LinkClosed("This node stops.", advice="Look."), False, True),
    ],
)
async def test_peer_links_answer_each_failed_dial(rig: Rig, error: MeshError, final: bool, local: bool) -> None:
    rig.transport.error = error
    rig.links.carry_out(c.DialPeer(WAY))
    assert await rig.next() == e.DialFailed(WAY, error.message, "Look.", final, local)


async def test_peer_links_answer_an_unexpected_error_in_a_dial(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.transport.error = KeyError("oops")
    rig.links.carry_out(c.DialPeer(WAY))
    failed = await rig.next()
    assert isinstance(failed, e.DialFailed)
    assert "oops" in failed.reason
    assert failed.local
    assert "Traceback" in caplog.text


async def test_peer_links_encode_a_message_once_for_several_peers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = rig.up(), rig.up(OTHER)
    message = m.Wanted((PEER,))
    encoded: list[m.Message] = []

    def count(message: m.Message) -> bytes:
        encoded.append(message)
        return encode_message(message)

    monkeypatch.setattr(rig.links, "_encode", count)
    for peer in (PEER, OTHER, NodeId(b"x" * 32)):
        rig.links.carry_out(c.Send(peer, message))
    assert one.sent == two.sent == [encode_message(message)]
    assert encoded == [message]


async def test_peer_links_log_an_own_message_above_the_bounds(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    link = rig.up()
    rig.links.carry_out(c.Send(PEER, m.Wanted(tuple(NodeId(n.to_bytes(32, "big")) for n in range(5000)))))
    assert link.sent == []
    assert "bug" in caplog.text
    rig.links.carry_out(c.Send(PEER, m.Ping(1)))
    assert link.sent == [encode_message(m.Ping(1))]


async def test_peer_links_post_messages_and_ignore_newer_kinds(rig: Rig) -> None:
    link = rig.up()
    rig.links.message(link, encode_message(m.Ping(3)))
    rig.links.message(link, b"\x91\x7f")  # a message of kind 127
    assert rig.all()[1:] == [e.MessageReceived(PEER, m.Ping(3))]
    assert link.closed == ""


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"nonsense", b"\x92\x01\xff", encode_message(m.Ping(1))[:-1]])
async def test_peer_links_close_only_the_link_of_a_malformed_message(rig: Rig, payload: bytes) -> None:
    bad, good = rig.up(), rig.up(OTHER)
    rig.links.message(bad, payload)
    assert "malformed message" in bad.closed
    # What comes behind it is not even looked at.
    rig.links.message(bad, encode_message(m.Ping(1)))
    rig.links.message(good, encode_message(m.Ping(2)))
    assert rig.all()[2:] == [e.MessageReceived(OTHER, m.Ping(2))]
    assert good.closed == ""


async def test_peer_links_close_a_link_that_exceeds_its_byte_allowance(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(rig.links, "_parse", lambda payload: ParsedMessage((), lambda records, stale: m.Ping(1)))
    monkeypatch.setattr(rig.links, "_clock", lambda: now)
    flood, quiet = rig.up(), rig.up(OTHER)
    piece = bytes(256 << 10)
    most = subject.BYTES_AT_ONCE // len(piece)
    for sent in range(most + 1):
        assert flood.closed == "", f"after {sent}"
        rig.links.message(flood, piece)
    assert "more bytes than it may" in flood.closed
    rig.links.message(flood, piece)
    assert len(rig.all()) == 2 + most, "what comes behind it is not looked at"
    # Ten times as much over a time in which it is allowed does no harm.
    for _ in range(most * 10):
        now += len(piece) / subject.BYTES_PER_SECOND
        rig.links.message(quiet, piece)
    assert quiet.closed == ""
    assert len(rig.all()) == most * 10


async def test_peer_links_close_a_link_that_exceeds_its_record_allowance(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    records = ((b"", b""),) * 1000
    monkeypatch.setattr(
        rig.links, "_parse", lambda payload: ParsedMessage(records, lambda found, stale: m.Records(found))
    )
    monkeypatch.setattr(rig.links, "_clock", lambda: now)
    flood, quiet = rig.up(), rig.up(OTHER)
    for sent in range(subject.RECORDS_AT_ONCE // 1000 + 1):
        assert flood.closed == "", f"after {sent}"
        rig.links.message(flood, b"short")
    assert "more records than it may" in flood.closed
    for _ in range(50):
        now += 1000 / subject.RECORDS_PER_SECOND
        rig.links.message(quiet, b"short")
    assert quiet.closed == ""


async def test_peer_links_deliver_the_last_record_before_link_down(rig: Rig) -> None:
    link = rig.up()
    made = NodeRecord(PEER, RecordVersion(1, 2), MeshId(b"m" * 16), leaving=True)
    last = m.Records((SignedRecord(made, encode_record(made), bytes(64)),), push=True)
    rig.links.message(link, encode_message(last))
    rig.links.link_down(link, "it stops")
    assert rig.all()[1:] == [e.MessageReceived(PEER, last), e.LinkDown(PEER, "it stops")]


async def test_peer_links_use_one_timer_for_all_hang_ups(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "HANG_UP_CHECK_SECONDS", 0.0)
    rig.up().streams = 1
    for _ in range(20):
        rig.links.carry_out(c.HangUp(PEER, "enough"))
    looks = 0
    link_of = rig.transport.link

    def count(peer: NodeId) -> FakeLink | None:
        nonlocal looks
        looks += 1
        return link_of(peer)

    monkeypatch.setattr(rig.transport, "link", count)
    for _ in range(30):
        await asyncio.sleep(0)
    assert 1 <= looks <= 31


async def test_peer_links_limit_log_lines_about_bad_peers(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(50):
        rig.links.message(rig.up(), b"nonsense")
    assert len(caplog.records) == 1


async def test_peer_links_hang_up_only_unused_links(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "HANG_UP_CHECK_SECONDS", 0.0)
    streaming, tunnelled, idle = rig.up(), rig.up(OTHER), rig.up(NodeId(b"i" * 32))
    streaming.streams, rig.busy = 1, rig.busy
    rig.busy.add(OTHER)
    for link in (streaming, tunnelled, idle):
        rig.links.carry_out(c.HangUp(link.peer, "enough"))
    assert [link.closed for link in (streaming, tunnelled, idle)] == ["", "", "enough"]
    streaming.streams = 0
    rig.busy.clear()
    async with asyncio.timeout(10):
        while not (streaming.closed and tunnelled.closed):  # noqa: ASYNC110 - a fake link has no event for it
            await asyncio.sleep(0)


async def test_peer_links_keep_a_link_that_is_dialled_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "HANG_UP_CHECK_SECONDS", 0.0)
    link, other = rig.up(), rig.up(OTHER)
    link.streams = other.streams = 1
    rig.links.carry_out(c.HangUp(PEER, "enough"))
    rig.links.carry_out(c.HangUp(OTHER, "enough"))
    rig.links.carry_out(c.DialPeer(WAY))
    link.streams = other.streams = 0
    async with asyncio.timeout(10):
        while not other.closed:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert link.closed == ""
    assert rig.transport.dialled == [WAY]


async def test_peer_links_ignore_a_hang_up_without_a_link(rig: Rig) -> None:
    rig.links.carry_out(c.HangUp(PEER, "enough"))
    assert rig.all() == []
    assert rig.links._hang_up_timer is None


async def test_peer_links_serve_streams_by_kind_until_closed(rig: Rig) -> None:
    link = rig.up()
    assert rig.links.stream(link, StreamKind.HTTP_TUNNEL) is not None
    assert rig.links.stream(link, StreamKind.RPC_TUNNEL) is None
    await rig.links.close()
    assert rig.links.stream(link, StreamKind.HTTP_TUNNEL) is None
    rig.links.carry_out(c.DialPeer(WAY))
    assert rig.transport.dialled == []
