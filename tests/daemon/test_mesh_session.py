"""What ties a node to its mesh: invites followed and given, secrets believed and not, what is kept on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import ALL_RIGHTS, NO_RIGHTS, Right, Statement, StatementKind
from meshllm.core.membership.messages import AskInvite, Ping
from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, NodeRecord, PeerAddress, RecordVersion, Role
from meshllm.daemon.app import App
from meshllm.daemon.member_management import load_home_state
from meshllm.daemon.mesh_keys import MeshKeys, new_authority
from meshllm.daemon.mesh_session import MeshSession
from meshllm.daemon.mesh_state import public_key
from meshllm.daemon.settings import Settings
from meshllm.daemon.viewer import Listening, Viewer
from meshllm.errors import EnvironmentFailure, PeerUnreachable
from meshllm.net.addresses import InterfaceAddress
from meshllm.net.base import Admitted, LinkFacts, StreamKind
from meshllm.net.quic.transport import QuicTransport
from meshllm.web.console.invitation import InviteWish
from meshllm.wire.mesh.certificates import sign_certificate, sign_statement
from meshllm.wire.mesh.codec import encode_message
from meshllm.wire.mesh.hello import HelloRefusal
from meshllm.wire.mesh.invite import Invite, InviteTerms, decode, invite_key

HOUR = 3600
PEER, MESH, PRIVATE = NodeId(b"p" * 32), MeshId(b"m" * 16), b"s" * 32
TERMS = InviteTerms(b"serial--", ALL_RIGHTS, 1 << 31, 99)
AT = PeerAddress("192.0.2.1", 7)
WAY = BootstrapAddress(PEER[:16], (AT,))


class FakeLink:
    """A link that is only looked at."""

    def __init__(
        self, admitted: Admitted | None = None, peer: NodeId = PEER, observed: PeerAddress | None = None
    ) -> None:
        self.facts = LinkFacts(peer, Role.NODE, MESH, AT, True, 0.01, 1, observed, admitted)
        self.closed = ""

    def close(self, reason: str) -> None:
        self.closed = reason


class Rig:
    """A membership that listens nowhere, and what it tells the core."""

    def __init__(self, home: Path, *invites: Invite, client: bool = False) -> None:
        self.home = home
        self.posted: list[e.Event] = []
        self.settings = Settings(home, invites=invites, client=client, node_name="box")
        self.membership = MeshSession(self.settings, load_home_state(self.settings), self.posted.append)
        self.membership._facts = [InterfaceAddress("eth0", "192.0.2.9", default=True)]
        self.membership._port = 99

    def kept(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "mesh.json").read_text())
        return found

    def up(self, link: FakeLink) -> FakeLink:
        self.membership.link_up(link)  # type: ignore[arg-type]
        return link


Make = Callable[..., Rig]


def given(there: Rig, rights: Right = ALL_RIGHTS) -> Admitted:
    """What a member of the invited mesh gives."""
    holder = MeshKeys(PEER, new_authority(public_key(PRIVATE)), PRIVATE, None, lambda: 1_900_000_000.0)
    made = holder.issue(there.membership.config.node, rights, 1 << 30, inviter=PEER)
    return Admitted(public_key(PRIVATE), made, PRIVATE if Right.ADMIT in rights else b"")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes rigs, all with one home, and closes them."""
    made: list[Rig] = []

    def make(*invites: Invite, client: bool = False) -> Rig:
        made.append(Rig(tmp_path, *invites, client=client))
        return made[-1]

    yield make
    for one in made:
        await one.membership.close()


async def test_mesh_session_saves_an_invited_mesh_once_a_link_proves_it(rig: Make) -> None:
    there = rig(Invite(MESH, b"k" * 16, TERMS, (WAY,)))
    before = there.kept()
    assert there.membership.config.mesh == MESH
    with pytest.raises(EnvironmentFailure, match="not joined"):
        await there.membership.invite(InviteWish())
    there.membership.carry_out(c.SaveMesh(MeshId(b"a" * 16)))
    there.membership.carry_out(c.SaveIncarnation(before["incarnation"] + 5))
    assert there.up(FakeLink(given(there))).closed == ""
    await there.membership.close()
    after = there.kept()
    assert (after["mesh"], after["private"]) == ((b"a" * 16).hex(), PRIVATE.hex())
    assert after["incarnation"] == before["incarnation"] + 5
    assert [entry["node"] for entry in after["peers"]] == [PEER.hex(), WAY.pin.hex()]
    aside = json.loads((there.home / "mesh.previous.json").read_text())
    assert (aside["mesh"], aside["key"]) == (before["mesh"], before["key"])


async def test_mesh_session_changes_no_state_without_a_link(rig: Make) -> None:
    there = rig(Invite(MESH, b"k" * 16, TERMS, (WAY,)))
    before = there.kept()
    there.membership.carry_out(c.SaveMesh(MESH))
    await there.membership.close()
    assert there.kept() == before


