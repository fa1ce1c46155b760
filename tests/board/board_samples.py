"""Entries of the blackboard for tests: real headers, with a stand-in for the signature."""

from __future__ import annotations

from random import Random

from meshllm.core.board.entries import (
    MAX_CLAIM_SECONDS,
    EntryDraft,
    EntryHeader,
    EntryId,
    EntryKind,
    SignedEntry,
    body_hash,
    entry_id,
)
from meshllm.core.ids import MeshId, NodeId
from tests.saved_board import sign_entry

MESH = MeshId(b"m" * 16)
# A time of the board, unix ms.
START = 1_900_000_000_000


def node(number: int) -> NodeId:
    """The id of a node."""
    return NodeId(number.to_bytes(2, "big") * 16)


def written(author: NodeId, seq: int, time: int, draft: EntryDraft, *, epoch: int = START) -> SignedEntry:
    """The entry that a node makes of a draft, with a stand-in for the signature."""
    body = draft.body.encode()
    header = EntryHeader(
        MESH, author, epoch, seq, time, int(draft.kind), draft.room, draft.name, draft.program, draft.reply_to,
        draft.to, draft.subject, draft.seconds, draft.target, len(body), body_hash(body),
    )  # fmt: skip
    data, signature = sign_entry(header)
    return SignedEntry(header, data, signature, entry_id(data), draft.body, time)


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
        seconds = min(seconds, MAX_CLAIM_SECONDS)
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
