"""Entries of the blackboard: a signed header and, beside it, the text.

A text can be erased everywhere while the header stays: it proves that nothing else was removed. Invariants: every
`SignedEntry` in the core has a verified signature and a body that fits its header. `wire/mesh/board.py` has the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from typing import NewType

from meshllm.core.ids import MeshId, NodeId

# The hash of a header (blake2b), 16 bytes.
EntryId = NewType("EntryId", bytes)
ENTRY_ID_BYTES = 16
NO_ENTRY = EntryId(b"")

# Bounds of an entry. Texts are UTF-8; the codec refuses what is longer.
MAX_BODY_BYTES = 4096
MAX_ROOM_BYTES = 128
MAX_AUTHOR_NAME_BYTES = 64
MAX_RECIPIENTS = 8
MAX_CLAIM_KEY_BYTES = 200
MAX_CLAIM_SECONDS = 4 * 3600
DEFAULT_CLAIM_SECONDS = 30 * 60
# How long an entry lives: from the earlier of the author's time and the moment it was first seen here.
LIFETIME_SECONDS = 48 * 3600
# What an author may write, by the times in its own headers.
ENTRIES_PER_MINUTE, ENTRIES_AT_ONCE, ENTRIES_PER_LIFETIME = 10, 20, 600
# Beyond these an author may still erase a text, and end or extend a claim, so many times.
RESERVED_AT_ONCE = 10
# What a mesh and one author in it may take here.
MAX_ENTRIES, MAX_BYTES = 20_000, 16 << 20
MAX_AUTHOR_ENTRIES, MAX_AUTHOR_BYTES = 600, 1 << 20
# An entry whose time is further ahead of this machine's clock is taken later.
MAX_AHEAD_SECONDS = 5 * 60


class EntryKind(IntEnum):
    """What an entry is. The first six have a text for people; the others act on a claim or on an earlier entry.

    CLAIM begins a claim of `subject` for `seconds`; RENEW (of the claim `target`) extends it by `seconds` from its own
    time; RELEASE ends it. RETRACT erases the text of `target`.
    """

    NOTE = 0
    STATUS = 1
    QUESTION = 2
    FINDING = 3
    TIP = 4
    DONE = 5
    CLAIM = 16
    RENEW = 17
    RELEASE = 18
    RETRACT = 19


TEXT_KINDS = (
    EntryKind.NOTE,
    EntryKind.STATUS,
    EntryKind.QUESTION,
    EntryKind.FINDING,
    EntryKind.TIP,
    EntryKind.DONE,
)


@dataclass(frozen=True, slots=True)
class EntryDraft:
    """An entry before it has an author, a number and a time. Fields as in `EntryHeader`."""

    body: str
    kind: EntryKind = EntryKind.NOTE
    room: str = ""
    name: str = ""
    program: str = ""
    reply_to: EntryId = NO_ENTRY
    to: tuple[str, ...] = ()
    subject: str = ""
    seconds: int = 0
    target: EntryId = NO_ENTRY


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """What the author signs.

    `epoch` (unix ms) is when the author's numbering began, `seq` counts from 1 in it. `time` is a hybrid logical clock
    in unix ms. `kind` may be of a newer version. `room`: empty is the common room. `name` and `program` are what the
    author's node says of the writer. `reply_to`: an earlier entry. `to`: names of recipients. `subject`, `seconds`: of
    a claim. `target`: what a retraction, renewal or release is about. `body_bytes`, `body_hash` (blake2b, 16 bytes):
    of the text's UTF-8.
    """

    mesh: MeshId
    author: NodeId
    epoch: int
    seq: int
    time: int
    kind: int
    room: str
    name: str
    program: str
    reply_to: EntryId
    to: tuple[str, ...]
    subject: str
    seconds: int
    target: EntryId
    body_bytes: int
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """An entry with the signed bytes of its header. `body` is None once it was erased, or if it was not sent.

    `first_seen` (unix ms): when this node got it.
    """

    header: EntryHeader
    data: bytes
    signature: bytes = field(repr=False)
    id: EntryId
    body: str | None
    first_seen: int = 0


# Writes the bytes of a header and signs them.
SignEntry = Callable[[EntryHeader], tuple[bytes, bytes]]


def body_hash(body: bytes) -> bytes:
    """What a header says of its text (UTF-8)."""
    return blake2b(body, digest_size=ENTRY_ID_BYTES, person=b"board body").digest()


def entry_id(data: bytes) -> EntryId:
    """The id of the entry whose header has these bytes."""
    return EntryId(blake2b(data, digest_size=ENTRY_ID_BYTES, person=b"board entry").digest())