async def test_mesh_session_closes_a_link_that_admits_nobody(rig: Make) -> None:
    there = rig(Invite(MESH, b"k" * 16, TERMS, (WAY,)))
    before = there.kept()
    assert there.up(FakeLink()).closed == "it has not admitted this node"
    assert there.posted == []
    wrong = replace(given(there), private=b"x" * 32)
    assert there.up(FakeLink(wrong)).closed == ""
    assert [type(event) for event in there.posted[:2]] == [e.CertificateRenewed, e.LinkUp]
    await there.membership.close()
    assert there.kept()["key"] == public_key(PRIVATE).hex() != before["key"]
    assert there.kept()["private"] == "", "a private key of another mesh is worthless"


async def test_mesh_session_carries_out_only_mesh_commands(rig: Make) -> None:
    there = rig()
    assert there.membership.carry_out(c.SavePeers((WAY,)))
    assert there.membership.carry_out(c.SaveMesh(MESH))
    assert not there.membership.carry_out(c.FetchModel("m"))
    await there.membership.close()
    assert there.kept()["mesh"] == MESH.hex()
    assert [entry["node"] for entry in there.kept()["peers"]] == [WAY.pin.hex()]


async def test_mesh_session_starts_alone_without_peers_and_invites(rig: Make) -> None:
    there = rig()
    assert there.membership.starts_alone
    there.membership.carry_out(c.SavePeers((WAY,)))
    await there.membership.close()
    assert not rig().membership.starts_alone
    assert not rig(Invite(MESH, b"k" * 16, TERMS, (WAY,))).membership.starts_alone
    assert rig().membership.config.incarnation > there.membership.config.incarnation


async def test_mesh_session_invite_lists_this_node_and_two_live_peers(rig: Make) -> None:
    there = rig()
    config = there.membership.config

    def peer(number: int, status: PeerStatus) -> PeerView:
        record = NodeRecord(
            NodeId(bytes([number]) * 32), RecordVersion(1, 1), MESH, addresses=(PeerAddress("192.0.2.2", number),)
        )
        return PeerView(record, status)

    peers = tuple(peer(n, PeerStatus.ALIVE if n % 2 else PeerStatus.DEAD) for n in range(1, 20))
    there.membership.publish(MeshView(config.node, config.mesh, Role.NODE, peers=peers))
    given = decode((await there.membership.invite(InviteWish())).text)
    assert given.ways[0] == BootstrapAddress(config.node[:16], (PeerAddress("192.0.2.9", 99),))
    assert len(given.ways) == 3
    assert all(way.pin[0] % 2 for way in given.ways[1:])
    private = bytes.fromhex(there.kept()["private"])
    assert given.key == invite_key(private, given.terms, config.node)
    assert (given.terms.rights, given.terms.once) == (ALL_RIGHTS, False)
    guest = await there.membership.invite(InviteWish(60, ("use",), once=True))
    found = decode(guest.text)
    assert found.terms.expires == guest.expires < given.terms.expires
    assert (found.terms.rights, found.terms.once, len(found.ways)) == (Right.USE, True, 1)
    listed = there.membership.members.invites()
    assert [entry["serial"] for entry in listed] == [given.terms.serial.hex(), guest.serial]
    there.membership.members.revoke(guest.serial)
    assert isinstance(there.posted[-1], e.StatementsMade)


async def test_mesh_session_of_a_guest_is_a_client_and_creates_no_invites(rig: Make) -> None:
    there = rig(Invite(MESH, b"k" * 16, replace(TERMS, rights=Right.USE), (WAY,)))
    assert there.membership.config.role is Role.CLIENT
    there.up(FakeLink(given(there, Right.USE)))
    assert there.membership.members.rights_of(there.membership.config.node) == Right.USE
    assert there.membership.members.rights_of(PEER) == NO_RIGHTS
    with pytest.raises(EnvironmentFailure, match="may not admit"):
        await there.membership.invite(InviteWish())
    await there.membership.close()
    assert rig().membership.config.role is Role.CLIENT


async def test_mesh_session_connect_raises_connection_error(rig: Make) -> None:
    there = rig()
    with pytest.raises(OSError, match="without a mesh"):
        await there.membership.connect(PEER.hex(), asyncio.Protocol)

    class Nowhere:
        async def open(self, *_: object, **__: object) -> None:
            raise PeerUnreachable("Nobody answers.")

        async def close(self) -> None:
            """Nothing to close."""

    there.membership._tunnels = Nowhere()  # type: ignore[assignment]
    with pytest.raises(OSError, match="Nobody answers"):
        await there.membership.connect(PEER.hex(), asyncio.Protocol)


async def test_app_runs_without_a_mesh_if_udp_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: QuicTransport) -> int:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(QuicTransport, "_listen", refuse)
    monkeypatch.setenv("MESH_LLM_MODELS", str(tmp_path / "models"))
    said: list[str] = []
    statuses: list[Any] = []

    class Watcher(Viewer):
        def listening(self, listening: Listening) -> None:
            said.append("listening")

        def no_mesh(self, reason: str) -> None:
            said.append(reason)
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: statuses.append(app.status()))
            loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)

        def invite(self, token: str) -> None:
            said.append("an invite")

    app = App(Settings(tmp_path, port=0, console=0), Watcher())
    async with asyncio.timeout(60):
        await app.run()
    assert said[0] == "listening"
    assert "Protocol not supported" in said[1]
    assert len(said) == 2
    assert statuses[0].mesh is None
    assert "Protocol not supported" in statuses[0].mesh_reason


