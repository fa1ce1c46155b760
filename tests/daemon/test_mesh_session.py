"""What ties a node to its mesh: invites followed and given, secrets believed and not, what is kept on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, NodeRecord, PeerAddress, RecordVersion, Role
from meshllm.daemon.app import App, Listening, Viewer
from meshllm.daemon.mesh_session import MeshSession, load_home_state
from meshllm.daemon.settings import Settings
from meshllm.errors import EnvironmentFailure, PeerUnreachable
from meshllm.net.addresses import InterfaceAddress
from meshllm.net.base import LinkFacts
from meshllm.net.quic.transport import QuicTransport
from meshllm.wire.mesh.invite import Invite, decode, invite_key

PEER, MESH, SECRET = NodeId(b"p" * 32), MeshId(b"m" * 16), b"s" * 16
AT = PeerAddress("192.0.2.1", 7)
WAY = BootstrapAddress(PEER[:16], (AT,))


class FakeLink:
    """A link that is only looked at."""

    def __init__(self, secret: bytes | None = None, peer: NodeId = PEER, observed: PeerAddress | None = None) -> None:
        self.facts = LinkFacts(peer, Role.NODE, MESH, AT, True, 0.01, 1, observed, secret)
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
    there = rig(Invite(MESH, SECRET, 0, (WAY,)))
    before = there.kept()
    assert there.membership.config.mesh == MESH
    with pytest.raises(EnvironmentFailure, match="not joined"):
        there.membership.invite(0)
    there.membership.carry_out(c.SaveMesh(MeshId(b"a" * 16)))
    there.membership.carry_out(c.SaveIncarnation(before["incarnation"] + 5))
    assert there.up(FakeLink()).closed == ""
    await there.membership.close()
    after = there.kept()
    assert (after["mesh"], after["secret"]) == ((b"a" * 16).hex(), SECRET.hex())
    assert after["incarnation"] == before["incarnation"] + 5
    assert [entry["node"] for entry in after["peers"]] == [PEER.hex(), WAY.pin.hex()]
    aside = json.loads((there.home / "mesh.previous.json").read_text())
    assert (aside["mesh"], aside["secret"]) == (before["mesh"], before["secret"])


async def test_mesh_session_changes_no_state_without_a_link(rig: Make) -> None:
    there = rig(Invite(MESH, SECRET, 0, (WAY,)))
    before = there.kept()
    there.membership.carry_out(c.SaveMesh(MESH))
    await there.membership.close()
    assert there.kept() == before


async def test_mesh_session_rejects_a_secret_that_does_not_match_the_invite(rig: Make) -> None:
    there = rig(Invite(MESH, invite_key(SECRET, 99), 99, (WAY,)))
    before = there.kept()
    for wrong in (None, b"", b"x" * 16, SECRET + b"x"):
        link = there.up(FakeLink(wrong))
        assert "does not match the invite" in link.closed
    assert there.posted == []
    there.membership.link_down(FakeLink(), "closed")  # type: ignore[arg-type]
    assert there.posted == []
    assert there.up(FakeLink(SECRET)).closed == ""
    assert isinstance(there.posted[0], e.LinkUp)
    assert decode(there.membership.invite(0).text).key == SECRET
    await there.membership.close()
    assert there.kept()["secret"] == SECRET.hex() != before["secret"]


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
    assert not rig(Invite(MESH, SECRET, 0, (WAY,))).membership.starts_alone
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
    given = decode(there.membership.invite(0).text)
    assert given.ways[0] == BootstrapAddress(config.node[:16], (PeerAddress("192.0.2.9", 99),))
    assert len(given.ways) == 3
    assert all(way.pin[0] % 2 for way in given.ways[1:])
    assert given.expires == 0
    assert given.key.hex() == there.kept()["secret"]
    expiring = there.membership.invite(60)
    assert decode(expiring.text).expires == expiring.expires > 0
    assert decode(expiring.text).key == invite_key(given.key, expiring.expires)


async def test_mesh_session_of_a_client_creates_no_invites(rig: Make) -> None:
    there = rig(client=True)
    assert not there.membership.starts_alone
    assert there.membership.has_no_mesh
    assert not rig(Invite(MESH, SECRET, 0, (WAY,)), client=True).membership.has_no_mesh
    with pytest.raises(EnvironmentFailure, match="holds no mesh secret"):
        there.membership.invite(0)


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
