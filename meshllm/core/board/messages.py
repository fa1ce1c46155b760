"""Messages about the blackboard on the control stream of a link. `wire/mesh/board.py` has the bytes and the bounds."""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.board.chain import ChainId
from meshllm.core.board.entries import SignedEntry
from meshllm.core.membership.messages import Message

# Chains listed in a difference, and ranges asked for at once: below 64 KiB.
MAX_CHAINS_LISTED = 1024
MAX_RANGES = 512
# Entries in one message: 3 ms of signature checks. A ping behind a message does not wait long.
MAX_ENTRIES_SENT = 32
MAX_ENTRIES_BYTES = 32 << 10


@dataclass(frozen=True, slots=True)
class ChainState:
    """What a node holds of a chain: entries from `floor` (lower ones expired or had no room) to `last`. `broken`: it
    holds a proof that the author broke the rules."""

    chain: ChainId
    last: int
    floor: int
    broken: bool = False


@dataclass(frozen=True, slots=True)
class ChainRange:
    """The entries `first` to `last` of a chain; 0 to 0: the proof that its author broke the rules."""

    chain: ChainId
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class BoardDigest(Message):
    """A digest of the sender's chains, as `Digest` has one of records; the answer is a `BoardDifference`."""

    bits: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class BoardDifference(Message):
    """The chains that the sender holds in some buckets (of 2**`bits`, by the first bits of the chain's key), or, with
    `reply`, those of them that the receiver lacks."""

    bits: int
    buckets: tuple[int, ...]
    chains: tuple[ChainState, ...]
    reply: bool = False


@dataclass(frozen=True, slots=True)
class BoardWant(Message):
    """A request for entries. Each is answered, up to a limit of bytes, and the last message of the answer says so."""

    ranges: tuple[ChainRange, ...]


@dataclass(frozen=True, slots=True)
class BoardEntries(Message):
    """Entries, with the certificates of their authors. The receiving daemon has verified the signatures.

    `push`: new ones, which each receiver that did not have them passes on at once. `end`: the answer to a `BoardWant`
    ends here.
    """

    entries: tuple[SignedEntry, ...]
    certificates: tuple[bytes, ...] = ()
    push: bool = False
    end: bool = False


BoardMessage = BoardDigest | BoardDifference | BoardWant | BoardEntries
