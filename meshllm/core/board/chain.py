"""One chain of the blackboard: the entries of one author in one epoch, numbered from 1 without gaps.

What may be in a chain follows from signed bytes alone, so all nodes agree on it: numbers and times grow together, and
no faster than an author may write. Two headers that cannot both be in a chain are a proof that its author broke the
rules; the chain ends with it. Entries may arrive in any order, so a chain that is held can have gaps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from meshllm.core.board.entries import ENTRIES_AT_ONCE, ENTRIES_PER_MINUTE, RESERVED_AT_ONCE, SignedEntry
from meshllm.core.ids import NODE_ID_BYTES, NodeId

MINUTE_MS = 60_000
ALLOWED_SLACK = (ENTRIES_AT_ONCE + RESERVED_AT_ONCE - 1) * MINUTE_MS


class ChainId(NamedTuple):
    """An author and the epoch of its numbering."""

    author: NodeId
    epoch: int

    @property
    def key(self) -> NodeId:
        """Under which key a summary lists the chain: a hash, so that the epochs of one author are spread."""
        data = self.author + self.epoch.to_bytes(8, "big")
        return NodeId(blake2b(data, digest_size=NODE_ID_BYTES, person=b"board chain").digest())


def chain_of(entry: SignedEntry) -> ChainId:
    """The chain that an entry belongs to."""
    return ChainId(entry.header.author, entry.header.epoch)


def _slack(seq: int, time: int) -> int:
    """How many entries were written beyond the steady rate by that one, in 1/60,000 of an entry, but for a constant of
    the chain. Between any two entries it grows by `ALLOWED_SLACK` at most (a token bucket: GCRA, ATM Forum 1996)."""
    return seq * MINUTE_MS - ENTRIES_PER_MINUTE * time


@dataclass(slots=True)
class Chain:
    """The entries held of a chain, by their numbers. `floor`: no lower number is wanted. `proof`: two entries that
    cannot both be in it. `tried`: peers that were asked for its gaps in vain."""

    id: ChainId
    key: NodeId
    entries: dict[int, SignedEntry] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    floor: int = 1
    proof: tuple[SignedEntry, SignedEntry] | None = None
    tried: set[NodeId] = field(default_factory=set)
    _least_slack: int | None = None

    @property
    def last(self) -> int:
        """The highest number held, 0 if none is."""
        return self.numbers[-1] if self.numbers else 0

    def contradiction(self, entry: SignedEntry, reserved: int = 0) -> SignedEntry | None:
        """A held entry that cannot be in a chain together with `entry`, None if there is none. `reserved`: so many more
        entries must have room after it."""
        seq, time = entry.header.seq, entry.header.time
        held = self.entries.get(seq)
        if held is not None:
            return held if held.id != entry.id else None
        place = bisect_left(self.numbers, seq)
        if place and (before := self.entries[self.numbers[place - 1]]).header.time > time:
            return before
        if place < len(self.numbers) and (after := self.entries[self.numbers[place]]).header.time < time:
            return after
        slack = _slack(seq, time) + reserved * MINUTE_MS
        if place == len(self.numbers) and (self._least_slack is None or slack - self._least_slack <= ALLOWED_SLACK):
            return None  # the usual case, without a look at each entry
        for number in self.numbers:
            other = self.entries[number]
            grown = slack - _slack(number, other.header.time)
            if (grown if number < seq else -grown) > ALLOWED_SLACK:
                return other
        return None

    def put(self, entry: SignedEntry) -> None:
        """Hold `entry`, which contradicts none that is held, or replace the held one of that number."""
        seq = entry.header.seq
        if seq not in self.entries:
            insort(self.numbers, seq)
            slack = _slack(seq, entry.header.time)
            self._least_slack = slack if self._least_slack is None else min(slack, self._least_slack)
        self.entries[seq] = entry

    def remove(self, seq: int) -> None:
        """Hold the entry of that number no longer: nor is it, or any lower one, wanted again."""
        del self.entries[seq]
        del self.numbers[bisect_left(self.numbers, seq)]
        self.floor = max(self.floor, seq + 1)

    def numbers_in(self, first: int, last: int) -> list[int]:
        """The numbers held from `first` to `last`."""
        return self.numbers[bisect_left(self.numbers, first) : bisect_right(self.numbers, last)]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """The ranges of numbers that are missing below the highest one."""
        expected = self.floor
        for number in self.numbers:
            if number > expected:
                yield expected, number - 1
            expected = max(expected, number + 1)
