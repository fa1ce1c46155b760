"""The checks at the door of a node: certificates, expulsions, changes of the mesh key, and uses of invites.

Invariants: everything that costs little comes first; a refusal says what to do next. A use of an invite is on the disk
before the newcomer is welcomed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshllm.core.ids import NodeId
from meshllm.core.membership.certificates import Certificate, MeshKey, Right, StatementKind
from meshllm.daemon.audit_log import WriteAudit
from meshllm.daemon.invite_book import FRESH_INVITE, InviteBook
from meshllm.daemon.mesh_keys import MeshKeys
from meshllm.errors import BadMessage
from meshllm.net.identity import verify
from meshllm.util.rate_limiter import TokenBucket
from meshllm.wire.mesh.certificates import read_certificate, read_statement
from meshllm.wire.mesh.hello import HelloRefusal
from meshllm.wire.mesh.invite import InviteTerms, invite_key, made_by

# New members: a household at once, a flood never.
ADMISSIONS_PER_SECOND, ADMISSIONS_AT_ONCE = 2.0, 64.0


class MemberAdmission:
    """`handshake.MembershipChecks` of one node. `learned` is called with changes of the mesh key that a peer showed."""

    def __init__(
        self,
        keys: MeshKeys,
        book: InviteBook,
        now: Callable[[], float],
        clock: Callable[[], float],
        learned: Callable[[tuple[bytes, ...]], None],
        audit: WriteAudit,
    ) -> None:
        self._keys = keys
        self._book = book
        self._now = now
        self._clock = clock
        self._learned = learned
        self._audit = audit
        self._coming: MeshKey | None = None  # a key that the core has not taken over yet
        self._admissions = TokenBucket(ADMISSIONS_PER_SECOND, ADMISSIONS_AT_ONCE, clock())

    def certificate_of(self, node: NodeId, data: bytes) -> Certificate | HelloRefusal:
        """The certificate of `node` in these bytes, or why it does not count."""
        authority = self._keys.authority
        if authority.is_expelled(node):
            return _expelled(authority.expulsion_of(node))
        found = authority.certificate(data, node, self._now())
        if found is None:
            found = self._of_another_key(node, data)
        if found is None:
            message = "The node has no membership certificate of this mesh."
            return HelloRefusal("wrong_mesh", message, FRESH_INVITE)
        if not found.valid_at(self._now()):
            return HelloRefusal("expired_certificate", "The membership certificate has expired.", FRESH_INVITE)
        return found

    def _of_another_key(self, node: NodeId, data: bytes) -> Certificate | None:
        """A certificate that has expired, of a key that is just being taken over, or of the key before: the last only
        as far as this node knew it, and only where the member can get a new one. Others of that key may be forged."""
        authority = self._keys.authority
        keys = [authority.key] + ([self._coming] if self._coming is not None else [])
        if authority.previous is not None and self._keys.may_admit:
            keys.append(authority.previous)
        try:
            signed = read_certificate(data, keys, verify)
        except BadMessage:
            return None
        found = signed.certificate
        if found.node != node and authority.successor(found.node) == node:
            found = replace(found, node=node)
        if found.node != node:
            return None
        if signed.key != authority.previous:
            return found
        if authority.rotation is None or self._book.known_since(node) > authority.rotation.statement.made:
            return None
        known = self._book.known_as(node)
        return _as_known(self._renamed(found), self._renamed(known)) if known is not None else None

    def _renamed(self, certificate: Certificate) -> Certificate:
        """With the newest id of the inviter."""
        return replace(certificate, inviter=self._keys.authority.successor(certificate.inviter))

    def refused(self, statements: tuple[bytes, ...]) -> None:
        """A peer refused this node and showed why: the core checks it, and leaves the mesh if that is so."""
        self._learned(statements)

    def follow(self, changes: tuple[bytes, ...]) -> None:
        """Take in changes of the mesh key; invalid ones change nothing."""
        key = self._keys.authority.key
        good = []
        for data in changes:
            try:
                found = read_statement(data, (key,), verify).statement
            except BadMessage:
                break
            if found.kind is not StatementKind.NEW_KEY:
                break
            key = MeshKey(found.subject)
            good.append(data)
        if good:
            self._coming = key
            self._learned(tuple(good))

    def key_changes(self, certificate: bytes) -> tuple[bytes, ...]:
        """The changes of the mesh key since the key that signed this certificate."""
        authority = self._keys.authority
        if authority.rotation is None or authority.previous is None:
            return ()
        try:
            read_certificate(certificate, (authority.previous,), verify)
        except BadMessage:
            return ()
        return (authority.rotation.data,)

    def key_of_invite(self, terms: InviteTerms) -> bytes | HelloRefusal:
        """The key of an invite with these terms, or why it admits no node here."""
        if not terms.valid_at(self._now()):
            return HelloRefusal("expired_invite", "The invite has expired.", FRESH_INVITE)
        authority = self._keys.authority
        # Also an invite that a member had made, or used, before it was expelled.
        if authority.is_revoked(terms.serial) or self._book.granted_to(terms.serial, authority.is_gone):
            return HelloRefusal("revoked_invite", "The invite was revoked.", FRESH_INVITE)
        if not self._keys.may_admit:
            message = "The answering node may not admit others."
            return HelloRefusal("cannot_admit", message, "Try another node of the mesh that may.")
        return invite_key(self._keys.private, terms, self._keys.node)

    def redeem(self, terms: InviteTerms, node: NodeId) -> tuple[MeshKey, bytes, bytes] | HelloRefusal:
        """Admit `node`, which has proved the invite's key: mesh key, new certificate, private mesh key or empty."""
        keys = self._keys
        if keys.authority.is_expelled(node):
            return _expelled(keys.authority.expulsion_of(node))
        if not self._admissions.take(self._clock()):
            return HelloRefusal("busy", "Too many nodes join at the same time.", "Try again in a few seconds.")
        try:
            inviter = self._inviter(terms)
            refusal = self._book.use(terms, node, keys.authority.key, inviter)
        except OSError as error:
            why = f"The answering node cannot save who joined: {error.strerror or error}."
            refusal = HelloRefusal("cannot_admit", why, "Free space on its disk, or try another node of the mesh.")
        if refusal is not None:
            return refusal
        given = keys.issue(node, terms.rights, terms.member_lifetime, inviter=inviter, invite=terms.serial)
        keys.authority.certificate(given.data, node, self._now())  # known from now on as one of the current key
        self._audit("member_admitted", node=node.hex(), rights=int(terms.rights), invite=terms.serial.hex())
        return keys.authority.key, given.data, keys.private if Right.ADMIT in terms.rights else b""

    def _inviter(self, terms: InviteTerms) -> NodeId:
        """Who made the invite, or asked for it: as noted here, else the member that its serial names."""
        maker = self._book.maker_of(terms.serial)
        if maker:
            return NodeId(bytes.fromhex(maker))
        for node, known in self._book.members.items():
            member = NodeId(bytes.fromhex(node))
            if Right.ADMIT in Right(known.rights) and made_by(terms.serial, member):
                return member
        return self._keys.node


def _as_known(shown: Certificate, known: Certificate) -> Certificate | None:
    """What a certificate of the previous mesh key counts for at a node that met its member with `known`: the same
    rights, and no longer, whatever it says. An expelled member may still hold that key."""
    counts = replace(shown, issued=known.issued, expires=known.expires)
    return counts if counts.terms == known.terms else None


def _expelled(statements: tuple[bytes, ...]) -> HelloRefusal:
    message, advice = "The node was expelled from this mesh.", "Ask the owner of the mesh."
    return HelloRefusal("expelled", message, advice, statements)
