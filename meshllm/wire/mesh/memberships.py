"""The messages about membership: statements, renewed certificates, replaced keys, invites made by another node.

Invariants as in `codec.py`. Signatures are checked by the core (statements) or the daemon (certificates).
"""

from __future__ import annotations

from typing import Any

from meshllm.core.membership import messages as m
from meshllm.core.membership.authority import HASH_BYTES
from meshllm.core.membership.certificates import ALL_RIGHTS, MESH_KEY_BYTES, SERIAL_BYTES, Right
from meshllm.core.membership.messages import MAX_STATEMENTS_SENT
from meshllm.core.records import NODE_ID_BYTES, NodeId
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES, MAX_UNIX, SIGNATURE_BYTES, STATEMENT_BYTES

INVITE_KEY_BYTES = 16
MAX_FLAGS = 0xFF


def write_statements(message: m.Statements) -> tuple[Any, ...]:
    """The fields of `Statements`. Raises ValueError for too many."""
    if len(message.statements) > MAX_STATEMENTS_SENT:
        raise ValueError(f"{len(message.statements)} statements in one message, above {MAX_STATEMENTS_SENT}")
    return (list(message.statements), message.hash)


def read_statements(found: tuple[Any, ...]) -> m.Statements:
    """`Statements`, with unverified signatures."""
    _, given, known, *_ = f.fields(found, 3, "statements")
    entries = f.items(given, MAX_STATEMENTS_SENT, "statements")
    statements = tuple([f.exactly(item, STATEMENT_BYTES, "statement") for item in entries])
    if len(set(statements)) != len(statements):
        raise BadMessage("statements: repeated")
    return m.Statements(statements, f.exactly(known, HASH_BYTES, "hash of statements"))


def write_renew(message: m.RenewCertificate) -> tuple[Any, ...]:
    """The fields of `RenewCertificate`."""
    return (message.certificate,)


def read_renew(found: tuple[Any, ...]) -> m.RenewCertificate:
    """`RenewCertificate`, with an unverified signature."""
    return m.RenewCertificate(f.exactly(f.fields(found, 2, "renewal")[1], CERTIFICATE_BYTES, "certificate"))


def write_renewed(message: m.RenewedCertificate) -> tuple[Any, ...]:
    """The fields of `RenewedCertificate`."""
    return (message.certificate, message.mesh_private)


def read_renewed(found: tuple[Any, ...]) -> m.RenewedCertificate:
    """`RenewedCertificate`, with an unverified signature."""
    _, certificate, private, *_ = f.fields(found, 3, "renewed certificate")
    return m.RenewedCertificate(
        f.exactly(certificate, CERTIFICATE_BYTES, "certificate"), _optional(private, MESH_KEY_BYTES, "mesh key")
    )


def write_replace(message: m.ReplaceKey) -> tuple[Any, ...]:
    """The fields of `ReplaceKey`."""
    return (message.successor, message.old_signature, message.new_signature)


def read_replace(found: tuple[Any, ...]) -> m.ReplaceKey:
    """`ReplaceKey`, with unverified signatures."""
    _, successor, old, new, *_ = f.fields(found, 4, "request for a new id")
    return m.ReplaceKey(
        NodeId(f.exactly(successor, NODE_ID_BYTES, "new id")),
        f.exactly(old, SIGNATURE_BYTES, "signature of the old key"),
        f.exactly(new, SIGNATURE_BYTES, "signature of the new key"),
    )


def write_replace_refused(message: m.ReplaceRefused) -> tuple[Any, ...]:
    """The fields of `ReplaceRefused`."""
    return (message.reason,)


def read_replace_refused(found: tuple[Any, ...]) -> m.ReplaceRefused:
    """`ReplaceRefused`."""
    return m.ReplaceRefused(f.text(f.fields(found, 2, "refused new id")[1], "reason of the refusal"))


def write_ask(message: m.AskInvite) -> tuple[Any, ...]:
    """The fields of `AskInvite`."""
    return (int(message.rights), message.expires, message.lifetime, message.flags)


def read_ask(found: tuple[Any, ...]) -> m.AskInvite:
    """`AskInvite`."""
    _, rights, expires, lifetime, flags, *_ = f.fields(found, 5, "request for an invite")
    return m.AskInvite(
        _rights(rights),
        f.number(expires, "invite's expiry", 0, MAX_UNIX),
        f.number(lifetime, "certificates' lifetime", 0, MAX_UNIX),
        f.number(flags, "invite's flags", 0, MAX_FLAGS),
    )


def write_granted(message: m.GrantedInvite) -> tuple[Any, ...]:
    """The fields of `GrantedInvite`."""
    return (message.serial, int(message.rights), message.expires, message.lifetime, message.key, message.refused)


def read_granted(found: tuple[Any, ...]) -> m.GrantedInvite:
    """`GrantedInvite`: either a key, or the reason of a refusal."""
    _, serial, rights, expires, lifetime, key, refused, *_ = f.fields(found, 7, "granted invite")
    granted = m.GrantedInvite(
        _optional(serial, SERIAL_BYTES, "invite's serial"),
        _rights(rights),
        f.number(expires, "invite's expiry", 0, MAX_UNIX),
        f.number(lifetime, "certificates' lifetime", 0, MAX_UNIX),
        _optional(key, INVITE_KEY_BYTES, "invite's key"),
        f.text(refused, "reason of the refusal"),
    )
    if bool(granted.key) == bool(granted.refused) or bool(granted.key) != bool(granted.serial):
        raise BadMessage("granted invite: neither a key nor a refusal")
    return granted


def _optional(value: Any, length: int, what: str) -> bytes:
    return b"" if type(value) is bytes and not value else f.exactly(value, length, what)


def _rights(value: Any) -> Right:
    number = f.number(value, "rights", 0, 0xFF)
    if number & ~int(ALL_RIGHTS):
        raise BadMessage("rights: unknown ones")
    return Right(number)