class FakeLinks:
    """A transport with these links, which `close` takes out."""

    def __init__(self, *links: FakeLink) -> None:
        self._links = links

    def links(self) -> list[FakeLink]:
        return [link for link in self._links if not link.closed]

    def link(self, peer: NodeId) -> FakeLink | None:
        return next((link for link in self.links() if link.facts.peer == peer), None)

    async def close(self) -> None:
        pass


def expiring(there: Rig, expires: float) -> FakeLink:
    """A link of a member whose certificate expires then."""
    link = FakeLink()
    made = there.membership._keys.issue(PEER, ALL_RIGHTS, 9, inviter=PEER).certificate
    link.facts = replace(link.facts, certificate=replace(made, expires=int(expires)))
    transport: Any = FakeLinks(link)
    there.membership._transport = transport
    there.membership._links.attach(transport)
    return there.up(link)


async def test_mesh_session_serves_nothing_on_the_link_of_an_expired_certificate(rig: Make) -> None:
    there = rig()
    clock = there.membership._wall
    now = clock.now() + 1
    clock._clock = lambda: now
    for use in ("message", "stream"):
        link = expiring(there, now + HOUR)
        there.posted.clear()
        there.membership.message(link, encode_message(Ping(1)))  # type: ignore[arg-type]
        assert [type(event) for event in there.posted] == [e.MessageReceived]
        there.posted.clear()
        now += HOUR
        if use == "message":
            there.membership.message(link, encode_message(Ping(2)))  # type: ignore[arg-type]
        else:
            assert there.membership.stream(link, StreamKind.HTTP_TUNNEL) is None  # type: ignore[arg-type]
        assert there.posted == []
        assert link.closed == "its certificate has expired"


async def test_mesh_session_closes_the_link_when_its_certificate_expires(rig: Make) -> None:
    there = rig()
    fired = asyncio.Event()
    clock = there.membership._wall
    now = float(int(clock.now()) + 1)
    clock._clock = lambda: now
    link = expiring(there, now + 1)
    assert there.membership._expiry is not None
    assert not link.closed
    # The clock of this machine reaches it: nothing has to come from the peer.
    now += 1
    loop = asyncio.get_running_loop()
    loop.call_at(there.membership._expiry.when(), loop.call_soon, fired.set)
    await fired.wait()
    assert link.closed == "its certificate has expired"


async def test_mesh_session_renews_no_expired_certificate(rig: Make) -> None:
    there = rig()
    sent: list[bytes] = []
    link = expiring(there, there.membership._wall.now() + HOUR)
    link.send = lambda data: sent.append(data) is None  # type: ignore[attr-defined]
    member = link.facts.certificate
    assert member is not None
    there.membership.carry_out(c.IssueCertificate(PEER, replace(member, expires=int(there.membership._wall.now()))))
    assert sent == []
    there.membership.carry_out(c.IssueCertificate(PEER, member))
    assert len(sent) == 1


@pytest.mark.parametrize(("met", "gets"), [("before the change", True), ("after the change", False)])
async def test_late_learner_gives_nothing_of_the_new_key_for_a_certificate_of_the_old_one(
    rig: Make, met: str, gets: bool
) -> None:
    there = rig()
    keys, clock = there.membership._keys, there.membership._wall
    now = clock.now() + HOUR
    clock._clock = lambda: now
    private = keys.private
    changed = Statement(StatementKind.NEW_KEY, public_key(PRIVATE), int(now), NodeId(b"o" * 32))
    if not gets:
        now += 60  # the mesh has a new key already, of which this node does not know
    link = expiring(there, now + HOUR)
    member = link.facts.certificate
    assert member is not None
    now += 60
    signing = Ed25519PrivateKey.from_private_bytes(private)
    assert keys.authority.learn(sign_statement(changed, keys.authority.key, signing.sign).data) is not None
    keys.private = PRIVATE
    sent: list[bytes] = []
    link.send = lambda data: sent.append(data) is None  # type: ignore[attr-defined]
    there.membership.carry_out(c.IssueCertificate(PEER, member))
    there.membership.carry_out(c.MakeInvite(PEER, AskInvite(Right.USE, int(now) + 60, 60, 0)))
    assert len(sent) == (2 if gets else 0)
    # At admission likewise; and what the new key signed counts, whenever it was met.
    old = sign_certificate(member, public_key(private), signing.sign)
    found = there.membership._admission.certificate_of(PEER, old.data)
    assert isinstance(found, HelloRefusal) != gets
    new = keys.issue(PEER, Right.USE, HOUR, inviter=PEER)
    assert there.membership._admission.certificate_of(PEER, new.data) == new.certificate
    sent.clear()
    there.membership.carry_out(c.IssueCertificate(PEER, new.certificate))
    assert len(sent) == 1
