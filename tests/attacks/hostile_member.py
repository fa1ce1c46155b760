"""A member that says what a test wants it to say: our own transport and messages, with a key of its own.

It believes everything of the nodes that it dials, and shows the certificate or the invite that the test gives it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshllm.core.ids import NodeId
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
from meshllm.core.membership.messages import Message, Ping, Pong, Records
from meshllm.core.records import BootstrapAddress, MeshId, NodeRecord, PeerAddress, RecordVersion, Role, ServedModel
from meshllm.net.base import Link, StreamKind
from meshllm.net.handshake import Credentials
from meshllm.net.identity import Identity
from meshllm.net.quic.transport import QuicTransport
from meshllm.wire.mesh.certificates import read_certificate, sign_certificate, sign_statement
from meshllm.wire.mesh.codec import encode_message, parse_message, signer
from meshllm.wire.mesh.hello import HelloRefusal
from meshllm.wire.mesh.invite import Invite, InviteTerms

PATIENCE_SECONDS = 60.0
NO = HelloRefusal("hostile", "It admits nobody.")
Found = TypeVar("Found", bound=Message)


@dataclass(frozen=True)
class MeshSecrets:
    """What the home of a member with `ADMIT` holds, for certificates that only an attacker would make."""

    mesh: MeshId
    key: MeshKey
    private: bytes = field(repr=False)

    @classmethod
    def of(cls, home: Path) -> MeshSecrets:
        """Read a node's mesh.json."""
        kept = json.loads((home / "mesh.json").read_text())
        return cls(
            MeshId(bytes.fromhex(kept["mesh"])), MeshKey(bytes.fromhex(kept["key"])), bytes.fromhex(kept["private"])
        )

    def certify(
        self,
        node: NodeId,
        rights: Right = ALL_RIGHTS,
        *,
        issued: int,
        expires: int,
        inviter: NodeId | None = None,
        invite: bytes = NO_INVITE,
    ) -> SignedCertificate:
        """A certificate with the mesh key's signature, by default of a founder."""
        made = Certificate(node, rights, issued, expires, secrets.token_bytes(8), inviter or node, invite)
        return sign_certificate(made, self.key, Ed25519PrivateKey.from_private_bytes(self.private).sign)

    def sign(self, made: Certificate) -> bytes:
        """The bytes of a certificate with the mesh key's signature."""
        return sign_certificate(made, self.key, Ed25519PrivateKey.from_private_bytes(self.private).sign).data

    def state(self, kind: StatementKind, subject: bytes, by: NodeId, made: int) -> bytes:
        """A statement with the mesh key's signature."""
        statement = Statement(kind, subject, made, by)
        return sign_statement(statement, self.key, Ed25519PrivateKey.from_private_bytes(self.private).sign).data


class _Trusting:
    """`handshake.MembershipChecks` of a node that believes whatever it is shown, and admits nobody."""

    def certificate_of(self, node: NodeId, data: bytes) -> Certificate | HelloRefusal:
        key = MeshKey(data[1:5].ljust(32, b"\0"))
        return read_certificate(data, (key,), lambda key, signed, signature: True).certificate

    def follow(self, changes: tuple[bytes, ...]) -> None:
        pass

    def key_changes(self, certificate: bytes) -> tuple[bytes, ...]:
        return ()

    def key_of_invite(self, terms: InviteTerms) -> bytes | HelloRefusal:
        return NO

    def redeem(self, terms: InviteTerms, node: NodeId) -> tuple[MeshKey, bytes, bytes] | HelloRefusal:
        return NO


class Stream(asyncio.Protocol):
    """Everything that arrives on a stream until its end."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = asyncio.get_running_loop().create_future()
        self._arrived = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)
        self._arrived.set()

    async def until(self, fits: Callable[[bytes], bool]) -> bytes:
        """What has arrived, once that `fits` or the stream has ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (fits(self.received) or self.ended.done()):
                self._arrived.clear()
                await self._arrived.wait()
        return self.received


