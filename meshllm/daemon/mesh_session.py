"""What ties a running node to its mesh: its key, the secret, where it listens, whom it can reach and how.

Law: this is loaded only once callers are being served, because what it imports takes long; the core decides, and this
carries out. A secret passes through here and goes nowhere but into `mesh.json`, a handshake or an invite that
somebody of this machine asked for.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random

from meshllm import __version__
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.views import MeshView, PeerStatus
from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, Role, short
from meshllm.daemon.mesh_choice import MeshChoice, decide
from meshllm.daemon.mesh_state import SECRET_BYTES, MeshState
from meshllm.daemon.message_counters import MessageCounters
from meshllm.daemon.peer_links import PeerLinks
from meshllm.daemon.settings import Settings
from meshllm.daemon.state_writer import StateWriter
from meshllm.errors import EnvironmentFailure, LinkClosed, MeshError, PortTaken
from meshllm.net.addresses import InterfaceAddress, ObservedAddresses, addresses, read_interfaces
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.net.handshake import Credentials
from meshllm.net.identity import Identity, verify
from meshllm.net.lanes.lanes import Lanes
from meshllm.net.quic.transport import QuicTransport
from meshllm.net.tunnels.tunnels import Tunnels
from meshllm.web.console.server import Invitation
from meshllm.wire.mesh.codec import encode_message, parse_message, signer
from meshllm.wire.mesh.invite import MAX_WAYS, Invite, encode, invite_key

log = logging.getLogger(__name__)

PROTOCOL = (1, 1)
# "off": nothing is listened on but UDP, and tunnels go over QUIC alone; to measure, or where a firewall minds TCP.
LANES_VARIABLE = "MESH_LLM_LANES"
# A laptop that comes to another network says so this soon; looking costs a millisecond.
ADDRESSES_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HomeState:
    """What this node's home says of it: read once, at the start."""

    identity: Identity
    state: MeshState
    incarnation: int


def look_up(settings: Settings) -> HomeState:
    """The node's key and its mesh, made if missing; blocks on the disk. Raises DamagedState, EnvironmentFailure."""
    identity, state = Identity.load_or_create(settings.home), MeshState.open(settings.home)
    return HomeState(identity, state, state.next_incarnation())


