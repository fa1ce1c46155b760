"""The entries of the blackboard that this node holds: what is taken in, what is erased, what expires, what has no room.

Invariants: within the bounds of the mesh and of each author, whatever peers send; over them the author with most
goes first, with its oldest, so that a flood removes nothing of others. A retracted text is held nowhere. No entry
outlives `LIFETIME_SECONDS`. All times are unix ms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b
from heapq import heapify, heappop, heappush

from meshllm.core.board import entries as b
from meshllm.core.board.chain import Chain, ChainId, chain_of
from meshllm.core.board.entries import EntryId, EntryKind, SignedEntry
from meshllm.core.ids import NodeId
from meshllm.core.membership.summary import Summary
from meshllm.core.records import RecordVersion

LIFETIME_MS = b.LIFETIME_SECONDS * 1000
AHEAD_MS = b.MAX_AHEAD_SECONDS * 1000
# Epochs of one author: each start of a node without a store begins one.
MAX_EPOCHS = 16
# Chains that expired or had no room, so that they are not asked for again while other nodes still list them.
MAX_ENDED = 4096
# Moments of expiry that are kept for entries that went before.
MAX_STALE = 1024
SUMMARY_HASH_BYTES = 8
# Bytes of an entry in memory beside its texts.
ENTRY_OVERHEAD_BYTES = 64


class AddResult(Enum):
    """What became of an entry. NEW: it counts. FILLED: its text was missing here. KNOWN: nothing changed. AHEAD: its
    time is ahead of this machine's clock. LATE: it expired, or has no room. BROKEN: the author broke the rules with
    it. REFUSED: its chain ended before."""

    NEW = "new"
    FILLED = "filled"
    KNOWN = "known"
    AHEAD = "ahead"
    LATE = "late"
    BROKEN = "broken"
    REFUSED = "refused"


@dataclass(slots=True)
class BoardDelta:
    """What changed since the last look."""

    added: list[SignedEntry] = field(default_factory=list)
    erased: list[EntryId] = field(default_factory=list)
    removed: list[EntryId] = field(default_factory=list)


class BoardLog:
    """All chains of one mesh."""

    def __init__(self) -> None:
        self.chains: dict[ChainId, Chain] = {}
        self.summary = Summary()
        self.delta = BoardDelta()
        self.latest = 0  # the latest time of any entry that was taken in
        self.bytes = 0
        self._by_key: dict[NodeId, Chain] = {}
        self._epochs: dict[NodeId, dict[int, Chain]] = {}
        self._by_id: dict[EntryId, SignedEntry] = {}
        self._authors: dict[NodeId, tuple[int, int]] = {}  # entries and bytes of each
        # The retractions that are held of each target, by their authors: only the target's own author erases it.
        self._retracted: dict[tuple[EntryId, NodeId], set[EntryId]] = {}
        self._ended: dict[ChainId, int] = {}  # up to which number
        self._incomplete: set[ChainId] = set()
        self._expiry: list[tuple[int, EntryId]] = []
        self._hash: bytes | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[SignedEntry]:
        return iter(self._by_id.values())

    def entry(self, entry: EntryId) -> SignedEntry | None:
        """The entry with that id."""
        return self._by_id.get(entry)

    def chain(self, key: NodeId) -> Chain | None:
        """The chain with that key of the summary."""
        return self._by_key.get(key)

    @property
    def hash(self) -> bytes:
        """Equal at two nodes exactly if they hold the same up to the same numbers (8 bytes)."""
        if self._hash is None:
            numbers = self.summary.bucket_hashes
            self._hash = blake2b(struct.pack(f">{len(numbers)}I", *numbers), digest_size=SUMMARY_HASH_BYTES).digest()
        return self._hash

    @property
    def flagged(self) -> tuple[NodeId, ...]:
        """The authors that broke the rules."""
        return tuple(sorted({chain.id.author for chain in self.chains.values() if chain.proof is not None}))

    def first_wanted(self, chain: ChainId) -> int:
        """The lowest number of `chain` that this node may lack."""
        held = self.chains.get(chain)
        return max(held.floor if held is not None else 1, self._ended.get(chain, 0) + 1)

    def count(self, author: NodeId) -> int:
        """How many entries of `author` are held."""
        return self._authors.get(author, (0, 0))[0]

    # -- taking in

    def add(self, entry: SignedEntry, now: int) -> AddResult:
        """Take in an entry of this mesh with a verified signature; `now`: this machine's clock."""
        header, chain_id = entry.header, chain_of(entry)
        if header.time > now + AHEAD_MS:
            return AddResult.AHEAD
        if _expires(entry) <= now or header.seq < self.first_wanted(chain_id):
            return AddResult.LATE
        chain = self.chains.get(chain_id) or self._new_chain(chain_id)
        if chain is None or chain.proof is not None:
            return AddResult.REFUSED
        if (other := chain.contradiction(entry)) is not None:
            self._break(chain, other, entry)
            return AddResult.BROKEN
        held = chain.entries.get(header.seq)
        if held is not None:
            return self._fill(chain, held, entry)
        if self.is_retracted(entry):
            entry = replace(entry, body=None)
        self._put(chain, entry)
        self.delta.added.append(entry)
        self.latest = max(self.latest, header.time)
        if header.kind == EntryKind.RETRACT:
            self._retract(entry)
        self._make_room(header.author)
        return AddResult.NEW if entry.id in self._by_id else AddResult.LATE

    def _new_chain(self, chain_id: ChainId) -> Chain | None:
        epochs = self._epochs.setdefault(chain_id.author, {})
        if len(epochs) >= MAX_EPOCHS:
            oldest = min(epochs)
            if chain_id.epoch < oldest:
                return None
            self._drop_chain(epochs[oldest])
            epochs = self._epochs.setdefault(chain_id.author, {})
        chain = Chain(chain_id, chain_id.key)
        self.chains[chain_id] = self._by_key[chain_id.key] = epochs[chain_id.epoch] = chain
        chain.floor = self._ended.pop(chain_id, 0) + 1
        return chain

    def _fill(self, chain: Chain, held: SignedEntry, entry: SignedEntry) -> AddResult:
        """The same entry again: its text may have been missing."""
        if held.body is not None or entry.body is None or self.is_retracted(held):
            return AddResult.KNOWN
        self._forget(held)
        filled = replace(held, body=entry.body)
        self._put(chain, filled)
        self.delta.added.append(filled)
        self._make_room(filled.header.author)
        return AddResult.FILLED

    def _put(self, chain: Chain, entry: SignedEntry) -> None:
        chain.put(entry)
        self._by_id[entry.id] = entry
        count, size = self._authors.get(chain.id.author, (0, 0))
        self._authors[chain.id.author] = (count + 1, size + _size(entry))
        self.bytes += _size(entry)
        heappush(self._expiry, (_expires(entry), entry.id))
        if len(self._expiry) > MAX_STALE + 2 * len(self._by_id):
            self._expiry = [(_expires(each), each.id) for each in self._by_id.values()]
            heapify(self._expiry)
        seq = entry.header.seq
        if seq > chain.floor and seq - 1 not in chain.entries:
            chain.tried.clear()  # no peer has been asked for this gap yet
            self._incomplete.add(chain.id)
        elif self._lacks_text(entry):
            self._incomplete.add(chain.id)
        self._list(chain)

    def _lacks_text(self, entry: SignedEntry) -> bool:
        return entry.body is None and not self.is_retracted(entry)

    def incomplete(self, most_tried: int) -> list[Chain]:
        """The chains in which entries or their texts are missing, and for which fewer peers than that were asked."""
        found = []
        for chain_id in sorted(self._incomplete):
            chain = self.chains.get(chain_id)
            if chain is None or chain.proof is not None or not self.missing(chain):
                self._incomplete.discard(chain_id)
            elif len(chain.tried) < most_tried:
                found.append(chain)
            else:
                self._incomplete.discard(chain_id)  # given up; the next gap brings it back
        return found

    def missing(self, chain: Chain) -> list[tuple[int, int]]:
        """The ranges of numbers of a chain that are missing, or whose text is."""
        texts = [(number, number) for number, entry in chain.entries.items() if self._lacks_text(entry)]
        return sorted([*chain.gaps(), *texts])

    def _list(self, chain: Chain) -> None:
        """List a chain with its highest number. One that ended with a proof is listed alike, whatever is held of it."""
        self.summary.put(chain.key, RecordVersion(0, chain.last) if chain.proof is None else RecordVersion(1, 0))
        self._hash = None

    def _break(self, chain: Chain, one: SignedEntry, other: SignedEntry) -> None:
        """The author broke the rules: the chain ends here. Of two entries with one number the lower hash is shown."""
        first, second = sorted((one, other), key=lambda entry: (entry.header.seq, entry.id))
        chain.proof = (first, second)
        held = chain.entries.get(first.header.seq)
        if held is not None and first.header.seq == second.header.seq and first.id != held.id:
            self._forget(held)
            self._drop_retraction(held)
            self.delta.removed.append(held.id)
            self._put(chain, first)
            self.delta.added.append(first)
        if not chain.entries:
            self._put(chain, first)
            self.delta.added.append(first)
        self._list(chain)

    # -- retraction

    def is_retracted(self, entry: SignedEntry) -> bool:
        """Whether its author has erased its text."""
        return (entry.id, entry.header.author) in self._retracted

    def _retract(self, retraction: SignedEntry) -> None:
        target, author = retraction.header.target, retraction.header.author
        self._retracted.setdefault((target, author), set()).add(retraction.id)
        held = self._by_id.get(target)
        if held is None or held.header.author != author or held.body is None:
            return
        chain = self.chains[chain_of(held)]
        self._forget(held)
        self._put(chain, replace(held, body=None))
        self.delta.erased.append(target)

    # -- what goes

    def expire(self, now: int) -> None:
        """Remove what is too old."""
        while self._expiry and self._expiry[0][0] <= now:
            entry = self._by_id.get(heappop(self._expiry)[1])
            if entry is not None and _expires(entry) <= now:
                self._remove(entry)

    @property
    def next_expiry(self) -> int | None:
        """When the next entry expires, at the earliest (unix ms)."""
        return self._expiry[0][0] if self._expiry else None

    def remove_author(self, author: NodeId) -> None:
        """Remove all entries of a node that is no member any more."""
        for chain in list(self._epochs.get(author, {}).values()):
            self._drop_chain(chain)

    def unlist(self) -> None:
        """Keep what is held, but compare and pass on none of it any more: the mesh has another id."""
        for chain in self.chains.values():
            self.summary.discard(chain.key)
        self._hash = None

    def _make_room(self, author: NodeId) -> None:
        while self._authors.get(author, (0, 0))[0] > b.MAX_AUTHOR_ENTRIES or (
            self._authors.get(author, (0, 0))[1] > b.MAX_AUTHOR_BYTES
        ):
            self._remove_oldest(author)
        while len(self._by_id) > b.MAX_ENTRIES or self.bytes > b.MAX_BYTES:
            self._remove_oldest(max(self._authors, key=lambda each: (_share(self._authors[each]), each)))

    def _remove_oldest(self, author: NodeId) -> None:
        firsts = [chain.entries[chain.numbers[0]] for chain in self._epochs[author].values() if chain.numbers]
        self._remove(min(firsts, key=lambda entry: (entry.header.time, entry.id)))

    def _remove(self, entry: SignedEntry) -> None:
        chain = self.chains[chain_of(entry)]
        self._forget(entry)
        chain.remove(entry.header.seq)
        self.delta.removed.append(entry.id)
        self._drop_retraction(entry)
        if not chain.entries:
            self._drop_chain(chain)

    def _drop_chain(self, chain: Chain) -> None:
        for entry in list(chain.entries.values()):
            self._forget(entry)
            self._drop_retraction(entry)
            self.delta.removed.append(entry.id)
        self._ended.pop(chain.id, None)
        self._ended[chain.id] = max(chain.last, chain.floor - 1)
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self.summary.discard(chain.key)
        self._hash = None
        del self.chains[chain.id], self._by_key[chain.key]
        epochs = self._epochs[chain.id.author]
        del epochs[chain.id.epoch]
        if not epochs:
            del self._epochs[chain.id.author]

    def _drop_retraction(self, entry: SignedEntry) -> None:
        """An entry is held no longer; what it retracted is retracted by others of its author, or not any more."""
        key = (entry.header.target, entry.header.author)
        if entry.header.kind == EntryKind.RETRACT and key in self._retracted:
            self._retracted[key].discard(entry.id)
            if not self._retracted[key]:
                del self._retracted[key]

    def _forget(self, entry: SignedEntry) -> None:
        """Count an entry no longer; its place in the chain stays."""
        del self._by_id[entry.id]
        count, size = self._authors[entry.header.author]
        self.bytes -= _size(entry)
        if count == 1:
            del self._authors[entry.header.author]
        else:
            self._authors[entry.header.author] = (count - 1, size - _size(entry))

    def take_delta(self) -> BoardDelta:
        """What changed since the last call."""
        delta, self.delta = self.delta, BoardDelta()
        return delta


def _expires(entry: SignedEntry) -> int:
    return min(entry.header.time, entry.first_seen) + LIFETIME_MS


def _size(entry: SignedEntry) -> int:
    body = entry.header.body_bytes if entry.body is not None else 0
    return len(entry.data) + len(entry.signature) + body + ENTRY_OVERHEAD_BYTES


def _share(author: tuple[int, int]) -> float:
    """How much of what one author may have it has."""
    return max(author[0] / b.MAX_AUTHOR_ENTRIES, author[1] / b.MAX_AUTHOR_BYTES)
