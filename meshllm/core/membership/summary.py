"""Anti-entropy: how two nodes find out what one has that the other has not, in few bytes.

A digest has one short hash for each bucket of nodes; where the hashes differ, the answerer says what it holds, and each
side gets what it lacks (push-pull anti-entropy: Demers et al., PODC 1987).

Law: pure. A change of one node costs one hash, a message no more than what it says: nothing looks at all nodes.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from meshllm.core.membership.messages import MAX_DIGEST_BITS, Difference, Digest
from meshllm.core.records import NODE_ID_BYTES, NodeId, RecordVersion, SignedRecord

BUCKETS = 1 << MAX_DIGEST_BITS
HASH_BYTES = 4
# Messages of records stay below this, so that a ping behind one is not kept waiting.
CHUNK_BYTES = 60 << 10
# What a record takes in a message beside its body and signature.
RECORD_OVERHEAD_BYTES = 16
# Records asked for in one go, and nodes named in a difference: below 64 KiB. What is beyond comes in the next rounds.
MAX_WANTED_NODES = 1024
MAX_HELD = 1024
_ENTRY = struct.Struct(f"<{NODE_ID_BYTES}sQQ")


class Summary:
    """The nodes a table speaks of with their stamps, in the order of their ids, with the hash of every bucket.

    A bucket's hash is the exclusive or of its entries' hashes, so that a change needs nothing but the entry.
    """

    def __init__(self) -> None:
        self._stamps: dict[NodeId, RecordVersion] = {}
        self._ids: list[NodeId] = []
        self._hashes = [0] * BUCKETS

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> NodeId:
        return self._ids[index]

    def stamp(self, node: NodeId) -> RecordVersion | None:
        """The stamp `node` is listed with, if it is."""
        return self._stamps.get(node)

    def put(self, node: NodeId, stamp: RecordVersion) -> None:
        """`node` is at `stamp` now."""
        old = self._stamps.get(node)
        if old is None:
            insort(self._ids, node)
            self._hashes[node[0]] ^= _hash(node, stamp)
        else:
            self._hashes[node[0]] ^= _hash(node, old) ^ _hash(node, stamp)
        self._stamps[node] = stamp

    def discard(self, node: NodeId) -> None:
        """`node` is not spoken of any more."""
        old = self._stamps.pop(node, None)
        if old is not None:
            del self._ids[bisect_left(self._ids, node)]
            self._hashes[node[0]] ^= _hash(node, old)

    def bits(self) -> int:
        """About one node for each bucket, within the bounds."""
        return min(MAX_DIGEST_BITS, max(0, len(self._ids) - 1).bit_length())

    def digest(self) -> Digest:
        """This table in short."""
        bits = self.bits()
        return Digest(bits, struct.pack(f">{1 << bits}I", *self._folded(bits)))

    def difference(self, digest: Digest) -> Difference | None:
        """What to answer to another's digest: what is held where it differs. None if it is not a digest at all."""
        bits = digest.bits
        if not 0 <= bits <= MAX_DIGEST_BITS or len(digest.hashes) != HASH_BYTES << bits:
            return None
        buckets: list[int] = []
        held: list[tuple[NodeId, RecordVersion]] = []
        theirs = struct.unpack(f">{1 << bits}I", digest.hashes)
        for bucket, (mine, other) in enumerate(zip(self._folded(bits), theirs, strict=True)):
            if mine == other:
                continue
            inside = self.bucket(bits, bucket)
            if buckets and len(held) + len(inside) > MAX_HELD:
                break
            # One bucket alone can be too long only in a mesh of far more nodes than there are buckets.
            buckets.append(bucket)
            held += [(node, self._stamps[node]) for node in inside[: MAX_HELD * 2]]
        return Difference(bits, tuple(buckets), tuple(held))

    def bucket(self, bits: int, number: int) -> Sequence[NodeId]:
        """The nodes of one of 2**`bits` buckets, by the first bits of their ids."""
        width = BUCKETS >> bits
        low, high = number * width, (number + 1) * width
        first = bisect_left(self._ids, bytes((low,)))
        last = bisect_left(self._ids, bytes((high,))) if high < BUCKETS else len(self._ids)
        return self._ids[first:last]

    def _folded(self, bits: int) -> list[int]:
        width = BUCKETS >> bits
        if width == 1:
            return self._hashes
        folded = []
        for first in range(0, BUCKETS, width):
            number = 0
            for hashed in self._hashes[first : first + width]:
                number ^= hashed
            folded.append(number)
        return folded


def _hash(node: NodeId, stamp: RecordVersion) -> int:
    entry = _ENTRY.pack(node, stamp.incarnation, stamp.version)
    return int.from_bytes(blake2b(entry, digest_size=HASH_BYTES).digest())


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """What follows from a difference: `wanted` of the other, `offered` to it."""

    wanted: tuple[NodeId, ...]
    offered: tuple[NodeId, ...]


def plan(
    summary: Summary, buried: Callable[[NodeId], RecordVersion | None], difference: Difference
) -> ReconcilePlan | None:
    """Compare what the other holds with what is held here; None if it is not a possible difference.

    `buried` gives the stamp up to which nothing of a node is wanted, because it is gone.
    """
    if not 0 <= difference.bits <= MAX_DIGEST_BITS or len(difference.held) > 2 * MAX_HELD:
        return None
    if len(set(difference.buckets)) != len(difference.buckets):
        return None
    if any(not 0 <= bucket < 1 << difference.bits for bucket in difference.buckets):
        return None
    theirs = dict(difference.held)
    wanted, offered = [], []
    for node, stamp in theirs.items():
        mine, over = summary.stamp(node), buried(node)
        if (mine is None or mine < stamp) and (over is None or over < stamp):
            wanted.append(node)
        elif mine is not None and stamp < mine:
            offered.append(node)
    for bucket in difference.buckets:
        offered += [node for node in summary.bucket(difference.bits, bucket) if node not in theirs]
    return ReconcilePlan(tuple(wanted[:MAX_WANTED_NODES]), tuple(offered[:MAX_WANTED_NODES]))


def size(signed: SignedRecord) -> int:
    """Bytes a record takes in a message, about."""
    return len(signed.body) + len(signed.signature) + RECORD_OVERHEAD_BYTES


def chunks(records: Iterable[SignedRecord]) -> Iterator[tuple[SignedRecord, ...]]:
    """The records in portions that each fit a message; none for none."""
    portion: list[SignedRecord] = []
    total = 0
    for signed in records:
        if portion and total + size(signed) > CHUNK_BYTES:
            yield tuple(portion)
            portion, total = [], 0
        portion.append(signed)
        total += size(signed)
    if portion:
        yield tuple(portion)
