"""Bytes of membership certificates and statements. docs/protocol.md has the format.

Invariants: both have one length and one encoding; any bytes become a value with a verified signature or raise
`BadMessage`. The signed bytes of each kind begin with a label of their own, so that neither passes for the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from meshllm.core.ids import NODE_ID_BYTES, NodeId
from meshllm.core.membership.authority import ReadCertificate, ReadStatement
from meshllm.core.membership.certificates import (
    ALL_RIGHTS,
    MESH_KEY_BYTES,
    SERIAL_BYTES,
    Certificate,
    MeshKey,
    Right,
    SignedCertificate,
    SignedStatement,
    Statement,
    StatementKind,
)
from meshllm.errors import BadMessage

VERSION = 1
KEY_TAG_BYTES = 4
SIGNATURE_BYTES = 64
MAX_UNIX = (1 << 32) - 1

# Version, first bytes of the mesh key, node, rights, issued, expires, serial, inviter, invite.
_CERTIFICATE = struct.Struct(f">B{KEY_TAG_BYTES}s{NODE_ID_BYTES}sBII{SERIAL_BYTES}s{NODE_ID_BYTES}s{SERIAL_BYTES}s")
# Version, first bytes of the mesh key, kind, made, by (with REPLACE: the new id), subject (an invite's serial is padded
# with zeros).
_STATEMENT = struct.Struct(f">B{KEY_TAG_BYTES}sBI{NODE_ID_BYTES}s32s")
CERTIFICATE_BYTES = _CERTIFICATE.size + SIGNATURE_BYTES
STATEMENT_BYTES = _STATEMENT.size + SIGNATURE_BYTES
_SUBJECT_BYTES = {
    StatementKind.EXPEL: NODE_ID_BYTES,
    StatementKind.REVOKE_INVITE: SERIAL_BYTES,
    StatementKind.NEW_KEY: MESH_KEY_BYTES,
    StatementKind.REPLACE: NODE_ID_BYTES,
}
_CERTIFICATE_LABEL = b"mesh-llm/2 certificate\0"
_STATEMENT_LABEL = b"mesh-llm/2 statement\0"

_REPLACEMENT_LABEL = b"mesh-llm/2 new node key\0"

Sign = Callable[[bytes], bytes]
# Whether a signature (third) of a public key (first) over bytes (second) is valid.
VerifyKey = Callable[[NodeId, bytes, bytes], bool]


def sign_certificate(certificate: Certificate, key: MeshKey, sign: Sign) -> SignedCertificate:
    """Sign with the mesh key: `key` is its public half, `sign` its private one. Raises ValueError beyond the bounds."""
    try:
        body = _CERTIFICATE.pack(
            VERSION,
            key[:KEY_TAG_BYTES],
            certificate.node,
            int(certificate.rights),
            certificate.issued,
            certificate.expires,
            certificate.serial,
            certificate.inviter,
            certificate.invite,
        )
    except struct.error as error:
        raise ValueError(f"not a certificate: {error}") from error
    return SignedCertificate(certificate, body + sign(_CERTIFICATE_LABEL + body), key)


def sign_statement(statement: Statement, key: MeshKey, sign: Sign) -> SignedStatement:
    """Sign with the mesh key, as `sign_certificate`. Raises ValueError for a subject of a wrong length."""
    if len(statement.subject) != _SUBJECT_BYTES[statement.kind]:
        raise ValueError("not a statement: the subject has a wrong length")
    tag, kind = key[:KEY_TAG_BYTES], statement.kind.value
    body = _STATEMENT.pack(VERSION, tag, kind, statement.made, statement.by, statement.subject)
    return SignedStatement(statement, body + sign(_STATEMENT_LABEL + body), key)


def read_certificate(data: bytes, keys: Iterable[MeshKey], verify: VerifyKey) -> SignedCertificate:
    """A certificate signed by one of `keys`. Says nothing about expiry or expulsion. Raises BadMessage."""
    if type(data) is not bytes or len(data) != CERTIFICATE_BYTES:
        raise BadMessage("certificate: wrong length")
    version, tag, node, rights, issued, expires, serial, inviter, invite = _CERTIFICATE.unpack_from(data)
    if version != VERSION:
        raise BadMessage("certificate: unknown version")
    if rights & ~int(ALL_RIGHTS):
        raise BadMessage("certificate: unknown rights")
    key = _signer(data, _CERTIFICATE.size, tag, keys, _CERTIFICATE_LABEL, verify, "certificate")
    read = Certificate(NodeId(node), Right(rights), issued, expires, serial, NodeId(inviter), invite)
    return SignedCertificate(read, data, key)


def read_statement(data: bytes, keys: Iterable[MeshKey], verify: VerifyKey) -> SignedStatement:
    """A statement signed by one of `keys`. Raises BadMessage."""
    if type(data) is not bytes or len(data) != STATEMENT_BYTES:
        raise BadMessage("statement: wrong length")
    version, tag, kind, made, by, padded = _STATEMENT.unpack_from(data)
    try:
        meaning = StatementKind(kind)
    except ValueError:
        raise BadMessage("statement: unknown kind") from None
    length = _SUBJECT_BYTES[meaning]
    if version != VERSION or any(padded[length:]):
        raise BadMessage("statement: unknown version, or a damaged subject")
    if meaning is StatementKind.REPLACE and by == padded:
        raise BadMessage("statement: a node replaces itself")  # it would be expelled by that
    key = _signer(data, _STATEMENT.size, tag, keys, _STATEMENT_LABEL, verify, "statement")
    return SignedStatement(Statement(meaning, padded[:length], made, NodeId(by)), data, key)


def replacement_to_sign(key: MeshKey, old: NodeId, new: NodeId) -> bytes:
    """What the old and the new key of a node sign, so that the mesh with that key replaces the one by the other."""
    return _REPLACEMENT_LABEL + key + old + new


def certificate_reader(verify: VerifyKey) -> ReadCertificate:
    """What `core.membership.authority` reads certificates with."""

    def read(data: bytes, keys: tuple[MeshKey, ...]) -> SignedCertificate | None:
        try:
            return read_certificate(data, keys, verify)
        except BadMessage:
            return None

    return read


def statement_reader(verify: VerifyKey) -> ReadStatement:
    """What `core.membership.authority` reads statements with."""

    def read(data: bytes, keys: tuple[MeshKey, ...]) -> SignedStatement | None:
        try:
            return read_statement(data, keys, verify)
        except BadMessage:
            return None

    return read


def _signer(
    data: bytes, size: int, tag: bytes, keys: Iterable[MeshKey], label: bytes, verify: VerifyKey, what: str
) -> MeshKey:
    """The key that signed `data`; its first bytes, `tag`, tell which one to try."""
    for key in keys:
        if key[:KEY_TAG_BYTES] == tag and verify(NodeId(key), label + data[:size], data[size:]):
            return key
    raise BadMessage(f"{what}: not signed by the mesh key")
