"""Members, their certificates and invites, as the owner manages them at this node.

Invariants: what the mesh key signs is posted to the core, which passes it on, and saved; nothing is signed without the
private key. `MeshSession` carries the messages.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.membership.certificates import (
    NO_INVITE,
    NO_RIGHTS,
    Certificate,
    MeshKey,
    Right,
    SignedCertificate,
    StatementKind,
)
from meshllm.core.membership.messages import Message, RenewedCertificate
from meshllm.core.membership.node_names import named_node
from meshllm.core.membership.views import MeshView, PeerStatus, PeerView
from meshllm.core.records import BootstrapAddress, MeshId, NodeId, short
from meshllm.daemon import home_place
from meshllm.daemon.audit_log import WriteAudit
from meshllm.daemon.invite_book import InviteBook, fresh_serial
from meshllm.daemon.invite_requests import INVITE_SECONDS, InviteRequests
from meshllm.daemon.key_replacement import KeyReplacement, newest, saved_authority
from meshllm.daemon.member_rows import (
    ExpelledMember,
    MemberRow,
    member_row,
    parse_rights,
    right_names,
    row_of_entry,
)
from meshllm.daemon.mesh_keys import MeshKeys, default_lifetime
from meshllm.daemon.mesh_state import PRIVATE_BYTES, MeshState, public_key
from meshllm.daemon.settings import Settings
from meshllm.daemon.wall_clock import WallClock
from meshllm.errors import BadMessage, EnvironmentFailure, UsageError
from meshllm.net.base import Link
from meshllm.net.identity import Identity, verify
from meshllm.web.console.invitation import Invitation, InviteWish
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.invite import Invite, InviteTerms, encode, invite_key

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HomeState:
    """What the node's home directory contains; read once, at the start. `moved`: it was made at another place."""

    home: Path
    identity: Identity
    state: MeshState
    incarnation: int
    clock: WallClock
    book: InviteBook
    keys: MeshKeys
    moved: bool = False


def load_home_state(settings: Settings) -> HomeState:
    """The node's key and its mesh, made if missing; blocks on the disk. Raises DamagedState, EnvironmentFailure."""
    identity, state = Identity.load_or_create(settings.home), MeshState.open(settings.home)
    identity = newest(identity, settings.home, state)
    clock = WallClock(settings.home)
    clock.save()
    book = InviteBook(settings.home)
    keys = _load_keys(identity, state, clock, book)
    moved = home_place.was_moved(settings.home)
    if not moved:
        home_place.settle(settings.home)
    return HomeState(settings.home, identity, state, state.next_incarnation(), clock, book, keys, moved)


def _load_keys(identity: Identity, state: MeshState, clock: WallClock, book: InviteBook) -> MeshKeys:
    """The mesh key and this node's certificate; who holds the private key and has no valid one gives itself one."""
    authority = saved_authority(state)
    if authority.grace_left(clock.now()) > 0:
        authority.restore_grace(book.grace)
    known = (state.key,) if state.previous is None else (state.key, state.previous)
    try:
        certificate: SignedCertificate | None = read_certificate(state.certificate, known, verify)
    except BadMessage:
        certificate = None
    if certificate is not None and authority.successor(certificate.certificate.node) != identity.node:
        certificate = None
    keys = MeshKeys(identity.node, authority, state.private, certificate, clock.now)
    if keys.may_admit:
        if certificate is None or not certificate.certificate.valid_at(clock.now()):
            keys.certificate = keys.issue_own()
        elif certificate.certificate.node != identity.node:
            keys.certificate = keys.renewed(keys.certificate_as(identity.node))
        if keys.certificate is not None and keys.certificate is not certificate:
            state.save_certificate(keys.certificate.data, state.private)
    return keys


