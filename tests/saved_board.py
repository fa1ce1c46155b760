"""What a daemon does for the blackboard of its core, without disk and cryptography: saves, and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from meshllm.core import commands as c
from meshllm.core import events as e
from meshllm.core.board.entries import EntryHeader, EntryId, SignedEntry
from meshllm.core.ids import NodeId
from meshllm.wire.mesh.board import encode_header, to_sign


def sign_entry(header: EntryHeader) -> tuple[bytes, bytes]:
    """The header's bytes and a stand-in for a signature, which only the author's name gives."""
    data = encode_header(header)
    return data, signature(header.author, to_sign(data))


def signature(node: NodeId, data: bytes) -> bytes:
    """The stand-in: 64 bytes that differ for each node and text."""
    return hashlib.sha512(b"entry" + node + data).digest()


def verify_entry(node: NodeId, data: bytes, given: bytes) -> bool:
    """The counterpart of `sign_entry`."""
    return given == signature(node, data)


class SavedBoard:
    """The disk of one node: what a restart finds."""

    def __init__(self) -> None:
        self.entries: dict[EntryId, SignedEntry] = {}
        self.certificates: list[bytes] = []
        self.epoch, self.last_seq, self.last_time = 1, 0, 0
        self.refused: list[tuple[int, str]] = []
        self.done: list[int] = []
        self.waiting, self.flagged = 0, ()
        self.seen: Callable[[c.BoardChanged], None] = lambda change: None

    def opened(self, unix: float) -> e.BoardOpened:
        """What is read at a start."""
        return e.BoardOpened(
            self.epoch, self.last_seq, self.last_time, tuple(self.entries.values()), tuple(self.certificates), unix
        )

    def carry_out(self, command: c.Command) -> e.Event | None:
        """Execute a command of the board; returns the answer, if it has one."""
        match command:
            case c.SavePost(number, entry):
                header = entry.header
                assert (header.epoch, header.seq) > (self.epoch, self.last_seq), "a number is used twice"
                self.epoch, self.last_seq, self.last_time = header.epoch, header.seq, header.time
                self.entries[entry.id] = entry
                return e.PostSaved(number)
            case c.RefusePost(number, reason):
                self.refused.append((number, reason))
            case c.BoardChanged():
                for entry in command.added:
                    self.entries[entry.id] = entry
                for gone in command.removed:
                    self.entries.pop(gone, None)
                for erased in command.erased:
                    old = self.entries[erased]
                    self.entries[erased] = SignedEntry(
                        old.header, old.data, old.signature, old.id, None, old.first_seen
                    )
                self.certificates += command.certificates
                self.waiting, self.flagged = command.waiting, command.flagged
                self.done += command.numbers
                self.seen(command)
            case _:
                pass
        return None

    @property
    def texts(self) -> list[str]:
        """The texts that are held, oldest first."""
        found = sorted(self.entries.values(), key=lambda entry: (entry.header.time, entry.id))
        return [entry.body for entry in found if entry.body is not None]
