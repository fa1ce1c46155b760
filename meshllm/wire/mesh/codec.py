"""Encodes and decodes the messages on a link's control stream.

Invariants: any bytes become a message or raise `BadMessage`, at a cost of a few MiB at most. A message is a msgpack
array: its kind, then its fields in fixed places; several ids are one byte string. Compatible changes: a new field at
the end (older nodes skip it) and a new kind (older nodes ignore it). A kind is never reused, a bound never raised;
other changes need a new protocol version.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from meshllm.core.board import messages as w
from meshllm.core.board.log import SUMMARY_HASH_BYTES
from meshllm.core.membership import messages as m
from meshllm.core.membership.authority import HASH_BYTES as STATEMENTS_HASH_BYTES
from meshllm.core.membership.messages import MAX_DIGEST_BITS, Message
from meshllm.core.records import (
    MAX_NUMBER,
    MAX_RECORD_BYTES,
    MESH_ID_BYTES,
    NODE_ID_BYTES,
    MeshId,
    NodeId,
    RecordVersion,
    SignedRecord,
)
from meshllm.core.split import lease as n
from meshllm.errors import BadMessage
from meshllm.wire.mesh import board, leases, memberships
from meshllm.wire.mesh import fields as f
from meshllm.wire.mesh.records import (
    SIGNATURE_BYTES,
    decode_record,
    encode_record,
    fit,
    fit_demand,
    fit_loads,
    read_demand,
    read_loads,
    read_signed,
    signed_bytes,
    signer,
)

__all__ = [
    "MAX_IDS",
    "MAX_PAYLOAD_BYTES",
    "MAX_RECORDS",
    "ParsedMessage",
    "Verify",
    "decode_message",
    "decode_record",
    "encode_message",
    "encode_record",
    "fit",
    "parse_message",
    "signed_bytes",
    "signer",
]

# Whether `signature` is the node's over the bytes: (node, signed bytes, signature).
Verify = Callable[[NodeId, bytes, bytes], bool]

# Equal to `net.base.MAX_MESSAGE_BYTES`, which `wire` may not import; a test compares them.
MAX_PAYLOAD_BYTES = 256 << 10
# Ids in one message: three times what fits into the 64 KiB that a node keeps its messages below.
MAX_IDS = 4096
# Records in one message; the smallest takes about 130 bytes with its signature.
MAX_RECORDS = 1024
HASH_BYTES = 4
HELD = struct.Struct(f">{NODE_ID_BYTES}sQQ")


def encode_message(message: Message) -> bytes:
    """The payload. Raises ValueError if a peer would refuse the message."""
    kind, write = _BY_TYPE[type(message)]
    payload: bytes = msgpack.packb((kind, *write(message)))
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{type(message).__name__} takes {len(payload)} bytes, above {MAX_PAYLOAD_BYTES}")
    return payload


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """A decoded message whose records, as (body, signature), are neither decoded nor verified yet. `checks`: other
    signatures in it that must be valid, as (node, signed bytes, signature).

    `build` makes the message from the verified records and the nodes of those that were left out as stale.
    """

    records: tuple[tuple[bytes, bytes], ...]
    build: Callable[[tuple[SignedRecord, ...], tuple[NodeId, ...]], Message]
    checks: tuple[tuple[NodeId, bytes, bytes], ...] = ()


def decode_message(payload: bytes, verify: Verify) -> Message | None:
    """The message with all its records verified; None for a kind of a newer version. Raises BadMessage.

    A record that its node signed but that this version cannot read is left out.
    """
    parsed = parse_message(payload)
    if parsed is None:
        return None
    if not all(verify(*check) for check in parsed.checks):
        raise BadMessage("entry: invalid signature")
    found = [read_signed(body, signature, verify) for body, signature in parsed.records]
    return parsed.build(tuple([signed for signed in found if signed is not None]), ())


def parse_message(payload: bytes) -> ParsedMessage | None:
    """The message without its records; None for a kind that only newer versions know. Raises BadMessage."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise BadMessage(f"message: more than {MAX_PAYLOAD_BYTES} bytes")
    found = f.unpack(payload, max_text=256, max_bytes=MAX_IDS * HELD.size, max_items=MAX_RECORDS)
    read = _READERS.get(f.number(f.fields(found, 1, "message")[0], "kind of message"))
    if read is None:
        return None
    message = read(found)
    return message if isinstance(message, ParsedMessage) else ParsedMessage((), lambda records, stale: message)


# -- each kind: its fields, written and read. `found[0]` is the kind.


def _write_ping(message: m.Ping) -> tuple[Any, ...]:
    return (message.number,)


