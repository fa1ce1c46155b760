"""A running node's part in its mesh: UDP port, links, tunnels, its membership and invites.

Imported only once the API is being served, because its imports take long. Invariant: the private mesh key goes only
into `mesh.json`, or to a member that may admit others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from random import Random

from meshllm import __version__
from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import (
    NO_INVITE,
    NO_RIGHTS,
    NODE_RIGHTS,
    SERIAL_BYTES,
    MeshKey,
    Right,
    SignedCertificate,
    StatementKind,
)
from meshllm.core.membership.member import MeshConfig
from meshllm.core.membership.messages import AskInvite, GrantedInvite, RenewedCertificate
from meshllm.core.membership.views import MeshView, PeerStatus
from meshllm.core.records import BootstrapAddress, NodeId, PeerAddress, Role, short
from meshllm.daemon.admission import MemberAdmission
from meshllm.daemon.audit_log import WriteAudit, no_audit
from meshllm.daemon.invite_book import InviteBook
from meshllm.daemon.lease_audit import LeaseAudit
from meshllm.daemon.member_rows import (
    ExpelledMember,
    MemberRow,
    member_row,
    parse_rights,
    right_names,
    row_of_entry,
)
from meshllm.daemon.mesh_choice import MeshChoice, decide
from meshllm.daemon.mesh_keys import MeshKeys, default_lifetime, new_authority
from meshllm.daemon.mesh_state import PRIVATE_BYTES, MeshState, public_key
from meshllm.daemon.message_counters import MessageCounters
from meshllm.daemon.peer_links import PeerLinks
from meshllm.daemon.settings import Settings
from meshllm.daemon.state_writer import StateWriter
from meshllm.daemon.wall_clock import WallClock
from meshllm.errors import BadMessage, EnvironmentFailure, LinkClosed, MeshError, PortTaken, UsageError
from meshllm.net.addresses import InterfaceAddress, ObservedAddresses, addresses, read_interfaces
from meshllm.net.base import Link, StreamKind, Transport
from meshllm.net.handshake import Credentials
from meshllm.net.identity import Identity, verify
from meshllm.net.lanes.lanes import Lanes
from meshllm.net.quic.endpoint import address_key
from meshllm.net.quic.transport import QuicTransport
from meshllm.net.tunnels.tunnels import Tunnels
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.codec import encode_message, parse_message, signer
from meshllm.wire.mesh.invite import MAX_WAYS, Invite, InviteTerms, encode, invite_key

log = logging.getLogger(__name__)

PROTOCOL = (2, 2)
# Validity of an invite that says nothing else.
INVITE_SECONDS = 86_400
# "off": listen on UDP only; all tunnels use QUIC. For measurements, or if a firewall blocks TCP.
LANES_VARIABLE = "MESH_LLM_LANES"
# How long the set of members' addresses is kept: they are looked up at each handshake, and there may be thousands.
KNOWN_SECONDS = 5.0
# How often the addresses of this machine are read (a laptop may change its network); it takes a millisecond.
ADDRESSES_SECONDS = 30.0
EXPELLED = (
    "This node was expelled from its mesh and goes on alone, with its own models. "
    "To join again, it needs a fresh identity and an invite: ask the owner of the mesh."
)


@dataclass(frozen=True, slots=True)
class HomeState:
    """What the node's home directory contains; read once, at the start."""

    identity: Identity
    state: MeshState
    incarnation: int
    clock: WallClock
    book: InviteBook
    keys: MeshKeys


def load_home_state(settings: Settings) -> HomeState:
    """The node's key and its mesh, made if missing; blocks on the disk. Raises DamagedState, EnvironmentFailure."""
    identity, state = Identity.load_or_create(settings.home), MeshState.open(settings.home)
    clock = WallClock(settings.home)
    clock.save()
    keys = _load_keys(identity, state, clock)
    return HomeState(identity, state, state.next_incarnation(), clock, InviteBook(settings.home), keys)


