"""A running node's part in its mesh: UDP port, links, tunnels, its membership and invites.

Imported only once the API is being served, because its imports take long. Invariant: the private mesh key goes only
into `mesh.json`, or to a member that may admit others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from random import Random

from meshllm import __version__
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import ALL_RIGHTS, NODE_RIGHTS, Right
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import GrantedInvite, Message
from meshllm.core.membership.views import MeshView, PeerStatus
from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, Role, SignedRecord
from meshllm.core.split.corrections import Correction
from meshllm.daemon import forecast_file, home_place
from meshllm.daemon.admission import MemberAdmission
from meshllm.daemon.audit_log import WriteAudit, no_audit
from meshllm.daemon.duplicate_notice import DuplicateNotice
from meshllm.daemon.lease_audit import LeaseAudit
from meshllm.daemon.member_management import HomeState, MemberManagement
from meshllm.daemon.member_sightings import MemberSightings
from meshllm.daemon.mesh_choice import MeshChoice, decide
from meshllm.daemon.mesh_notice_texts import EXPELLED, LEFT_MESH, NOT_SERVED_TO_OTHERS, owner_refusal
from meshllm.daemon.mesh_state import PRIVATE_BYTES, UPGRADED, public_key
from meshllm.daemon.message_counters import MessageCounters
from meshllm.daemon.peer_links import PeerLinks
from meshllm.daemon.settings import Settings
from meshllm.daemon.state_writer import StateWriter
from meshllm.errors import EnvironmentFailure, LinkClosed, MeshError, PortTaken
from meshllm.machine import identity
from meshllm.net.addresses import InterfaceAddress, ObservedAddresses, addresses, read_interfaces
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.net.handshake import Credentials
from meshllm.net.identity import verify
from meshllm.net.lanes.lanes import Lanes
from meshllm.net.quic.endpoint import address_key
from meshllm.net.quic.transport import QuicTransport
from meshllm.net.tunnels.tunnels import Tunnels
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.wire.mesh.board import board_signer
from meshllm.wire.mesh.codec import encode_message, parse_message, signer
from meshllm.wire.mesh.invite import MAX_WAYS

log = logging.getLogger(__name__)

PROTOCOL = (2, 2)
# "off": listen on UDP only; all tunnels use QUIC. For measurements, or if a firewall blocks TCP.
LANES_VARIABLE = "MESH_LLM_LANES"
# How long the set of members' addresses is kept: they are looked up at each handshake, and there may be thousands.
KNOWN_SECONDS = 5.0
# How often the addresses of this machine are read (a laptop may change its network); it takes a millisecond.
ADDRESSES_SECONDS = 30.0
# One of these rights is needed to open a tunnel of a kind. One for RPC needs a lease as well; in one for HTTP the
# gateway tells a member without `USE` what it lacks.
RIGHTS_FOR = {
    StreamKind.HTTP_TUNNEL: ALL_RIGHTS,
    StreamKind.FILES: Right.SERVE | Right.WORK | Right.HOST,
    StreamKind.RPC_TUNNEL: Right.WORK | Right.HOST,
    StreamKind.LANE_TICKET: ALL_RIGHTS,
}


class MeshSession:
    """The I/O of a node in a mesh; the core decides. `begin` it, and `close` it at the end."""

    def __init__(
        self,
        settings: Settings,
        found: HomeState,
        post: Callable[[e.Event], None],
        audit: WriteAudit = no_audit,
        *,
        lease_refusal: str = "",
        restart: Callable[[], None] = lambda: None,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`audit` records who is admitted and refused; `lease_refusal`: see MeshConfig; `restart` stops this node and
        starts it again, with the key that it has then; `refused` is called if the invite is void. Raises UsageError
        for invites for different meshes."""
        self._settings = settings
        self._refused = refused
        self._identity = found.identity
        self._state = found.state
        self._wall = found.clock
        self._post = post
        self._audit = audit
        self._leases = LeaseAudit(audit)
        self._keys, self._book = found.keys, found.book
        self._writer = StateWriter()
        self.members = MemberManagement(
            found,
            settings.node_name or socket.gethostname(),
            self._writer.add,
            post,
            audit,
            self._send,
            lambda: self._transport.links() if self._transport is not None else [],
            restart,
        )
        self._sightings = MemberSightings(self._book, self._wall.now, self.members.certificate_of)
        self._choice: MeshChoice = decide(found.state.mesh, self.members.needs, settings.invites)
        self.expelled = found.keys.authority.is_expelled(found.identity.node) and not self._choice.foreign
        invited = self._choice.invite
        rights = invited[1].rights if invited is not None else found.keys.rights
        role = Role.CLIENT if settings.client or not rights & NODE_RIGHTS else Role.NODE
        self.shares_board = bool(rights & NODE_RIGHTS)
        founded = found.state.founded and not self._choice.foreign
        self.on_demand = settings.loads_on_demand(founded=founded)
        self.config = MeshConfig(
            node=found.identity.node,
            mesh=self._choice.mesh,
            role=role,
            incarnation=found.incarnation,
            name=settings.node_name or socket.gethostname(),
            software=f"mesh-llm {__version__}",
            protocol=PROTOCOL,
            sign=signer(found.identity.sign),
            idle=not self.on_demand and (founded or settings.on_demand is False),
            authority=found.keys.authority,
            certificate=b"" if found.keys.certificate is None else found.keys.certificate.data,
            rights=found.keys.rights,
            key_grace=found.keys.authority.grace_left(found.clock.now()),
            moved=found.moved,
            rejoins=bool(found.state.peers) and not self._choice.foreign,
            machine=identity.machine(),
            sign_entry=board_signer(found.identity.sign) if settings.blackboard else None,
            lease_refusal=lease_refusal or owner_refusal(settings, founded=founded),
        )
        self._observed = ObservedAddresses()
        self._admission = MemberAdmission(
            self._keys, self._book, self._wall.now, asyncio.get_running_loop().time, self._key_changed, audit
        )
        self._links = PeerLinks(
            post,
            encode_message,
            parse_message,
            verify,
            self._accept,
            self._in_use,
            self._admit,
            self._use_spare_invite,
            self.members.name_of,
            lambda: self._choice.foreign,
        )
        self._duplicate = DuplicateNotice(audit)
        self._settles_at = asyncio.get_running_loop().time() + home_place.SETTLED_SECONDS if found.moved else None
        self._port = 0
        self._peer_saved = self._spare_used = False
        self._facts: list[InterfaceAddress] = []
        self._addresses: tuple[PeerAddress, ...] = ()
        self._view: MeshView | None = None
        self._known_until = float("-inf")
        self._known_addresses: set[str] = set()
        self._watcher: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None  # of the next certificate of a link
        self._transport: Transport | None = None
        self._tunnels: Tunnels | None = None

    @property
    def starts_alone(self) -> bool:
        """Whether there is no mesh to join: other nodes may join this one."""
        return not (self._choice.addresses or self._state.peers) and self.config.role is Role.NODE

    @property
    def knows_others(self) -> bool:
        """Whether the mesh that the home remembers, which may be another than that of the invites, has other nodes and
        this one is no expelled one of it."""
        return bool(self._state.peers) and not self._keys.authority.is_expelled(self.config.node)

    @property
    def has_no_mesh(self) -> bool:
        """Whether this is a client without a mesh to join."""
        return not (self._choice.addresses or self._state.peers) and self.config.role is Role.CLIENT

    def corrections(self) -> tuple[Correction, ...]:
        """What forecasts of splits learned in earlier runs. Reads a small file."""
        return forecast_file.load(self._settings.home, asyncio.get_running_loop().time(), self._wall.now())

    async def begin(self, serve: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """Listen for peers, whose HTTP tunnels `serve` serves, and post this node's addresses and the peers to dial.

        Raises PortTaken if `--bind-port` is, EnvironmentFailure if no UDP port can be opened.
        """
        if self.members.upgraded:
            log.warning("%s", UPGRADED)
        await self._listen()
        assert self._tunnels is not None
        self._tunnels.serve(StreamKind.HTTP_TUNNEL, serve)
        if self._state.port != self._port:
            self._writer.add(lambda: self._state.save_port(self._port))
        self._read_addresses()
        if self.expelled:
            return  # the core says it
        if self._serves_itself_alone:
            log.warning("%s", NOT_SERVED_TO_OTHERS)
        if not self._choice.foreign:
            now = asyncio.get_running_loop().time()
            known = self._sightings.remembered(self.config.node, self._keys.authority.is_expelled, now)
            self._post(e.MembersRemembered(known))
        if self._choice.addresses:
            self._post(e.JoinWanted(self._choice.addresses))
        if not self._choice.foreign and self._state.peers:
            self._post(e.JoinWanted(self._state.peers, invited=False))

    async def _listen(self) -> None:
        wanted = self._settings.bind_port
        for port in (wanted,) if wanted is not None else (self._state.port or 0, 0):
            transport = QuicTransport(
                self._identity,
                self._credentials,
                port=port,
                max_clients=self._settings.max_clients,
                wall_clock=self._wall.now,
            )
            transport.keep_room_for(self._knows_address)
            self._transport = transport
            lanes = Lanes(self._identity) if os.environ.get(LANES_VARIABLE, "on") != "off" else None
            self._tunnels = Tunnels(transport, lanes, self._may_open)
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
        """Close all links and tunnels, and finish writing the state."""
        for timer in (self._watcher, self._expiry):
            if timer is not None:
                timer.cancel()
        self._sightings.tick(last=True)
        await self._links.close()
        if self._tunnels is not None:
            await self._tunnels.close()
        if self._transport is not None:
            await self._transport.close()
        self._writer.add(self._wall.save)
        await self._writer.close()

    # -- commands of the core

    def carry_out(self, command: c.Command) -> bool:
        """Begin `command`; False if it does not concern the mesh."""
        self._leases.command(command)
        match command:
            case c.Send(peer, GrantedInvite(refused=reason)) if reason:
                self._audit("invite_refused", peer=peer.hex(), reason=reason)
                self._links.carry_out(command)
            case c.DialPeer() | c.HangUp() | c.Send():
                self._links.carry_out(command)
            case c.SaveIncarnation(incarnation):
                self._writer.add(lambda: self._state.save_incarnation(incarnation))
            case c.SavePeers(peers):
                self._writer.add(lambda: self._state.save_peers(peers))
            case c.SaveCorrections(corrections):
                now, unix = asyncio.get_running_loop().time(), self._wall.now()
                self._writer.add(lambda: forecast_file.save(self._settings.home, corrections, now, unix))
            case c.SaveMesh(mesh):
                self._choice = replace(self._choice, mesh=mesh)
                if not self._choice.foreign:
                    self._writer.add(lambda: self._state.save_mesh(mesh))
            case (
                c.SaveStatements()
                | c.SaveGrace()
                | c.IssueCertificate()
                | c.TakeCertificate()
                | c.MakeInvite()
                | c.TakeInvite()
                | c.CertifyReplacement()
                | c.ReplacementRefused()
                | c.NodeReplaced()
                | c.MemberExpelled()
            ):
                self.members.carry_out(command)
            case c.InviteRefused(reason):
                self._refused(reason)
            case c.Expelled(successor):
                self.expelled = True
                if successor is not None:
                    self.members.replacement.left(successor)
                else:
                    log.warning("%s", EXPELLED)
                    self._audit("this_node_expelled")
            case _:
                return False
        return True

    def _key_changed(self, changes: tuple[bytes, ...]) -> None:
        """A member showed during a hello that the mesh has a new key."""
        self._post(e.StatementsMade(changes))

    def publish(self, view: MeshView | None) -> None:
        """Take the newest view of the mesh."""
        self._duplicate.publish(view)
        self._view = self.members.view = view
        if view is not None and not self._choice.foreign:
            self._sightings.publish(view)

    def _send(self, peer: NodeId, message: Message) -> None:
        self._links.carry_out(c.Send(peer, message))

    def _knows_address(self, address: str) -> bool:
        """Whether a remembered peer or a node of the table is at `address` (a key of `address_key`)."""
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            self._known_until = now + KNOWN_SECONDS
            peers = () if self._view is None else self._view.peers
            listens = [each.addresses for each in self._state.peers] + [peer.record.addresses for peer in peers]
            self._known_addresses = {address_key(place.host) for places in listens for place in places}
        return address in self._known_addresses

    # -- called by the transport

    def link_up(self, link: Link) -> None:
        """A link came up: both ends have proved their membership, or the key of the invite."""
        if self._choice.foreign and not self._adopt(link):
            link.close("it has not admitted this node")
            return
        facts = link.facts
        if facts.certificate is not None:
            self._book.seen(facts.certificate, "", self._wall.now())
        self._audit(
            "link_admitted",
            peer=facts.peer.hex(),
            address=facts.address.host,
            role=facts.role.value,
            dialled=facts.dialled,
        )
        self._save_first_peer(link)
        if link.facts.observed is not None:
            self._observed.record(link.facts.peer, link.facts.observed)
            self._post_addresses()
        self._links.link_up(link)
        self._close_expired()

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        """A node that dialled this one is refused."""
        self._audit("link_refused", peer=peer.hex() if peer is not None else "", address=address.host, reason=code)

    def link_down(self, link: Link, reason: str) -> None:
        """A link ended."""
        self._observed.forget(link.facts.peer)
        if self._tunnels is not None:
            self._tunnels.link_down(link)
        self._links.link_down(link, reason)

    def message(self, link: Link, payload: bytes) -> None:
        """A peer sent a message."""
        if self.members.has_expired(link):
            self._close_expired()
            return
        self._links.message(link, payload)

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """A peer opened a stream; returns what serves it."""
        if self.members.has_expired(link):
            self._close_expired()
            return None
        return self._links.stream(link, kind)

    def _accept(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self._tunnels.accept(link, kind) if self._tunnels is not None else None

    def _in_use(self, peer: NodeId) -> bool:
        return self._tunnels is not None and self._tunnels.count(peer) > 0

    def _adopt(self, link: Link) -> bool:
        """Become a member of the mesh of the invite; False if the peer gave no certificate."""
        given, choice, keys = link.facts.admitted, self._choice, self._keys
        if given is None:
            return False
        private = given.private
        if len(private) != PRIVATE_BYTES or public_key(private) != given.key:
            private = b""
        if given.key != keys.authority.key:
            keys.authority.adopt(given.key)
            self._book.clear()
        keys.private, keys.certificate = private, given.certificate
        if choice.mesh != self._state.mesh and self._state.peers:
            log.warning(LEFT_MESH, self._state.mesh[:5].hex(), choice.mesh[:5].hex())
        self._choice = MeshChoice(choice.mesh, addresses=choice.addresses)
        mesh = choice.mesh
        self._writer.add(lambda: self._state.adopt(mesh, given.key, private, given.certificate.data))
        self._post(e.CertificateRenewed(given.certificate))
        self._audit("mesh_joined", mesh=mesh.hex(), peer=link.facts.peer.hex())
        return True

    def _save_first_peer(self, link: Link) -> None:
        """Save the first peer at once: the core saves its list only after some seconds, and the node may end before."""
        if not self._peer_saved:
            self._peer_saved = True
            peers = (BootstrapAddress(link.facts.peer, (link.facts.address,)), *self._choice.addresses)
            self._writer.add(lambda: None if self._state.peers else self._state.save_peers(peers))

    def _use_spare_invite(self, refusal: str) -> bool:
        """A member refused this node's certificate: use the invite that was given, if there is one. Returns whether a
        dial with other credentials makes sense."""
        if refusal not in ("wrong_mesh", "expired_certificate") or self.expelled:
            return False
        if self._choice.spare is not None:
            log.info("the certificate of this node does not count any more: the invite is used")
            self._choice, self._spare_used = self._choice.with_spare(), True
        return self._spare_used  # also for a dial that began with the certificate

    def _credentials(self) -> Credentials:
        known = self._choice
        own = self._keys.certificate
        usable = own is not None and not known.foreign and not self.expelled
        certificate = own.data if own is not None and usable else b""
        return Credentials(known.mesh, self._admission, certificate, known.invite, self.config.role, PROTOCOL)

    # -- addresses

    def _read_addresses(self) -> None:
        self._watcher = asyncio.get_running_loop().call_later(ADDRESSES_SECONDS, self._read_addresses)
        self._facts = read_interfaces()
        self._sightings.tick()
        self._post_addresses()
        if self._wall.due():
            self._writer.add(self._wall.save)
        if self._keys.certificate is not None and not (self._choice.foreign or self.expelled):
            self.members.renew_if_due()
        self._close_expired()
        if self._settles_at is not None and asyncio.get_running_loop().time() >= self._settles_at:
            self._settles_at = None
            if not self._duplicate.text:
                self._writer.add(lambda: home_place.settle(self._settings.home))

    def _close_expired(self) -> None:
        """Close the links of certificates that have expired, and do it again when the next one does."""
        if self._expiry is not None:
            self._expiry.cancel()
        left = self.members.close_expired()
        # Not beyond the next look at the clock, which may be set meanwhile.
        if left < ADDRESSES_SECONDS:
            self._expiry = asyncio.get_running_loop().call_later(left, self._close_expired)

    def _post_addresses(self) -> None:
        alone = self._transport is not None and len(self._transport.links()) <= 1
        found = addresses(self._facts, self._port, observed=self._observed.confirmed(alone=alone))
        if found != self._addresses:
            self._addresses = found
            self._post(e.AddressesFound(found))

    # -- for the console, the gateway and file sharing

    @property
    def _serves_itself_alone(self) -> bool:
        """Whether this node has models that its membership, or the invite that it uses, does not let others use."""
        invite = self._choice.invite
        rights = invite[1].rights if invite is not None else self._keys.rights
        return bool(self._settings.models or self._settings.backends) and Right.SERVE not in rights

    @property
    def notices(self) -> list[str]:
        """What the owner should know about this node's part in its mesh, each text with what to do."""
        found = [
            self._state.notice,
            UPGRADED if self.members.upgraded else "",
            EXPELLED if self.expelled else NOT_SERVED_TO_OTHERS if self._serves_itself_alone else "",
            self._duplicate.text,
        ]
        return list(dict.fromkeys(text for text in found if text))

    async def invite(self, wish: InviteWish) -> Invitation:
        """An invite into this mesh, made here or by a linked member that may admit. Raises UsageError,
        EnvironmentFailure."""
        self._check_joined()
        if self._keys.may_admit:
            return self.invite_here(wish)
        return await self.members.requests.ask(wish, self._choice.mesh, self._way_to)

    def _way_to(self, node: NodeId) -> BootstrapAddress | None:
        """Where others reach a linked node: what its record says, and where this node dialled it."""
        peers = self._view.peers if self._view is not None else ()
        listens = [place for peer in peers if peer.node == node for place in peer.record.addresses]
        link = self._transport.link(node) if self._transport is not None else None
        if link is not None and link.facts.dialled:
            listens.append(link.facts.address)
        return BootstrapAddress(node, tuple(dict.fromkeys(listens))) if listens else None

    def _check_joined(self) -> None:
        if self._choice.foreign or self._keys.certificate is None:
            raise EnvironmentFailure(
                "This node has not joined its mesh yet.", advice="'mesh-llm status' shows the progress."
            )
        if self.expelled:
            raise EnvironmentFailure(EXPELLED)

    def invite_here(self, wish: InviteWish) -> Invitation:
        """An invite that this node makes itself, with the mesh key. Raises EnvironmentFailure."""
        self._check_joined()
        if self.config.role is Role.CLIENT and Right.ADMIT in self._keys.rights:
            raise EnvironmentFailure(
                "A client accepts no links, so it cannot make invites.",
                advice="Run 'mesh-llm invite' on a node of the mesh.",
            )
        if not self._keys.may_admit:
            raise EnvironmentFailure(
                "This node does not hold the mesh key now, so it cannot make invites itself.",
                advice="Try again in a few seconds; 'mesh-llm status' shows the state of the mesh.",
            )
        here = addresses(self._facts, self._port, observed=self._observed.confirmed(), loopback=True)
        found = [BootstrapAddress(self.config.node, here)] if here else []
        if not wish.once:
            found += [BootstrapAddress(node, listens) for node, listens in self._random_peers() if listens]
        if not found:
            raise EnvironmentFailure("This machine has no network address that other machines can reach.")
        return self.members.make_invite(wish, self._choice.mesh, tuple(found[:MAX_WAYS]))

    # -- members

    def _may_open(self, peer: NodeId, kind: StreamKind) -> bool:
        """Whether the rights of `peer` allow it to open a tunnel of that kind into this node."""
        return self._permitted(peer, RIGHTS_FOR[kind], kind)

    def may_use(self, peer: NodeId) -> bool:
        """Whether `peer` may send requests."""
        return self._permitted(peer, Right.USE, StreamKind.HTTP_TUNNEL)

    def _permitted(self, peer: NodeId, needed: Right, kind: StreamKind) -> bool:
        """Whether `peer` has one of the `needed` rights."""
        rights = self.members.rights_of(peer)
        if not rights & needed:
            self._audit("tunnel_refused", peer=peer.hex(), kind=kind.name.lower(), rights=int(rights))
        return bool(rights & needed)

    def _admit(self, signed: SignedRecord) -> SignedRecord | None:
        """The record as far as its certificate allows; None without one that counts, or for a guest."""
        admitted = self._keys.authority.admit(signed, self._wall.now())
        if admitted is None:
            self._audit("record_refused", node=signed.record.node.hex(), name=signed.record.name)
        return admitted

    def _random_peers(self) -> list[tuple[NodeId, tuple[PeerAddress, ...]]]:
        """Some live nodes, chosen at random, so that an invite works while this node is off."""
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
        """A tunnel to the gateway of `peer` (hexadecimal id). Raises OSError if the peer cannot be reached."""
        try:
            return await self.open(NodeId(bytes.fromhex(peer)), StreamKind.HTTP_TUNNEL, factory)
        except MeshError as error:
            raise ConnectionError(str(error)) from error

    async def open(
        self, peer: NodeId, kind: StreamKind, factory: Callable[[], asyncio.BaseProtocol]
    ) -> asyncio.BaseProtocol:
        """A tunnel of `kind` to `peer`. Raises MeshError if the peer cannot be reached."""
        if self._tunnels is None:
            raise LinkClosed("This node runs without a mesh.")
        view = self._view
        known = next((p.record.addresses for p in view.peers if p.node == peer), ()) if view is not None else ()
        return await self._tunnels.open(peer, kind, factory, addresses=known)

    def serve(self, kind: StreamKind, factory: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """Serve tunnels of `kind` that peers open by what `factory` makes. After `begin`."""
        assert self._tunnels is not None
        self._tunnels.serve(kind, factory)

    def role_of(self, peer: NodeId) -> Role | None:
        """The role of a linked peer; None without a link."""
        link = self._transport.link(peer) if self._transport is not None else None
        return link.facts.role if link is not None else None
