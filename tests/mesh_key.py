"""A mesh key for tests without cryptography: certificates, statements and authorities of a whole mesh."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from meshllm.core.ids import NodeId
from meshllm.core.membership.authority import Authority
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    NO_INVITE,
    Certificate,
    MeshKey,
    Right,
    SignedCertificate,
    Statement,
    StatementKind,
)
from meshllm.core.membership.messages import Message, Records, TableUpdate
from meshllm.wire.mesh.certificates import certificate_reader, sign_certificate, sign_statement, statement_reader

NOW = 1_800_000_000
FOUNDER = NodeId(b"founder.".ljust(32, b"f"))


def _signature(key: bytes, data: bytes) -> bytes:
    return hashlib.sha512(key + data).digest()


def verify(key: bytes, data: bytes, signature: bytes) -> bool:
    """The counterpart of the signatures of `FakeMeshKey`."""
    return signature == _signature(key, data)


class FakeMeshKey:
    """A key pair whose halves are the same, so that only tests that forge nothing may use it."""

    def __init__(self, name: str = "mesh") -> None:
        self.key = MeshKey(hashlib.sha256(name.encode()).digest())

    def certify(
        self,
        node: NodeId,
        rights: Right = ALL_RIGHTS,
        *,
        inviter: NodeId = FOUNDER,
        invite: bytes = NO_INVITE,
        issued: int = NOW - 1000,
        expires: int = NOW + 1000,
    ) -> SignedCertificate:
        """A certificate."""
        serial = hashlib.sha256(node).digest()[:8]
        made = Certificate(node, rights, issued, expires, serial, inviter, invite)
        return sign_certificate(made, self.key, lambda data: _signature(self.key, data))

    def state(self, kind: StatementKind, subject: bytes, by: NodeId = FOUNDER) -> bytes:
        """The bytes of a statement."""
        made = Statement(kind, subject, NOW, by)
        return sign_statement(made, self.key, lambda data: _signature(self.key, data)).data

    def expel(self, node: NodeId) -> bytes:
        """The bytes of an expulsion."""
        return self.state(StatementKind.EXPEL, node)

    def replace(self, old: NodeId, new: NodeId, made: int = NOW) -> bytes:
        """The bytes of the statement that `old` has the id `new` from now on."""
        said = Statement(StatementKind.REPLACE, old, made, new)
        return sign_statement(said, self.key, lambda data: _signature(self.key, data)).data

    def authority(self, *statements: bytes) -> Authority:
        """What one node knows at its start."""
        return Authority(self.key, certificate_reader(verify), statement_reader(verify), statements)


def admitted(message: Message, authority: Authority | None) -> Message:
    """The message as the daemon of a node with that authority hands it to the core."""
    if authority is None or not isinstance(message, Records | TableUpdate):
        return message
    found = [(signed.record.node, authority.admit(signed, NOW)) for signed in message.records]
    records = tuple([signed for _, signed in found if signed is not None])
    if isinstance(message, TableUpdate):
        return replace(message, records=records)
    return replace(message, records=records, stale=tuple([node for node, signed in found if signed is None]))