class MemberManagement:
    """Who is a member, as seen from this node. `view`: the newest view of the mesh, set by its owner."""

    def __init__(
        self,
        found: HomeState,
        name: str,
        save: Callable[[Callable[[], None]], None],
        post: Callable[[e.Event], None],
        audit: WriteAudit,
        send: Callable[[NodeId, Message], None],
        links: Callable[[], Sequence[Link]],
        restart: Callable[[], None],
    ) -> None:
        """`name` of this node; `save` runs a function that writes to the disk; `send` sends a message to a linked peer;
        `links` are the links now; `restart` stops this node and starts it again."""
        self._keys, self._book, self._wall, self._state = found.keys, found.book, found.clock, found.state
        self._name = name
        self._save = save
        self._post = post
        self._audit = audit
        self._send = send
        self._links = links
        self._rotating: MeshKey | None = None
        self.replacement = KeyReplacement(
            found.home, found.identity, found.keys, found.state, found.clock.now, save, post, restart, found.book
        )
        self.requests = InviteRequests(found.keys, found.book, found.clock.now, post, audit)
        self.view: MeshView | None = None

    # -- rights

    def rights_of(self, node: NodeId) -> Right:
        """What `node` may do: by the certificate of its link, else of its record; none if neither counts."""
        keys, now = self._keys, self._wall.now()
        if node == keys.node:
            return keys.rights
        if keys.authority.is_expelled(node):
            return NO_RIGHTS
        found = next((link.facts.certificate for link in self._links() if link.facts.peer == node), None)
        if found is None and self.view is not None:
            record = next((peer.record for peer in self.view.peers if peer.node == node), None)
            found = keys.authority.certificate(record.certificate, node, now) if record is not None else None
        return found.rights if found is not None and found.valid_at(now) else NO_RIGHTS

    def name_of(self, pin: bytes) -> str:
        """The name of the node whose id begins with `pin`, as it was met last; "" if it was not."""
        peers = self.view.peers if self.view is not None else ()
        names = [peer.record.name for peer in peers if peer.node.startswith(pin)]
        known = [entry.name for node, entry in self._book.members.items() if node.startswith(pin.hex())]
        return next((name for name in (*names, *known) if name), "")

    def certificate_of(self, peer: PeerView) -> Certificate | None:
        """The certificate of a node's record; None if it does not count."""
        return self._keys.authority.certificate(peer.record.certificate, peer.node, self._wall.now())

    def members(self) -> list[MemberRow]:
        """All members that this node knows, itself first."""
        keys, now = self._keys, self._wall.now()
        rows = {}
        if keys.certificate is not None:
            own = keys.certificate_as(keys.node)
            rows[keys.node.hex()] = member_row(own, self._name, alive=True, here=True, seen=int(now))
        for peer in self.view.peers if self.view is not None else ():
            found = keys.authority.certificate(peer.record.certificate, peer.node, now)
            if found is not None and peer.node != keys.node:
                alive = peer.status is PeerStatus.ALIVE
                known = self._book.members.get(peer.node.hex())
                seen = int(now) if alive or known is None else known.seen
                rows[peer.node.hex()] = member_row(found, peer.record.name, alive=alive, seen=seen)
        linked = {link.facts.peer.hex() for link in self._links()}
        for node, entry in self._book.members.items():
            if node not in rows and not keys.authority.is_expelled(NodeId(bytes.fromhex(node))):
                rows[node] = row_of_entry(node, entry, alive=node in linked)
        return list(rows.values())

    def invites(self) -> list[dict[str, object]]:
        """The invites that were made or used here, also those that are good for nothing any more: with their state."""
        now, authority = self._wall.now(), self._keys.authority
        found = []
        for serial, entry in [(bytes.fromhex(serial), entry) for serial, entry in self._book.invites.items()]:
            revoked = authority.is_revoked(serial) or self._book.granted_to(serial, authority.is_gone)
            state = entry.state(now, authority.key, revoked=revoked).value
            facts = {name: value for name, value in asdict(entry).items() if name != "mesh_key"}
            found.append({**facts, "rights": right_names(Right(entry.rights)), "state": state})
        return found

    def revoke(self, serial: str) -> str:
        """Revoke the invite whose serial begins so. Raises UsageError, EnvironmentFailure."""
        found = [known for known in self._book.invites if known.startswith(serial.lower())]
        if len(found) != 1:
            raise UsageError(
                f"{len(found) or 'No'} invite{'s' * (len(found) > 1)} of this node "
                f"{'have' if len(found) > 1 else 'has'} a serial that begins with {serial[:64]!r}.",
                advice="'mesh-llm invite --list --all' shows the serials.",
            )
        self._post(e.StatementsMade((self._keys.state(StatementKind.REVOKE_INVITE, bytes.fromhex(found[0])),)))
        self._audit("invite_revoked", serial=found[0])
        return found[0]

    def expel(self, wanted: str) -> ExpelledMember:
        """Expel the member with that name or id (or the beginning of its id), and revoke what let it in. If it held the
        mesh key, the mesh gets a new one. Raises UsageError, EnvironmentFailure."""
        rows = {row.node: row for row in self.members()}
        row = rows[named_node(wanted, {node: row.name for node, row in rows.items()})]
        if row.here:
            raise UsageError("This node cannot expel itself.", advice="Run 'mesh-llm expel' on another machine.")
        out: list[tuple[StatementKind, bytes]] = [(StatementKind.EXPEL, bytes.fromhex(row.node))]
        known = [bytes.fromhex(row.invite)] if bytes.fromhex(row.invite) != NO_INVITE else []
        granted = self._open_invites_of(NodeId(bytes.fromhex(row.node)))
        out += [(StatementKind.REVOKE_INVITE, serial) for serial in dict.fromkeys((*known, *granted))]
        first = tuple([self._keys.state(*place) for place in out])
        rotated = "admit" in row.rights
        if rotated:
            self._rotate(first, tuple(out))
        else:
            self._post(e.StatementsMade(first))
        self._book.forget(NodeId(bytes.fromhex(row.node)))
        self._audit("member_expelled", node=row.node, rotated=rotated)
        return ExpelledMember(row.node, row.name, rotated)

    def _open_invites_of(self, node: NodeId) -> list[bytes]:
        """The serials of the invites that this member asked this node for, or used here."""
        now, newest = self._wall.now(), self._keys.authority.successor
        found = [bytes.fromhex(serial) for serial, entry in self._book.invites.items() if entry.expires > now]
        return [serial for serial in found if self._book.granted_to(serial, lambda holder: newest(holder) == node)]

    def _was_expelled(self, node: NodeId) -> None:
        """Another member expelled `node`: what it was given here is void in the whole mesh."""
        keys = self._keys
        granted = self._open_invites_of(keys.authority.successor(node))
        if keys.may_admit:
            revoked = [
                keys.state(StatementKind.REVOKE_INVITE, serial)
                for serial in granted
                if not keys.authority.is_revoked(serial)
            ]
            if revoked:
                self._post(e.StatementsMade(tuple(revoked)))
        self._book.forget(keys.authority.successor(node))

    def rotate_mesh_key(self) -> None:
        """Make a new mesh key: all invites are void, and members get new certificates. Raises EnvironmentFailure."""
        self._rotate((), ())
        self._audit("mesh_key_rotated")

    async def replace_node_key(self) -> str:
        """Give this node a new key; returns its new id (hexadecimal), under which it starts again at once. Raises
        EnvironmentFailure."""
        successor = await self.replacement.replace()
        self._audit("node_key_replaced", successor=successor.hex())
        return successor.hex()

    def _rotate(self, first: tuple[bytes, ...], more: tuple[tuple[StatementKind, bytes], ...]) -> None:
        keys = self._keys
        for node, record in [(p.node, p.record) for p in (self.view.peers if self.view is not None else ())]:
            # Who is known now gets a new certificate, also if it is off and comes back later.
            known = keys.authority.certificate(record.certificate, node, self._wall.now())
            if known is not None:
                self._book.seen(known, record.name, self._wall.now())
        made = keys.rotate(more)
        keys.private, keys.certificate, self._rotating = made.private, made.certificate, made.key
        kept = (*first, *made.statements)
        self._save(lambda: self._state.rotate(made.key, made.private, made.certificate.data, made.statements))
        self._post(e.StatementsMade(kept))
        self._post(e.CertificateRenewed(made.certificate))

    @property
    def upgraded(self) -> bool:
        """Whether the mesh key is still that of a shared secret."""
        return self._state.upgraded

    # -- certificates

    def needs(self, terms: InviteTerms) -> bool:
        """Whether an invite to this node's own mesh gives it anything."""
        own = self._keys.certificate
        keys = (self._keys.authority.key, self._keys.authority.previous)
        valid = own is not None and own.certificate.valid_at(self._wall.now()) and own.key in keys
        return not valid or bool(terms.rights & ~self._keys.rights)

    def renew_if_due(self) -> None:
        """After half of its lifetime a certificate is renewed, by this node itself if it holds the mesh key; at once if
        the mesh has another key: the node may have been stopped before it got a certificate of that."""
        keys, own = self._keys, self._keys.certificate
        if own is None:
            return
        late = self._wall.now() >= (own.certificate.issued + own.certificate.expires) / 2
        if not late and own.certificate.node == keys.node and own.key == keys.authority.key:
            return
        if keys.may_admit:
            renewed = keys.renewed(keys.certificate_as(keys.node))
            keys.certificate = renewed
            self._save(lambda: self._state.save_certificate(renewed.data, keys.private))
            self._post(e.CertificateRenewed(renewed))
        else:
            self._post(e.RenewalDue())

    def close_expired(self) -> float:
        """Close the links of peers whose certificate has expired; returns the seconds until the next one does."""
        for link in [link for link in self._links() if self.has_expired(link)]:
            peer = link.facts.peer
            log.info("closed the link to %s: its certificate has expired", self.name_of(peer) or short(peer))
            link.close("its certificate has expired")
        found = [link.facts.certificate for link in self._links() if link.facts.certificate is not None]
        now = self._wall.now()
        return min([each.expires - now for each in found if each.valid_at(now)], default=math.inf)

    def has_expired(self, link: Link) -> bool:
        """Whether the certificate with which a link came up has expired."""
        certificate = link.facts.certificate
        return certificate is not None and not certificate.valid_at(self._wall.now())

    def carry_out(
        self,
        command: c.SaveStatements
        | c.SaveGrace
        | c.IssueCertificate
        | c.TakeCertificate
        | c.MakeInvite
        | c.TakeInvite
        | c.CertifyReplacement
        | c.ReplacementRefused
        | c.NodeReplaced
        | c.MemberExpelled,
    ) -> None:
        """Carry out a command of the core about certificates, statements and invites."""
        keys = self._keys
        match command:
            case c.SaveStatements(key, statements, previous):
                if self._rotating not in (None, key):
                    return  # of the key that this node has just replaced
                if self._rotating is None and keys.private and public_key(keys.private) != key:
                    keys.private = b""
                self._rotating = None
                self._save(lambda: self._state.save_statements(key, statements, previous))
            case c.SaveGrace(terms):
                self._book.save_grace(terms)
            case c.IssueCertificate(peer, certificate):
                valid = certificate.valid_at(self._wall.now())
                if (
                    keys.may_admit
                    and valid
                    and self._was_known(certificate)
                    and not keys.authority.is_expelled(certificate.node)
                ):
                    given = keys.renewed(certificate)
                    private = keys.private if Right.ADMIT in given.certificate.rights else b""
                    self._send(peer, RenewedCertificate(given.data, private))
                    self._audit("certificate_renewed", node=peer.hex())
            case c.TakeCertificate(peer, answer):
                self._take_certificate(peer, answer)
            case c.MakeInvite(peer, ask):
                if keys.may_admit and self._may_get_invites(peer):
                    self._send(peer, self.requests.grant(peer, ask))
            case c.TakeInvite(maker, answer):
                self.requests.answered(maker, answer)
            case c.CertifyReplacement(peer, _):
                refusal = self.replacement.certify(command, self.rights_of(peer))
                if refusal is not None:
                    self._send(peer, refusal)
            case c.ReplacementRefused(reason):
                self.replacement.refused(reason)
            case c.MemberExpelled(node):
                self._was_expelled(node)
            case c.NodeReplaced(old, new):
                self._book.replaced(old, new)
                self._audit("member_replaced_key", node=old.hex(), successor=new.hex())

    def _was_known(self, member: Certificate) -> bool:
        """Whether the current mesh key signed this certificate, or this node met its member with it before that key.

        A node that was off while the key of an expelled member was changed believes the old key until it learns of
        the change: who came in between may have been certified by that member, and gets nothing of the new key here.
        """
        authority = self._keys.authority
        if authority.rotation is None or authority.is_current_member(member):
            return True
        return self._book.known_since(member.node) <= authority.rotation.statement.made

    def _may_get_invites(self, peer: NodeId) -> bool:
        """Whether a linked member gets invites of the current mesh key."""
        found = [link.facts.certificate for link in self._links() if link.facts.peer == peer]
        return all(member is not None and self._was_known(member) for member in found)

    def _take_certificate(self, peer: NodeId, answer: RenewedCertificate) -> None:
        keys = self._keys
        try:
            taken = read_certificate(answer.certificate, (keys.authority.key,), verify)
        except BadMessage as error:
            log.warning("%s sent no valid certificate: %s", self.name_of(peer) or short(peer), error.message)
            return
        if taken.certificate.node != keys.node:
            return
        private = answer.mesh_private
        if len(private) != PRIVATE_BYTES or public_key(private) != keys.authority.key:
            private = keys.private if keys.may_admit else b""
        keys.certificate, keys.private = taken, private
        self._save(lambda: self._state.save_certificate(taken.data, private))
        self._post(e.CertificateRenewed(taken))

    # -- invites

    def make_invite(self, wish: InviteWish, mesh: MeshId, ways: tuple[BootstrapAddress, ...]) -> Invitation:
        """An invite to `mesh` at `ways`. Raises EnvironmentFailure."""
        rights = parse_rights(wish.rights)
        now = self._wall.now()
        lifetime = wish.days * 86_400 or default_lifetime(rights)
        expires = int(now + (wish.seconds or INVITE_SECONDS))
        terms = InviteTerms(fresh_serial(self._keys.node), rights, expires, lifetime, wish.once)
        try:
            self._book.add(terms, self._keys.node, wish.label[:80], now, self._keys.authority.key)
        except (ValueError, OSError) as error:
            raise EnvironmentFailure(f"The invite cannot be listed: {error}.") from error
        key = invite_key(self._keys.private, terms, self._keys.node)
        token = encode(Invite(mesh, key, terms, ways))
        serial = terms.serial.hex()
        self._audit("invite_made", serial=serial, expires=expires, rights=int(rights), once=wish.once)
        return Invitation(token, expires, serial, tuple(right_names(rights)))
