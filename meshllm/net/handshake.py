"""The hello of a link: both state machines and the framing, without sockets. docs/protocol.md specifies it.

The dialler has compared the acceptor's certificate key with the pin before this begins. The acceptor believes nothing
before `HelloProof`; its nonce is fresh for each link, so no proof can be replayed. A side has a `HandshakeResult` only
after the peer has proved that it knows the key.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from meshllm.core.records import MeshId, NodeId, PeerAddress, Role
from meshllm.errors import BadMessage, PeerRefused
from meshllm.net.identity import Identity, verify
from meshllm.wire.mesh.hello import (
    NONCE_BYTES,
    Challenge,
    Credential,
    Hello,
    HelloProof,
    HelloRefusal,
    Welcome,
    decode_hello,
    encode_hello,
    highest_common,
    prove,
    to_sign,
    transcript,
)
from meshllm.wire.mesh.invite import invite_key

LENGTH = struct.Struct(">I")
FRESH_INVITE = "Ask for a fresh invite: 'mesh-llm invite' prints it on a node of the mesh."
UPDATE = "Update the older of the two nodes."


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this node presents in a hello. `protocol`: oldest and newest version that it speaks.

    `secret` is the mesh secret; None while only an expiring invite is held: the node then dials but accepts no link.
    `invite` (key, expiry in unix seconds) is used for dialling while it is set; `LinkFacts.secret` then replaces it.
    """

    mesh: MeshId
    secret: bytes | None = field(default=None, repr=False)
    invite: tuple[bytes, int] | None = field(default=None, repr=False)
    role: Role = Role.NODE
    protocol: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """The facts about the peer that a handshake proved. `name` identifies the link at both ends."""

    peer: NodeId
    role: Role
    mesh: MeshId
    protocol: int
    name: bytes
    instance: bytes
    ended: bytes = b""
    observed: PeerAddress | None = None
    secret: bytes | None = field(default=None, repr=False)


class DiallerHandshake:
    """The dialler's side: send `start()`, pass each frame to `receive` and send its answer, until `result` is set."""

    def __init__(
        self, identity: Identity, peer: NodeId, credentials: Credentials, *, instance: bytes, ended: bytes = b""
    ) -> None:
        self.peer = peer
        self.result: HandshakeResult | None = None
        self.refusal: HelloRefusal | None = None
        self._identity = identity
        key, kind, expires = credentials.secret, Credential.MEMBER, 0
        if credentials.invite is not None:
            key, expires = credentials.invite
            kind = Credential.INVITE if expires else Credential.MEMBER
        if key is None:
            raise PeerRefused("This node has neither the mesh secret nor an invite.", advice=FRESH_INVITE)
        self._key = key
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._protocol = credentials.protocol
        self._hello = encode_hello(
            Hello(
                credentials.protocol,
                identity.node,
                credentials.role,
                credentials.mesh,
                kind,
                expires,
                nonce,
                instance,
                ended,
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
        if challenge.chosen != highest_common(self._protocol, challenge.protocol):
            raise BadMessage("handshake: the peer chose a protocol that is not the highest of both")
        self._challenge = challenge
        self._transcript = transcript(self._hello, payload)
        return encode_hello(
            HelloProof(self._identity.sign(to_sign(self._transcript)), prove(self._key, "dialler", self._transcript)),
        )

    def _welcome(self, challenge: Challenge, welcome: Welcome) -> None:
        if not hmac.compare_digest(welcome.proof, prove(self._key, "acceptor", self._transcript)):
            raise PeerRefused("The peer does not know the mesh secret.", advice=FRESH_INVITE, reason="wrong_secret")
        self.result = HandshakeResult(
            self.peer,
            challenge.role,
            welcome.mesh,
            challenge.chosen,
            challenge.nonce,
            challenge.instance,
            observed=welcome.observed,
            secret=welcome.secret or None,
        )


class AcceptorHandshake:
    """The acceptor's side: pass each frame to `receive` and send its answer. After a refusal it reads nothing.

    `admit` is called after the peer has proved itself; it returns a refusal or None.
    """

    def __init__(
        self,
        identity: Identity,
        credentials: Credentials,
        *,
        instance: bytes,
        observed: PeerAddress | None,
        wall_clock: Callable[[], float],
        admit: Callable[[HandshakeResult], HelloRefusal | None],
    ) -> None:
        self.result: HandshakeResult | None = None
        self.refusal: HelloRefusal | None = None
        self.proved: NodeId | None = None  # the peer, once it has proved its id
        self._identity = identity
        self._credentials = credentials
        self._instance = instance
        self._observed = observed
        self._wall_clock = wall_clock
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
        if self._hello is None and isinstance(message, Hello):
            return self._answer_hello(message, payload)
        if self._hello is not None and isinstance(message, HelloProof):
            return self._answer_proof(self._hello, message)
        raise BadMessage(f"handshake: {type(message).__name__} unexpected")

    def refuse(self, refusal: HelloRefusal) -> bytes:
        """Refuse the peer; returns the payload."""
        self.refusal = refusal
        return encode_hello(refusal)

    def _answer_hello(self, hello: Hello, payload: bytes) -> bytes:
        ours, secret = self._credentials, self._credentials.secret
        if hello.node == self._identity.node:
            return self.refuse(HelloRefusal("itself", "The dialled node is the dialling node itself."))
        chosen = highest_common(ours.protocol, hello.protocol)
        if chosen is None:
            older = "The dialling node" if hello.protocol[1] < ours.protocol[0] else "The answering node"
            message = (
                f"{older} is too old: one speaks protocols {hello.protocol[0]} to {hello.protocol[1]}, "
                f"the other {ours.protocol[0]} to {ours.protocol[1]}."
            )
            return self.refuse(HelloRefusal("protocol", message, UPDATE))
        if secret is None:
            message = "The node has not joined its mesh yet and cannot admit others."
            return self.refuse(HelloRefusal("joining", message, "Try again in a few seconds, or another node."))
        if hello.credential is Credential.INVITE:
            if hello.expires <= self._wall_clock():
                return self.refuse(HelloRefusal("expired_invite", "The invite has expired.", FRESH_INVITE))
            self._key = invite_key(secret, hello.expires)
        else:
            self._key = secret
        self._hello, self._chosen = hello, chosen
        answer = encode_hello(
            Challenge(ours.protocol, chosen, self._identity.node, ours.role, self._nonce, self._instance)
        )
        self._transcript = transcript(payload, answer)
        return answer

    def _answer_proof(self, hello: Hello, proof: HelloProof) -> bytes:
        # The proof comes before the signature: a peer without the key costs no signature check.
        if not hmac.compare_digest(proof.proof, prove(self._key, "dialler", self._transcript)):
            message = "The invite belongs to another mesh, or that mesh has a new secret."
            return self.refuse(HelloRefusal("wrong_secret", message, FRESH_INVITE))
        if not verify(hello.node, to_sign(self._transcript), proof.signature):
            return self.refuse(
                HelloRefusal("wrong_node", "The dialling node does not have the private key of its node id.")
            )
        result = HandshakeResult(
            hello.node, hello.role, hello.mesh, self._chosen, self._nonce, hello.instance, ended=hello.ended
        )
        self.proved = hello.node
        refusal = self._admit(result)
        if refusal is not None:
            return self.refuse(refusal)
        self.result = result
        secret = self._credentials.secret if hello.credential is Credential.INVITE else None
        return encode_hello(
            Welcome(
                prove(self._key, "acceptor", self._transcript), self._credentials.mesh, self._observed, secret or b""
            )
        )


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
