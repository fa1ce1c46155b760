"""The hello of a link: both state machines and the framing, without sockets. docs/protocol.md specifies it.

The dialler has compared the acceptor's TLS key with the pin before this begins. The acceptor believes nothing before
`HelloProof`, and says nothing of its mesh; its nonce is fresh for each link, so no proof can be replayed. A side has a
`HandshakeResult` only after the peer has shown a certificate of the mesh key, or proved that it knows an invite's key.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from meshllm.core.membership.certificates import NODE_RIGHTS, Certificate, MeshKey, SignedCertificate
from meshllm.core.records import MeshId, NodeId, PeerAddress, Role
from meshllm.errors import BadMessage, PeerRefused
from meshllm.net.base import Admitted
from meshllm.net.identity import Identity, verify
from meshllm.wire.mesh.certificates import read_certificate
from meshllm.wire.mesh.hello import (
    NONCE_BYTES,
    Challenge,
    Credential,
    Hello,
    HelloProof,
    HelloRefusal,
    OlderHello,
    Welcome,
    decode_hello,
    encode_hello,
    highest_common,
    prove,
    to_sign,
    transcript,
    welcome_to_prove,
)
from meshllm.wire.mesh.invite import InviteTerms

LENGTH = struct.Struct(">I")
FRESH_INVITE = "Ask for a fresh invite: 'mesh-llm invite' prints it on a node of the mesh."
UPDATE = "Update the older of the two nodes."


class MembershipChecks(Protocol):
    """What a node knows of who is a member; asked during a hello."""

    def certificate_of(self, node: NodeId, data: bytes) -> Certificate | HelloRefusal:
        """The certificate of `node` in these bytes, or why it does not count."""

    def follow(self, changes: tuple[bytes, ...]) -> None:
        """Take in changes of the mesh key; invalid ones change nothing."""

    def refused(self, statements: tuple[bytes, ...]) -> None:
        """A peer refused this node and showed these statements as the reason; invalid ones change nothing."""

    def key_changes(self, certificate: bytes) -> tuple[bytes, ...]:
        """The changes of the mesh key since the key that signed this certificate."""

    def key_of_invite(self, terms: InviteTerms) -> bytes | HelloRefusal:
        """The key of an invite with these terms, or why it admits no node here."""

    def redeem(self, terms: InviteTerms, node: NodeId) -> tuple[MeshKey, bytes, bytes] | HelloRefusal:
        """Admit `node`, which has proved the invite's key: mesh key, new certificate, private mesh key or empty."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this node presents in a hello. `protocol`: oldest and newest version that it speaks.

    `certificate` is empty while only an invite is held: the node then dials but accepts no link. `invite` (key, terms)
    is used for dialling while it is set; `HandshakeResult.admitted` then replaces it.
    """

    mesh: MeshId
    checks: MembershipChecks
    certificate: bytes = b""
    invite: tuple[bytes, InviteTerms] | None = field(default=None, repr=False)
    role: Role = Role.NODE
    protocol: tuple[int, int] = (2, 2)


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """The facts about the peer that a handshake proved. `name` identifies the link at both ends.

    `role` is what the certificate allows, whatever the peer says of itself.
    """

    peer: NodeId
    role: Role
    mesh: MeshId
    protocol: int
    name: bytes
    instance: bytes
    certificate: Certificate
    ended: bytes = b""
    observed: PeerAddress | None = None
    admitted: Admitted | None = field(default=None, repr=False)


def permitted_role(claimed: Role, certificate: Certificate) -> Role:
    """A node without a right to do anything for others is a client."""
    return claimed if certificate.rights & NODE_RIGHTS else Role.CLIENT


class DiallerHandshake:
    """The dialler's side: send `start()`, pass each frame to `receive` and send its answer, until `result` is set."""

    def __init__(
        self, identity: Identity, peer: NodeId, credentials: Credentials, *, instance: bytes, ended: bytes = b""
    ) -> None:
        self.peer = peer
        self.result: HandshakeResult | None = None
        self.refusal: HelloRefusal | None = None
        self._identity = identity
        self._credentials = credentials
        self._key, terms = credentials.invite if credentials.invite is not None else (b"", None)
        if terms is None and not credentials.certificate:
            raise PeerRefused("This node has neither a membership certificate nor an invite.", advice=FRESH_INVITE)
        self._hello = encode_hello(
            Hello(
                credentials.protocol,
                identity.node,
                credentials.role,
                credentials.mesh,
                Credential.CERTIFICATE if terms is None else Credential.INVITE,
                secrets.token_bytes(NONCE_BYTES),
                instance,
                ended,
                terms,
            )
        )
        self._challenge: Challenge | None = None
        self._transcript = b""

    def start(self) -> bytes:
        """The first frame's payload."""
        return self._hello

    def receive(self, payload: bytes) -> bytes | None:
        """The answer to a payload, or None at the end. Raises PeerRefused and BadMessage."""
        message = decode_hello(payload)
        if isinstance(message, HelloRefusal):
            self.refusal = message
            if message.statements:
                self._credentials.checks.refused(message.statements)
            raise PeerRefused(message.message, advice=message.advice, reason=message.code)
        if self._challenge is None and isinstance(message, Challenge):
            return self._prove(message, payload)
        if self._challenge is not None and self.result is None and isinstance(message, Welcome):
            self._welcome(self._challenge, message)
            return None
        raise BadMessage(f"handshake: {type(message).__name__} unexpected")

    def _prove(self, challenge: Challenge, payload: bytes) -> bytes:
        if challenge.node != self.peer:
            raise PeerRefused("The peer's hello names another node than its certificate.", reason="wrong_node")
        if challenge.chosen != highest_common(self._credentials.protocol, challenge.protocol):
            raise BadMessage("handshake: the peer chose a protocol that is not the highest of both")
        self._challenge = challenge
        self._transcript = transcript(self._hello, payload)
        certificate = b"" if self._key else self._credentials.certificate
        signature = self._identity.sign(to_sign(self._transcript, certificate))
        proof = prove(self._key, "dialler", self._transcript) if self._key else b""
        return encode_hello(HelloProof(signature, certificate, proof))

    def _welcome(self, challenge: Challenge, welcome: Welcome) -> None:
        admitted = self._admitted(welcome) if self._key else None
        if admitted is None:
            self._credentials.checks.follow(welcome.key_changes)
            found = self._credentials.checks.certificate_of(self.peer, welcome.certificate)
            if isinstance(found, HelloRefusal):
                raise PeerRefused(
                    f"The peer is no member of this mesh: {found.message}", advice=found.advice, reason=found.code
                )
        else:
            # The mesh key comes from the peer: that it may speak for the mesh is what the invite's key proved.
            found = _read(welcome.certificate, admitted.key, self.peer).certificate
        self.result = HandshakeResult(
            self.peer,
            permitted_role(challenge.role, found),
            welcome.mesh,
            challenge.chosen,
            challenge.nonce,
            challenge.instance,
            found,
            observed=welcome.observed,
            admitted=admitted,
        )

    def _admitted(self, welcome: Welcome) -> Admitted:
        expected = prove(self._key, "acceptor", welcome_to_prove(self._transcript, replace(welcome, proof=b"")))
        if not hmac.compare_digest(welcome.proof, expected):
            raise PeerRefused("The peer does not know the invite's key.", advice=FRESH_INVITE, reason="wrong_invite")
        key = MeshKey(welcome.key)
        return Admitted(key, _read(welcome.granted, key, self._identity.node), welcome.private)


