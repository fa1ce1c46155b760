"""Bytes of the blackboard: the header of an entry, and the messages about entries. docs/protocol.md has the format.

Invariants: any bytes become a value within its bounds or raise `BadMessage`. A header is signed and hashed as the bytes
that its author wrote; it is never encoded again. The text beside it is checked against the header's hash.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack

from meshllm.core.board import entries as b
from meshllm.core.board import messages as m
from meshllm.core.board.chain import ChainId
from meshllm.core.board.entries import EntryHeader, EntryId, SignedEntry, body_hash, entry_id
from meshllm.core.ids import MESH_ID_BYTES, NODE_ID_BYTES, MeshId, NodeId
from meshllm.core.membership.messages import MAX_DIGEST_BITS
from meshllm.core.records import MAX_NUMBER
from meshllm.errors import BadMessage
from meshllm.wire.mesh import fields as f
from meshllm.wire.mesh.certificates import CERTIFICATE_BYTES, SIGNATURE_BYTES

FORMAT = 1
HASH_BYTES = 4
MAX_HEADER_BYTES = 2048
# The largest kind: a newer version may have more than this one knows.
MAX_KIND = 255
_LABEL = b"mesh-llm/1 board\0"
# Author, epoch, last, floor, broken.
_STATE = struct.Struct(f">{NODE_ID_BYTES}sQQQB")
# Author, epoch, first, last.
_RANGE = struct.Struct(f">{NODE_ID_BYTES}sQQQ")


def to_sign(data: bytes) -> bytes:
    """What the author of the header with these bytes signs."""
    return _LABEL + data


def board_signer(sign: Callable[[bytes], bytes]) -> Callable[[EntryHeader], tuple[bytes, bytes]]:
    """What `core.board.replica` writes entries with: the bytes of the header, and the signature of the node's key."""

    def write(header: EntryHeader) -> tuple[bytes, bytes]:
        data = encode_header(header)
        return data, sign(to_sign(data))

    return write


def encode_header(header: EntryHeader) -> bytes:
    """The bytes of a header. Raises ValueError if a peer would refuse it."""
    data: bytes = msgpack.packb(
        (
            FORMAT,
            header.mesh,
            header.author,
            header.epoch,
            header.seq,
            header.time,
            header.kind,
            header.room,
            header.name,
            header.program,
            header.reply_to,
            header.to,
            header.subject,
            header.seconds,
            header.target,
            header.body_bytes,
            header.body_hash,
        )
    )
    try:
        decode_header(data)
    except BadMessage as error:
        raise ValueError(error.message) from error
    return data


def decode_header(data: bytes) -> EntryHeader:
    """A header; its signature is not checked here. Raises BadMessage."""
    if len(data) > MAX_HEADER_BYTES:
        raise BadMessage(f"entry: a header of more than {MAX_HEADER_BYTES} bytes")
    longest = max(b.MAX_ROOM_BYTES, b.MAX_AUTHOR_NAME_BYTES, b.MAX_CLAIM_KEY_BYTES)
    found = f.unpack(data, max_text=longest, max_bytes=NODE_ID_BYTES, max_items=64)
    version, mesh, author, epoch, seq, time, kind, room, name, program, *rest = f.fields(found, 17, "entry")
    reply_to, to, subject, seconds, target, body_bytes, hashed, *_ = rest
    if version != FORMAT:
        raise BadMessage("entry: unknown format")
    header = EntryHeader(
        MeshId(f.exactly(mesh, MESH_ID_BYTES, "mesh of an entry")),
        NodeId(f.exactly(author, NODE_ID_BYTES, "author of an entry")),
        f.number(epoch, "epoch of an entry", 1),
        f.number(seq, "number of an entry", 1),
        f.number(time, "time of an entry", 1),
        f.number(kind, "kind of an entry", 0, MAX_KIND),
        _text(room, b.MAX_ROOM_BYTES, "room of an entry"),
        _text(name, b.MAX_AUTHOR_NAME_BYTES, "name of an author"),
        _text(program, b.MAX_AUTHOR_NAME_BYTES, "program of an author"),
        _id(reply_to, "entry that is replied to"),
        tuple(
            [_text(each, b.MAX_AUTHOR_NAME_BYTES, "recipient") for each in f.items(to, b.MAX_RECIPIENTS, "recipients")]
        ),
        _text(subject, b.MAX_CLAIM_KEY_BYTES, "subject of an entry"),
        f.number(seconds, "duration of a claim", 0, b.MAX_CLAIM_SECONDS),
        _id(target, "target of an entry"),
        f.number(body_bytes, "length of a text", 0, b.MAX_BODY_BYTES),
        f.exactly(hashed, b.ENTRY_ID_BYTES, "hash of a text"),
    )
    kinds = b.EntryKind
    if header.kind == kinds.CLAIM and not (header.subject and header.seconds):
        raise BadMessage("entry: a claim without a subject or a duration")
    if header.kind in (kinds.RENEW, kinds.RELEASE, kinds.RETRACT) and not header.target:
        raise BadMessage("entry: it needs a target and has none")
    return header


def read_entry(data: Any, signature: Any, body: Any) -> SignedEntry:
    """An entry whose signature is not verified yet; `body` None: it comes without its text. Raises BadMessage."""
    if type(data) is not bytes:
        raise BadMessage("entry: no header")
    header = decode_header(data)
    text = None
    if body is not None:
        if type(body) is not bytes or len(body) != header.body_bytes or body_hash(body) != header.body_hash:
            raise BadMessage("entry: the text does not belong to the header")
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise BadMessage("entry: the text is not UTF-8") from None
    signature = f.exactly(signature, SIGNATURE_BYTES, "signature of an entry")
    return SignedEntry(header, data, signature, entry_id(data), text)


