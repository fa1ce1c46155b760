"""The summary of a membership table: what two nodes compare to find out which records one of them lacks.

A digest has one short hash per bucket of nodes. Where the hashes differ, the answerer lists the versions it holds, and
each side gets what it lacks (push-pull anti-entropy: Demers et al., PODC 1987). A change of one node costs one hash.
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
# Messages with records stay below this size, so that a ping behind one does not wait long.
CHUNK_BYTES = 60 << 10
# Bytes of a record in a message beside its body and signature.
RECORD_OVERHEAD_BYTES = 16
# Records requested at once, and nodes listed in a difference: below 64 KiB. The rest follows in the next rounds.
MAX_WANTED_NODES = 1024
MAX_HELD = 1024
_ENTRY = struct.Struct(f"<{NODE_ID_BYTES}sQQ")


class Summary:
    """The versions of all nodes that a table passes on, in the order of their ids, with a hash per bucket.

    A bucket's hash is the exclusive or of its entries' hashes, so that a change needs nothing but the entry.
    """

    def __init__(self) -> None:
        self._versions: dict[NodeId, RecordVersion] = {}
        self._ids: list[NodeId] = []
        self._hashes = [0] * BUCKETS

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> NodeId:
        return self._ids[index]

    def version(self, node: NodeId) -> RecordVersion | None:
        """The version of `node`, None if it is not listed."""
        return self._versions.get(node)

    def put(self, node: NodeId, version: RecordVersion) -> None:
        """List `node` with `version`."""
        old = self._versions.get(node)
        if old is None:
            insort(self._ids, node)
            self._hashes[node[0]] ^= _hash(node, version)
        else:
            self._hashes[node[0]] ^= _hash(node, old) ^ _hash(node, version)
        self._versions[node] = version

    def discard(self, node: NodeId) -> None:
        """List `node` no longer."""
        old = self._versions.pop(node, None)
        if old is not None:
            del self._ids[bisect_left(self._ids, node)]
            self._hashes[node[0]] ^= _hash(node, old)

    def bits(self) -> int:
        """The number of bits that gives about one node per bucket, within the bounds."""
        return min(MAX_DIGEST_BITS, max(0, len(self._ids) - 1).bit_length())

    @property
    def bucket_hashes(self) -> Sequence[int]:
        """The hash of each of the `BUCKETS` buckets, 32 bits."""
        return self._hashes

    def digest(self) -> Digest:
        """The digest to send."""
        bits = self.bits()
        return Digest(bits, struct.pack(f">{1 << bits}I", *self._folded(bits)))

    def difference(self, digest: Digest) -> Difference | None:
        """The answer to a peer's digest: the versions in the buckets that differ. None if the digest is malformed."""
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
            # A single bucket exceeds the bound only in a mesh with far more nodes than buckets.
            buckets.append(bucket)
            held += [(node, self._versions[node]) for node in inside[: MAX_HELD * 2]]
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


def _hash(node: NodeId, version: RecordVersion) -> int:
    entry = _ENTRY.pack(node, version.incarnation, version.version)
    return int.from_bytes(blake2b(entry, digest_size=HASH_BYTES).digest())


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """What follows from a difference: nodes whose records are `wanted` from the peer or `offered` to it."""

    wanted: tuple[NodeId, ...]
    offered: tuple[NodeId, ...]


def plan_exchange(
    summary: Summary, final_version: Callable[[NodeId], RecordVersion | None], difference: Difference
) -> ReconcilePlan | None:
    """Compare what the peer holds with `summary`; None if the difference is malformed.

    `final_version` returns the version up to which no record of a node is wanted, because the node is gone.
    """
    if not 0 <= difference.bits <= MAX_DIGEST_BITS or len(difference.held) > 2 * MAX_HELD:
        return None
    if len(set(difference.buckets)) != len(difference.buckets):
        return None
    if any(not 0 <= bucket < 1 << difference.bits for bucket in difference.buckets):
        return None
    theirs = dict(difference.held)
    wanted, offered = [], []
    for node, version in theirs.items():
        mine, final = summary.version(node), final_version(node)
        if (mine is None or mine < version) and (final is None or final < version):
            wanted.append(node)
        elif mine is not None and version < mine:
            offered.append(node)
    for bucket in difference.buckets:
        offered += [node for node in summary.bucket(difference.bits, bucket) if node not in theirs]
    return ReconcilePlan(tuple(wanted[:MAX_WANTED_NODES]), tuple(offered[:MAX_WANTED_NODES]))


def size(signed: SignedRecord) -> int:
    """About how many bytes a record takes in a message."""
    return len(signed.body) + len(signed.signature) + RECORD_OVERHEAD_BYTES


def chunks(records: Iterable[SignedRecord]) -> Iterator[tuple[SignedRecord, ...]]:
    """The records in portions that fit a message; no portion without records."""
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