def _read_ping(found: tuple[Any, ...]) -> Message:
    return m.Ping(f.number(f.fields(found, 2, "ping")[1], "ping's number"))


def _write_pong(message: m.Pong) -> tuple[Any, ...]:
    loads = [(load.name, load.active, load.waiting) for load in fit_loads(message.loads)]
    return (message.number, loads, message.board)


def _read_pong(found: tuple[Any, ...]) -> Message:
    _, number, loads, *later = f.fields(found, 3, "pong")
    return m.Pong(f.number(number, "pong's number"), read_loads(loads), _board_hash(later))


def _write_digest(message: m.Digest) -> tuple[Any, ...]:
    return (message.bits, message.hashes, message.statements, message.board)


def _read_digest(found: tuple[Any, ...]) -> Message:
    _, given, hashes, *later = f.fields(found, 3, "digest")
    bits = f.number(given, "digest's bits", 0, MAX_DIGEST_BITS)
    exact = f.exactly(hashes, HASH_BYTES << bits, "digest's hashes")
    return m.Digest(bits, exact, _statements_hash(later), _board_hash(later[1:]))


def _write_difference(message: m.Difference) -> tuple[Any, ...]:
    _bounded(len(message.held), MAX_IDS)
    held = b"".join([HELD.pack(node, stamp.incarnation, stamp.version) for node, stamp in message.held])
    return (message.bits, bytes(message.buckets), held)


def _read_difference(found: tuple[Any, ...]) -> Message:
    _, given, given_buckets, given_held, *_ = f.fields(found, 4, "difference")
    bits = f.number(given, "difference's bits", 0, MAX_DIGEST_BITS)
    buckets = tuple(f.multiple(given_buckets, 1, 1 << bits, "difference's buckets"))
    if len(set(buckets)) != len(buckets) or any(bucket >> bits for bucket in buckets):
        raise BadMessage("difference's buckets: out of range or repeated")
    entries = f.multiple(given_held, HELD.size, MAX_IDS, "difference's nodes")
    held = []
    for node, incarnation, version in HELD.iter_unpack(entries):
        if incarnation > MAX_NUMBER or version > MAX_NUMBER:
            raise BadMessage("difference's nodes: not a version")
        held.append((NodeId(node), RecordVersion(incarnation, version)))
    if len({node for node, _ in held}) != len(held):
        raise BadMessage("difference's nodes: repeated")
    return m.Difference(bits, buckets, tuple(held))


def _write_wanted(message: m.Wanted) -> tuple[Any, ...]:
    return (_packed_ids(message.nodes),)


def _read_wanted(found: tuple[Any, ...]) -> Message:
    return m.Wanted(_ids(f.fields(found, 2, "wanted")[1], "wanted nodes"))


def _write_records(message: m.Records) -> tuple[Any, ...]:
    return (_packed_records(message.records), message.push)


def _read_records(found: tuple[Any, ...]) -> ParsedMessage:
    _, records, given_push, *_ = f.fields(found, 3, "records")
    push = f.flag(given_push, "push")
    return ParsedMessage(_signed(records), lambda records, stale: m.Records(records, push, stale))


def _write_subscribe(message: m.Subscribe) -> tuple[Any, ...]:
    return (message.statements, message.name)


def _read_subscribe(found: tuple[Any, ...]) -> Message:
    name = f.text(found[2], "name of a client") if len(found) > 2 else ""
    return m.Subscribe(_statements_hash(list(found[1:])), name)


def _write_table(message: m.TableUpdate) -> tuple[Any, ...]:
    return (_packed_records(message.records), _packed_ids(message.gone), message.first, message.more)


def _read_table(found: tuple[Any, ...]) -> ParsedMessage:
    _, records, given_gone, given_first, given_more, *_ = f.fields(found, 5, "table")
    first, more = f.flag(given_first, "first"), f.flag(given_more, "more")
    gone = _ids(given_gone, "gone nodes")
    return ParsedMessage(_signed(records), lambda records, stale: m.TableUpdate(records, gone, first, more))


def _write_adopted(message: m.Adopted) -> tuple[Any, ...]:
    return (message.mesh,)


def _read_adopted(found: tuple[Any, ...]) -> Message:
    return m.Adopted(MeshId(f.exactly(f.fields(found, 2, "adopted")[1], MESH_ID_BYTES, "mesh id")))


def _write_report(message: m.ReportDemand) -> tuple[Any, ...]:
    return ([(entry.model, entry.level) for entry in fit_demand(message.demand)],)