def _text(value: Any, most: int, what: str) -> str:
    if type(value) is not str or len(value.encode(errors="replace")) > most or f.UNPRINTABLE.search(value):
        raise BadMessage(f"{what}: not printable text of at most {most} bytes")
    return value


def _id(value: Any, what: str) -> EntryId:
    if value == b"":
        return b.NO_ENTRY
    return EntryId(f.exactly(value, b.ENTRY_ID_BYTES, what))


# -- messages; `found[0]` is the kind


def write_digest(message: m.BoardDigest) -> tuple[Any, ...]:
    """The fields of `BoardDigest`."""
    return (message.bits, message.hashes)


def read_digest(found: tuple[Any, ...]) -> m.BoardDigest:
    """`BoardDigest`."""
    _, given, hashes, *_ = f.fields(found, 3, "board digest")
    bits = f.number(given, "board digest's bits", 0, MAX_DIGEST_BITS)
    return m.BoardDigest(bits, f.exactly(hashes, HASH_BYTES << bits, "board digest's hashes"))


def write_difference(message: m.BoardDifference) -> tuple[Any, ...]:
    """The fields of `BoardDifference`. Raises ValueError above the bounds."""
    _bounded(len(message.chains), m.MAX_CHAINS_LISTED)
    packed = [
        _STATE.pack(each.chain.author, each.chain.epoch, each.last, each.floor, each.broken) for each in message.chains
    ]
    return (message.bits, bytes(message.buckets), b"".join(packed), message.reply)


def read_difference(found: tuple[Any, ...]) -> m.BoardDifference:
    """`BoardDifference`."""
    _, given, given_buckets, packed, reply, *_ = f.fields(found, 5, "board difference")
    bits = f.number(given, "board difference's bits", 0, MAX_DIGEST_BITS)
    buckets = tuple(f.multiple(given_buckets, 1, 1 << bits, "board difference's buckets"))
    if len(set(buckets)) != len(buckets) or any(bucket >> bits for bucket in buckets):
        raise BadMessage("board difference's buckets: out of range or repeated")
    states = []
    data = f.multiple(packed, _STATE.size, m.MAX_CHAINS_LISTED, "board difference's chains")
    for author, epoch, last, floor, broken in _STATE.iter_unpack(data):
        if max(epoch, last, floor) > MAX_NUMBER or broken > 1 or min(epoch, last, floor) < 1:
            raise BadMessage("board difference's chains: not a state")
        states.append(m.ChainState(ChainId(NodeId(author), epoch), last, floor, bool(broken)))
    if len({state.chain for state in states}) != len(states):
        raise BadMessage("board difference's chains: repeated")
    return m.BoardDifference(bits, buckets, tuple(states), f.flag(reply, "reply"))


def write_want(message: m.BoardWant) -> tuple[Any, ...]:
    """The fields of `BoardWant`. Raises ValueError above the bounds."""
    _bounded(len(message.ranges), m.MAX_RANGES)
    return (b"".join([_RANGE.pack(r.chain.author, r.chain.epoch, r.first, r.last) for r in message.ranges]),)


def read_want(found: tuple[Any, ...]) -> m.BoardWant:
    """`BoardWant`."""
    ranges = []
    data = f.multiple(f.fields(found, 2, "board want")[1], _RANGE.size, m.MAX_RANGES, "wanted ranges")
    for author, epoch, first, last in _RANGE.iter_unpack(data):
        if max(epoch, first, last) > MAX_NUMBER or first > last or (first == 0 and last):
            raise BadMessage("wanted ranges: not a range")
        ranges.append(m.ChainRange(ChainId(NodeId(author), epoch), first, last))
    if len(set(ranges)) != len(ranges):
        raise BadMessage("wanted ranges: repeated")
    return m.BoardWant(tuple(ranges))


def write_entries(message: m.BoardEntries) -> tuple[Any, ...]:
    """The fields of `BoardEntries`. Raises ValueError above the bounds."""
    _bounded(len(message.entries), m.MAX_ENTRIES_SENT)
    packed = [
        (each.data, each.signature, None if each.body is None else each.body.encode()) for each in message.entries
    ]
    return (packed, list(message.certificates), message.push, message.end)


def read_entries(found: tuple[Any, ...]) -> m.BoardEntries:
    """`BoardEntries`; no signature is verified yet."""
    _, packed, given, push, end, *_ = f.fields(found, 5, "board entries")
    entries = []
    for each in f.items(packed, m.MAX_ENTRIES_SENT, "board entries"):
        data, signature, body, *_ = f.fields(each, 3, "entry")
        entries.append(read_entry(data, signature, body))
    if len({entry.id for entry in entries}) != len(entries):
        raise BadMessage("board entries: repeated")
    certificates = f.items(given, m.MAX_ENTRIES_SENT, "certificates of authors")
    read = tuple([f.exactly(data, CERTIFICATE_BYTES, "certificate of an author") for data in certificates])
    return m.BoardEntries(tuple(entries), read, f.flag(push, "push"), f.flag(end, "end"))


def _bounded(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{count} entries in one message, above {most}")