class MeshSession:
    """This node's part in a mesh, as far as it is not the core's: `begin` it, and `close` it at the end."""

    def __init__(self, settings: Settings, found: HomeState, post: Callable[[e.Event], None]) -> None:
        """Raises UsageError if the invites lead to different meshes."""
        self._settings = settings
        self._identity = found.identity
        self._state = found.state
        self._post = post
        self._belonging: MeshChoice = decide(found.state.mesh, found.state.secret, settings.invites)
        role = Role.CLIENT if settings.client else Role.NODE
        self.config = MeshConfig(
            node=found.identity.node,
            mesh=self._belonging.mesh,
            role=role,
            incarnation=found.incarnation,
            name=settings.node_name or socket.gethostname(),
            software=f"mesh-llm {__version__}",
            protocol=PROTOCOL,
            sign=signer(found.identity.sign),
            idle=found.state.founded and not self._belonging.foreign,
        )
        self._keeper = StateWriter()
        self._observed = ObservedAddresses()
        self._links = PeerLinks(post, encode_message, parse_message, verify, self._accept, self._in_use)
        self._port = 0
        self._remembered = False
        self._facts: list[InterfaceAddress] = []
        self._addresses: tuple[PeerAddress, ...] = ()
        self._view: MeshView | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._transport: Transport | None = None
        self._tunnels: Tunnels | None = None

    @property
    def looks_for_nobody(self) -> bool:
        """Whether this node is a mesh of one, for others to join."""
        return not (self._belonging.ways or self._state.peers) and self.config.role is Role.NODE

    @property
    def lost(self) -> bool:
        """Whether this is a client that knows of no mesh: of no use to anybody."""
        return not (self._belonging.ways or self._state.peers) and self.config.role is Role.CLIENT

    async def begin(self, serve: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """Listen for peers, whose HTTP tunnels end in `serve`, and tell the core where we are and whom to look for.

        Raises PortTaken if `--bind-port` is, EnvironmentFailure where nothing can be listened on at all.
        """
        await self._listen()
        assert self._tunnels is not None
        self._tunnels.serve(StreamKind.HTTP_TUNNEL, serve)
        if self._state.port != self._port:
            self._keeper.keep(lambda: self._state.save_port(self._port))
        self._look_at_addresses()
        if self._belonging.ways:
            self._post(e.JoinWanted(self._belonging.ways))
        if not self._belonging.foreign and self._state.peers:
            self._post(e.JoinWanted(self._state.peers, invited=False))

    async def _listen(self) -> None:
        wanted = self._settings.bind_port
        for port in (wanted,) if wanted is not None else (self._state.port or 0, 0):
            transport = QuicTransport(
                self._identity, self._credentials, port=port, max_clients=self._settings.max_clients
            )
            self._transport = transport
            lanes = Lanes(self._identity) if os.environ.get(LANES_VARIABLE, "on") != "off" else None
            self._tunnels = Tunnels(transport, lanes)
            self._links.attach(transport)
            try:
                self._port = await transport.start(self)
            except PortTaken as error:
                if wanted:
                    raise
                log.info("%s", error)
                continue
            except OSError as error:
                raise EnvironmentFailure(f"No UDP port can be opened: {error.strerror or error}.") from error
            self._tunnels.start(self._port)
            return
        raise EnvironmentFailure("No UDP port can be opened.")

    async def close(self) -> None:
        """Part from all peers, politely; nothing is left, and everything is kept that should be."""
        if self._watcher is not None:
            self._watcher.cancel()
        await self._links.close()
        if self._tunnels is not None:
            await self._tunnels.close()
        if self._transport is not None:
            await self._transport.close()
        await self._keeper.close()

    # -- what the core wants

    def carry_out(self, command: c.Command) -> bool:
        """Do what `command` asks for; False if it is not about the mesh."""
        match command:
            case c.DialPeer() | c.HangUp() | c.Send():
                self._links.carry_out(command)
            case c.SaveIncarnation(incarnation):
                self._keeper.keep(lambda: self._state.save_incarnation(incarnation))
            case c.SavePeers(ways):
                self._keeper.keep(lambda: self._state.save_peers(ways))
            case c.SaveMesh(mesh):
                self._belonging = replace(self._belonging, mesh=mesh)
                if not self._belonging.foreign:
                    self._keeper.keep(lambda: self._state.save_mesh(mesh))
            case _:
                return False
        return True

    def publish(self, view: MeshView | None) -> None:
        """What the core knows of the mesh now."""
        self._view = view

    # -- links, as the transport tells of them

    def link_up(self, link: Link) -> None:
        """Somebody knows our secret, or we theirs: what we were invited to is true."""
        if self._belonging.foreign and not self._adopt(link):
            link.close("the mesh secret it gave does not fit the invite")
            return
        self._remember(link)
        if link.facts.observed is not None:
            self._observed.record(link.facts.peer, link.facts.observed)
            self._tell_addresses()
        self._links.link_up(link)

    def link_down(self, link: Link, reason: str) -> None:
        """A link is gone."""
        self._observed.forget(link.facts.peer)
        if self._tunnels is not None:
            self._tunnels.link_down(link)
        self._links.link_down(link, reason)

    def message(self, link: Link, payload: bytes) -> None:
        """A peer said something."""
        self._links.message(link, payload)

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """A peer opens a stream."""
        return self._links.stream(link, kind)

    def _accept(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self._tunnels.accept(link, kind) if self._tunnels is not None else None

    def _in_use(self, peer: NodeId) -> bool:
        return self._tunnels is not None and self._tunnels.count(peer) > 0

    def _adopt(self, link: Link) -> bool:
        """Belong to the mesh of the invite from now on; False if what the peer gave as its secret is none."""
        belonging, secret = self._belonging, self._belonging.secret
        if secret is None:
            assert belonging.invite is not None
            key, expires = belonging.invite
            secret = link.facts.secret or b""
            if len(secret) != SECRET_BYTES or not hmac.compare_digest(invite_key(secret, expires), key):
                log.warning("%s gave a mesh secret that does not fit the invite", short(link.facts.peer))
                return False
        self._belonging = MeshChoice(belonging.mesh, secret, ways=belonging.ways)
        mesh = belonging.mesh
        self._keeper.keep(lambda: self._state.adopt(mesh, secret))
        return True

    def _remember(self, link: Link) -> None:
        """Keep the first way that led somewhere at once: the core makes its list in its own time, and a node may end
        before that."""
        if not self._remembered:
            self._remembered = True
            ways = (BootstrapAddress(link.facts.peer, (link.facts.address,)), *self._belonging.ways)
            self._keeper.keep(lambda: None if self._state.peers else self._state.save_peers(ways))

    def _credentials(self) -> Credentials:
        known = self._belonging
        return Credentials(known.mesh, known.secret, known.invite, self.config.role, PROTOCOL)

    # -- where we are

    def _look_at_addresses(self) -> None:
        self._watcher = asyncio.get_running_loop().call_later(ADDRESSES_SECONDS, self._look_at_addresses)
        self._facts = read_interfaces()
        self._tell_addresses()

    def _tell_addresses(self) -> None:
        alone = self._transport is not None and len(self._transport.links()) <= 1
        found = addresses(self._facts, self._port, observed=self._observed.confirmed(alone=alone))
        if found != self._addresses:
            self._addresses = found
            self._post(e.AddressesFound(found))

    # -- what others ask for

    def invite(self, seconds: float) -> Invitation:
        """An invite into this mesh that is good for `seconds` (0: for good). Raises EnvironmentFailure."""
        if self.config.role is Role.CLIENT:
            raise EnvironmentFailure(
                "A client only uses the mesh; others cannot come in by it.", advice="Ask a node of the mesh."
            )
        secret = self._belonging.secret
        if secret is None or self._belonging.foreign:
            raise EnvironmentFailure(
                "This node has not joined its mesh yet.", advice="'mesh-llm status' shows how far it is."
            )
        here = addresses(self._facts, self._port, observed=self._observed.confirmed(), loopback=True)
        ways = [BootstrapAddress(self.config.node, here)] if here else []
        ways += [BootstrapAddress(node, found) for node, found in self._others() if found]
        if not ways:
            raise EnvironmentFailure("This machine has no address by which another could reach it.")
        expires = int(datetime.now(UTC).timestamp() + seconds) if seconds else 0
        token = encode(Invite(self._belonging.mesh, invite_key(secret, expires), expires, tuple(ways[:MAX_WAYS])))
        return Invitation(token, expires)

    def _others(self) -> list[tuple[NodeId, tuple[PeerAddress, ...]]]:
        """Nodes that live, so that an invite is good when this one is off; any of them, not always the same."""
        peers = [] if self._view is None else [p for p in self._view.peers if p.status is PeerStatus.ALIVE]
        chosen = Random().sample(peers, min(len(peers), MAX_WAYS - 1))
        return [(peer.node, peer.record.addresses) for peer in chosen]

    @property
    def message_counters(self) -> MessageCounters:
        """Counts of mesh messages."""
        return self._links.counters

    def lanes(self) -> int:
        """The number of open lanes."""
        return 0 if self._tunnels is None else sum(facts.lanes.open for facts in self._tunnels.facts().values())

    def vias(self) -> dict[NodeId, str]:
        """What requests to each linked peer take: "lane", "quic", or "" while there were none."""
        return {} if self._tunnels is None else {peer: facts.transport for peer, facts in self._tunnels.facts().items()}

    async def connect(self, peer: str, factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseProtocol:
        """A tunnel into the gateway of `peer` (hexadecimal id). Raises OSError if there is no way to it."""
        try:
            return await self.open(NodeId(bytes.fromhex(peer)), StreamKind.HTTP_TUNNEL, factory)
        except MeshError as error:
            raise ConnectionError(str(error)) from error

    async def open(
        self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.BaseProtocol:
        """A tunnel of that kind to `peer`. Raises MeshError if there is no way to it."""
        if self._tunnels is None:
            raise LinkClosed("This node is in no mesh.")
        view = self._view
        known = next((p.record.addresses for p in view.peers if p.node == peer), ()) if view is not None else ()
        return await self._tunnels.open(peer, kind, factory, addresses=known)

    def serve(self, kind: StreamKind, factory: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """From now on `factory` gives what serves the tunnels of that kind that peers open; after `begin`."""
        assert self._tunnels is not None
        self._tunnels.serve(kind, factory)

    def role_of(self, peer: NodeId) -> Role | None:
        """What a linked peer is; None without a link."""
        link = self._transport.link(peer) if self._transport is not None else None
        return link.facts.role if link is not None else None
