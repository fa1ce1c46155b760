"""An invite that one member asks another for is good for what was asked, and one member cannot fill the list."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from meshllm.core import events as e
from meshllm.core.membership.certificates import MEMBER_LIFETIME, Right
from meshllm.core.membership.messages import AskInvite, GrantedInvite
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, PeerAddress
from meshllm.daemon import invite_requests as r
from meshllm.daemon.invite_requests import InviteRequests
from meshllm.daemon.member_management import HomeState, load_home_state
from meshllm.daemon.settings import Settings
from meshllm.errors import EnvironmentFailure
from meshllm.web.console.invitation import InviteWish
from meshllm.wire.mesh.invite import decode, invite_key

PEER, MESH = NodeId(b"p" * 32), MeshId(b"m" * 16)
GIVEN = Right.USE | Right.SERVE


class Node:
    """Founder or, with `rights`, a member without the mesh key. Its clock stands still."""

    def __init__(self, home: Path, rights: Right | None = None) -> None:
        self.found: HomeState = load_home_state(Settings(home))
        self.now = self.found.clock.now()
        self.posted: asyncio.Queue[e.Event] = asyncio.Queue()
        keys = self.found.keys
        if rights is not None:
            keys.certificate = keys.issue(keys.node, rights, 99, inviter=PEER)
            keys.private = b""
        self.requests = InviteRequests(
            keys, self.found.book, lambda: self.now, self.posted.put_nowait, lambda *_, **__: None
        )

    def asked(self, rights: Right = GIVEN, seconds: int = 60, lifetime: int = 99, flags: int = 0) -> AskInvite:
        """A request at the time of this node."""
        return AskInvite(rights, int(self.now) + seconds, lifetime, flags)


def test_granted_invite_is_bounded_by_the_request_and_the_maker(tmp_path: Path) -> None:
    node = Node(tmp_path)
    given = node.requests.grant(PEER, node.asked(flags=r.ONCE))
    assert (given.rights, given.expires, given.lifetime, given.refused) == (GIVEN, int(node.now) + 60, 99, "")
    late = node.requests.grant(PEER, node.asked(seconds=10**8, lifetime=10**9))
    assert late.expires == int(node.now) + r.MAX_ASKED_SECONDS
    assert late.lifetime < MEMBER_LIFETIME
    for bad in (node.asked(seconds=0), node.asked(seconds=-9), node.asked(flags=2)):
        assert node.requests.grant(PEER, bad).refused
    entry = node.found.book.invites[given.serial.hex()]
    assert (entry.by, entry.once) == (PEER.hex(), True)


def test_one_member_cannot_fill_the_list_of_invites(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for _ in range(r.MAX_OPEN_ASKED):
        assert not node.requests.grant(PEER, node.asked()).refused
    refused = node.requests.grant(PEER, node.asked())
    assert "are open" in refused.refused
    assert not refused.key
    assert not node.requests.grant(NodeId(b"q" * 32), node.asked()).refused
    node.now += 61
    assert not node.requests.grant(PEER, node.asked()).refused


async def test_member_shows_the_invite_that_it_was_given(tmp_path: Path) -> None:
    maker, node = Node(tmp_path / "maker"), Node(tmp_path / "node", GIVEN | Right.INVITE)
    way = BootstrapAddress(maker.found.keys.node, (PeerAddress("192.0.2.1", 9),))
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(node.requests.ask(InviteWish(60, once=True), MESH, lambda peer: way))
    wanted = await node.posted.get()
    assert isinstance(wanted, e.InviteWanted)
    granted = maker.requests.grant(node.found.keys.node, wanted.ask)
    node.requests.answered(maker.found.keys.node, granted)
    shown = await waiting
    invite = decode(shown.text)
    assert (invite.terms.rights, invite.terms.once, invite.terms.maker_only) == (GIVEN, True, True)
    assert invite.key == invite_key(maker.found.keys.private, invite.terms, maker.found.keys.node)
    assert shown.rights == ("use", "serve")


@pytest.mark.parametrize(
    "more", [{"rights": GIVEN | Right.HOST}, {"expires": 1 << 31}, {"refused": "busy", "key": b""}]
)
async def test_member_shows_no_invite_that_it_did_not_ask_for(tmp_path: Path, more: dict[str, object]) -> None:
    node = Node(tmp_path, GIVEN | Right.INVITE)
    way = BootstrapAddress(PEER, (PeerAddress("192.0.2.1", 9),))
    waiting = asyncio.get_running_loop().create_task(node.requests.ask(InviteWish(60), MESH, lambda peer: way))
    wanted = await node.posted.get()
    assert isinstance(wanted, e.InviteWanted)
    fields = {"serial": bytes(8), "rights": GIVEN, "expires": wanted.ask.expires, "lifetime": 9, "key": bytes(16)}
    node.requests.answered(PEER, GrantedInvite(**{**fields, **more}))  # type: ignore[arg-type]
    with pytest.raises(EnvironmentFailure, match="No invite"):
        await waiting


async def test_member_asks_only_for_what_it_may_give(tmp_path: Path) -> None:
    node = Node(tmp_path / "a", GIVEN | Right.INVITE)
    for rights in (("host",), ("use", "admit"), ("invite",)):
        with pytest.raises(EnvironmentFailure, match="may not give"):
            await node.requests.ask(InviteWish(rights=rights), MESH, lambda peer: None)
    for held in (GIVEN, Right.INVITE):
        with pytest.raises(EnvironmentFailure, match="may not admit"):
            await Node(tmp_path / str(int(held)), held).requests.ask(InviteWish(), MESH, lambda peer: None)
    assert node.posted.empty()