def _load_keys(identity: Identity, state: MeshState, clock: WallClock) -> MeshKeys:
    """The mesh key and this node's certificate; who holds the private key and has no valid one gives itself one."""
    authority = new_authority(state.key, state.statements, state.previous)
    known = (state.key,) if state.previous is None else (state.key, state.previous)
    try:
        certificate: SignedCertificate | None = read_certificate(state.certificate, known, verify)
    except BadMessage:
        certificate = None
    if certificate is not None and certificate.certificate.node != identity.node:
        certificate = None
    keys = MeshKeys(identity.node, authority, state.private, certificate, clock.now)
    if keys.may_admit and (certificate is None or not certificate.certificate.valid_at(clock.now())):
        keys.certificate = keys.issue_own()
        state.save_certificate(keys.certificate.data, state.private)
    return keys


def _owner_refusal(settings: Settings, *, founded: bool) -> str:
    """Why the owner does not let this node work for splits of other nodes; "": it may."""
    if settings.worker is False:
        return "This node's owner does not let it work for splits (--no-worker)"
    if settings.worker is None and founded and not (settings.models or settings.backends):
        return "This node is idle: it began its mesh without a model (its owner can start it with --worker)"
    return ""


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
    ) -> None:
        """`audit` records who is admitted and refused; `lease_refusal`: see MeshConfig. Raises UsageError for
        invites for different meshes."""
        self._settings = settings
        self._identity = found.identity
        self._state = found.state
        self._wall = found.clock
        self._post = post
        self._audit = audit
        self._leases = LeaseAudit(audit)
        self._keys, self._book = found.keys, found.book
        self._choice: MeshChoice = decide(found.state.mesh, self._needs, settings.invites)
        self._rotating: MeshKey | None = None
        self.expelled = found.keys.authority.is_expelled(found.identity.node) and not self._choice.foreign
        invited = self._choice.invite
        rights = invited[1].rights if invited is not None else found.keys.rights
        role = Role.CLIENT if settings.client or not rights & NODE_RIGHTS else Role.NODE
        self.config = MeshConfig(
            node=found.identity.node,
            mesh=self._choice.mesh,
            role=role,
            incarnation=found.incarnation,
            name=settings.node_name or socket.gethostname(),
            software=f"mesh-llm {__version__}",
            protocol=PROTOCOL,
            sign=signer(found.identity.sign),
            idle=found.state.founded and not self._choice.foreign,
            authority=found.keys.authority,
            certificate=b"" if found.keys.certificate is None else found.keys.certificate.data,
            rights=found.keys.rights,
            lease_refusal=lease_refusal
            or _owner_refusal(settings, founded=found.state.founded and not self._choice.foreign),
        )
        self._writer = StateWriter()
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
            lambda signed: self._keys.authority.admit(signed, self._wall.now()),
        )
        self._port = 0
        self._peer_saved = False
        self._facts: list[InterfaceAddress] = []
        self._addresses: tuple[PeerAddress, ...] = ()
        self._view: MeshView | None = None
        self._known_until = float("-inf")
        self._known_addresses: set[str] = set()
        self._watcher: asyncio.TimerHandle | None = None
        self._transport: Transport | None = None
        self._tunnels: Tunnels | None = None

    @property
    def starts_alone(self) -> bool:
        """Whether there is no mesh to join: other nodes may join this one."""
        return not (self._choice.addresses or self._state.peers) and self.config.role is Role.NODE

    @property
    def has_no_mesh(self) -> bool:
        """Whether this is a client without a mesh to join."""
        return not (self._choice.addresses or self._state.peers) and self.config.role is Role.CLIENT

    async def begin(self, serve: Callable[[NodeId], asyncio.BaseProtocol]) -> None:
        """Listen for peers, whose HTTP tunnels `serve` serves, and post this node's addresses and the peers to dial.

        Raises PortTaken if `--bind-port` is, EnvironmentFailure if no UDP port can be opened.
        """
        await self._listen()
        assert self._tunnels is not None
        self._tunnels.serve(StreamKind.HTTP_TUNNEL, serve)
        if self._state.port != self._port:
            self._writer.add(lambda: self._state.save_port(self._port))
        self._read_addresses()
        if self.expelled:
            log.warning("%s", EXPELLED)
            return
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
        """Close all links and tunnels, and finish writing the state."""
        if self._watcher is not None:
            self._watcher.cancel()
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
            case c.DialPeer() | c.HangUp() | c.Send():
                self._links.carry_out(command)
            case c.SaveIncarnation(incarnation):
                self._writer.add(lambda: self._state.save_incarnation(incarnation))
            case c.SavePeers(peers):
                self._writer.add(lambda: self._state.save_peers(peers))
            case c.SaveMesh(mesh):
                self._choice = replace(self._choice, mesh=mesh)
                if not self._choice.foreign:
                    self._writer.add(lambda: self._state.save_mesh(mesh))
            case c.SaveStatements() | c.IssueCertificate() | c.TakeCertificate() | c.MakeInvite() | c.TakeInvite():
                self._membership(command)
            case c.Expelled():
                self.expelled = True
                log.warning("%s", EXPELLED)
                self._audit("this_node_expelled")
            case _:
                return False
        return True

    def _membership(
        self, command: c.SaveStatements | c.IssueCertificate | c.TakeCertificate | c.MakeInvite | c.TakeInvite
    ) -> None:
        keys = self._keys
        match command:
            case c.SaveStatements(key, statements, previous):
                if self._rotating not in (None, key):
                    return  # of the key that this node has just replaced
                if self._rotating is None and keys.private and public_key(keys.private) != key:
                    keys.private = b""
                self._rotating = None
                self._writer.add(lambda: self._state.save_statements(key, statements, previous))
            case c.IssueCertificate(peer, certificate):
                if keys.may_admit and not keys.authority.is_expelled(certificate.node):
                    given = keys.renewed(certificate)
                    private = keys.private if Right.ADMIT in given.certificate.rights else b""
                    self._links.carry_out(c.Send(peer, RenewedCertificate(given.data, private)))
                    self._audit("certificate_renewed", node=peer.hex())
            case c.TakeCertificate(peer, answer):
                self._take_certificate(peer, answer)
            case c.MakeInvite(peer, ask):
                if keys.may_admit:
                    self._links.carry_out(c.Send(peer, self._granted(peer, ask)))
            case c.TakeInvite(peer, _):
                log.warning("%s sent an invite that nobody asked for", short(peer))

    def _take_certificate(self, peer: NodeId, answer: RenewedCertificate) -> None:
        keys = self._keys
        try:
            taken = read_certificate(answer.certificate, (keys.authority.key,), verify)
        except BadMessage as error:
            log.warning("%s sent no valid certificate: %s", short(peer), error.message)
            return
        if taken.certificate.node != keys.node:
            return
        private = answer.mesh_private
        if len(private) != PRIVATE_BYTES or public_key(private) != keys.authority.key:
            private = keys.private if keys.may_admit else b""
        keys.certificate, keys.private = taken, private
        self._writer.add(lambda: self._state.save_certificate(taken.data, private))
        self._post(e.CertificateRenewed(taken))

    def _granted(self, peer: NodeId, ask: AskInvite) -> GrantedInvite:
        """An invite for a member that may invite, but does not hold the mesh key."""
        now = int(self._wall.now())
        expires = min(ask.expires, now + 7 * INVITE_SECONDS)
        terms = InviteTerms(
            secrets.token_bytes(SERIAL_BYTES), ask.rights, expires, min(ask.lifetime, default_lifetime(ask.rights))
        )
        try:
            self._book.add(terms, peer, f"asked for by {short(peer)}", now)
        except (ValueError, OSError) as error:
            return GrantedInvite(b"", ask.rights, 0, 0, refused=str(error))
        self._audit("invite_made", serial=terms.serial.hex(), by=peer.hex(), rights=int(terms.rights))
        key = invite_key(self._keys.private, terms, self._keys.node)
        return GrantedInvite(terms.serial, terms.rights, terms.expires, terms.member_lifetime, key)

    def _key_changed(self, changes: tuple[bytes, ...]) -> None:
        """A member showed during a hello that the mesh has a new key."""
        self._post(e.StatementsMade(changes))

    def _needs(self, terms: InviteTerms) -> bool:
        """Whether an invite to this node's own mesh gives it anything."""
        own = self._keys.certificate
        valid = own is not None and own.certificate.valid_at(self._wall.now()) and own.key == self._keys.authority.key
        return not valid or bool(terms.rights & ~self._keys.rights)

    def publish(self, view: MeshView | None) -> None:
        """Take the newest view of the mesh."""
        self._view = view

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
            link.close("it has admitted nobody")
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
        self._links.message(link, payload)

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        """A peer opened a stream; returns what serves it."""
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
        self._post_addresses()
        if self._wall.due():
            self._writer.add(self._wall.save)
        self._renew_if_due()

    def _renew_if_due(self) -> None:
        """After half of its lifetime a certificate is renewed, by this node itself if it holds the mesh key."""
        keys, own = self._keys, self._keys.certificate
        if own is None or self._choice.foreign or self.expelled:
            return
        if self._wall.now() < (own.certificate.issued + own.certificate.expires) / 2:
            return
        if keys.may_admit:
            renewed = keys.renewed(own.certificate)
            keys.certificate = renewed
            self._writer.add(lambda: self._state.save_certificate(renewed.data, keys.private))
            self._post(e.CertificateRenewed(renewed))
        else:
            self._post(e.RenewalDue())

    def _post_addresses(self) -> None:
        alone = self._transport is not None and len(self._transport.links()) <= 1
        found = addresses(self._facts, self._port, observed=self._observed.confirmed(alone=alone))
        if found != self._addresses:
            self._addresses = found
            self._post(e.AddressesFound(found))

    # -- for the console, the gateway and file sharing

    def invite(self, wish: InviteWish) -> Invitation:
        """An invite into this mesh. Raises EnvironmentFailure."""
        if self._choice.foreign or self._keys.certificate is None:
            raise EnvironmentFailure(
                "This node has not joined its mesh yet.", advice="'mesh-llm status' shows the progress."
            )
        if self.expelled:
            raise EnvironmentFailure(EXPELLED)
        if self.config.role is Role.CLIENT and Right.ADMIT in self._keys.rights:
            raise EnvironmentFailure(
                "A client accepts no links, so it cannot make invites.",
                advice="Run 'mesh-llm invite' on a node of the mesh.",
            )
        if not self._keys.may_admit:
            raise EnvironmentFailure(
                "This node may not admit others, so it cannot make invites.",
                advice="Run 'mesh-llm invite' on one of the owner's machines: 'mesh-llm members' lists their rights.",
            )
        here = addresses(self._facts, self._port, observed=self._observed.confirmed(), loopback=True)
        found = [BootstrapAddress(self.config.node, here)] if here else []
        if not wish.once:
            found += [BootstrapAddress(node, listens) for node, listens in self._random_peers() if listens]
        if not found:
            raise EnvironmentFailure("This machine has no network address that other machines can reach.")
        rights = parse_rights(wish.rights)
        now = self._wall.now()
        lifetime = wish.days * 86_400 or default_lifetime(rights)
        expires = int(now + (wish.seconds or INVITE_SECONDS))
        terms = InviteTerms(secrets.token_bytes(SERIAL_BYTES), rights, expires, lifetime, wish.once)
        try:
            self._book.add(terms, self._keys.node, wish.label[:80], now)
        except (ValueError, OSError) as error:
            raise EnvironmentFailure(f"The invite cannot be listed: {error}.") from error
        key = invite_key(self._keys.private, terms, self._keys.node)
        token = encode(Invite(self._choice.mesh, key, terms, tuple(found[:MAX_WAYS])))
        serial = terms.serial.hex()
        self._audit("invite_made", serial=serial, expires=expires, rights=int(rights), once=wish.once)
        return Invitation(token, expires, serial)

    # -- members

    def rights_of(self, node: NodeId) -> Right:
        """What `node` may do: by the certificate of its link, else of its record; none if neither counts."""
        keys, now = self._keys, self._wall.now()
        if node == keys.node:
            return keys.rights
        if keys.authority.is_expelled(node):
            return NO_RIGHTS
        link = self._transport.link(node) if self._transport is not None else None
        found = link.facts.certificate if link is not None else None
        if found is None and self._view is not None:
            record = next((peer.record for peer in self._view.peers if peer.node == node), None)
            found = keys.authority.certificate(record.certificate, node, now) if record is not None else None
        return found.rights if found is not None and found.valid_at(now) else NO_RIGHTS

    def members(self) -> list[MemberRow]:
        """All members that this node knows, itself first."""
        keys, now = self._keys, self._wall.now()
        rows = {}
        own = keys.certificate
        if own is not None:
            rows[keys.node.hex()] = member_row(own.certificate, self.config.name, alive=True, here=True, seen=int(now))
        for peer in self._view.peers if self._view is not None else ():
            found = keys.authority.certificate(peer.record.certificate, peer.node, now)
            if found is not None and peer.node != keys.node:
                alive = peer.status is PeerStatus.ALIVE
                known = self._book.members.get(peer.node.hex())
                seen = int(now) if alive or known is None else known.seen
                rows[peer.node.hex()] = member_row(found, peer.record.name, alive=alive, seen=seen)
        linked = {link.facts.peer.hex() for link in self._transport.links()} if self._transport is not None else set()
        for node, entry in self._book.members.items():
            if node not in rows and not keys.authority.is_expelled(NodeId(bytes.fromhex(node))):
                rows[node] = row_of_entry(node, entry, alive=node in linked)
        return list(rows.values())

    def invites(self) -> list[dict[str, object]]:
        """The invites that were made here and have not expired."""
        now, revoked = self._wall.now(), self._keys.authority.is_revoked
        return [
            {**asdict(entry), "rights": right_names(Right(entry.rights)), "revoked": revoked(bytes.fromhex(serial))}
            for serial, entry in self._book.invites.items()
            if entry.expires > now
        ]

    def revoke(self, serial: str) -> str:
        """Revoke the invite whose serial begins so. Raises UsageError, EnvironmentFailure."""
        found = [known for known in self._book.invites if known.startswith(serial.lower())]
        if len(found) != 1:
            raise UsageError(f"{len(found)} invites of this node have a serial that begins with {serial!r}.")
        self._post(e.StatementsMade((self._keys.state(StatementKind.REVOKE_INVITE, bytes.fromhex(found[0])),)))
        self._audit("invite_revoked", serial=found[0])
        return found[0]

    def expel(self, wanted: str) -> ExpelledMember:
        """Expel the member with that name or id (or the beginning of its id), and revoke what let it in. If it held the
        mesh key, the mesh gets a new one. Raises UsageError, EnvironmentFailure."""
        rows = self.members()
        found = [row for row in rows if row.name == wanted]
        found = found or [row for row in rows if row.node.startswith(wanted.lower())]
        if len(found) != 1:
            raise UsageError(
                f"{len(found)} members have the name {wanted!r}, or an id that begins so.",
                advice="'mesh-llm members' lists the ids.",
            )
        row = found[0]
        if row.here:
            raise UsageError("This node cannot expel itself.", advice="Run 'mesh-llm expel' on another machine.")
        out: list[tuple[StatementKind, bytes]] = [(StatementKind.EXPEL, bytes.fromhex(row.node))]
        made = [entry.serial for entry in self._book.invites.values() if entry.by == row.node]
        known = [row.invite] if bytes.fromhex(row.invite) != NO_INVITE else []
        out += [(StatementKind.REVOKE_INVITE, bytes.fromhex(serial)) for serial in dict.fromkeys((*known, *made))]
        first = tuple([self._keys.state(*place) for place in out])
        rotated = "admit" in row.rights
        if rotated:
            self._rotate(first, tuple(out))
        else:
            self._post(e.StatementsMade(first))
        self._book.forget(NodeId(bytes.fromhex(row.node)))
        self._audit("member_expelled", node=row.node, rotated=rotated)
        return ExpelledMember(row.node, row.name, rotated)

    def rotate_mesh_key(self) -> None:
        """Make a new mesh key: all invites are void, and members get new certificates. Raises EnvironmentFailure."""
        self._rotate((), ())
        self._audit("mesh_key_rotated")

    def _rotate(self, first: tuple[bytes, ...], more: tuple[tuple[StatementKind, bytes], ...]) -> None:
        keys = self._keys
        made = keys.rotate(more)
        for node, record in [(p.node, p.record) for p in (self._view.peers if self._view is not None else ())]:
            # Who is known now gets a new certificate, also if it is off and comes back later.
            known = keys.authority.certificate(record.certificate, node, self._wall.now())
            if known is not None:
                self._book.seen(known, record.name, self._wall.now())
        keys.private, keys.certificate, self._rotating = made.private, made.certificate, made.key
        kept = (*first, *made.statements)
        self._writer.add(lambda: self._state.rotate(made.key, made.private, made.certificate.data, made.statements))
        self._post(e.StatementsMade(kept))
        self._post(e.CertificateRenewed(made.certificate))

    @property
    def upgraded(self) -> bool:
        """Whether the mesh key is still that of a shared secret."""
        return self._state.upgraded

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
