"""Encodes and decodes the hello, and computes its proofs. `net/handshake.py` is the exchange.

Invariants: any bytes become a message or raise `BadMessage`; a message has at most MAX_HELLO_BYTES. The proofs cover
the bytes of `Hello` and `Challenge` (`transcript`), so neither can be altered; each side's proof has its own label, so
none can be reflected. A message is a msgpack array: kind, then fields. Newer versions may add fields at the end; older
ones skip them, but the proofs cover them.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import msgpack

from meshllm.core.membership.certificates import MESH_KEY_BYTES
from meshllm.core.records import MAX_NAME_BYTES, MESH_ID_BYTES, NODE_ID_BYTES, MeshId, NodeId, PeerAddress, Role
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES, STATEMENT_BYTES
from meshllm.wire.mesh.invite import InviteTerms, encode_terms, read_terms

# The longest message is a welcome with certificates and changes of the key; a hello takes about 200 bytes.
MAX_HELLO_BYTES = 2048
# The version of the protocol since which a hello has this form.
FIRST_PROTOCOL = 2
# Changes of the mesh key in a welcome: one that missed more needs a fresh invite.
MAX_KEY_CHANGES = 4
NONCE_BYTES = 32
INSTANCE_BYTES = 8
SIGNATURE_BYTES = 64
PROOF_BYTES = 32
# Versions count from 1.
MAX_PROTOCOL = 1 << 16


class Credential(IntEnum):
    """The dialler's credential: its membership certificate, or the key of an invite."""

    CERTIFICATE = 0
    INVITE = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's first message. `invite`: the terms of its invite; `instance` is random for each start.

    `ended`: the name of the last link to this acceptor that the dialler saw end, which is dead at the acceptor as well;
    or empty.
    """

    protocol: tuple[int, int]
    node: NodeId
    role: Role
    mesh: MeshId
    credential: Credential
    nonce: bytes
    instance: bytes
    ended: bytes = b""
    invite: InviteTerms | None = None


@dataclass(frozen=True, slots=True)
class OlderHello:
    """A hello of an older protocol, of which only the versions are read."""

    protocol: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Challenge:
    """The acceptor's answer. `chosen`: the agreed protocol; `nonce`: fresh, and the link's name."""

    protocol: tuple[int, int]
    chosen: int
    node: NodeId
    role: Role
    nonce: bytes
    instance: bytes


@dataclass(frozen=True, slots=True)
class HelloProof:
    """The dialler's proof of its node key (`signature`), and its certificate, or the proof of its invite's key."""

    signature: bytes
    certificate: bytes = b""
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The acceptor's certificate. `observed`: the dialler's address; `key_changes`: the statements that lead from an
    older mesh key to the newest.

    For a dialler with an invite: `proof` of the invite's key over all other fields, the mesh `key`, the dialler's new
    certificate `granted`, and the private mesh key if that has `ADMIT`.
    """

    mesh: MeshId
    observed: PeerAddress | None
    certificate: bytes
    key_changes: tuple[bytes, ...] = ()
    key: bytes = b""
    granted: bytes = b""
    private: bytes = field(default=b"", repr=False)
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class HelloRefusal:
    """A refusal. `code` is for programs, `message` and `advice` are for users. `statements` prove to a node that it is
    no member any more; only a dialler that has proved its id gets them."""

    code: str
    message: str
    advice: str = ""
    statements: tuple[bytes, ...] = ()


HelloMessage = Hello | OlderHello | Challenge | HelloProof | Welcome | HelloRefusal


def encode_hello(message: HelloMessage) -> bytes:
    """The payload of one frame."""
    match message:
        case Hello():
            # The eighth place is the expiry of the invite, as in protocol 1.
            expires = message.invite.expires if message.invite is not None else 0
            terms = encode_terms(message.invite) if message.invite is not None else b""
            parts: tuple[object, ...] = (
                1, *message.protocol, message.node, message.role.value, message.mesh, int(message.credential),
                expires, message.nonce, message.instance, message.ended, terms,
            )  # fmt: skip
        case OlderHello():
            parts = (1, *message.protocol)
        case Challenge():
            protocol, role = message.protocol, message.role.value
            parts = (2, *protocol, message.chosen, message.node, role, message.nonce, message.instance)
        case HelloProof():
            parts = (3, message.signature, message.certificate, message.proof)
        case Welcome():
            parts = (4, *_welcome_fields(message), message.proof)
        case HelloRefusal():
            said = (message.message[:MAX_NAME_BYTES], message.advice[:MAX_NAME_BYTES])
            parts = (5, message.code, *said, b"".join(message.statements))
    payload: bytes = msgpack.packb(parts)
    return payload


def decode_hello(payload: bytes) -> HelloMessage:
    """Decode a payload. Raises BadMessage."""
    if len(payload) > MAX_HELLO_BYTES:
        raise BadMessage(f"hello: more than {MAX_HELLO_BYTES} bytes")
    found = f.unpack(payload, max_text=MAX_NAME_BYTES, max_bytes=MAX_HELLO_BYTES, max_items=32)
    read = _READERS.get(f.number(f.fields(found, 1, "hello")[0], "kind of hello"))
    if read is None:
        raise BadMessage("hello: unknown kind")
    return read(found)


def transcript(hello: bytes, challenge: bytes) -> bytes:
    """The input of both proofs: a hash of both messages as they were on the wire."""
    parts = b"".join(struct.pack(">I", len(part)) + part for part in (hello, challenge))
    return hashlib.sha256(b"mesh-llm/2 hello" + parts).digest()