def _read_report(found: tuple[Any, ...]) -> Message:
    return m.ReportDemand(read_demand(f.fields(found, 2, "report")[1]))


def _statements_hash(later: list[Any]) -> bytes:
    """The hash of statements in a field that may be missing or empty."""
    if not later or later[0] == b"":
        return b""
    return f.exactly(later[0], STATEMENTS_HASH_BYTES, "hash of statements")


def _board_hash(later: list[Any]) -> bytes:
    """The hash of the sender's blackboard in a field that may be missing or empty."""
    return b"" if not later or later[0] == b"" else f.exactly(later[0], SUMMARY_HASH_BYTES, "hash of a blackboard")


def _read_board_entries(found: tuple[Any, ...]) -> ParsedMessage:
    message = board.read_entries(found)
    checks = [(each.header.author, board.to_sign(each.data), each.signature) for each in message.entries]
    return ParsedMessage((), lambda records, stale: message, tuple(checks))


def _bounded(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"{count} entries in one message, above {most}")


def _packed_ids(nodes: tuple[NodeId, ...]) -> bytes:
    _bounded(len(nodes), MAX_IDS)
    return b"".join(nodes)


def _packed_records(records: tuple[SignedRecord, ...]) -> list[tuple[bytes, bytes]]:
    _bounded(len(records), MAX_RECORDS)
    return [(signed.body, signed.signature) for signed in records]


def _ids(value: Any, what: str) -> tuple[NodeId, ...]:
    """Node ids back to back, none twice: each may cost the reader more than the writer."""
    packed = f.multiple(value, NODE_ID_BYTES, MAX_IDS, what)
    ids = tuple([NodeId(packed[at : at + NODE_ID_BYTES]) for at in range(0, len(packed), NODE_ID_BYTES)])
    if len(set(ids)) != len(ids):
        raise BadMessage(f"{what}: repeated")
    return ids


def _signed(value: Any) -> tuple[tuple[bytes, bytes], ...]:
    """Bodies and signatures of records, with their lengths checked."""
    entries = []
    for entry in f.items(value, MAX_RECORDS, "records"):
        body, signature, *_ = f.fields(entry, 2, "signed record")
        if type(body) is not bytes or len(body) > MAX_RECORD_BYTES:
            raise BadMessage(f"record: more than {MAX_RECORD_BYTES} bytes, or not bytes")
        entries.append((body, f.exactly(signature, SIGNATURE_BYTES, "signature")))
    return tuple(entries)


_Writer = Callable[[Any], tuple[Any, ...]]
_Reader = Callable[[tuple[Any, ...]], Message | ParsedMessage]

_KINDS: tuple[tuple[int, type[Message], _Writer, _Reader], ...] = (
    (1, m.Ping, _write_ping, _read_ping),
    (2, m.Pong, _write_pong, _read_pong),
    (3, m.Digest, _write_digest, _read_digest),
    (4, m.Difference, _write_difference, _read_difference),
    (5, m.Wanted, _write_wanted, _read_wanted),
    (6, m.Records, _write_records, _read_records),
    (7, m.Subscribe, _write_subscribe, _read_subscribe),
    (8, m.TableUpdate, _write_table, _read_table),
    (9, m.Adopted, _write_adopted, _read_adopted),
    (10, n.Propose, leases.write_propose, leases.read_propose),
    (11, n.WorkerReport, leases.write_report, leases.read_report),
    (12, n.Commit, leases.write_commit, leases.read_commit),
    (13, n.Release, leases.write_release, leases.read_release),
    (14, n.Renew, leases.write_renew, leases.read_renew),
    (15, m.Statements, memberships.write_statements, memberships.read_statements),
    (16, m.RenewCertificate, memberships.write_renew, memberships.read_renew),
    (17, m.RenewedCertificate, memberships.write_renewed, memberships.read_renewed),
    (18, m.AskInvite, memberships.write_ask, memberships.read_ask),
    (19, m.GrantedInvite, memberships.write_granted, memberships.read_granted),
    (20, m.ReplaceKey, memberships.write_replace, memberships.read_replace),
    (21, m.ReplaceRefused, memberships.write_replace_refused, memberships.read_replace_refused),
    (22, m.ReportDemand, _write_report, _read_report),
    (23, w.BoardDigest, board.write_digest, board.read_digest),
    (24, w.BoardDifference, board.write_difference, board.read_difference),
    (25, w.BoardWant, board.write_want, board.read_want),
    (26, w.BoardEntries, board.write_entries, _read_board_entries),
)
_BY_TYPE = {kind: (number, write) for number, kind, write, _ in _KINDS}
_READERS = {number: read for number, _, _, read in _KINDS}
