"""Invites: the token that admits a node to a mesh. docs/protocol.md has the format.

Invariants: an invite is a secret; its key is in no `repr`, and no error quotes the text. The digit in the prefix is the
version.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field

from meshllm.core.membership.certificates import ALL_RIGHTS, SERIAL_BYTES, Right
from meshllm.core.records import MESH_ID_BYTES, BootstrapAddress, MeshId, NodeId, PeerAddress
from meshllm.errors import BadInvite, BadMessage
from meshllm.wire.mesh.fields import MAX_PORT, exactly, pack_host, unpack_host

VERSION = 2
PREFIX = f"mesh{VERSION}-"
KEY_BYTES = 16
PIN_BYTES = 16
MARK_BYTES = 4
MAX_WAYS = 3
# Addresses of each node in the token: few, so that it is short enough to paste.
MAX_ADDRESSES = 4
# 3 nodes with 4 IPv6 addresses each take 420 characters; the rest is for line breaks and spaces of a paste.
MAX_CHARACTERS = 1000
CHECKSUM_BYTES = 4
WAYS_MASK = 0x03
# Serial, rights, expires, lifetime of the certificate, flags.
_TERMS = struct.Struct(">8sBIIB")
TERMS_BYTES = _TERMS.size
ONCE_BIT, MAKER_BIT = 0x01, 0x02
COUNT_MASK, ONE_PORT_BIT = 0x0F, 0x10

# Characters that a chat or an editor adds around a pasted token.
DECORATION = "\"'`<>()[]\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb.,;:!?=*"
# The command that a page or a terminal shows, copied with the invite behind it.
COMMAND = re.compile(r"[\w./$~-]*mesh-llm--join=?")
BLANKS = re.compile(r"[\s\u200b\u2060\ufeff]+")
SHAPE = re.compile(r"mesh([0-9]{1,4})-([A-Za-z0-9_-]*)")
FRESH = "Ask for a fresh one: 'mesh-llm invite' prints it on a node of the mesh."


@dataclass(frozen=True, slots=True)
class InviteTerms:
    """What an invite is good for: until `expires` (unix seconds) it gives a certificate with `rights` for
    `member_lifetime` seconds. `serial`: see `new_serial`; `once`: it admits one node, at its maker only;
    `maker_only`: it admits at its maker only.
    """

    serial: bytes
    rights: Right
    expires: int
    member_lifetime: int
    once: bool = False
    maker_only: bool = False

    def valid_at(self, now_unix: float) -> bool:
        """Whether the invite has not expired."""
        return now_unix < self.expires


@dataclass(frozen=True, slots=True)
class Invite:
    """`key`: see `invite_key`; `ways`: 1 to 3 nodes to dial."""

    mesh: MeshId
    key: bytes = field(repr=False)
    terms: InviteTerms
    ways: tuple[BootstrapAddress, ...]


def new_serial(random: bytes, maker: NodeId) -> bytes:
    """The serial of a new invite: 4 random bytes, then the first 4 of its maker's id, by which any member that admits
    a node knows who invited it. The serial is part of the terms, so only a holder of the mesh key can choose it."""
    return random[: SERIAL_BYTES - MARK_BYTES] + maker[:MARK_BYTES]


def made_by(serial: bytes, node: NodeId) -> bool:
    """Whether the serial says that `node` made the invite."""
    return serial[-MARK_BYTES:] == node[:MARK_BYTES]


def invite_key(private: bytes, terms: InviteTerms, maker: NodeId) -> bytes:
    """The key of an invite, which each holder of the private mesh key alone can derive.

    It is bound to the terms, so that an invite is good for nothing else, and to the maker where no other admits by it.
    """
    bound = maker if terms.once or terms.maker_only else b""
    return hmac.digest(private, b"mesh-llm/2 invite\0" + encode_terms(terms) + bound, "sha256")[:KEY_BYTES]


def encode_terms(terms: InviteTerms) -> bytes:
    """The terms as `TERMS_BYTES` bytes. Raises ValueError for values out of bounds."""
    try:
        flags = terms.once * ONCE_BIT | terms.maker_only * MAKER_BIT
        return _TERMS.pack(terms.serial, int(terms.rights), terms.expires, terms.member_lifetime, flags)
    except struct.error as error:
        raise ValueError(f"not the terms of an invite: {error}") from error


def read_terms(data: object) -> InviteTerms:
    """The terms in those bytes. Raises BadMessage."""
    serial, rights, expires, lifetime, flags = _TERMS.unpack(exactly(data, TERMS_BYTES, "terms of an invite"))
    if not rights or rights & ~int(ALL_RIGHTS) or flags & ~(ONCE_BIT | MAKER_BIT):
        raise BadMessage("terms of an invite: unknown rights or flags")
    return InviteTerms(serial, Right(rights), expires, lifetime, bool(flags & ONCE_BIT), bool(flags & MAKER_BIT))


def encode(invite: Invite) -> str:
    """The token: for each node 16 bytes of its id and its first 4 valid addresses.

    Raises ValueError for an invite without nodes, addresses or a proper key.
    """
    if len(invite.mesh) != MESH_ID_BYTES or len(invite.key) != KEY_BYTES or not invite.terms.rights:
        raise ValueError("an invite needs a mesh id, a key, and a right")
    if not 1 <= len(invite.ways) <= MAX_WAYS:
        raise ValueError(f"an invite has 1 to {MAX_WAYS} nodes, not {len(invite.ways)}")
    terms = encode_terms(invite.terms)
    body = bytes([len(invite.ways)]) + invite.mesh + invite.key + terms + b"".join(map(_encode_way, invite.ways))
    return PREFIX + urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def _encode_way(way: BootstrapAddress) -> bytes:
    hosts: list[bytes] = []
    ports: list[int] = []
    for address in way.addresses:
        packed = pack_host(address.host)
        if packed is not None and 1 <= address.port <= MAX_PORT and len(hosts) < MAX_ADDRESSES:
            hosts.append(packed)
            ports.append(address.port)
    if not hosts or len(way.pin) < PIN_BYTES:
        raise ValueError("a node in an invite needs an address and at least 16 bytes of its id")
    one = len(set(ports)) == 1
    families = sum(1 << at for at, host in enumerate(hosts) if len(host) == 16)
    listed = ports[:1] if one else ports
    head = bytes([len(hosts) | (ONE_PORT_BIT if one else 0), families])
    return way.pin[:PIN_BYTES] + head + struct.pack(f">{len(listed)}H", *listed) + b"".join(hosts)


def decode(text: str) -> Invite:
    """Decode a token, tolerating what pasting adds; an expired one as well. Raises BadInvite."""
    if len(text) > MAX_CHARACTERS:
        raise BadInvite(f"This is not an invite: it is longer than {MAX_CHARACTERS} characters.", advice=FRESH)
    bare = COMMAND.sub("", BLANKS.sub("", text).lstrip(DECORATION), count=1)
    found = SHAPE.fullmatch(bare.strip(DECORATION))
    if found is None:
        raise BadInvite(
            f"This is not an invite: an invite begins with {PREFIX!r} and has only letters, digits, '-' and '_'.",
            advice="Copy the whole text that 'mesh-llm invite' printed.",
        )
    if int(found[1]) == 1:
        raise BadInvite("This invite was made by an older mesh-llm and is void.", advice=FRESH)
    if int(found[1]) != VERSION:
        raise BadInvite(
            f"This invite has version {int(found[1])}; this mesh-llm reads version {VERSION}.",
            advice="Update the older of the two nodes, and ask for a fresh invite.",
        )
    try:
        return _read(_from_base64(found[2]))
    except (ValueError, IndexError, struct.error, BadMessage):
        # From None: a traceback must not show a part of the token.
        raise BadInvite(
            "This invite is damaged: characters are missing or changed.", advice=f"Copy the whole text. {FRESH}"
        ) from None


def _from_base64(text: str) -> bytes:
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise ValueError("non-zero padding bits")
    return data


def _read(data: bytes) -> Invite:
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise ValueError("checksum")
    reader = _ByteReader(body)
    head = reader.take(1)[0]
    ways = head & WAYS_MASK
    if head & ~WAYS_MASK or not ways:
        raise ValueError("first byte")
    mesh, key = MeshId(reader.take(MESH_ID_BYTES)), reader.take(KEY_BYTES)
    terms = read_terms(reader.take(TERMS_BYTES))
    invite = Invite(mesh, key, terms, tuple([_read_way(reader) for _ in range(ways)]))
    if reader.left:
        raise ValueError("length")
    return invite


def _read_way(reader: _ByteReader) -> BootstrapAddress:
    pin = reader.take(PIN_BYTES)
    head, families = reader.take(2)
    count = head & COUNT_MASK
    if head & ~(COUNT_MASK | ONE_PORT_BIT) or not 1 <= count <= MAX_ADDRESSES or families >> count:
        raise ValueError("way in")
    port_count = 1 if head & ONE_PORT_BIT else count
    ports: tuple[int, ...] = struct.unpack(f">{port_count}H", reader.take(2 * port_count)) * (
        count if port_count == 1 else 1
    )
    addresses = []
    for at, port in enumerate(ports):
        host = unpack_host(reader.take(16 if families >> at & 1 else 4))
        if host is None or not port:
            raise ValueError("address")
        addresses.append(PeerAddress(host, port))
    return BootstrapAddress(pin, tuple(addresses))


class _ByteReader:
    """Reads bytes from the front; ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("too short")
        self._at += count
        return self._data[self._at - count : self._at]