def to_sign(over: bytes, certificate: bytes) -> bytes:
    """The input of the dialler's signature: it presents `certificate` (empty with an invite) in this hello only."""
    return b"mesh-llm/2 hello dialler signs" + over + hashlib.sha256(certificate).digest()


def prove(key: bytes, label: str, over: bytes) -> bytes:
    """Proof of `key`. `label`: "dialler" or "acceptor"."""
    return hmac.digest(key, b"mesh-llm/2 hello " + label.encode() + b"\0" + over, "sha256")


def welcome_to_prove(over: bytes, welcome: Welcome) -> bytes:
    """The input of the acceptor's proof: the transcript `over` and all fields of the welcome."""
    packed: bytes = msgpack.packb(_welcome_fields(welcome))
    return over + hashlib.sha256(packed).digest()


def _welcome_fields(welcome: Welcome) -> tuple[object, ...]:
    packed = f.pack_host(welcome.observed.host) if welcome.observed is not None else None
    observed = (packed, welcome.observed.port) if packed is not None and welcome.observed is not None else None
    changes = b"".join(welcome.key_changes)
    return (welcome.mesh, observed, welcome.certificate, changes, welcome.key, welcome.granted, welcome.private)


def highest_common(ours: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """The newest protocol in both ranges, or None."""
    chosen = min(ours[1], theirs[1])
    return chosen if chosen >= max(ours[0], theirs[0]) else None


def _window(low: object, high: object) -> tuple[int, int]:
    least = f.number(low, "oldest protocol", 1, MAX_PROTOCOL)
    return least, f.number(high, "newest protocol", least, MAX_PROTOCOL)


def _role(value: object) -> Role:
    try:
        return Role(f.text(value, "role"))
    except ValueError:
        raise BadMessage("role: unknown") from None


def _read_hello(found: tuple[object, ...]) -> Hello | OlderHello:
    _, low, high, *_ = f.fields(found, 3, "hello")
    protocol = _window(low, high)
    if protocol[1] < FIRST_PROTOCOL:
        return OlderHello(protocol)
    _, _, _, node, role, mesh, kind, expires, nonce, instance, ended, terms, *_ = f.fields(found, 12, "hello")
    if ended != b"":
        f.exactly(ended, NONCE_BYTES, "ended link")
    credential = Credential(f.number(kind, "credential", 0, max(Credential)))
    invite = read_terms(terms) if credential is Credential.INVITE else None
    if expires != (invite.expires if invite is not None else 0) or (invite is None and terms != b""):
        raise BadMessage("hello: terms of an invite do not match")
    return Hello(
        protocol,
        NodeId(f.exactly(node, NODE_ID_BYTES, "node")),
        _role(role),
        MeshId(f.exactly(mesh, MESH_ID_BYTES, "mesh")),
        credential,
        f.exactly(nonce, NONCE_BYTES, "nonce"),
        f.exactly(instance, INSTANCE_BYTES, "instance"),
        ended,
        invite,
    )


def _read_challenge(found: tuple[object, ...]) -> Challenge:
    _, low, high, chosen, node, role, nonce, instance, *_ = f.fields(found, 8, "challenge")
    return Challenge(
        _window(low, high),
        f.number(chosen, "protocol", 1, MAX_PROTOCOL),
        NodeId(f.exactly(node, NODE_ID_BYTES, "node")),
        _role(role),
        f.exactly(nonce, NONCE_BYTES, "nonce"),
        f.exactly(instance, INSTANCE_BYTES, "instance"),
    )


def _read_proof(found: tuple[object, ...]) -> HelloProof:
    _, signature, certificate, proof, *_ = f.fields(found, 4, "proof")
    return HelloProof(
        f.exactly(signature, SIGNATURE_BYTES, "signature"),
        _empty_or(certificate, CERTIFICATE_BYTES, "certificate"),
        _empty_or(proof, PROOF_BYTES, "proof"),
    )


def _read_welcome(found: tuple[object, ...]) -> Welcome:
    _, mesh, observed, certificate, changes, key, granted, private, proof, *_ = f.fields(found, 9, "welcome")
    return Welcome(
        MeshId(f.exactly(mesh, MESH_ID_BYTES, "mesh")),
        f.address(observed, "observed address") if observed is not None else None,
        f.exactly(certificate, CERTIFICATE_BYTES, "certificate"),
        _statements(changes, "changes of the key"),
        _empty_or(key, MESH_KEY_BYTES, "mesh key"),
        _empty_or(granted, CERTIFICATE_BYTES, "certificate"),
        _empty_or(private, MESH_KEY_BYTES, "private mesh key"),
        _empty_or(proof, PROOF_BYTES, "proof"),
    )


def _statements(value: object, what: str) -> tuple[bytes, ...]:
    packed = f.multiple(value, STATEMENT_BYTES, MAX_KEY_CHANGES, what)
    return tuple([packed[at : at + STATEMENT_BYTES] for at in range(0, len(packed), STATEMENT_BYTES)])


def _empty_or(value: object, length: int, what: str) -> bytes:
    return b"" if value == b"" else f.exactly(value, length, what)


def _read_refusal(found: tuple[object, ...]) -> HelloRefusal:
    _, code, text, advice, *more = f.fields(found, 4, "refusal")
    statements = _statements(more[0], "reasons") if more else ()
    return HelloRefusal(f.name(code, "code"), f.text(text, "message"), f.text(advice, "advice"), statements)


_READERS: dict[int, Callable[[tuple[object, ...]], HelloMessage]] = {
    1: _read_hello,
    2: _read_challenge,
    3: _read_proof,
    4: _read_welcome,
    5: _read_refusal,
}
