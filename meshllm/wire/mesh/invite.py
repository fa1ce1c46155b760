"""Invites: the token that lets a node into a mesh.

Law: an invite is a secret. It never shows its key, and no error repeats any of the text it was read from.

The text is `mesh1-` and base64url of: one byte (the low two bits: ways in; bit 2: expires), mesh id, key, the time of
expiry in 4 bytes if it has one, the ways in, and 4 bytes of SHA-256 over what stands before. A way in is 16 bytes of
the node's id, one byte (the low nibble: addresses; bit 4: all have the same port), a bit for each address that says
whether it is IPv6, the one port or as many as addresses, and the addresses. Numbers are big-endian. The 1 in the prefix
is the version: anything that is not laid out like this gets the next one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field

from meshllm.core.records import MESH_ID_BYTES, BootstrapAddress, MeshId, PeerAddress
from meshllm.errors import BadInvite
from meshllm.wire.mesh.fields import MAX_PORT, pack_host, unpack_host

VERSION = 1
PREFIX = f"mesh{VERSION}-"
KEY_BYTES = 16
PIN_BYTES = 16
MAX_WAYS = 3
# What goes into the token of each way's addresses: the first ones, since it shall be short enough to paste.
MAX_ADDRESSES = 4
# 3 ways with 4 IPv6 addresses each make 420 characters; room for the line breaks and blanks of a paste.
MAX_CHARACTERS = 1000
MAX_EXPIRES = (1 << 32) - 1
CHECKSUM_BYTES = 4
WAYS_MASK, EXPIRES_BIT = 0x03, 0x04
COUNT_MASK, ONE_PORT_BIT = 0x0F, 0x10

# What a chat or an editor puts around and into a pasted token.
DECORATION = "\"'`<>"
BLANKS = re.compile(r"[\s\u200b\u2060\ufeff]+")
SHAPE = re.compile(r"mesh([0-9]{1,4})-([A-Za-z0-9_-]*)")
FRESH = "Ask for a fresh one: 'mesh-llm invite' prints it on a node of the mesh."


@dataclass(frozen=True, slots=True)
class Invite:
    """`key` proves that its holder was invited (`invite_key`); `expires` in unix seconds, 0: never; 1 to 3 `ways`."""

    mesh: MeshId
    key: bytes = field(repr=False)
    expires: int
    ways: tuple[BootstrapAddress, ...]


def invite_key(secret: bytes, expires: int) -> bytes:
    """The key of an invite: the mesh secret itself, or, if it expires, one that every member can work out from it."""
    if not expires:
        return secret
    return hmac.digest(secret, b"mesh-llm/1 invite" + struct.pack(">Q", expires), "sha256")[:KEY_BYTES]


def expired(invite: Invite, now_unix: float) -> bool:
    """Whether its time is over."""
    return bool(invite.expires) and now_unix >= invite.expires


def encode(invite: Invite) -> str:
    """The token. Of each way go in 16 bytes of the id and the first 4 addresses that have a place on the wire.

    Raises ValueError for an invite that leads nowhere or has no proper key: a defect of whoever made it.
    """
    if len(invite.mesh) != MESH_ID_BYTES or len(invite.key) != KEY_BYTES or not 0 <= invite.expires <= MAX_EXPIRES:
        raise ValueError("an invite needs a mesh id, a key, and a time of expiry that fits")
    if not 1 <= len(invite.ways) <= MAX_WAYS:
        raise ValueError(f"an invite has 1 to {MAX_WAYS} ways in, not {len(invite.ways)}")
    head = len(invite.ways) | (EXPIRES_BIT if invite.expires else 0)
    expires = struct.pack(">I", invite.expires) if invite.expires else b""
    body = bytes([head]) + invite.mesh + invite.key + expires + b"".join(map(_encode_way, invite.ways))
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
        raise ValueError("a way in has an address and at least 16 bytes of the node's id")
    one = len(set(ports)) == 1
    families = sum(1 << at for at, host in enumerate(hosts) if len(host) == 16)
    told = ports[:1] if one else ports
    head = bytes([len(hosts) | (ONE_PORT_BIT if one else 0), families])
    return way.pin[:PIN_BYTES] + head + struct.pack(f">{len(told)}H", *told) + b"".join(hosts)


def decode(text: str) -> Invite:
    """The invite that `text` is, whatever pasting did to it, expired or not. Raises BadInvite."""
    if len(text) > MAX_CHARACTERS:
        raise BadInvite(f"This is no invite: it is longer than {MAX_CHARACTERS} characters.", advice=FRESH)
    found = SHAPE.fullmatch(BLANKS.sub("", text).strip(DECORATION))
    if found is None:
        raise BadInvite(
            f"This is no invite: one begins with {PREFIX!r}, and has letters, digits, '-' and '_' only.",
            advice="Copy all of it, as 'mesh-llm invite' printed it.",
        )
    if int(found[1]) != VERSION:
        raise BadInvite(
            f"This invite is of version {int(found[1])}; this mesh-llm reads version {VERSION}.",
            advice="Update the older of the two nodes, and ask for a fresh invite.",
        )
    try:
        return _read(_from_base64(found[2]))
    except (ValueError, IndexError, struct.error):
        # From None: the original error could carry a piece of the token into a traceback.
        raise BadInvite(
            "This invite is damaged: some of it is missing or changed.", advice=f"Copy all of it, in one piece. {FRESH}"
        ) from None


def _from_base64(text: str) -> bytes:
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise ValueError("bits that belong to nothing")
    return data


def _read(data: bytes) -> Invite:
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise ValueError("checksum")
    reader = _ByteReader(body)
    head = reader.take(1)[0]
    ways = head & WAYS_MASK
    if head & ~(WAYS_MASK | EXPIRES_BIT) or not ways:
        raise ValueError("first byte")
    mesh, key = MeshId(reader.take(MESH_ID_BYTES)), reader.take(KEY_BYTES)
    (expires,) = struct.unpack(">I", reader.take(4)) if head & EXPIRES_BIT else (0,)
    if head & EXPIRES_BIT and not expires:
        raise ValueError("expiry")
    invite = Invite(mesh, key, expires, tuple([_read_way(reader) for _ in range(ways)]))
    if reader.left:
        raise ValueError("length")
    return invite


def _read_way(reader: _ByteReader) -> BootstrapAddress:
    pin = reader.take(PIN_BYTES)
    head, families = reader.take(2)
    count = head & COUNT_MASK
    if head & ~(COUNT_MASK | ONE_PORT_BIT) or not 1 <= count <= MAX_ADDRESSES or families >> count:
        raise ValueError("way in")
    told = 1 if head & ONE_PORT_BIT else count
    ports: tuple[int, ...] = struct.unpack(f">{told}H", reader.take(2 * told)) * (count if told == 1 else 1)
    addresses = []
    for at, port in enumerate(ports):
        host = unpack_host(reader.take(16 if families >> at & 1 else 4))
        if host is None or not port:
            raise ValueError("address")
        addresses.append(PeerAddress(host, port))
    return BootstrapAddress(pin, tuple(addresses))


class _ByteReader:
    """Bytes, taken from the front; taking more than there are is a ValueError."""

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
