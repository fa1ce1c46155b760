"""The mesh key at one node: its own certificate, and what a holder of the private key signs.

Invariants: the private key leaves this object only to a member whose certificate has `ADMIT`, and to the state file.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshllm.core.ids import NodeId
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    GUEST_LIFETIME,
    MEMBER_LIFETIME,
    NO_INVITE,
    NO_RIGHTS,
    SERIAL_BYTES,
    Certificate,
    MeshKey,
    Right,
    SignedCertificate,
    Statement,
    StatementKind,
    is_owner,
)
from meshllm.daemon.mesh_state import PRIVATE_BYTES, public_key
from meshllm.errors import EnvironmentFailure
from meshllm.net.identity import verify
from meshllm.wire.mesh.certificates import certificate_reader, sign_certificate, sign_statement, statement_reader

# Clocks of members differ a little.
CLOCK_SLACK_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new mesh key: what was signed with the old and the new one, in the order in which it has to be learned."""

    key: MeshKey
    private: bytes
    certificate: SignedCertificate
    statements: tuple[bytes, ...]


def new_authority(key: MeshKey, statements: tuple[bytes, ...] = (), previous: MeshKey | None = None) -> Authority:
    """What a node knows of its mesh key, with real signatures."""
    return Authority(key, certificate_reader(verify), statement_reader(verify), statements, previous)


def default_lifetime(rights: Right) -> int:
    """How long a certificate with these rights is valid, in seconds."""
    return MEMBER_LIFETIME if is_owner(rights) else GUEST_LIFETIME


class MeshKeys:
    """`private` is empty at a node that may not admit others; `certificate` is None before there is one."""

    def __init__(
        self,
        node: NodeId,
        authority: Authority,
        private: bytes,
        certificate: SignedCertificate | None,
        now: Callable[[], float],
    ) -> None:
        self.node = node
        self.authority = authority
        self.private = private
        self.certificate = certificate
        self._now = now

    @property
    def rights(self) -> Right:
        """What this node may do."""
        return self.certificate.certificate.rights if self.certificate is not None else NO_RIGHTS

    @property
    def may_admit(self) -> bool:
        """Whether this node holds the current mesh key."""
        return bool(self.private) and public_key(self.private) == self.authority.key

    def certificate_as(self, node: NodeId) -> Certificate:
        """This node's certificate, for its id `node`. Raises EnvironmentFailure without one."""
        if self.certificate is None:
            raise EnvironmentFailure("This node has not joined its mesh yet.")
        own = self.certificate.certificate
        return replace(own, node=node, inviter=self.authority.successor(own.inviter))

    def issue(
        self, node: NodeId, rights: Right, lifetime: int, *, inviter: NodeId, invite: bytes = NO_INVITE
    ) -> SignedCertificate:
        """A new certificate of the current key."""
        return self._issue(self.private, node, rights, lifetime, inviter, invite)

    def renewed(self, old: Certificate) -> SignedCertificate:
        """A new certificate with the rights of `old`, valid as long; after half of its lifetime, for as long again."""
        if self._now() >= (old.issued + old.expires) / 2:
            lifetime = max(1, old.expires - old.issued - CLOCK_SLACK_SECONDS)
            return self.issue(old.node, old.rights, lifetime, inviter=old.inviter, invite=old.invite)
        return _sign(self.private, replace(old, serial=secrets.token_bytes(SERIAL_BYTES)))

    def issue_own(self) -> SignedCertificate:
        """This node gives itself all rights, as the founder of its mesh."""
        return self.issue(self.node, ALL_RIGHTS, MEMBER_LIFETIME, inviter=self.node)

    def state(self, kind: StatementKind, subject: bytes) -> bytes:
        """The bytes of a statement. Raises EnvironmentFailure without the mesh key."""
        if not self.may_admit:
            raise EnvironmentFailure(
                "This node does not hold the mesh key.", advice="Run this on one of the machines that may admit others."
            )
        return self._state(self.private, kind, subject, self.node)

    def replace(self, old: NodeId, new: NodeId) -> bytes:
        """The bytes of the statement that the node `old` has the id `new` from now on. Raises EnvironmentFailure."""
        self.state(StatementKind.REPLACE, old)
        return self._state(self.private, StatementKind.REPLACE, old, new)

    def rotate(self, more: tuple[tuple[StatementKind, bytes], ...] = ()) -> Rotation:
        """A new mesh key that keeps all statements, and makes `more`. Raises EnvironmentFailure."""
        private = secrets.token_bytes(PRIVATE_BYTES)
        key = public_key(private)
        change = self.state(StatementKind.NEW_KEY, key)
        known = [
            (said.kind, said.subject, said.by if said.kind is StatementKind.REPLACE else self.node)
            for said in [signed.statement for signed in self.authority.statements]
        ]
        wanted = dict.fromkeys((*known, *[(*place, self.node) for place in more]))
        kept = [self._state(private, *place) for place in wanted if place[0] is not StatementKind.NEW_KEY]
        own = self.certificate.certificate if self.certificate is not None else None
        rights = own.rights if own is not None else ALL_RIGHTS
        certificate = self._issue(private, self.node, rights, MEMBER_LIFETIME, self.node, NO_INVITE)
        return Rotation(key, private, certificate, (change, *kept))

    def _issue(
        self, private: bytes, node: NodeId, rights: Right, lifetime: int, inviter: NodeId, invite: bytes
    ) -> SignedCertificate:
        now = int(self._now())
        serial = secrets.token_bytes(SERIAL_BYTES)
        return _sign(
            private, Certificate(node, rights, now - CLOCK_SLACK_SECONDS, now + lifetime, serial, inviter, invite)
        )

    def _state(self, private: bytes, kind: StatementKind, subject: bytes, by: NodeId) -> bytes:
        made = Statement(kind, subject, int(self._now()), by)
        return sign_statement(made, public_key(private), Ed25519PrivateKey.from_private_bytes(private).sign).data


def _sign(private: bytes, made: Certificate) -> SignedCertificate:
    return sign_certificate(made, public_key(private), Ed25519PrivateKey.from_private_bytes(private).sign)
