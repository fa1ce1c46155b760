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

from meshllm.core.records import MAX_NAME_BYTES, MESH_ID_BYTES, NODE_ID_BYTES, MeshId, NodeId, PeerAddress, Role
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f

# The longest message is a refusal with its texts; a hello takes about 180 bytes.
MAX_HELLO_BYTES = 1024
NONCE_BYTES = 32
INSTANCE_BYTES = 8
SIGNATURE_BYTES = 64
PROOF_BYTES = 32
MAX_SECRET_BYTES = 32
# Versions count from 1.
MAX_PROTOCOL = 1 << 16


class Credential(IntEnum):
    """The dialler's credential: the mesh secret, or the key of an expiring invite."""

    MEMBER = 0
    INVITE = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's first message. `expires` (unix seconds) belongs to an invite; `instance` is random for each start.

    `ended`: the name of the last link to this acceptor that the dialler saw end, which is dead at the acceptor as well;
    or empty.
    """

    protocol: tuple[int, int]
    node: NodeId
    role: Role
    mesh: MeshId
    credential: Credential
    expires: int
    nonce: bytes
    instance: bytes
    ended: bytes = b""


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
    """The dialler's proof of its node key (`signature`) and of the secret (`proof`)."""

    signature: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """The acceptor's proof of the secret. `observed`: the dialler's address; `secret`: for a dialler with an expiring
    invite."""

    proof: bytes
    mesh: MeshId
    observed: PeerAddress | None
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class HelloRefusal:
    """A refusal. `code` is for programs, `message` and `advice` are for users."""

    code: str
    message: str
    advice: str = ""


HelloMessage = Hello | Challenge | HelloProof | Welcome | HelloRefusal


def encode_hello(message: HelloMessage) -> bytes:
    """The payload of one frame."""
    match message:
        case Hello():
            parts: tuple[object, ...] = (
                1, *message.protocol, message.node, message.role.value, message.mesh, int(message.credential),
                message.expires, message.nonce, message.instance, message.ended,
            )  # fmt: skip
        case Challenge():
            protocol, role = message.protocol, message.role.value
            parts = (2, *protocol, message.chosen, message.node, role, message.nonce, message.instance)
        case HelloProof():
            parts = (3, message.signature, message.proof)
        case Welcome():
            packed = f.pack_host(message.observed.host) if message.observed is not None else None
            observed = (packed, message.observed.port) if packed is not None and message.observed is not None else None
            parts = (4, message.proof, message.mesh, observed, message.secret)
        case HelloRefusal():
            parts = (5, message.code, message.message[:MAX_NAME_BYTES], message.advice[:MAX_NAME_BYTES])
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
    return hashlib.sha256(b"mesh-llm/1 hello" + parts).digest()


def to_sign(over: bytes) -> bytes:
    """The input of the dialler's signature."""
    return b"mesh-llm/1 hello dialler signs" + over


def prove(key: bytes, label: str, over: bytes) -> bytes:
    """Proof of `key`. `label`: "dialler" or "acceptor"."""
    return hmac.digest(key, b"mesh-llm/1 hello " + label.encode() + b"\0" + over, "sha256")


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


def _read_hello(found: tuple[object, ...]) -> Hello:
    _, low, high, node, role, mesh, credential, expires, nonce, instance, ended, *_ = f.fields(found, 11, "hello")
    if ended != b"":
        f.exactly(ended, NONCE_BYTES, "ended link")
    return Hello(
        _window(low, high),
        NodeId(f.exactly(node, NODE_ID_BYTES, "node")),
        _role(role),
        MeshId(f.exactly(mesh, MESH_ID_BYTES, "mesh")),
        Credential(f.number(credential, "credential", 0, max(Credential))),
        f.number(expires, "expiry"),
        f.exactly(nonce, NONCE_BYTES, "nonce"),
        f.exactly(instance, INSTANCE_BYTES, "instance"),
        ended,
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
    _, signature, proof, *_ = f.fields(found, 3, "proof")
    return HelloProof(f.exactly(signature, SIGNATURE_BYTES, "signature"), f.exactly(proof, PROOF_BYTES, "proof"))


def _read_welcome(found: tuple[object, ...]) -> Welcome:
    _, proof, mesh, observed, secret, *_ = f.fields(found, 5, "welcome")
    return Welcome(
        f.exactly(proof, PROOF_BYTES, "proof"),
        MeshId(f.exactly(mesh, MESH_ID_BYTES, "mesh")),
        f.address(observed, "observed address") if observed is not None else None,
        f.multiple(secret, 1, MAX_SECRET_BYTES, "secret"),
    )


def _read_refusal(found: tuple[object, ...]) -> HelloRefusal:
    _, code, text, advice, *_ = f.fields(found, 4, "refusal")
    return HelloRefusal(f.name(code, "code"), f.text(text, "message"), f.text(advice, "advice"))


_READERS: dict[int, Callable[[tuple[object, ...]], HelloMessage]] = {
    1: _read_hello,
    2: _read_challenge,
    3: _read_proof,
    4: _read_welcome,
    5: _read_refusal,
}