def _read(data: bytes, key: MeshKey, node: NodeId) -> SignedCertificate:
    signed = read_certificate(data, (key,), verify)
    if signed.certificate.node != node:
        raise BadMessage("handshake: a certificate of another node")
    return signed


class AcceptorHandshake:
    """The acceptor's side: pass each frame to `receive` and send its answer. After a refusal it reads nothing.

    `admit` is called after the peer has proved itself; it returns a refusal or None. `proved`: the peer's node id, once
    its signature was right, also if it was refused after that.
    """

    def __init__(
        self,
        identity: Identity,
        credentials: Credentials,
        *,
        instance: bytes,
        observed: PeerAddress | None,
        admit: Callable[[HandshakeResult], HelloRefusal | None],
    ) -> None:
        self.result: HandshakeResult | None = None
        self.refusal: HelloRefusal | None = None
        self.proved: NodeId | None = None
        self._identity = identity
        self._credentials = credentials
        self._checks = credentials.checks
        self._instance = instance
        self._observed = observed
        self._admit = admit
        self._hello: Hello | None = None
        self._key = b""
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._chosen = 0
        self._transcript = b""

    def receive(self, payload: bytes) -> bytes:
        """The answer to a payload. Raises BadMessage for an unexpected one."""
        if self.refusal is not None or self.result is not None:
            raise BadMessage("handshake: bytes after its end")
        message = decode_hello(payload)
        if self._hello is None and isinstance(message, Hello | OlderHello):
            return self._answer_hello(message, payload)
        if self._hello is not None and isinstance(message, HelloProof):
            return self._answer_proof(self._hello, message)
        raise BadMessage(f"handshake: {type(message).__name__} unexpected")

    def refuse(self, refusal: HelloRefusal) -> bytes:
        """Refuse the peer; returns the payload."""
        self.refusal = refusal
        return encode_hello(refusal)

    def _answer_hello(self, hello: Hello | OlderHello, payload: bytes) -> bytes:
        ours = self._credentials
        chosen = highest_common(ours.protocol, hello.protocol)
        if isinstance(hello, OlderHello) or chosen is None:
            older = "The dialling node" if hello.protocol[1] < ours.protocol[0] else "The answering node"
            message = (
                f"{older} is too old: one speaks protocols {hello.protocol[0]} to {hello.protocol[1]}, "
                f"the other {ours.protocol[0]} to {ours.protocol[1]}."
            )
            return self.refuse(HelloRefusal("protocol", message, UPDATE))
        if hello.node == self._identity.node:
            return self.refuse(HelloRefusal("itself", "The dialled node is the dialling node itself."))
        if not ours.certificate:
            message = "The node has not joined its mesh yet and cannot admit others."
            return self.refuse(HelloRefusal("joining", message, "Try again in a few seconds, or another node."))
        if hello.invite is not None:
            key = self._checks.key_of_invite(hello.invite)
            if isinstance(key, HelloRefusal):
                return self.refuse(key)
            self._key = key
        self._hello, self._chosen = hello, chosen
        answer = encode_hello(
            Challenge(ours.protocol, chosen, self._identity.node, ours.role, self._nonce, self._instance)
        )
        self._transcript = transcript(payload, answer)
        return answer

    def _answer_proof(self, hello: Hello, proof: HelloProof) -> bytes:
        # A proof or a certificate comes before the signature: a stranger costs as little as possible.
        granted: tuple[MeshKey, bytes, bytes] = (MeshKey(b""), b"", b"")
        found: Certificate | None = None
        if hello.invite is not None:
            if not hmac.compare_digest(proof.proof, prove(self._key, "dialler", self._transcript)):
                message = "The invite belongs to another mesh, or that mesh has a new key."
                return self.refuse(HelloRefusal("wrong_invite", message, FRESH_INVITE))
        else:
            judged = self._checks.certificate_of(hello.node, proof.certificate)
            if isinstance(judged, HelloRefusal):
                if judged.statements and not self._signed(hello, proof):
                    judged = replace(judged, statements=())
                return self.refuse(judged)
            found = judged
        if not self._signed(hello, proof):
            return self.refuse(
                HelloRefusal("wrong_node", "The dialling node does not have the private key of its node id.")
            )
        self.proved = hello.node
        if hello.invite is not None:
            redeemed = self._checks.redeem(hello.invite, hello.node)
            if isinstance(redeemed, HelloRefusal):
                return self.refuse(redeemed)
            granted = redeemed
            found = _read(granted[1], granted[0], hello.node).certificate
        assert found is not None
        role = permitted_role(hello.role, found)
        name, instance = self._nonce, hello.instance
        result = HandshakeResult(hello.node, role, hello.mesh, self._chosen, name, instance, found, ended=hello.ended)
        refusal = self._admit(result)
        if refusal is not None:
            return self.refuse(refusal)
        self.result = result
        ours = self._credentials
        changes = self._checks.key_changes(proof.certificate) if hello.invite is None else ()
        welcome = Welcome(ours.mesh, self._observed, ours.certificate, changes, *granted)
        if hello.invite is not None:
            shown = prove(self._key, "acceptor", welcome_to_prove(self._transcript, welcome))
            welcome = replace(welcome, proof=shown)
        return encode_hello(welcome)

    def _signed(self, hello: Hello, proof: HelloProof) -> bool:
        """Whether the dialler has the key of the id that it claims."""
        return verify(hello.node, to_sign(self._transcript, proof.certificate), proof.signature)


class Frames:
    """Splits a byte stream into frames of [u32 length][payload]."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes. Raises BadMessage once a length above the limit is known."""
        self._buffer += data
        self._check()

    def ready(self) -> bool:
        """Whether `take` would return a frame."""
        return len(self._buffer) >= 4 and len(self._buffer) >= 4 + LENGTH.unpack_from(self._buffer)[0]

    def take(self) -> bytes | None:
        """The next whole payload, or None."""
        if not self.ready():
            return None
        buffer = self._buffer
        end = 4 + LENGTH.unpack_from(buffer)[0]
        payload = bytes(buffer[4:end])
        del buffer[:end]
        self._check()
        return payload

    def rest(self) -> bytes:
        """Remove and return all bytes that were not taken."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _check(self) -> None:
        if len(self._buffer) >= 4 and LENGTH.unpack_from(self._buffer)[0] > self._limit:
            raise BadMessage(f"a frame of {LENGTH.unpack_from(self._buffer)[0]} bytes; the limit is {self._limit}")


def frame(payload: bytes) -> bytes:
    """The frame for `payload`."""
    return LENGTH.pack(len(payload)) + payload
