"""Who holds which claim, from the entries of the log. Pure.

The holder of a key in a room is the earliest (time, id) claim that has neither expired nor been released. Invariants:
the answer depends on the set of entries and the time alone, never on the order in which they came; a claim is not taken
over by a later one before it expires or is released.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from meshllm.core.board.entries import MAX_CLAIM_SECONDS, EntryHeader, EntryId, EntryKind, SignedEntry

# A claim ends so long after it began, however often it is renewed: well before its first entry expires from the log.
MAX_HELD_SECONDS = 24 * 3600

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class BoardClaim:
    """A claim that was neither released nor has it expired: `header` of the CLAIM entry, and `until` (unix ms)."""

    id: EntryId
    header: EntryHeader
    until: int

    @property
    def since(self) -> int:
        """When it began, unix ms."""
        return self.header.time


@dataclass(slots=True)
class _Acts:
    """What entries say of one claim. They may come before the claim itself, and from other authors."""

    renewals: dict[EntryId, EntryHeader] = field(default_factory=dict)
    releases: dict[EntryId, EntryHeader] = field(default_factory=dict)


class ClaimFold:
    """The claims of a log. `add` and `remove` take any entries, in any order, repeatedly; other kinds are skipped."""

    def __init__(self) -> None:
        self._claims: dict[EntryId, EntryHeader] = {}
        self._by_key: dict[Key, set[EntryId]] = {}
        self._acts: dict[EntryId, _Acts] = {}
        # The claim that a renewal or release is about.
        self._targets: dict[EntryId, EntryId] = {}
        # The end of each claim, unix ms; 0 if it was released. Computed when it is asked for.
        self._ends: dict[EntryId, int] = {}

    def add(self, entries: Iterable[SignedEntry]) -> None:
        """Take entries of the log."""
        for entry in entries:
            header = entry.header
            if header.kind == EntryKind.CLAIM:
                self._claims[entry.id] = header
                self._by_key.setdefault((header.room, header.subject), set()).add(entry.id)
            elif header.kind in (EntryKind.RENEW, EntryKind.RELEASE):
                acts = self._acts.setdefault(header.target, _Acts())
                (acts.renewals if header.kind == EntryKind.RENEW else acts.releases)[entry.id] = header
                self._targets[entry.id] = header.target
                self._ends.pop(header.target, None)

    def remove(self, ids: Iterable[EntryId]) -> None:
        """Drop entries that have left the log."""
        for item in ids:
            if (header := self._claims.pop(item, None)) is not None:
                self._ends.pop(item, None)
                key = (header.room, header.subject)
                self._by_key[key].discard(item)
                if not self._by_key[key]:
                    del self._by_key[key]
            elif (target := self._targets.pop(item, None)) is not None:
                acts = self._acts[target]
                acts.renewals.pop(item, None)
                acts.releases.pop(item, None)
                self._ends.pop(target, None)
                if not acts.renewals and not acts.releases:
                    del self._acts[target]

    def holder(self, room: str, key: str, now: int) -> BoardClaim | None:
        """The claim that holds `key` in `room` at `now` (unix ms)."""
        live = self.live(room, key, now)
        return live[0] if live else None

    def live(self, room: str, key: str, now: int) -> list[BoardClaim]:
        """All claims of `key` in `room` that have not ended at `now`: the holder first, then those that wait."""
        found = self._by_key.get((room, key), ())
        claims = [BoardClaim(item, self._claims[item], self._end(item)) for item in found if now < self._end(item)]
        return sorted(claims, key=lambda claim: (claim.header.time, claim.id))

    def holders(self, now: int) -> list[BoardClaim]:
        """The claims that hold at `now`, one for each key, the next to end first."""
        found = [claim for room, key in self._by_key if (claim := self.holder(room, key, now)) is not None]
        return sorted(found, key=lambda claim: (claim.until, claim.id))

    def _end(self, item: EntryId) -> int:
        end = self._ends.get(item)
        if end is None:
            end = self._ends[item] = _end(self._claims[item], self._acts.get(item))
        return end


def _end(claim: EntryHeader, acts: _Acts | None) -> int:
    """When a claim ends, unix ms; 0 once it was released. Only its own author's node renews and releases it.

    A renewal counts if it was made before the end.
    """
    end = claim.time + _milliseconds(claim)
    if acts is None:
        return end
    if any(release.author == claim.author for release in acts.releases.values()):
        return 0
    last = claim.time + MAX_HELD_SECONDS * 1000
    own = [renewal for renewal in acts.renewals.values() if renewal.author == claim.author]
    for renewal in sorted(own, key=lambda renewal: renewal.time):
        if claim.time <= renewal.time < end:
            end = min(last, max(end, renewal.time + _milliseconds(renewal)))
    return end


def _milliseconds(header: EntryHeader) -> int:
    return max(0, min(header.seconds, MAX_CLAIM_SECONDS)) * 1000
