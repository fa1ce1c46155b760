"""Entries for tests: any header, signed by the stand-in of `saved_board`."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from meshllm.core.board.chain import ChainId, chain_of
from meshllm.core.board.entries import NO_ENTRY, EntryHeader, EntryId, EntryKind, SignedEntry, body_hash, entry_id
from meshllm.core.ids import MeshId, NodeId
from tests.saved_board import sign_entry

__all__ = ["ChainId", "chain_of", "entry_id"]

NOW_MS = 1_800_000_000_000
MESH = MeshId(bytes(16))


def author(number: int) -> NodeId:
    """The id of an author."""
    return NodeId(sha256(b"author %d" % number).digest())


def entry(
    seq: int,
    time: int = NOW_MS,
    *,
    by: int = 1,
    body: str = "text",
    kind: int = EntryKind.NOTE,
    epoch: int = 1,
    target: EntryId = NO_ENTRY,
    first_seen: int | None = None,
    room: str = "",
) -> SignedEntry:
    """An entry of author `by`."""
    header = EntryHeader(
        MESH, author(by), epoch, seq, time, kind, room, "name", "program", NO_ENTRY, (), "", 0, target,
        len(body.encode()), body_hash(body.encode()),
    )  # fmt: skip
    data, signature = sign_entry(header)
    return SignedEntry(header, data, signature, entry_id(data), body, time if first_seen is None else first_seen)


def without_text(whole: SignedEntry) -> SignedEntry:
    """As it is sent when its text was erased."""
    return replace(whole, body=None)
