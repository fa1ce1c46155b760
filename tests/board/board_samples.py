"""Entries of the blackboard for tests: real headers in bytes of a codec of the tests' own, unsigned."""

from __future__ import annotations

from hashlib import blake2b
from random import Random

import msgpack

from meshllm.core.board.entries import (
    ENTRY_ID_BYTES,
    NO_ENTRY,
    EntryDraft,
    EntryHeader,
    EntryId,
    EntryKind,
    SignedEntry,
)
from meshllm.core.ids import MeshId, NodeId
from meshllm.errors import InputError

MESH = MeshId(b"m" * 16)
# A time of the board, unix ms.
START = 1_900_000_000_000


def node(number: int) -> NodeId:
    """The id of a node."""
    return NodeId(number.to_bytes(2, "big") * 16)


def encode_header(header: EntryHeader) -> bytes:
    """The bytes of a header."""
    data: bytes = msgpack.packb([getattr(header, name) for name in header.__slots__])
    return data


def decode_header(data: bytes) -> EntryHeader:
    """The header in `data`; raises InputError."""
    try:
        fields = msgpack.unpackb(data)
        fields[10] = tuple(fields[10])
        return EntryHeader(*fields)
    except (ValueError, TypeError, IndexError) as error:
        raise InputError("no header") from error


def signed(header: EntryHeader, body: str | None, first_seen: int | None = None) -> SignedEntry:
    """An entry with that header."""
    data = encode_header(header)
    item = EntryId(blake2b(data, digest_size=ENTRY_ID_BYTES).digest())
    return SignedEntry(header, data, blake2b(data).digest(), item, body, first_seen or header.time)


def written(author: NodeId, seq: int, time: int, draft: EntryDraft, *, epoch: int = START) -> SignedEntry:
    """The entry that a node makes of a draft."""
    body = draft.body.encode()
    header = EntryHeader(
        MESH, author, epoch, seq, time, int(draft.kind), draft.room, draft.name, draft.program, draft.reply_to,
        draft.to, draft.subject, draft.seconds, draft.target, len(body), blake2b(body, digest_size=16).digest(),
    )  # fmt: skip
    return signed(header, draft.body)


class SampleNode:
    """A node that numbers its entries and never goes back in time."""

    def __init__(self, number: int, *, name: str = "", program: str = "") -> None:
        self.id = node(number)
        self.name = name or f"writer{number}"
        self.program = program
        self.seq = 0
        self.time = 0

    def write(self, time: int, body: str = "", kind: EntryKind = EntryKind.NOTE, **fields: object) -> SignedEntry:
        """Its next entry, at `time` (unix ms) or later."""
        self.seq += 1
        self.time = max(self.time, time)
        chosen: dict[str, object] = {"name": self.name, "program": self.program, **fields}
        return written(self.id, self.seq, self.time, EntryDraft(body, kind, **chosen))  # type: ignore[arg-type]

    def claim(self, time: int, key: str, seconds: int, room: str = "") -> SignedEntry:
        """A claim."""
        return self.write(time, kind=EntryKind.CLAIM, subject=key, seconds=seconds, room=room)

    def renew(self, time: int, target: EntryId, seconds: int) -> SignedEntry:
        """A renewal."""
        return self.write(time, kind=EntryKind.RENEW, target=target, seconds=seconds)

    def release(self, time: int, target: EntryId) -> SignedEntry:
        """A release."""
        return self.write(time, kind=EntryKind.RELEASE, target=target)


_TEXT = (
    "parser lexer tokenizer scheduler retry timeout socket buffer kernel cache build docker compile failed passed "
    "branch merge conflict review deploy staging issue patch hotfix gguf model layer split memory oom vram driver "
    "cuda metal vulkan quantise context prompt template stream sse json schema http header cookie session login "
    "database index migration sqlite wal checkpoint lock deadlock race thread async await future coroutine task "
    "test fixture flaky coverage lint mypy ruff types release changelog version upgrade downgrade dependency"
)
WORDS = _TEXT.split()


def sample_text(rng: Random) -> str:
    """A message as agents write them."""
    words = rng.choices(WORDS, k=rng.randint(6, 60))
    words.insert(rng.randrange(len(words)), f"{rng.choice(WORDS)}_{rng.choice(WORDS)}_{rng.randrange(500)}")
    return f"{rng.choice(['STATUS: ', 'FINDING: ', 'QUESTION: ', ''])}{' '.join(words)} #{rng.randrange(3000)}"


NOTHING = NO_ENTRY