class HostileMember:
    """`link` is set by `dial`. `serve` answers streams that nodes open to this member."""

    def __init__(self, home: Path, mesh: MeshId, role: Role = Role.NODE) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.identity = Identity.load_or_create(home)
        self.node = self.identity.node
        self.mesh, self.role = mesh, role
        self.certificate = b""
        self.invite: Invite | None = None
        self.link: Link | None = None
        self.streams: list[tuple[StreamKind, Stream]] = []
        self.serve: Callable[[StreamKind], asyncio.BaseProtocol | None] = lambda kind: None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._version = 0
        self._transport = QuicTransport(self.identity, self._credentials)
        self.port = 0

    def _credentials(self) -> Credentials:
        invite = (self.invite.key, self.invite.terms) if self.invite is not None else None
        return Credentials(self.mesh, _Trusting(), self.certificate, invite, self.role)

    async def start(self) -> None:
        """Open a UDP port."""
        self.port = await self._transport.start(self)

    async def close(self) -> None:
        """End all links."""
        await self._transport.close()

    async def dial(self, target: BootstrapAddress) -> Link:
        """The link, made with the invite or else the certificate. Raises PeerRefused."""
        self.link = await self._transport.dial(target)
        given = self.link.facts.admitted
        if given is not None:
            self.certificate, self.invite = given.certificate.data, None
        return self.link

    def send(self, message: Message) -> None:
        """Send a message to the dialled node."""
        assert self.link is not None
        assert self.link.send(encode_message(message))

    async def answer(self, kind: type[Found], fits: Callable[[Found], bool] = lambda message: True) -> Found:
        """The next message of that kind."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                message = await self._messages.get()
                if isinstance(message, kind) and fits(message):
                    return message

    def open(self, kind: StreamKind) -> Stream:
        """Open a stream to the dialled node."""
        assert self.link is not None
        stream = Stream()
        self.link.open(kind, stream)
        return stream

    async def request(self, head: str, body: dict[str, Any] | None = None) -> bytes:
        """The answer to an HTTP request over a tunnel, as far as its end; empty if the tunnel was closed."""
        stream = self.open(StreamKind.HTTP_TUNNEL)
        data = json.dumps(body).encode() if body is not None else b""
        lines = (
            f"{head} HTTP/1.1\r\nhost: peer\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        assert stream.transport is not None
        stream.transport.write(lines.encode() + data)
        answer = await stream.until(_is_whole)
        stream.transport.abort()
        return answer

    def record(self, *serves: ServedModel, **fields: Any) -> NodeRecord:
        """A record of this node, newer than the ones before."""
        self._version += 1
        made = NodeRecord(
            self.node,
            RecordVersion(1, self._version),
            self.mesh,
            name="hostile",
            protocol=(2, 2),
            addresses=(PeerAddress("127.0.0.1", self.port),),
            serves=serves,
            certificate=self.certificate,
        )
        return NodeRecord(**{name: getattr(made, name) for name in NodeRecord.__slots__} | fields)

    def publish(self, *serves: ServedModel, **fields: Any) -> None:
        """Send this node's record, signed."""
        signed = signer(self.identity.sign)(self.record(*serves, **fields))
        self.send(Records((signed,), push=True))

    # -- net.base.LinkHandler

    def link_up(self, link: Link) -> None:
        pass

    def link_down(self, link: Link, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)

    def link_refused(self, peer: NodeId | None, address: PeerAddress, code: str) -> None:
        pass

    def message(self, link: Link, payload: bytes) -> None:
        parsed = parse_message(payload)
        if parsed is None:
            return
        message = parsed.build((), ())
        if isinstance(message, Ping):
            link.send(encode_message(Pong(message.number)))  # it wants to count as alive
        else:
            self._messages.put_nowait(message)

    def stream(self, link: Link, kind: StreamKind) -> asyncio.BaseProtocol | None:
        return self.serve(kind)


def _is_whole(answer: bytes) -> bool:
    """Whether an HTTP answer with a Content-Length has arrived."""
    head, found, body = answer.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return bool(found) and bool(lengths) and len(body) >= int(lengths[0])


@asynccontextmanager
async def hostile(home: Path, mesh: MeshId, role: Role = Role.NODE) -> AsyncIterator[HostileMember]:
    """A member with a port; nothing of it is left afterwards."""
    member = HostileMember(home, mesh, role)
    await member.start()
    try:
        yield member
    finally:
        await member.close()


@asynccontextmanager
async def invited(home: Path, invite: Invite, role: Role = Role.NODE) -> AsyncIterator[HostileMember]:
    """One that joined by `invite`, and is linked to the node that made it."""
    async with hostile(home, invite.mesh, role) as member:
        member.invite = invite
        await member.dial(invite.ways[0])
        yield member
