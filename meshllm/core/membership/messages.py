"""What nodes say to each other on the control stream of a link. `wire/codec.py` turns each into bytes and back.

Law: every message is bounded (the codec refuses what is longer), and none is an order: the receiver decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshllm.core.records import MeshId, ModelLoad, NodeId, RecordVersion, SignedRecord

# A digest has at most 2**8 buckets: 1 KiB, whatever the size of the mesh.
MAX_DIGEST_BITS = 8


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages."""


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Answer me. The answer to exactly this `number` is the only sign of life there is."""

    number: int


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to a `Ping`, with what the sender is doing now."""

    number: int
    loads: tuple[ModelLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class Digest(Message):
    """The sender's table in short: nodes fall into 2**`bits` buckets by the first bits of their id; 4 bytes a bucket.

    A bucket's hash is the XOR of the hashes of each id and stamp in it (`gossip.Summary`).
    """

    bits: int
    hashes: bytes


@dataclass(frozen=True, slots=True)
class Difference(Message):
    """The answer to a `Digest` where hashes differ: what the answerer holds in those buckets."""

    bits: int
    buckets: tuple[int, ...]
    held: tuple[tuple[NodeId, RecordVersion], ...]


@dataclass(frozen=True, slots=True)
class Wanted(Message):
    """Please send these records."""

    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Records(Message):
    """Records the receiver may not have. `push`: news that is to be handed on at once by whoever had not heard it."""

    records: tuple[SignedRecord, ...]
    push: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """From a client: keep me up to date about who serves what."""


@dataclass(frozen=True, slots=True)
class TableUpdate(Message):
    """To a client: records that are new to it, and nodes that are no longer to be asked.

    `first`: forget what you had; `more`: another one follows at once. Together they make tables of any size bounded.
    """

    records: tuple[SignedRecord, ...]
    gone: tuple[NodeId, ...] = ()
    first: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True)
class Adopted(Message):
    """The sender has changed to this mesh id (see `convergence`); the receiver compares it with its own."""

    mesh: MeshId
