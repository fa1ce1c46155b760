"""Membership certificates and statements: who may do what in a mesh, signed by the mesh key.

The mesh key is an Ed25519 key pair. Its public key is the trust anchor of a mesh; members with `Right.ADMIT` hold the
private key. Invariants: every `SignedCertificate` and `SignedStatement` in the core has a verified signature; an
expulsion never expires. `wire/mesh/certificates.py` has the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import NewType

from meshllm.core.ids import NodeId

# The public key of a mesh, 32 bytes.
MeshKey = NewType("MeshKey", bytes)
MESH_KEY_BYTES = 32
SERIAL_BYTES = 8
# The serial of no invite: the certificate of a founder, or one that a holder of the mesh key gave itself.
NO_INVITE = bytes(SERIAL_BYTES)
# Statements of a mesh that are kept: each takes about 200 bytes in memory and in the state file.
MAX_STATEMENTS = 2048
# Nodes that one invite can admit, and living certificates of one inviter: far above a household, far below a flood.
MAX_NODES_PER_INVITE = 32
MAX_NODES_PER_INVITER = 256
# Lifetimes (seconds). A member renews its certificate after half of it.
MEMBER_LIFETIME = 365 * 24 * 3600
GUEST_LIFETIME = 30 * 24 * 3600


class Right(IntFlag):
    """What a member may do. USE: send requests. SERVE: answer requests of others. WORK: compute layers of splits.
    HOST: host splits, with workers of others. INVITE: ask for invites. ADMIT: hold the mesh key, admit and expel."""

    USE = 1
    SERVE = 2
    WORK = 4
    HOST = 8
    INVITE = 16
    ADMIT = 32


NO_RIGHTS = Right(0)
ALL_RIGHTS = Right.USE | Right.SERVE | Right.WORK | Right.HOST | Right.INVITE | Right.ADMIT
GUEST_RIGHTS = Right.USE
# A member with one of these takes part in gossip and has a record; others are clients, whatever they claim.
NODE_RIGHTS = Right.SERVE | Right.WORK | Right.HOST | Right.ADMIT
# A member that may host splits or admit others is a machine of the owner, or trusted as one.
OWNER_RIGHTS = Right.HOST | Right.ADMIT


def is_owner(rights: Right) -> bool:
    """Whether a member with these rights counts as one of the owner's own machines."""
    return bool(rights & OWNER_RIGHTS)


def trust_domain(node: NodeId, rights: Right) -> str:
    """Whose prompts share a cache with those of `node`: empty for the owner's machines, else the guest's own id.

    A cached prompt tells a caller who guesses it that it was asked before, token by token.
    """
    return "" if is_owner(rights) else node.hex()


# Node, rights, issued, expires, inviter, invite.
CertificateTerms = tuple[NodeId, Right, int, int, NodeId, bytes]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the mesh key says of a node. `issued` and `expires` in unix seconds; `serial` is random, 8 bytes.

    `inviter`: the node that made the invite; `invite`: the serial of that invite, `NO_INVITE` if there was none.
    """

    node: NodeId
    rights: Right
    issued: int
    expires: int
    serial: bytes
    inviter: NodeId
    invite: bytes = NO_INVITE

    def valid_at(self, now_unix: float) -> bool:
        """Whether the certificate has not expired."""
        return now_unix < self.expires

    @property
    def terms(self) -> CertificateTerms:
        """All but the serial: certificates with the same terms give the same node the same for the same time."""
        return self.node, self.rights, self.issued, self.expires, self.inviter, self.invite


@dataclass(frozen=True, slots=True)
class SignedCertificate:
    """A certificate with its bytes, and the mesh key that signed it."""

    certificate: Certificate
    data: bytes
    key: MeshKey


class StatementKind(Enum):
    """EXPEL: `subject` is the id of a node that is no member any more, for ever. REVOKE_INVITE: `subject` is the serial
    of an invite. NEW_KEY: `subject` is the mesh's next public key; signed by the one before it. REPLACE: the node
    `subject` has a new key; `by` is its new id, for which its certificates count from now on."""

    EXPEL = 1
    REVOKE_INVITE = 2
    NEW_KEY = 3
    REPLACE = 4


@dataclass(frozen=True, slots=True)
class Statement:
    """A fact about a mesh that spreads to all members and is kept. `made` in unix seconds by the node `by` (with
    `REPLACE`, its new id)."""

    kind: StatementKind
    subject: bytes
    made: int
    by: NodeId


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A statement with its bytes, and the mesh key that signed it."""

    statement: Statement
    data: bytes
    key: MeshKey
